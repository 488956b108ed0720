//! What is subscribed and what was asked for on one link; pure. Redis answers commands in their order, each
//! `SUBSCRIBE` once a channel or by one error, so a queue of what was sent tells what an answer belongs to.
//!
//! One channel's fate is its own: a `SUBSCRIBE` of several channels that the ACL refuses is split until the refused
//! channels are found. Those are reported, and tried again later where they were live before. A command that Redis does
//! not take for another reason, such as a script that keeps it busy, is sent again later; the connection is none the worse.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;
use tokio::{sync::oneshot, time::Instant};

use super::Prefix;
use crate::{
    broker::{BrokerError, NotSubscribed, backoff::Backoff},
    domain::ChannelName,
};

/// Channels of one command: beyond it, larger commands win nothing.
const BATCH: usize = 1_000;
/// What Redis has not confirmed by then is given up; long enough for a Redis that restarts at once.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// The answer to a subscribe: the channels that are not live.
pub(super) type Reply = oneshot::Sender<Vec<NotSubscribed>>;

/// The channels of one link.
pub(super) struct Interests {
    prefix: Prefix,
    channels: HashMap<Bytes, Interest>,
    requests: HashMap<u64, Request>,
    /// Number of the last request or interest.
    last: u64,
    /// Commands of this connection that Redis has not answered, and the bytes that were not written.
    sent: VecDeque<Sent>,
    pub(super) out: BytesMut,
    connected: bool,
    /// Commands that Redis does not take now, ...
    postponed: Vec<Sent>,
    /// ... when they are sent again, ...
    resend_at: Option<Instant>,
    /// ... after pauses that grow until all are taken, ...
    pauses: Backoff,
    /// ... and what it says.
    busy: Option<String>,
    /// Channels that were live before this connection and are not answered yet.
    resubscribing: usize,
    /// When to try which lost channel again. An entry counts only while the channel's own time is the same.
    retries: BTreeSet<(Instant, Bytes)>,
    /// Not taken yet by the caller, in order.
    changes: Vec<Change>,
    /// Why there is no connection.
    reason: String,
}

struct Interest {
    /// Tells this interest in the channel from an earlier one: an answer to that one says nothing of this one.
    number: u64,
    channel: ChannelName,
    state: State,
    /// Requests that wait for it.
    waiting: SmallVec<[u64; 1]>,
    /// Some caller was told that it is live: it is subscribed again after a loss.
    confirmed: bool,
    /// Refused since it was live.
    lost: Option<Lost>,
}

/// A channel that was live and is no longer. It is asked for or stands in `retries`, or nobody would ask for it again.
struct Lost {
    backoff: Backoff,
    retry_at: Instant,
}

/// Where a channel is on the present connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not asked for.
    Idle,
    /// Asked for; `again` while it counts in `resubscribing`.
    Asked { again: bool },
    /// Its publications arrive.
    Live,
}

struct Request {
    /// Channels that are not answered.
    left: usize,
    names: Vec<Bytes>,
    failed: Vec<NotSubscribed>,
    deadline: Instant,
    reply: Reply,
}

/// A command that was sent, and the channels that Redis has not answered.
enum Sent {
    Subscribe(VecDeque<(Bytes, u64)>),
    Unsubscribe(VecDeque<Bytes>),
    Ping,
}

/// A change that others are to know of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// All subscriptions of the connection are live.
    AllLive,
    /// The channel was live once and is refused now.
    Lost(ChannelName, String),
    /// A lost channel is live again.
    Resumed(ChannelName),
    /// A lost channel is no longer wanted.
    GivenUp(ChannelName),
    /// Redis does not take commands now, and says why; they are sent again.
    Postponed(String),
}

/// The connection is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Useless {
    #[error("Redis answered what was not asked")]
    Unexpected,
    #[error("Redis does not serve: {0}")]
    Refused(String),
}

impl Interests {
    pub(super) fn new(prefix: Prefix) -> Self {
        Self {
            prefix,
            channels: HashMap::new(),
            requests: HashMap::new(),
            last: 0,
            sent: VecDeque::new(),
            out: BytesMut::new(),
            connected: false,
            postponed: Vec::new(),
            resend_at: None,
            pauses: Backoff::new(),
            busy: None,
            resubscribing: 0,
            retries: BTreeSet::new(),
            changes: Vec::new(),
            reason: "not connected yet".to_owned(),
        }
    }

    /// Changes since the last call, in order.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// The channel of a message, if it is wanted.
    pub(super) fn wanted(&self, name: &[u8]) -> Option<&ChannelName> {
        self.channels.get(name).map(|interest| &interest.channel)
    }

    // --- what callers ask

    pub(super) fn subscribe(&mut self, channels: Vec<ChannelName>, reply: Reply, now: Instant) {
        let request = self.number();
        let (mut names, mut asked) = (Vec::with_capacity(channels.len()), Vec::new());
        for channel in channels {
            let name = self.prefix.name(&channel);
            let number = self.number();
            let interest =
                self.channels.entry(name.clone()).or_insert_with(|| Interest::new(number, channel));
            if interest.state == State::Live {
                interest.confirmed = true;
                continue;
            }
            interest.waiting.push(request);
            names.push(name.clone());
            if self.connected && interest.state == State::Idle {
                asked.push(name);
            }
        }
        if names.is_empty() {
            // Nobody waits for it: the interest stays until it is given back.
            let _ = reply.send(Vec::new());
            return;
        }
        let (left, failed) = (names.len(), Vec::new());
        self.requests.insert(request, Request { left, names, failed, deadline: now + ANSWER, reply });
        self.send_subscribe(&asked, false);
    }

    pub(super) fn unsubscribe(&mut self, channels: &[ChannelName]) {
        let names = channels.iter().map(|channel| self.prefix.name(channel));
        let known: Vec<_> = names.filter(|name| self.channels.contains_key(name)).collect();
        self.drop_names(&known);
    }

    /// Asks whether the connection lives.
    pub(super) fn ping(&mut self) {
        encode::<&[u8]>(&mut self.out, b"PING", &[]);
        self.sent.push_back(Sent::Ping);
    }

    /// Gives up what Redis did not confirm in time, and asks again for what it refused long enough ago.
    pub(super) fn expire(&mut self, now: Instant) {
        let late =
            self.requests.iter().filter(|(_, request)| request.deadline <= now).map(|(number, _)| *number);
        for number in late.collect::<Vec<_>>() {
            self.give_up(number);
        }
        if self.resend_at.is_some_and(|at| at <= now) {
            self.resend();
        }
        self.retry(now);
    }

    /// Deadlines begin again: for this long nobody could have read an answer.
    pub(super) fn extend_deadlines(&mut self, by: Duration) {
        self.requests.values_mut().for_each(|request| request.deadline += by);
    }

    // --- what happens to the connection

    /// There is a new connection: asks for everything again.
    pub(super) fn connected(&mut self) {
        self.connected = true;
        let (mut again, mut open) = (Vec::new(), Vec::new());
        for (name, interest) in &self.channels {
            if interest.lost.is_none() || !interest.waiting.is_empty() {
                let names = if interest.confirmed { &mut again } else { &mut open };
                names.push((interest.number, name.clone()));
            }
        }
        // In the order in which they were asked for first.
        again.sort_unstable();
        open.sort_unstable();
        let names =
            |numbered: Vec<(u64, Bytes)>| numbered.into_iter().map(|(_, name)| name).collect::<Vec<_>>();
        self.resubscribing = again.len();
        self.send_subscribe(&names(again), true);
        self.send_subscribe(&names(open), false);
        if self.resubscribing == 0 {
            self.changes.push(Change::AllLive);
        }
    }

    /// Whatever was known of the connection ends with it.
    pub(super) fn disconnected(&mut self, reason: String, now: Instant) {
        (self.connected, self.reason, self.resubscribing) = (false, reason, 0);
        self.sent.clear();
        self.out.clear();
        self.postponed.clear();
        self.pauses.reset();
        (self.resend_at, self.busy) = (None, None);
        for (name, interest) in &mut self.channels {
            let before = std::mem::replace(&mut interest.state, State::Idle);
            if let (Some(lost), State::Asked { .. }) = (&mut interest.lost, before) {
                // Its time had come, and no answer will.
                lost.retry_at = now;
                self.retries.insert((now, name.clone()));
            }
        }
    }

    // --- what Redis answers

    /// A subscription is live.
    pub(super) fn subscribed(&mut self, name: &[u8]) -> Result<(), Useless> {
        let Some(Sent::Subscribe(names)) = self.sent.front_mut() else { return Err(Useless::Unexpected) };
        let Some((asked, number)) = names.pop_front() else { return Err(Useless::Unexpected) };
        let is_last = names.is_empty();
        if asked != name {
            return Err(Useless::Unexpected);
        }
        if is_last {
            self.taken();
        }
        self.confirm(&asked, number);
        Ok(())
    }

    /// A subscription is over, because it was asked for, or by the server's own decision: then it is asked for again.
    pub(super) fn unsubscribed(&mut self, name: &[u8], now: Instant) {
        if let Some(Sent::Unsubscribe(names)) = self.sent.front_mut()
            && names.front().is_some_and(|asked| asked == name)
        {
            names.pop_front();
            if names.is_empty() {
                self.taken();
            }
            return;
        }
        let Some((name, interest)) = self.channels.get_key_value(name) else { return };
        // One that is asked for will be answered.
        if interest.state == State::Live {
            let name = name.clone();
            self.lose(&name, "Redis ended the subscription", now);
        }
    }

    /// A `PING` is answered.
    pub(super) fn ponged(&mut self) -> Result<(), Useless> {
        let Some(Sent::Ping) = self.sent.front() else { return Err(Useless::Unexpected) };
        self.taken();
        Ok(())
    }

    /// A command was refused as a whole.
    pub(super) fn refused(&mut self, text: &str, now: Instant) -> Result<(), Useless> {
        let is_about_channels = text.starts_with("NOPERM");
        match self.sent.pop_front() {
            None => return Err(Useless::Unexpected),
            // Whatever it says, it lives.
            Some(Sent::Ping) => {}
            // Another connection reads the credentials again.
            Some(_) if text.starts_with("NOAUTH") => return Err(Useless::Refused(text.to_owned())),
            Some(Sent::Subscribe(mut names)) if is_about_channels => {
                let second = names.split_off(names.len() / 2);
                if names.is_empty() {
                    second.iter().for_each(|(name, number)| self.refuse(name, *number, text, now));
                } else {
                    self.send_again(names);
                    self.send_again(second);
                }
            }
            // They are brought until the connection ends, and dropped here.
            Some(Sent::Unsubscribe(_)) if is_about_channels => {}
            // A script keeps it busy, or it says something unknown: no channel is at fault, nor the connection.
            Some(command) => self.postpone(command, text, now),
        }
        self.settled();
        Ok(())
    }

    // --- private

    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Asks for these channels, which are idle.
    fn send_subscribe(&mut self, names: &[Bytes], again: bool) {
        for batch in names.chunks(BATCH) {
            let mut asked = VecDeque::with_capacity(batch.len());
            for name in batch {
                if let Some(interest) = self.channels.get_mut(name) {
                    interest.state = State::Asked { again };
                    asked.push_back((name.clone(), interest.number));
                }
            }
            encode(&mut self.out, b"SUBSCRIBE", batch);
            self.sent.push_back(Sent::Subscribe(asked));
        }
    }

    /// The first command is answered for good.
    fn taken(&mut self) {
        self.sent.pop_front();
        self.settled();
    }

    /// Once nothing is left to answer, Redis is not busy any more.
    fn settled(&mut self) {
        if self.sent.is_empty() && self.postponed.is_empty() {
            self.pauses.reset();
            self.busy = None;
        }
    }

    fn postpone(&mut self, command: Sent, text: &str, now: Instant) {
        if self.busy.as_deref() != Some(text) {
            self.changes.push(Change::Postponed(text.to_owned()));
            self.busy = Some(text.to_owned());
        }
        self.postponed.push(command);
        self.resend_at.get_or_insert_with(|| now + self.pauses.next());
    }

    /// Sends what was postponed, as far as it is still wanted.
    fn resend(&mut self) {
        self.resend_at = None;
        let (mut wanted, mut unwanted) = (VecDeque::new(), Vec::new());
        for command in std::mem::take(&mut self.postponed) {
            match command {
                Sent::Subscribe(names) => wanted.extend(names),
                Sent::Unsubscribe(names) => unwanted.extend(names),
                Sent::Ping => {}
            }
        }
        while !wanted.is_empty() {
            let rest = wanted.split_off(BATCH.min(wanted.len()));
            self.send_again(std::mem::replace(&mut wanted, rest));
        }
        unwanted.retain(|name| !self.channels.contains_key(name));
        self.send_unsubscribe(&unwanted);
        self.settled();
    }

    /// Asks for part of a refused command, or for a postponed one, without what is no longer wanted.
    fn send_again(&mut self, mut names: VecDeque<(Bytes, u64)>) {
        names.retain(|(name, number)| self.channels.get(name).is_some_and(|i| i.number == *number));
        if !names.is_empty() {
            let asked: Vec<_> = names.iter().map(|(name, _)| name).collect();
            encode(&mut self.out, b"SUBSCRIBE", &asked);
            self.sent.push_back(Sent::Subscribe(names));
        }
    }

    fn confirm(&mut self, name: &Bytes, number: u64) {
        let interest = self.channels.get_mut(name).filter(|interest| interest.number == number);
        let Some(interest) = interest else { return };
        let before = std::mem::replace(&mut interest.state, State::Live);
        let waiting = std::mem::take(&mut interest.waiting);
        interest.confirmed |= !waiting.is_empty();
        if interest.lost.take().is_some() {
            self.changes.push(Change::Resumed(interest.channel.clone()));
        }
        waiting.into_iter().for_each(|request| self.answer(request, None));
        self.answered(before);
    }

    fn refuse(&mut self, name: &Bytes, number: u64, text: &str, now: Instant) {
        let interest = self.channels.get_mut(name).filter(|interest| interest.number == number);
        let Some(interest) = interest else { return };
        let (before, waiting) = (interest.state, std::mem::take(&mut interest.waiting));
        let (channel, confirmed) = (interest.channel.clone(), interest.confirmed);
        if confirmed {
            self.lose(name, text, now);
        } else {
            self.channels.remove(name);
        }
        for request in waiting {
            self.answer(request, Some((channel.clone(), BrokerError::Refused(text.to_owned()))));
        }
        self.answered(before);
    }

    /// A channel that was live is so no longer, and is asked for again after a while.
    fn lose(&mut self, name: &Bytes, reason: &str, now: Instant) {
        let Some(interest) = self.channels.get_mut(name) else { return };
        interest.state = State::Idle;
        if interest.lost.is_none() {
            self.changes.push(Change::Lost(interest.channel.clone(), reason.to_owned()));
        }
        let lost = interest.lost.get_or_insert_with(|| Lost { backoff: Backoff::new(), retry_at: now });
        lost.retry_at = now + lost.backoff.next();
        self.retries.insert((lost.retry_at, name.clone()));
    }

    fn retry(&mut self, now: Instant) {
        let mut due = Vec::new();
        while self.connected && self.retries.first().is_some_and(|(at, _)| *at <= now) {
            let Some((at, name)) = self.retries.pop_first() else { break };
            let is_due = |interest: &Interest| {
                interest.state == State::Idle
                    && interest.lost.as_ref().is_some_and(|lost| lost.retry_at == at)
            };
            if self.channels.get(&name).is_some_and(is_due) {
                due.push(name);
            }
        }
        self.send_subscribe(&due, false);
    }

    /// A channel is no longer asked for. The last of those that were live before makes the connection live.
    fn answered(&mut self, before: State) {
        if before == (State::Asked { again: true }) {
            self.resubscribing -= 1;
            if self.resubscribing == 0 {
                self.changes.push(Change::AllLive);
            }
        }
    }

    /// One channel of a request is answered.
    fn answer(&mut self, number: u64, failed: Option<NotSubscribed>) {
        let Some(request) = self.requests.get_mut(&number) else { return };
        request.left -= 1;
        request.failed.extend(failed);
        if request.left == 0
            && let Some(Request { reply, failed, .. }) = self.requests.remove(&number)
        {
            // Nobody waits for it: the interest stays until it is given back.
            let _ = reply.send(failed);
        }
    }

    /// Answers a request whose time is over, and forgets the channels that nobody else asked for.
    fn give_up(&mut self, number: u64) {
        let Some(Request { names, mut failed, reply, .. }) = self.requests.remove(&number) else { return };
        let reason = match &self.busy {
            _ if !self.connected => &self.reason,
            Some(text) => text,
            None => "no answer in time",
        };
        let mut unwanted = Vec::new();
        for name in names {
            let Some(interest) = self.channels.get_mut(&name) else { continue };
            let Some(at) = interest.waiting.iter().position(|waiting| *waiting == number) else { continue };
            interest.waiting.swap_remove(at);
            failed.push((interest.channel.clone(), BrokerError::Unavailable(reason.to_owned())));
            if !interest.confirmed && interest.waiting.is_empty() {
                unwanted.push(name);
            }
        }
        self.drop_names(&unwanted);
        let _ = reply.send(failed);
    }

    fn drop_names(&mut self, names: &[Bytes]) {
        for name in names {
            let Some(interest) = self.channels.remove(name) else { continue };
            let Interest { channel, state, waiting, lost, .. } = interest;
            if lost.is_some() {
                self.changes.push(Change::GivenUp(channel));
            }
            waiting.into_iter().for_each(|request| self.answer(request, None));
            self.answered(state);
        }
        if self.connected {
            self.send_unsubscribe(names);
        }
    }

    fn send_unsubscribe(&mut self, names: &[Bytes]) {
        for batch in names.chunks(BATCH) {
            encode(&mut self.out, b"UNSUBSCRIBE", batch);
            self.sent.push_back(Sent::Unsubscribe(batch.iter().cloned().collect()));
        }
    }
}

impl Interest {
    fn new(number: u64, channel: ChannelName) -> Self {
        Self { number, channel, state: State::Idle, waiting: SmallVec::new(), confirmed: false, lost: None }
    }
}

/// Appends a command of RESP.
pub(super) fn encode<B: AsRef<[u8]>>(out: &mut BytesMut, command: &[u8], arguments: &[B]) {
    let bulk = |out: &mut BytesMut, bytes: &[u8]| {
        out.put_slice(format!("${}\r\n", bytes.len()).as_bytes());
        out.put_slice(bytes);
        out.put_slice(b"\r\n");
    };
    out.put_slice(format!("*{}\r\n", arguments.len() + 1).as_bytes());
    bulk(out, command);
    for argument in arguments {
        bulk(out, argument.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Told = oneshot::Receiver<Vec<NotSubscribed>>;

    fn interests() -> Interests {
        Interests::new(Prefix("p:".into()))
    }

    fn ask(interests: &mut Interests, names: &[&str], now: Instant) -> Told {
        let (reply, receiver) = oneshot::channel();
        interests.subscribe(channels(names), reply, now);
        receiver
    }

    fn channels(names: &[&str]) -> Vec<ChannelName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    /// Redis confirms these channels.
    fn confirmed(interests: &mut Interests, names: &[&str]) {
        names.iter().for_each(|name| interests.subscribed(format!("p:{name}").as_bytes()).unwrap());
    }

    /// What would be written now, for people.
    fn written(interests: &mut Interests) -> String {
        let text = String::from_utf8(interests.out.split().to_vec()).unwrap();
        text.split("\r\n")
            .filter(|line| !line.starts_with(['*', '$']))
            .collect::<Vec<_>>()
            .join(" ")
            .trim()
            .into()
    }

    /// Plays a Redis that refuses `forbidden` until nothing is left to answer; what it was asked.
    fn play(interests: &mut Interests, forbidden: &[&str], now: Instant) -> usize {
        let mut redis = Redis::default();
        std::iter::from_fn(|| redis.answer(interests, forbidden, now)).count()
    }

    /// The names that a connection is subscribed to.
    #[derive(Default)]
    struct Redis(BTreeSet<Bytes>);

    impl Redis {
        /// Answers one command; channels that are forbidden are refused.
        fn answer(&mut self, interests: &mut Interests, forbidden: &[&str], now: Instant) -> Option<()> {
            match interests.sent.front()? {
                Sent::Subscribe(names) => {
                    let names: Vec<_> = names.iter().map(|(name, _)| name.clone()).collect();
                    if names.iter().any(|name| forbidden.iter().any(|f| *name == format!("p:{f}"))) {
                        interests.refused("NOPERM no", now).unwrap();
                    } else {
                        names.iter().for_each(|name| interests.subscribed(name).unwrap());
                        self.0.extend(names);
                    }
                }
                Sent::Unsubscribe(names) => {
                    let names = names.clone();
                    names.iter().for_each(|name| interests.unsubscribed(name, now));
                    self.0.retain(|name| !names.contains(name));
                }
                Sent::Ping => interests.ponged().unwrap(),
            }
            Some(())
        }
    }

    fn refused(names: &[&str]) -> Vec<NotSubscribed> {
        let error = BrokerError::Refused("NOPERM no".to_owned());
        channels(names).into_iter().map(|channel| (channel, error.clone())).collect()
    }

    #[test]
    fn a_request_is_answered_once_redis_confirmed_each_channel() {
        let mut i = interests();
        i.connected();
        assert_eq!(i.take_changes(), [Change::AllLive], "nothing is to be subscribed again");
        let mut told = ask(&mut i, &["a", "b"], Instant::now());
        assert_eq!(written(&mut i), "SUBSCRIBE p:a p:b");
        confirmed(&mut i, &["a"]);
        assert!(told.try_recv().is_err());
        confirmed(&mut i, &["b"]);
        assert_eq!(told.try_recv(), Ok(Vec::new()));
        assert!(i.wanted(b"p:a").is_some() && i.wanted(b"p:c").is_none());
        assert_eq!(ask(&mut i, &["a"], Instant::now()).try_recv(), Ok(Vec::new()), "live already");
    }

    #[test]
    fn what_is_asked_while_redis_is_away_waits_until_its_deadline() {
        let (mut i, now) = (interests(), Instant::now());
        let mut early = ask(&mut i, &["a"], now);
        let mut late = ask(&mut i, &["b"], now + Duration::from_secs(3));
        i.expire(now + ANSWER);
        let unavailable = BrokerError::Unavailable("not connected yet".into());
        assert_eq!(early.try_recv(), Ok(vec![("a".parse().unwrap(), unavailable)]));
        assert_eq!(written(&mut i), "");
        i.connected();
        assert_eq!(written(&mut i), "SUBSCRIBE p:b", "nobody wants `a` any more");
        confirmed(&mut i, &["b"]);
        assert_eq!(late.try_recv(), Ok(Vec::new()));
    }

    #[test]
    fn after_a_loss_what_was_live_is_subscribed_again_in_batches_before_what_is_open() {
        let (mut i, now) = (interests(), Instant::now());
        i.connected();
        let names: Vec<_> = (0..2_500).map(|number| format!("c{number}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let _told = ask(&mut i, &names, now);
        assert_eq!(i.sent.len(), 3);
        confirmed(&mut i, &names);
        let mut open = ask(&mut i, &["open"], now);
        i.disconnected("gone".into(), now);
        i.take_changes();
        i.connected();
        assert_eq!(i.sent.len(), 4);
        confirmed(&mut i, &names[..2_499]);
        assert_eq!(i.take_changes(), []);
        confirmed(&mut i, &names[2_499..]);
        assert_eq!(i.take_changes(), [Change::AllLive], "live with the last one");
        confirmed(&mut i, &["open"]);
        assert_eq!(open.try_recv(), Ok(Vec::new()));
    }

    #[test]
    fn a_refused_channel_does_not_touch_the_others_of_its_batch() {
        let (mut i, now) = (interests(), Instant::now());
        i.connected();
        let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        let mut told = ask(&mut i, &names, now);
        assert!(play(&mut i, &["d"], now) < names.len(), "by halves");
        assert_eq!(told.try_recv(), Ok(refused(&["d"])));
        assert!(i.wanted(b"p:d").is_none());
        assert!(
            names
                .iter()
                .filter(|name| **name != "d")
                .all(|name| i.wanted(format!("p:{name}").as_bytes()).is_some())
        );
        i.expire(now + 100 * ANSWER);
        assert!(i.sent.is_empty(), "nobody waits for it, so it is not tried again");
    }

    #[test]
    fn a_channel_that_is_refused_after_a_loss_is_lost_alone_and_tried_again() {
        let (mut i, mut now) = (interests(), Instant::now());
        i.connected();
        let _told = ask(&mut i, &["a", "b", "c"], now);
        confirmed(&mut i, &["a", "b", "c"]);
        i.disconnected("gone".into(), now);
        i.take_changes();
        i.connected();
        play(&mut i, &["b"], now);
        let b: ChannelName = "b".parse().unwrap();
        assert_eq!(i.take_changes(), [Change::Lost(b.clone(), "NOPERM no".into()), Change::AllLive]);
        let mut tries = 0;
        for _ in 0..240 {
            now += Duration::from_millis(250);
            i.expire(now);
            tries += play(&mut i, &["b"], now);
        }
        assert!((10..40).contains(&tries), "{tries} tries in a minute");
        assert_eq!(i.take_changes(), [], "lost once");
        i.expire(now + ANSWER);
        play(&mut i, &[], now);
        assert_eq!(i.take_changes(), [Change::Resumed(b)]);
    }

    #[test]
    fn a_lost_channel_whose_retry_is_in_flight_when_the_connection_ends_is_tried_again() {
        let (mut i, mut now) = (interests(), Instant::now());
        i.connected();
        let _told = ask(&mut i, &["a", "b"], now);
        confirmed(&mut i, &["a", "b"]);
        i.disconnected("gone".into(), now);
        i.connected();
        play(&mut i, &["b"], now);
        written(&mut i);
        i.take_changes();
        now += ANSWER;
        i.expire(now);
        assert_eq!(written(&mut i), "SUBSCRIBE p:b", "the retry is in flight");
        i.disconnected("gone again".into(), now);
        i.connected();
        play(&mut i, &[], now);
        written(&mut i);
        i.expire(now + ANSWER);
        assert_eq!(written(&mut i), "SUBSCRIBE p:b");
        confirmed(&mut i, &["b"]);
        assert_eq!(i.take_changes(), [Change::AllLive, Change::Resumed("b".parse().unwrap())]);
    }

    #[test]
    fn a_subscription_that_redis_ends_by_itself_is_asked_for_again() {
        let (mut i, now) = (interests(), Instant::now());
        i.connected();
        let _told = ask(&mut i, &["a", "b"], now);
        confirmed(&mut i, &["a", "b"]);
        i.take_changes();
        written(&mut i);
        i.unsubscribed(b"p:a", now);
        let a: ChannelName = "a".parse().unwrap();
        assert_eq!(i.take_changes(), [Change::Lost(a.clone(), "Redis ended the subscription".into())]);
        i.expire(now + Duration::from_millis(100));
        assert_eq!(written(&mut i), "SUBSCRIBE p:a");
        confirmed(&mut i, &["a"]);
        assert_eq!(i.take_changes(), [Change::Resumed(a)]);
        i.unsubscribed(b"p:never", now);
        i.unsubscribed(b"", now);
    }

    #[test]
    fn a_lost_channel_that_is_given_back_is_told_and_not_tried_again() {
        let (mut i, now) = (interests(), Instant::now());
        i.connected();
        let _told = ask(&mut i, &["a", "b"], now);
        confirmed(&mut i, &["a", "b"]);
        i.unsubscribed(b"p:a", now);
        i.take_changes();
        i.unsubscribe(&channels(&["a", "b"]));
        assert_eq!(i.take_changes(), [Change::GivenUp("a".parse().unwrap())]);
        written(&mut i);
        i.expire(now + ANSWER);
        assert_eq!(written(&mut i), "");
    }

    #[test]
    fn a_confirmation_belongs_to_its_own_command() {
        let (mut i, now) = (interests(), Instant::now());
        i.connected();
        let mut first = ask(&mut i, &["a"], now);
        i.unsubscribe(&channels(&["a"]));
        let mut second = ask(&mut i, &["a"], now);
        assert_eq!(first.try_recv(), Ok(Vec::new()), "given back before it was live");
        confirmed(&mut i, &["a"]);
        assert!(second.try_recv().is_err());
        i.unsubscribed(b"p:a", now);
        confirmed(&mut i, &["a"]);
        assert_eq!(second.try_recv(), Ok(Vec::new()));
    }

    #[test]
    fn a_channel_given_back_while_it_is_subscribed_again_does_not_hold_up_the_rest() {
        let (mut i, now) = (interests(), Instant::now());
        i.connected();
        let _told = ask(&mut i, &["a", "b"], now);
        confirmed(&mut i, &["a", "b"]);
        i.disconnected("gone".into(), now);
        i.connected();
        i.take_changes();
        i.unsubscribe(&channels(&["b"]));
        play(&mut i, &[], now);
        assert_eq!(i.take_changes(), [Change::AllLive]);
    }

    #[test]
    fn an_answer_to_nothing_or_a_server_that_does_not_serve_ends_the_connection() {
        let (mut i, now) = (interests(), Instant::now());
        i.connected();
        assert_eq!(i.subscribed(b"p:a"), Err(Useless::Unexpected));
        assert_eq!(i.refused("ERR", now), Err(Useless::Unexpected));
        let _told = ask(&mut i, &["a"], now);
        assert_eq!(i.subscribed(b"p:b"), Err(Useless::Unexpected));
        let mut i = interests();
        i.connected();
        let mut told = ask(&mut i, &["a"], now);
        assert_eq!(i.ponged(), Err(Useless::Unexpected));
        assert_eq!(i.refused("NOAUTH", now), Err(Useless::Refused("NOAUTH".into())));
        assert!(told.try_recv().is_err(), "it waits for the next connection");
    }

    #[test]
    fn any_answer_to_a_ping_is_a_sign_of_life_and_none_belongs_to_another_command() {
        let (mut i, now) = (interests(), Instant::now());
        i.connected();
        i.take_changes();
        for error in [None, Some("NOPERM no ping"), Some("BUSY"), Some("ERR what")] {
            i.ping();
            let mut told = ask(&mut i, &["a"], now);
            match error {
                None => i.ponged().unwrap(),
                Some(error) => i.refused(error, now).unwrap(),
            }
            confirmed(&mut i, &["a"]);
            assert_eq!((told.try_recv(), i.take_changes()), (Ok(Vec::new()), Vec::new()), "{error:?}");
            i.unsubscribe(&channels(&["a"]));
            play(&mut i, &[], now);
        }
    }

    #[test]
    fn what_redis_does_not_take_now_is_sent_again_in_its_place() {
        let (mut i, mut now) = (interests(), Instant::now());
        i.connected();
        let _told = ask(&mut i, &["kept", "given"], now);
        confirmed(&mut i, &["kept", "given"]);
        i.disconnected("gone".into(), now);
        i.connected();
        i.take_changes();
        let mut told = ask(&mut i, &["new"], now);
        i.unsubscribe(&channels(&["given"]));
        let mut sent = 0;
        for _ in 0..240 {
            while !i.sent.is_empty() {
                sent += 1;
                i.refused("BUSY a script", now).unwrap();
            }
            now += Duration::from_millis(250);
            i.expire(now);
        }
        while !i.sent.is_empty() {
            i.refused("BUSY a script", now).unwrap();
        }
        assert!((30..90).contains(&sent), "{sent} commands in a minute");
        assert_eq!(i.take_changes(), [Change::Postponed("BUSY a script".into())], "told once");
        let unavailable = BrokerError::Unavailable("BUSY a script".into());
        assert_eq!(told.try_recv(), Ok(vec![("new".parse().unwrap(), unavailable)]));
        written(&mut i);
        i.expire(now + ANSWER);
        let said = written(&mut i);
        let is_expected = |order| said == format!("SUBSCRIBE p:kept UNSUBSCRIBE {order}");
        assert!(is_expected("p:given p:new") || is_expected("p:new p:given"), "{said}");
        play(&mut i, &[], now);
        assert_eq!(i.take_changes(), [Change::AllLive]);
        assert!(i.busy.is_none() && i.postponed.is_empty());
    }

    /// What may happen, to channels of these names.
    #[derive(Clone, Debug)]
    enum Happens {
        Ask(Vec<&'static str>),
        GiveBack(&'static str),
        /// Redis ends a subscription by itself.
        Ends(&'static str),
        Connected,
        Disconnected,
        /// Redis answers one command; these channels are refused.
        Answers(Vec<&'static str>),
        /// Redis takes no command now.
        IsBusy,
        Pings,
        Passes(u64),
    }

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    fn happens() -> impl Strategy<Value = Happens> {
        let (one, some) =
            (|| prop::sample::select(&NAMES[..]), || prop::sample::subsequence(&NAMES[..], 0..=4));
        prop_oneof![
            1 => some().prop_map(Happens::Ask),
            1 => one().prop_map(Happens::GiveBack),
            1 => one().prop_map(Happens::Ends),
            1 => Just(Happens::Connected),
            1 => Just(Happens::Disconnected),
            5 => some().prop_map(Happens::Answers),
            2 => Just(Happens::IsBusy),
            1 => Just(Happens::Pings),
            3 => (1..6_000_u64).prop_map(Happens::Passes),
        ]
    }

    fn happen(i: &mut Interests, redis: &mut Redis, what: Happens, now: &mut Instant) {
        match what {
            Happens::Ask(names) => drop(ask(i, &names, *now)),
            Happens::GiveBack(name) => i.unsubscribe(&channels(&[name])),
            Happens::Ends(name) => {
                let name = Bytes::from(format!("p:{name}"));
                if redis.0.remove(&name) {
                    i.unsubscribed(&name, *now);
                }
            }
            Happens::Connected if !i.connected => i.connected(),
            Happens::Disconnected => {
                i.disconnected("gone".into(), *now);
                redis.0.clear();
            }
            Happens::Answers(forbidden) => drop(redis.answer(i, &forbidden, *now)),
            Happens::IsBusy if !i.sent.is_empty() => i.refused("BUSY a script", *now).unwrap(),
            Happens::Pings if i.connected => i.ping(),
            Happens::Passes(milliseconds) => {
                *now += Duration::from_millis(milliseconds);
                i.expire(*now);
            }
            Happens::Connected | Happens::IsBusy | Happens::Pings => {}
        }
    }

    proptest! {
        #[test]
        fn whatever_happened_all_that_is_wanted_is_live_once_redis_takes_it(
            happened in prop::collection::vec(happens(), 0..60),
        ) {
            let (mut i, mut redis, mut now) = (interests(), Redis::default(), Instant::now());
            happened.into_iter().for_each(|what| happen(&mut i, &mut redis, what, &mut now));
            happen(&mut i, &mut redis, Happens::Connected, &mut now);
            for _ in 0..60 {
                happen(&mut i, &mut redis, Happens::Passes(250), &mut now);
                while redis.answer(&mut i, &[], now).is_some() {}
            }
            prop_assert!(i.channels.values().all(|interest| interest.state == State::Live));
            prop_assert_eq!(redis.0, i.channels.keys().cloned().collect());
            prop_assert!(i.requests.is_empty() && i.retries.is_empty());
            prop_assert!(i.postponed.is_empty() && i.busy.is_none() && i.resubscribing == 0);
            let mut lost = std::collections::HashSet::new();
            for change in i.take_changes() {
                match change {
                    Change::AllLive | Change::Postponed(_) => {}
                    Change::Lost(channel, _) => prop_assert!(lost.insert(channel)),
                    Change::Resumed(channel) | Change::GivenUp(channel) => prop_assert!(lost.remove(&channel)),
                }
            }
            prop_assert!(lost.is_empty(), "{:?}", lost);
        }
    }
}
