//! The proof that publications get through: each node publishes on a channel of its own, by the way of all
//! publications, and expects it back. A connection that is silent is dead: it is torn down and made anew.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{BrokerHealth, Metrics};
use crate::{
    broker::{Broker, BrokerError, INTERNAL_NAMESPACE},
    domain::{ChannelName, NodeId, Payload, Publication},
    work::now_us,
};

/// Between canaries while the last one came back.
const IDLE: Duration = Duration::from_secs(5);
/// Between canaries while none came back: soon enough for a start, no load for a struggling Redis.
const UNVERIFIED: Duration = Duration::from_secs(2);
/// Before the next try where the broker did not even take it.
const REFUSED: Duration = Duration::from_millis(250);
/// Intervals without a canary after which the connection counts as dead.
const MISSES: u32 = 3;
/// Canaries that may still come back.
const OUT: usize = 8;

/// What the bridge and the broker tell.
#[derive(Debug)]
pub(super) enum Note {
    /// Subscriptions are live.
    Connected,
    /// The canary's own channel is among them.
    Listening,
    /// The connection is lost.
    Disconnected(Arc<str>),
    /// A canary came back.
    Returned(Bytes),
    /// The broker did not take a canary.
    Refused(BrokerError),
}

/// The task.
pub(super) struct Canary {
    channel: ChannelName,
    broker: Arc<dyn Broker>,
    state: State,
    notes: mpsc::UnboundedReceiver<Note>,
    refused: (mpsc::UnboundedSender<Note>, mpsc::UnboundedReceiver<Note>),
    health: watch::Sender<BrokerHealth>,
    metrics: Metrics,
}

/// What is known, and what is due; pure.
struct State {
    health: BrokerHealth,
    number: u64,
    out: VecDeque<(u64, Instant)>,
    /// Since when there is the connection that there was last.
    connected_at: Instant,
    send_at: Instant,
    /// When the connection counts as dead, if no canary comes back before.
    dead_at: Instant,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Send(u64),
    Rebuild,
}

impl Canary {
    pub(super) fn new(
        node: NodeId,
        broker: Arc<dyn Broker>,
        metrics: Metrics,
        notes: mpsc::UnboundedReceiver<Note>,
    ) -> (Self, watch::Receiver<BrokerHealth>) {
        let channel = format!("{INTERNAL_NAMESPACE}:canary:{node}").parse().expect("a good name");
        let (health, receiver) = watch::channel(BrokerHealth::default());
        let (state, refused) = (State::new(Instant::now()), mpsc::unbounded_channel());
        (Self { channel, broker, state, notes, refused, health, metrics }, receiver)
    }

    pub(super) fn channel(&self) -> &ChannelName {
        &self.channel
    }

    pub(super) async fn run(mut self) {
        loop {
            let note = tokio::select! {
                note = self.notes.recv() => note,
                note = self.refused.1.recv() => note,
                () = sleep_until(self.state.next_at()) => { self.act(); continue }
            };
            let Some(note) = note else { return };
            self.note(note);
            self.act();
        }
    }

    fn note(&mut self, note: Note) {
        let now = Instant::now();
        match note {
            Note::Connected => self.state.connected(now),
            Note::Listening => self.state.listening(now),
            Note::Disconnected(reason) => self.state.disconnected(reason),
            Note::Refused(error) => self.state.refused(&error, now),
            Note::Returned(number) => {
                if let Some(round_trip) = self.state.returned(&number, now) {
                    self.metrics.round_trip.observe(round_trip.as_secs_f64());
                }
            }
        }
    }

    fn act(&mut self) {
        match self.state.due(Instant::now()) {
            Due::Nothing => {}
            Due::Send(number) => self.send(number),
            Due::Rebuild => {
                self.metrics.rebuilds.inc();
                self.broker.rebuild("no canary came back");
            }
        }
        let health = &self.state.health;
        self.metrics.verified.set(i64::from(self.state.is_proven()));
        self.health.send_if_modified(|last| {
            last != health && {
                *last = health.clone();
                true
            }
        });
    }

    fn send(&self, number: u64) {
        let payload = Payload::Text(number.to_string().into());
        let publication = Publication {
            published_at_us: Some(now_us()),
            ..Publication::bare(self.channel.clone(), payload)
        };
        let answer = self.broker.publish(publication);
        let refused = self.refused.0.clone();
        tokio::spawn(async move {
            if let Err(error) = answer.await {
                // Nobody listens once the canary has ended.
                let _ = refused.send(Note::Refused(error));
            }
        });
    }
}

impl State {
    fn new(now: Instant) -> Self {
        let health = BrokerHealth { reason: Some("not connected yet".into()), ..BrokerHealth::default() };
        let (out, dead_at) = (VecDeque::new(), now + MISSES * UNVERIFIED);
        Self { health, number: 0, out, connected_at: now, send_at: now, dead_at }
    }

    /// Whether a canary came back in time, and over the connection that there is now.
    fn is_proven(&self) -> bool {
        let BrokerHealth { connected, verified, verified_at, .. } = self.health;
        connected && verified && verified_at.is_some_and(|at| at >= self.connected_at)
    }

    fn next_at(&self) -> Instant {
        self.send_at.min(self.dead_at)
    }

    fn interval(&self) -> Duration {
        if self.health.verified { IDLE } else { UNVERIFIED }
    }

    fn connected(&mut self, now: Instant) {
        self.health.connected = true;
        self.connected_at = now;
        if !self.health.verified {
            self.health.reason = Some("no canary came back yet".into());
        }
        self.send_at = now;
        self.dead_at = self.dead_at.max(now + MISSES * UNVERIFIED);
    }

    fn listening(&mut self, now: Instant) {
        self.send_at = now;
    }

    fn disconnected(&mut self, reason: Arc<str>) {
        self.health.connected = false;
        self.health.reason = Some(reason);
        self.out.clear();
    }

    fn refused(&mut self, error: &BrokerError, now: Instant) {
        if !self.health.verified && self.health.connected {
            self.health.reason = Some(error.to_string().into());
        }
        self.send_at = self.send_at.min(now + REFUSED);
    }

    fn returned(&mut self, number: &[u8], now: Instant) -> Option<Duration> {
        let number: u64 = std::str::from_utf8(number).ok()?.parse().ok()?;
        let at = self.out.iter().position(|(sent, _)| *sent == number)?;
        let (_, sent_at) = self.out.drain(..=at).next_back()?;
        let round_trip = now - sent_at;
        let health = &mut self.health;
        (health.verified, health.verified_at, health.round_trip) = (true, Some(now), Some(round_trip));
        health.reason = None;
        self.send_at = now + IDLE;
        self.dead_at = now + MISSES * IDLE;
        Some(round_trip)
    }

    fn due(&mut self, now: Instant) -> Due {
        if now >= self.dead_at {
            self.give_up(now)
        } else if now >= self.send_at {
            self.send(now)
        } else {
            Due::Nothing
        }
    }

    fn give_up(&mut self, now: Instant) -> Due {
        self.health.verified = false;
        self.dead_at = now + MISSES * UNVERIFIED;
        self.send_at = now + UNVERIFIED;
        if !self.health.connected {
            return Due::Nothing;
        }
        self.health.reason = Some("no canary came back in time".into());
        Due::Rebuild
    }

    fn send(&mut self, now: Instant) -> Due {
        self.send_at = now + self.interval();
        if !self.health.connected {
            return Due::Nothing;
        }
        self.number += 1;
        self.out.push_back((self.number, now));
        if self.out.len() > OUT {
            self.out.pop_front();
        }
        Due::Send(self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_canary_that_comes_back_verifies_the_way_until_three_are_missing() {
        let start = Instant::now();
        let mut state = State::new(start);
        assert_eq!(state.due(start), Due::Nothing, "nothing is sent before a connection");
        state.connected(start);
        assert_eq!(state.due(start), Due::Send(1));
        assert!(!state.health.verified);
        let back = start + Duration::from_millis(3);
        assert_eq!(state.returned(b"1", back), Some(Duration::from_millis(3)));
        assert!(state.health.verified && state.health.reason.is_none());
        assert_eq!(state.due(back), Due::Nothing);
        assert_eq!(state.due(back + 5 * SECOND), Due::Send(2));
        assert_eq!(state.due(back + 10 * SECOND), Due::Send(3));
        assert_eq!(state.due(back + 15 * SECOND), Due::Rebuild);
        assert!(!state.health.verified);
    }

    #[test]
    fn a_connection_that_never_brought_one_back_is_made_anew_every_six_seconds() {
        let start = Instant::now();
        let mut state = State::new(start);
        state.connected(start);
        let mut rebuilt = Vec::new();
        for second in 0..=20 {
            if state.due(start + second * SECOND) == Due::Rebuild {
                rebuilt.push(second);
            }
        }
        assert_eq!(rebuilt, [6, 12, 18]);
    }

    #[test]
    fn a_short_outage_does_not_end_what_was_verified_and_a_long_one_does() {
        let start = Instant::now();
        let mut state = State::new(start);
        state.connected(start);
        state.due(start);
        state.returned(b"1", start);
        state.disconnected("gone".into());
        assert_eq!(state.due(start + 5 * SECOND), Due::Nothing);
        assert!(state.health.verified && !state.health.connected && !state.is_proven());
        assert_eq!(state.due(start + 15 * SECOND), Due::Nothing, "there is no connection to tear down");
        assert!(!state.health.verified);
        state.connected(start + 17 * SECOND);
        assert_eq!(state.due(start + 17 * SECOND), Due::Send(2), "a new connection is tried at once");
    }

    #[test]
    fn a_connection_made_anew_is_proven_by_its_own_canary_alone() {
        let start = Instant::now();
        let mut state = State::new(start);
        state.connected(start);
        state.due(start);
        state.returned(b"1", start);
        assert!(state.is_proven());
        state.disconnected("gone".into());
        state.connected(start + SECOND);
        assert_eq!(state.due(start + SECOND), Due::Send(2));
        assert!(
            state.health.verified && !state.is_proven(),
            "the node stays ready, the way is not proven yet"
        );
        state.returned(b"2", start + SECOND);
        assert!(state.is_proven());
    }

    #[test]
    fn a_canary_of_a_lost_connection_or_of_another_life_proves_nothing() {
        let start = Instant::now();
        let mut state = State::new(start);
        state.connected(start);
        state.due(start);
        assert_eq!(state.returned(b"7", start), None);
        assert_eq!(state.returned(b"x\xff", start), None);
        state.disconnected("gone".into());
        assert_eq!(state.returned(b"1", start), None);
        assert!(!state.health.verified);
    }

    #[test]
    fn a_refused_canary_is_tried_again_soon() {
        let start = Instant::now();
        let mut state = State::new(start);
        state.connected(start);
        state.due(start);
        state.refused(&BrokerError::Unavailable("no connection to publish".into()), start);
        assert_eq!(state.due(start + REFUSED), Due::Send(2));
        assert_eq!(
            state.health.reason.as_deref(),
            Some("the broker is not available: no connection to publish")
        );
    }
}
