//! What is subscribed and what was asked for; pure. Redis answers commands in their order, each `SUBSCRIBE` once
//! a channel or by one error, so a queue of what was sent tells what an answer belongs to.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::{sync::oneshot, time::Instant};

use super::Prefix;
use crate::{broker::BrokerError, domain::ChannelName};

/// Channels of one command: beyond it, larger commands win nothing.
const BATCH: usize = 1_000;
/// What Redis has not confirmed by then is given up; long enough for a Redis that restarts at once.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// The answer to a subscribe.
pub(super) type Answer = oneshot::Sender<Result<(), BrokerError>>;

/// All of it.
pub(super) struct Interests {
    prefix: Prefix,
    channels: HashMap<Bytes, Interest>,
    requests: HashMap<u64, Request>,
    last_request: u64,
    /// Commands of this connection that Redis has not answered, and the bytes that were not written.
    sent: VecDeque<Sent>,
    pub(super) out: BytesMut,
    connected: bool,
    /// Why there is no connection.
    reason: String,
}

struct Interest {
    channel: ChannelName,
    /// A caller was told that it is live: it is subscribed anew after a loss.
    confirmed: bool,
    /// Open requests that name it.
    asked: u32,
}

struct Request {
    names: Vec<Bytes>,
    /// Commands of it that are not confirmed.
    left: usize,
    deadline: Instant,
    answer: Answer,
}

/// A command that was sent.
enum Sent {
    Subscribe { request: u64, left: usize },
    Resubscribe { left: usize },
    Unsubscribe { left: usize },
}

/// An answer that fits no command, or a refusal of what was granted before: the connection is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Useless {
    #[error("Redis answered what was not asked")]
    Unexpected,
    #[error("Redis refused to subscribe anew: {0}")]
    Refused(String),
}

impl Interests {
    pub(super) fn new(prefix: Prefix) -> Self {
        Self {
            prefix,
            channels: HashMap::new(),
            requests: HashMap::new(),
            last_request: 0,
            sent: VecDeque::new(),
            out: BytesMut::new(),
            connected: false,
            reason: "not connected yet".to_owned(),
        }
    }

    /// The channel of a message, if it is wanted.
    pub(super) fn wanted(&self, name: &[u8]) -> Option<&ChannelName> {
        self.channels.get(name).map(|interest| &interest.channel)
    }

    // --- what callers ask

    pub(super) fn subscribe(&mut self, channels: Vec<ChannelName>, answer: Answer, now: Instant) {
        self.last_request += 1;
        let names: Vec<_> = channels.iter().map(|channel| self.prefix.name(channel)).collect();
        for (name, channel) in names.iter().zip(channels) {
            let new = Interest { channel, confirmed: false, asked: 0 };
            self.channels.entry(name.clone()).or_insert(new).asked += 1;
        }
        let request = Request { names, left: 0, deadline: now + ANSWER, answer };
        self.requests.insert(self.last_request, request);
        if self.connected {
            self.send_request(self.last_request);
        }
    }

    pub(super) fn unsubscribe(&mut self, channels: &[ChannelName]) {
        let names = channels.iter().map(|channel| self.prefix.name(channel));
        let known: Vec<_> = names.filter(|name| self.channels.contains_key(name)).collect();
        self.drop_names(&known);
    }

    /// Gives up what Redis did not confirm in time.
    pub(super) fn expire(&mut self, now: Instant) {
        let late =
            self.requests.iter().filter(|(_, request)| request.deadline <= now).map(|(number, _)| *number);
        for number in late.collect::<Vec<_>>() {
            let reason = if self.connected { "no answer in time".to_owned() } else { self.reason.clone() };
            self.fail(number, BrokerError::Unavailable(reason));
        }
    }

    // --- what happens to the connection

    /// There is a new connection: asks for everything anew. Whether all of it is live already, for want of any.
    pub(super) fn connected(&mut self) -> bool {
        self.connected = true;
        let confirmed = self.channels.iter().filter(|(_, interest)| interest.confirmed);
        let names: Vec<_> = confirmed.map(|(name, _)| name.clone()).collect();
        for batch in names.chunks(BATCH) {
            encode(&mut self.out, b"SUBSCRIBE", batch);
            self.sent.push_back(Sent::Resubscribe { left: batch.len() });
        }
        let mut open: Vec<_> = self.requests.keys().copied().collect();
        open.sort_unstable();
        open.into_iter().for_each(|number| self.send_request(number));
        names.is_empty()
    }

    pub(super) fn disconnected(&mut self, reason: String) {
        (self.connected, self.reason) = (false, reason);
        self.sent.clear();
        self.out.clear();
    }

    // --- what Redis answers

    /// A subscription is live. Whether it was the last one that was subscribed anew.
    pub(super) fn subscribed(&mut self) -> Result<bool, Useless> {
        let (left, request) = match self.sent.front_mut() {
            Some(Sent::Subscribe { request, left }) => (left, Some(*request)),
            Some(Sent::Resubscribe { left }) => (left, None),
            Some(Sent::Unsubscribe { .. }) | None => return Err(Useless::Unexpected),
        };
        *left -= 1;
        if *left > 0 {
            return Ok(false);
        }
        self.sent.pop_front();
        match request {
            Some(request) => self.part_confirmed(request),
            None => return Ok(!self.sent.iter().any(|sent| matches!(sent, Sent::Resubscribe { .. }))),
        }
        Ok(false)
    }

    /// A subscription is over.
    pub(super) fn unsubscribed(&mut self) -> Result<(), Useless> {
        let Some(Sent::Unsubscribe { left }) = self.sent.front_mut() else { return Err(Useless::Unexpected) };
        *left -= 1;
        if *left == 0 {
            self.sent.pop_front();
        }
        Ok(())
    }

    /// A command was refused as a whole.
    pub(super) fn refused(&mut self, text: &str) -> Result<(), Useless> {
        match self.sent.pop_front() {
            Some(Sent::Subscribe { request, .. }) => {
                self.fail(request, BrokerError::Refused(text.to_owned()));
                Ok(())
            }
            Some(Sent::Unsubscribe { .. }) => Ok(()),
            Some(Sent::Resubscribe { .. }) => Err(Useless::Refused(text.to_owned())),
            None => Err(Useless::Unexpected),
        }
    }

    // --- private

    fn send_request(&mut self, number: u64) {
        let Some(request) = self.requests.get_mut(&number) else { return };
        request.left = request.names.len().div_ceil(BATCH);
        for batch in request.names.chunks(BATCH) {
            encode(&mut self.out, b"SUBSCRIBE", batch);
            self.sent.push_back(Sent::Subscribe { request: number, left: batch.len() });
        }
        if request.left == 0 {
            self.succeed(number);
        }
    }

    fn part_confirmed(&mut self, number: u64) {
        // Given up meanwhile: its channels were dropped then.
        let Some(request) = self.requests.get_mut(&number) else { return };
        request.left -= 1;
        if request.left == 0 {
            self.succeed(number);
        }
    }

    fn succeed(&mut self, number: u64) {
        let Some(Request { names, answer, .. }) = self.requests.remove(&number) else { return };
        for name in &names {
            if let Some(interest) = self.channels.get_mut(name) {
                interest.confirmed = true;
                interest.asked = interest.asked.saturating_sub(1);
            }
        }
        // Nobody waits for it: the interest stays until it is given back.
        let _ = answer.send(Ok(()));
    }

    /// Answers, and forgets the channels that nobody else asked for.
    fn fail(&mut self, number: u64, error: BrokerError) {
        let Some(Request { names, answer, .. }) = self.requests.remove(&number) else { return };
        let mut unwanted = Vec::new();
        for name in names {
            if let Some(interest) = self.channels.get_mut(&name) {
                interest.asked = interest.asked.saturating_sub(1);
                if !interest.confirmed && interest.asked == 0 {
                    unwanted.push(name);
                }
            }
        }
        self.drop_names(&unwanted);
        let _ = answer.send(Err(error));
    }

    fn drop_names(&mut self, names: &[Bytes]) {
        for name in names {
            self.channels.remove(name);
        }
        if !self.connected {
            return;
        }
        for batch in names.chunks(BATCH) {
            encode(&mut self.out, b"UNSUBSCRIBE", batch);
            self.sent.push_back(Sent::Unsubscribe { left: batch.len() });
        }
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
    use super::*;

    fn interests() -> Interests {
        Interests::new(Prefix("p:".into()))
    }

    fn ask(
        interests: &mut Interests,
        names: &[&str],
        now: Instant,
    ) -> oneshot::Receiver<Result<(), BrokerError>> {
        let (answer, receiver) = oneshot::channel();
        interests.subscribe(channels(names), answer, now);
        receiver
    }

    fn channels(names: &[&str]) -> Vec<ChannelName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
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

    #[test]
    fn a_subscription_is_answered_once_redis_confirmed_each_of_its_channels() {
        let mut i = interests();
        assert!(i.connected(), "nothing is to be subscribed anew");
        let mut answer = ask(&mut i, &["a", "b"], Instant::now());
        assert_eq!(written(&mut i), "SUBSCRIBE p:a p:b");
        assert_eq!(i.subscribed(), Ok(false));
        assert!(answer.try_recv().is_err());
        assert_eq!(i.subscribed(), Ok(false));
        assert_eq!(answer.try_recv(), Ok(Ok(())));
        assert!(i.wanted(b"p:a").is_some() && i.wanted(b"p:c").is_none());
    }

    #[test]
    fn what_is_asked_while_redis_is_away_waits_for_it_and_no_longer_than_its_deadline() {
        let (mut i, now) = (interests(), Instant::now());
        let mut early = ask(&mut i, &["a"], now);
        let mut late = ask(&mut i, &["b"], now + Duration::from_secs(3));
        i.expire(now + ANSWER);
        assert_eq!(early.try_recv(), Ok(Err(BrokerError::Unavailable("not connected yet".into()))));
        assert_eq!(written(&mut i), "");
        i.connected();
        assert_eq!(written(&mut i), "SUBSCRIBE p:b", "nobody wants `a` any more");
        i.subscribed().unwrap();
        assert_eq!(late.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn after_a_loss_all_that_was_confirmed_is_subscribed_anew_in_batches_before_what_is_open() {
        let (mut i, now) = (interests(), Instant::now());
        i.connected();
        let names: Vec<_> = (0..2_500).map(|number| format!("c{number}")).collect();
        let _answer = ask(&mut i, &names.iter().map(String::as_str).collect::<Vec<_>>(), now);
        assert_eq!(i.sent.len(), 3);
        (0..2_500).for_each(|_| assert_eq!(i.subscribed(), Ok(false)));
        let mut open = ask(&mut i, &["open"], now);
        i.disconnected("gone".into());
        i.out.clear();
        assert!(!i.connected());
        assert_eq!(i.sent.len(), 4);
        let live: Vec<_> = (0..2_500).map(|_| i.subscribed().unwrap()).collect();
        assert!(live[2_499] && !live[..2_499].contains(&true), "live with the last one");
        i.subscribed().unwrap();
        assert_eq!(open.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn a_refused_subscription_leaves_no_interest_and_an_older_one_its_own() {
        let (mut i, now) = (interests(), Instant::now());
        i.connected();
        let _first = ask(&mut i, &["a"], now);
        i.subscribed().unwrap();
        let mut second = ask(&mut i, &["a", "b"], now);
        written(&mut i);
        i.refused("NOPERM").unwrap();
        assert_eq!(second.try_recv(), Ok(Err(BrokerError::Refused("NOPERM".into()))));
        assert_eq!(written(&mut i), "UNSUBSCRIBE p:b");
        assert!(i.wanted(b"p:a").is_some() && i.wanted(b"p:b").is_none());
    }

    #[test]
    fn a_confirmation_belongs_to_its_own_command() {
        let (mut i, now) = (interests(), Instant::now());
        i.connected();
        let mut first = ask(&mut i, &["a"], now);
        i.unsubscribe(&channels(&["a"]));
        let mut second = ask(&mut i, &["a"], now);
        i.subscribed().unwrap();
        assert_eq!((first.try_recv(), second.try_recv().is_err()), (Ok(Ok(())), true));
        i.unsubscribed().unwrap();
        i.subscribed().unwrap();
        assert_eq!(second.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn an_answer_to_nothing_or_a_refusal_of_what_was_granted_ends_the_connection() {
        let mut i = interests();
        i.connected();
        assert_eq!(i.subscribed(), Err(Useless::Unexpected));
        assert_eq!(i.unsubscribed(), Err(Useless::Unexpected));
        assert_eq!(i.refused("ERR"), Err(Useless::Unexpected));
        let _answer = ask(&mut i, &["a"], Instant::now());
        i.subscribed().unwrap();
        i.disconnected("gone".into());
        i.connected();
        assert_eq!(i.refused("NOPERM"), Err(Useless::Refused("NOPERM".into())));
    }
}
