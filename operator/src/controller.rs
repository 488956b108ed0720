//! Reconcile, in five steps: dereference → validate → build → apply → status.

pub mod build;
pub mod validate;
