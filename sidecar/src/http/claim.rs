//! How a handshake takes its socket out of HTTP: the shard answers it, and nothing comes back through this runtime.

use std::sync::{Arc, Mutex, PoisonError};

use axum::response::Response;
use bytes::Bytes;

use super::{
    ClientPort,
    error::{RequestError, head},
    gate::Place,
};
use crate::shard::{Arrived, Handshake, Link, Refusal, Ticket};

/// Where a handler leaves a [`Claimed`] for whoever serves its connection. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Claim(Arc<Mutex<Option<Claimed>>>);

/// A handshake in good order, of a client that was let in.
#[derive(Debug)]
pub(super) struct Claimed {
    ticket: Ticket,
    answer: Answer,
}

/// What a client is told that has claimed its socket.
#[derive(Debug)]
struct Answer {
    port: ClientPort,
    /// What it reads first where it is accepted.
    accepted: Vec<u8>,
    /// It is on its way until it is answered.
    _place: Option<Place>,
}

impl Claim {
    pub(super) fn make(&self, claimed: Claimed) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(claimed);
    }

    pub(super) fn take(&self) -> Option<Claimed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Claimed {
    /// `accepted`: the answer of a handshake that succeeds.
    pub(super) fn new(port: &ClientPort, ticket: Ticket, accepted: &Response, place: Option<Place>) -> Self {
        // It is on its way until its shard has answered, which nobody hurries by leaving.
        if let Some(place) = &place {
            place.keep();
        }
        let accepted = head(accepted.status(), accepted.headers());
        Self { ticket, answer: Answer { port: port.clone(), accepted, _place: place } }
    }

    /// Goes to its shard with its socket, non-blocking, and what the client has sent behind its handshake.
    pub(super) fn hand_over(self, socket: std::net::TcpStream, leftover: Bytes) {
        let Self { ticket, answer } = self;
        ticket.admit(Arrived { link: Link::Socket(socket), leftover, handshake: Box::new(answer) });
    }
}

impl Handshake for Answer {
    fn accepted(self: Box<Self>) -> Vec<u8> {
        self.accepted
    }

    fn refused(self: Box<Self>, refusal: Refusal) -> Vec<u8> {
        let error = RequestError::from(refusal);
        self.port.metrics().refused(error.reason());
        error.message()
    }
}
