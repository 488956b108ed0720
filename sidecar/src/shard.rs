//! A shard: a thread that owns its connections. What others see of it: [`Door`] to bring a connection,
//! [`Mailbox`] to send it mail, and the [`Work`] it sends out; everything else is private.
//!
//! A shard never blocks, locks (but for its mailbox), awaits or logs per message. It calls nobody: it hands
//! [`Work`] to a sender that `app` gave it.

mod link;
mod mail;
mod mailbox;

pub use link::Link;
pub use mail::{Completion, Mail, Refusal, Reservation, Reserved, Rules, Task, Work};
pub use mailbox::{Full, Inbox, Mailbox};
