//! The nouns that all parts speak. Imports nothing of the crate.

mod channel_name;
mod close_reason;
mod command;
mod ids;
mod object;
mod policy;
mod position;
mod publication;

pub use channel_name::{ChannelName, InvalidChannelName};
pub use close_reason::{CloseReason, Reconnect};
pub use command::{Command, CommandError};
pub use ids::{ConnectionId, InvalidClientId, NodeId, client_id, parse_client_id};
pub use object::{Object, unmarked};
pub use policy::{Denied, Exposure, Grants, Identity, KeyId, Policies, Policy};
pub use position::StreamPosition;
pub use publication::{Origin, Payload, Publication, label_bytes};
