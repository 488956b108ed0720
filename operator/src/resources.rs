//! The children of a FanoutCluster, one builder a file. Pure: called by `controller::build` only.

pub mod config_map;
pub mod labels;
pub mod network_policy;
pub mod pdb;
pub mod replica_set;
pub mod secret;
pub mod service;
pub mod service_account;
