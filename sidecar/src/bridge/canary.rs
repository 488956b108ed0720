//! The proof that publications get through: each node publishes on a channel of its own, one for each link, by the way
//! of all publications, and expects it back.
//!
//! The remedy fits the diagnosis. A canary that was taken and does not come back means that the subscribing connection
//! is silent, or that the two connections reach different servers: first that one is torn down and made again, then the
//! publishing one, in turn and with back-off. One that the broker refuses is an answer: it is reported,
//! and nothing is torn down. The same goes for the subscription to it: nothing can come back then. One that has no outcome, or finds no connection, is the publishing connection's own matter,
//! which makes itself again.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    BrokerHealth, Metrics, Peers,
    echo::{Echo, Seen, Verdict},
};
use crate::{
    broker::{Broker, BrokerError, FORMER_NAMES, INTERNAL_NAMESPACE, LinkId, PublishOptions, Side, Watchdog},
    domain::{ChannelName, NodeId, Payload, Publication},
    work::now_us,
};

/// Between canaries while the last one came back.
const IDLE: Duration = Duration::from_secs(5);
/// Between canaries while none came back: soon enough for a start, no load for a struggling Redis.
const UNVERIFIED: Duration = Duration::from_secs(2);
/// Before the next try where there was no connection to publish.
const NOT_TAKEN: Duration = Duration::from_millis(250);
/// Intervals without a canary after which the way counts as broken.
const MISSES: u32 = 3;
/// The longest time between two times that a silent connection is torn down.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Canaries that may still come back.
const OUT: usize = 8;
/// How often what is due is looked at; the watchdog asks for several times a second.
const TICK: Duration = Duration::from_millis(250);

/// What the bridge and the broker tell of a link.
#[derive(Debug)]
pub(super) enum Note {
    /// Subscriptions are live.
    Connected,
    /// The canary's own channel is among them, by this name.
    Listening(ChannelName),
    /// The broker does not bring the canary's own channel, for this reason.
    NotListening(Arc<str>),
    /// The connection is lost.
    Disconnected(Arc<str>),
    /// A canary came back.
    Returned(Bytes),
    /// What became of a canary.
    Sent(Result<(), BrokerError>),
}

/// The task.
pub(super) struct Canary {
    broker: Arc<dyn Broker>,
    links: Vec<Link>,
    peers: Peers,
    echo: Echo,
    notes: mpsc::UnboundedReceiver<(LinkId, Note)>,
    /// What became of canaries, told by their own tasks.
    outcomes: Outcomes,
    health: watch::Sender<BrokerHealth>,
    metrics: Metrics,
}

type Outcomes = (mpsc::UnboundedSender<(LinkId, Note)>, mpsc::UnboundedReceiver<(LinkId, Note)>);

struct Link {
    id: LinkId,
    /// Its names, in the order of preference.
    names: Vec<ChannelName>,
    /// The one in use.
    channel: ChannelName,
    state: State,
}

/// What is known of a link, and what is due; pure.
struct State {
    health: BrokerHealth,
    number: u64,
    out: VecDeque<(u64, Instant)>,
    /// Since when there is the connection that there was last.
    connected_at: Instant,
    /// The canary's channel is live on this connection, ...
    listening: bool,
    /// ... or why the broker does not bring it.
    deaf: Option<Arc<str>>,
    send_at: Instant,
    /// Since a canary came back last, or a connection was made.
    watchdog: Watchdog,
    /// A canary was taken since then.
    taken: bool,
    /// Why the broker refuses canaries.
    refused: Option<Arc<str>>,
    /// Nothing is torn down before, ...
    rebuild_at: Instant,
    /// ... so long was waited for it, ...
    pause: Duration,
    /// ... and this one is next.
    side: Side,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Send(u64),
    Rebuild(Side),
}

impl Canary {
    pub(super) fn new(
        node: NodeId,
        broker: Arc<dyn Broker>,
        peers: Peers,
        metrics: Metrics,
        notes: mpsc::UnboundedReceiver<(LinkId, Note)>,
    ) -> (Self, watch::Receiver<BrokerHealth>) {
        let now = Instant::now();
        let link = |id| {
            let names = names_of(node, id, &*broker);
            Link { id, channel: names[0].clone(), names, state: State::new(now) }
        };
        let links = (0..broker.links()).map(LinkId).map(link).collect();
        let (health, receiver) = watch::channel(BrokerHealth::default());
        let outcomes = mpsc::unbounded_channel();
        (Self { links, peers, echo: Echo::new(now), broker, notes, outcomes, health, metrics }, receiver)
    }

    /// The names of each link's canary, in the order of preference.
    pub(super) fn names(&self) -> Vec<(LinkId, Vec<ChannelName>)> {
        self.links.iter().map(|link| (link.id, link.names.clone())).collect()
    }

    pub(super) async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                note = self.notes.recv() => match note {
                    Some((link, note)) => self.note(link, note),
                    None => return,
                },
                Some((link, note)) = self.outcomes.1.recv() => self.note(link, note),
                _ = tick.tick() => {}
            }
            self.act();
        }
    }

    fn note(&mut self, link: LinkId, note: Note) {
        let Self { links, metrics, .. } = self;
        let Some(Link { state, channel, .. }) = links.get_mut(usize::from(link.0)) else { return };
        let now = Instant::now();
        match note {
            Note::Connected => state.connected(now),
            Note::Listening(name) => {
                *channel = name;
                state.listening(now);
            }
            Note::NotListening(reason) => state.not_listening(&reason),
            Note::Disconnected(reason) => state.disconnected(reason),
            Note::Sent(outcome) => state.sent(outcome, now),
            Note::Returned(number) => {
                if let Some(round_trip) = state.returned(&number, now) {
                    metrics.round_trip.observe(round_trip.as_secs_f64());
                }
            }
        }
    }

    fn act(&mut self) {
        let Self { broker, links, outcomes, metrics, .. } = self;
        for Link { id, channel, state, .. } in links {
            match state.due(Instant::now()) {
                Due::Nothing => {}
                Due::Send(number) => send(&**broker, *id, channel.clone(), number, outcomes.0.clone()),
                Due::Rebuild(side) => {
                    metrics.rebuilds.inc();
                    broker.rebuild(*id, side, "no canary came back");
                }
            }
        }
        let heard = self.judge_echo();
        self.tell(heard);
    }

    /// Returns `true` if another node hears this one, or there is none.
    fn judge_echo(&mut self) -> bool {
        let Self { broker, links, peers, echo, metrics, .. } = self;
        // Without a link that works nobody could hear it: that is told already.
        let are_proven = links.iter().all(|link| link.state.is_proven());
        let seen = Seen { are_others: are_proven && Seen::of(peers).are_others, ..Seen::of(peers) };
        let verdict = echo.judge(seen, Instant::now());
        if verdict == Verdict::Rebuild {
            tracing::warn!("no other node hears this one although there are some, connecting to Redis again");
            metrics.rebuilds.inc();
            for link in links {
                for side in [Side::Subscriber, Side::Publisher] {
                    broker.rebuild(link.id, side, "no other node hears this one");
                }
            }
        }
        verdict == Verdict::Heard
    }

    /// The node's health is that of its worst link.
    fn tell(&self, heard: bool) {
        let Self { links, health, metrics, .. } = self;
        let are_proven = links.iter().all(|link| link.state.is_proven());
        metrics.verified.set(i64::from(are_proven && heard));
        metrics.unheard.set(i64::from(!heard));
        metrics.publish_refused.set(i64::from(links.iter().any(|link| link.state.refused.is_some())));
        let rank = |link: &&Link| {
            let BrokerHealth { connected, verified, receive_only, .. } = link.state.health;
            (connected, verified || receive_only, verified)
        };
        let Some(worst) = links.iter().min_by_key(rank) else { return };
        let now = BrokerHealth { unheard: !heard, ..worst.state.health.clone() };
        health.send_if_modified(|last| {
            *last != now && {
                *last = now;
                true
            }
        });
    }
}

/// Channels of the node's own that live on the link: the first one, and that of the first version, which a broker grants
/// whose rules were made for it.
fn names_of(node: NodeId, link: LinkId, broker: &dyn Broker) -> Vec<ChannelName> {
    let plain = std::iter::once(format!("{INTERNAL_NAMESPACE}:canary:{node}"));
    let others = (1..).map(|number: u32| format!("{INTERNAL_NAMESPACE}:canary:{node}:{number}"));
    let parse = |name: String| name.parse::<ChannelName>().expect("a good name");
    let mut names = plain.chain(others).map(parse);
    let first = names.find(|name| broker.link(name) == link).expect("every link carries some name");
    let former = parse(format!("{INTERNAL_NAMESPACE}:{FORMER_NAMES}canary:{node}"));
    let former = Some(former).filter(|name| broker.link(name) == link);
    std::iter::once(first).chain(former).collect()
}

fn send(
    broker: &dyn Broker,
    link: LinkId,
    channel: ChannelName,
    number: u64,
    sent: mpsc::UnboundedSender<(LinkId, Note)>,
) {
    let payload = Payload::Text(number.to_string().into());
    let publication = Publication { published_at_us: Some(now_us()), ..Publication::bare(channel, payload) };
    let answer = broker.publish(publication, PublishOptions::default());
    tokio::spawn(async move {
        // Nobody listens once the canary has ended.
        let _ = sent.send((link, Note::Sent(answer.await.map(drop))));
    });
}

impl State {
    fn new(now: Instant) -> Self {
        Self {
            health: BrokerHealth { reason: Some("not connected yet".into()), ..BrokerHealth::default() },
            number: 0,
            out: VecDeque::new(),
            connected_at: now,
            listening: false,
            deaf: None,
            send_at: now,
            watchdog: Watchdog::new(now),
            taken: false,
            refused: None,
            rebuild_at: now,
            pause: Duration::ZERO,
            side: Side::Subscriber,
        }
    }

    /// Returns `true` if a canary came back in time, and over the present connection.
    fn is_proven(&self) -> bool {
        let BrokerHealth { connected, verified, verified_at, .. } = self.health;
        connected && verified && verified_at.is_some_and(|at| at >= self.connected_at)
    }

    fn interval(&self) -> Duration {
        if self.health.verified { IDLE } else { UNVERIFIED }
    }

    fn connected(&mut self, now: Instant) {
        self.health.connected = true;
        (self.connected_at, self.taken) = (now, false);
        if !self.health.verified {
            self.health.reason = Some(self.deaf.clone().unwrap_or_else(|| "no canary came back yet".into()));
        }
        self.send_at = now;
        self.watchdog.heard(now);
    }

    fn listening(&mut self, now: Instant) {
        (self.listening, self.deaf) = (true, None);
        // Canaries from before could not come back.
        self.taken = false;
        self.watchdog.heard(now);
        self.send_at = now;
    }

    fn not_listening(&mut self, reason: &str) {
        let reason: Arc<str> = format!("the broker does not bring this node's canary: {reason}").into();
        (self.health.verified, self.health.receive_only) = (false, false);
        if self.health.connected {
            self.health.reason = Some(Arc::clone(&reason));
        }
        (self.listening, self.deaf) = (false, Some(reason));
    }

    fn disconnected(&mut self, reason: Arc<str>) {
        self.health.connected = false;
        self.health.receive_only = false;
        self.health.reason = Some(reason);
        self.out.clear();
    }

    fn sent(&mut self, outcome: Result<(), BrokerError>, now: Instant) {
        match outcome {
            Ok(()) => {
                // One that is back already was heard of before its outcome.
                self.taken |= !self.out.is_empty();
                if self.refused.take().is_some() && self.deaf.is_some() {
                    self.health.reason = self.deaf.clone();
                }
            }
            Err(BrokerError::Refused(text)) => self.publish_refused(&text),
            Err(error) => {
                if !self.health.verified && self.health.connected {
                    self.health.reason = Some(error.to_string().into());
                }
                self.send_at = self.send_at.min(now + NOT_TAKEN);
            }
        }
    }

    fn publish_refused(&mut self, text: &str) {
        let reason: Arc<str> = format!("the broker refuses this node's publications: {text}").into();
        if self.refused.is_none() {
            tracing::warn!(%reason, "delivery cannot be verified");
        }
        self.health.verified = false;
        // Its subscription was answered, so that what others publish arrives.
        self.health.receive_only = self.health.connected && self.listening;
        self.health.reason = Some(Arc::clone(&reason));
        self.refused = Some(reason);
    }

    fn returned(&mut self, number: &[u8], now: Instant) -> Option<Duration> {
        let number: u64 = std::str::from_utf8(number).ok()?.parse().ok()?;
        let at = self.out.iter().position(|(sent, _)| *sent == number)?;
        let (_, sent_at) = self.out.drain(..=at).next_back()?;
        let round_trip = now - sent_at;
        let health = &mut self.health;
        (health.verified, health.verified_at, health.round_trip) = (true, Some(now), Some(round_trip));
        (health.receive_only, health.reason, self.refused) = (false, None, None);
        self.taken = false;
        (self.rebuild_at, self.pause, self.side) = (now, Duration::ZERO, Side::Subscriber);
        self.send_at = now + IDLE;
        self.watchdog.heard(now);
        Some(round_trip)
    }

    fn due(&mut self, now: Instant) -> Due {
        self.watchdog.check(now);
        let silent = self.watchdog.silence(now) >= MISSES * self.interval();
        match silent.then(|| self.give_up(now)).flatten() {
            Some(side) => Due::Rebuild(side),
            None if now >= self.send_at => self.send(now),
            None => Due::Nothing,
        }
    }

    /// No canary came back in time. Returns the connection to tear down, if canaries were taken and could come back, and
    /// the connections were left alone for long enough.
    fn give_up(&mut self, now: Instant) -> Option<Side> {
        self.health.verified = false;
        let may_return = self.listening && self.taken && self.refused.is_none();
        if !self.health.connected || !may_return || now < self.rebuild_at {
            return None;
        }
        self.health.reason = Some("no canary came back in time".into());
        self.pause = (2 * self.pause).clamp(MISSES * UNVERIFIED, LONGEST_PAUSE);
        self.rebuild_at = now + self.pause;
        self.watchdog.heard(now);
        let next = match self.side {
            Side::Subscriber => Side::Publisher,
            Side::Publisher => Side::Subscriber,
        };
        Some(std::mem::replace(&mut self.side, next))
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

    /// A state that is connected and whose broker takes all canaries.
    fn connected(start: Instant) -> State {
        let mut state = State::new(start);
        state.listening(start);
        state.connected(start);
        assert_eq!(state.due(start), Due::Send(1));
        state.sent(Ok(()), start);
        state
    }

    /// What is due at each quarter of a second until `seconds` after `start`, but for nothing. All canaries are taken.
    fn watch(state: &mut State, start: Instant, from: u32, seconds: u32) -> Vec<(u32, Due)> {
        let mut told = Vec::new();
        for quarter in 4 * from + 1..=4 * seconds {
            match state.due(start + quarter * SECOND / 4) {
                Due::Nothing => {}
                due => {
                    if state.refused.is_none() {
                        state.sent(Ok(()), start + quarter * SECOND / 4);
                    }
                    told.push((quarter / 4, due));
                }
            }
        }
        told
    }

    fn rebuilds(told: &[(u32, Due)]) -> Vec<u32> {
        told.iter().filter(|(_, due)| matches!(due, Due::Rebuild(_))).map(|(second, _)| *second).collect()
    }

    #[test]
    fn a_canary_that_comes_back_verifies_until_three_are_missing() {
        let start = Instant::now();
        let mut state = State::new(start);
        assert_eq!(state.due(start), Due::Nothing, "nothing is sent before a connection");
        let mut state = connected(start);
        assert!(!state.health.verified);
        let back = start + Duration::from_millis(3);
        assert_eq!(state.returned(b"1", back), Some(Duration::from_millis(3)));
        assert!(state.health.verified && state.health.reason.is_none());
        let told = watch(&mut state, back, 0, 15);
        assert_eq!(told, [(5, Due::Send(2)), (10, Due::Send(3)), (15, Due::Rebuild(Side::Subscriber))]);
        assert!(!state.health.verified);
    }

    #[test]
    fn a_silent_connection_is_made_again_with_growing_pauses() {
        let start = Instant::now();
        let mut state = connected(start);
        let told = watch(&mut state, start, 0, 200);
        assert_eq!(rebuilds(&told), [6, 12, 24, 48, 96, 156]);
        let sides: Vec<_> =
            told.iter().filter(|(_, due)| matches!(due, Due::Rebuild(_))).map(|(_, due)| due).collect();
        assert_eq!(sides[..2], [&Due::Rebuild(Side::Subscriber), &Due::Rebuild(Side::Publisher)]);
    }

    #[test]
    fn what_was_not_watched_is_no_silence() {
        let start = Instant::now();
        let mut state = connected(start);
        state.returned(b"1", start);
        assert!(rebuilds(&watch(&mut state, start, 0, 14)).is_empty());
        // The process is stopped for 13 seconds.
        assert!(rebuilds(&watch(&mut state, start, 27, 40)).is_empty());
        assert!(state.health.verified, "the canaries may lie in the socket");
        assert_eq!(rebuilds(&watch(&mut state, start, 40, 43)), [42]);
    }

    #[test]
    fn a_refusal_is_told_and_nothing_is_torn_down() {
        let start = Instant::now();
        let mut state = connected(start);
        state.sent(Err(BrokerError::Refused("NOPERM".into())), start);
        assert!(rebuilds(&watch(&mut state, start, 0, 120)).is_empty());
        let BrokerHealth { verified, receive_only, reason, .. } = &state.health;
        assert!(!verified && *receive_only, "what others publish arrives");
        assert!(reason.as_deref().is_some_and(|reason| reason.contains("NOPERM")), "{reason:?}");
        state.sent(Ok(()), start + 121 * SECOND);
        let number = state.number.to_string();
        assert!(state.returned(number.as_bytes(), start + 121 * SECOND).is_some());
        assert!(state.health.verified && !state.health.receive_only && state.health.reason.is_none());
    }

    #[test]
    fn a_canary_that_cannot_come_back_tears_nothing_down() {
        let start = Instant::now();
        let mut state = connected(start);
        state.returned(b"1", start);
        state.not_listening("NOPERM");
        assert!(!state.health.verified);
        assert!(rebuilds(&watch(&mut state, start, 0, 300)).is_empty());
        let reason = state.health.reason.as_deref();
        assert_eq!(reason, Some("the broker does not bring this node's canary: NOPERM"));
        state.publish_refused("NOPERM");
        assert!(!state.health.receive_only, "nothing shows that it receives");
        state.sent(Ok(()), start + 300 * SECOND);
        assert!(state.health.reason.as_deref().is_some_and(|reason| reason.contains("bring")));
        let back = start + 301 * SECOND;
        state.listening(back);
        assert_eq!(rebuilds(&watch(&mut state, back, 0, 7)), [6], "its time begins when it is live");
    }

    #[test]
    fn a_canary_without_an_outcome_tears_nothing_down() {
        let start = Instant::now();
        let mut state = State::new(start);
        state.connected(start);
        for quarter in 0..240 {
            let now = start + quarter * SECOND / 4;
            match state.due(now) {
                Due::Send(_) => state.sent(Err(BrokerError::Unavailable("no connection".into())), now),
                due => assert_eq!(due, Due::Nothing),
            }
        }
        let reason = state.health.reason.as_deref();
        assert_eq!(reason, Some("the broker is not available: no connection"));
    }

    #[test]
    fn a_publisher_that_is_lost_leaves_the_subscriber_alone() {
        let start = Instant::now();
        let mut state = connected(start);
        state.returned(b"1", start);
        // Redis delivers before it answers.
        state.sent(Ok(()), start);
        for quarter in 1..=240 {
            let now = start + quarter * SECOND / 4;
            match state.due(now) {
                Due::Send(_) => state.sent(Err(BrokerError::Unavailable("no connection".into())), now),
                due => assert_eq!(due, Due::Nothing),
            }
        }
        assert!(!state.health.verified);
    }

    #[test]
    fn a_short_outage_keeps_what_was_verified_and_a_long_one_does_not() {
        let start = Instant::now();
        let mut state = connected(start);
        state.returned(b"1", start);
        state.disconnected("gone".into());
        assert_eq!(watch(&mut state, start, 0, 14), []);
        assert!(state.health.verified && !state.health.connected && !state.is_proven());
        assert_eq!(watch(&mut state, start, 14, 16), [], "there is no connection to tear down");
        assert!(!state.health.verified);
        state.connected(start + 17 * SECOND);
        assert_eq!(state.due(start + 17 * SECOND), Due::Send(2), "a new connection is tried at once");
    }

    #[test]
    fn a_connection_is_proven_by_its_own_canary_alone() {
        let start = Instant::now();
        let mut state = connected(start);
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
    fn a_canary_of_a_lost_connection_proves_nothing() {
        let start = Instant::now();
        let mut state = connected(start);
        assert_eq!(state.returned(b"7", start), None);
        assert_eq!(state.returned(b"x\xff", start), None);
        state.disconnected("gone".into());
        assert_eq!(state.returned(b"1", start), None);
        assert!(!state.health.verified);
    }

    #[test]
    fn a_canary_that_found_no_connection_is_tried_again_soon() {
        let start = Instant::now();
        let mut state = connected(start);
        state.sent(Err(BrokerError::Unavailable("no connection to publish".into())), start);
        assert_eq!(state.due(start + NOT_TAKEN), Due::Send(2));
    }
}
