//! What a shard knows and does, apart from polling: connections come, join channels, receive and end.
//!
//! Reading is in `read`, writing in `visit`. Time comes from the reactor as [`Now`]; nothing here reads a clock.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    io::IoSlice,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use sidecar_config::Compression;
use tokio::sync::{Semaphore, mpsc};

use super::{
    Arrived, Completion, Config, Delivery, Link, Refusal, Reservation, Reserved, Rules, Task, Transport,
    Visitor, Work,
    connection::{Count, Flags, NONE, Passport, Reserving, Slot, Slots, Subscription},
    door::Seats,
    flush::Flushed,
    index::{Index, State, Subscriber, Waiter},
    log::{Key, Moment, NO_KEY, Spares},
    metrics::{Latencies, ShardMetrics},
    own::Holders,
    packing::Wanted,
    slow::GRACE_MS,
    timer::{Entry, Kind, Wheel},
};
use crate::{
    domain::{
        ChannelName, CloseReason, CommandError, ConnectionId, Exposure, Identity, KeyId, NodeId, Reconnect,
        client_id,
    },
    protocol::{
        Advice, Protocol, Reply, WireForm,
        websocket::{Deflater, Inflater},
    },
    session::{Circumstances, Session},
};

/// How a connection leaves once what it asked for is answered.
type Leave = (CloseReason, Option<Advice>);

/// For a client whose handshake was answered to arrive here: a slow link's TCP, no more.
const RESERVATION_MS: u64 = 10_000;
/// For a client to answer a close frame.
const CLOSE_MS: u64 = 5_000;
/// Part of the memory for work that tokens may have in addition.
const TOKEN_PART: usize = 8;
/// A turn that begins this much later than it was due means that the thread did not run: the process was stopped,
/// suspended with its machine, or starved. What clients did meanwhile has not been read yet.
const LATE_MS: u64 = 1_000;
/// A shard that is late more often than this has too much to do: its clients are judged all the same, or those that do
/// not read would stay for as long as it lasts.
const LATE_AGAIN_MS: u64 = 300_000;
/// One log holds this part of what all may, or twice what its namespace lets a client lag by: what one channel does,
/// the others do not suffer from.
pub(super) const LANE_PART: usize = 4;
/// Bounds of lag are a 16th for each step of pressure; beyond this many nothing is left of any.
pub(super) const MOST_PRESSURE: u32 = 8;

/// The moment of a turn.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Now {
    /// Milliseconds since the shard began; only goes forward.
    pub(crate) ms: u64,
    /// The same in microseconds.
    pub(crate) us: u64,
    /// Microseconds of the Unix clock.
    pub(crate) unix_us: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Core {
    pub(super) shard: u16,
    pub(super) node: NodeId,
    pub(super) rules: Arc<Rules>,
    /// Keys of tokens that are good; all are until they have changed.
    good_keys: Option<Arc<HashSet<KeyId>>>,
    pub(super) work: mpsc::Sender<Work>,
    /// Bytes that may still wait for the control runtime.
    pub(super) work_bytes: Arc<Semaphore>,
    pub(super) max_work_bytes: usize,
    /// Bytes of tokens that may wait for their check. Apart from the others, because publications may wait for the broker,
    /// and a token that is not renewed in time ends its connection.
    pub(super) token_bytes: Arc<Semaphore>,
    pub(super) max_token_bytes: usize,
    pub(super) metrics: Arc<ShardMetrics>,
    pub(super) latencies: Latencies,
    pub(super) seats: Arc<Seats>,
    pub(super) now: Now,
    /// Start of the last late turn; 0 where there was none. Silence counts from here at the earliest.
    pub(super) resumed_ms: u64,
    pub(super) slots: Slots,
    pub(super) index: Index,
    pub(super) spares: Spares,
    pub(super) wheel: Wheel,
    /// Lanes with something new for subscribers that were not offered it yet.
    pub(super) dirty_lanes: VecDeque<u32>,
    /// Connections with something to send.
    pub(super) dirty: VecDeque<u32>,
    /// Connections whose turn to be read from ended before all was read.
    pub(super) unread: VecDeque<u32>,
    /// Clients to welcome: their subscriptions are live, their transport came along.
    arrived: Vec<(u32, Arrived)>,
    /// Channels that could not be given back yet.
    pub(super) leaving: Vec<ChannelName>,
    /// Who leaves next in a drain, the oldest last.
    pub(super) queue_out: Vec<ConnectionId>,
    pub(super) scratch: Vec<u8>,
    pub(super) deflater: Deflater,
    /// What this shard would have compressed for it.
    pub(super) wanted: Arc<Wanted>,
    pub(super) inflater: Inflater,
    pub(super) random: SmallRng,
    /// Hashes what publications are about; keyed, for publishers choose it.
    pub(super) keys: RandomState,
    /// Of all logs, and of what single connections keep of publications beside them.
    pub(super) log_bytes: usize,
    /// Of single connections: unfinished messages and replies.
    pub(super) own_bytes: usize,
    /// Who has some of it: see [`Self::bound_own`].
    pub(super) holders: Holders,
    /// Of all that. Beyond it mail waits until what is there was offered to everybody once.
    pub(super) max_log_bytes: usize,
    /// How short memory is: see [`Self::press`].
    pub(super) pressure: u32,
    /// What was held when it was last put up.
    pressed_at: usize,
    /// What was held when memory was last given back that nobody needed.
    squeezed_at: usize,
    /// How long a client that takes something may lag beyond its bounds.
    pub(super) grace_ms: u64,
    /// Deliveries of this stride.
    pub(super) flushed: Vec<Flushed>,
}

/// What a shard shares with others.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) metrics: Arc<ShardMetrics>,
    pub(crate) latencies: Latencies,
    pub(crate) seats: Arc<Seats>,
    pub(crate) wanted: Arc<Wanted>,
}

impl Core {
    pub(crate) fn new(
        shard: u16,
        config: Config,
        rules: Arc<Rules>,
        work: mpsc::Sender<Work>,
        shared: Shared,
    ) -> Self {
        let Shared { metrics, latencies, seats, wanted } = shared;
        Self {
            shard,
            node: config.node,
            rules,
            good_keys: None,
            work,
            work_bytes: Arc::new(Semaphore::new(config.work_bytes)),
            max_work_bytes: config.work_bytes,
            token_bytes: Arc::new(Semaphore::new(config.work_bytes / TOKEN_PART)),
            max_token_bytes: config.work_bytes / TOKEN_PART,
            metrics,
            latencies,
            seats,
            now: Now::default(),
            resumed_ms: 0,
            slots: Slots::default(),
            index: Index::default(),
            spares: Spares::within(config.log_bytes),
            wheel: Wheel::new(),
            dirty_lanes: VecDeque::new(),
            dirty: VecDeque::new(),
            unread: VecDeque::new(),
            arrived: Vec::new(),
            leaving: Vec::new(),
            queue_out: Vec::new(),
            scratch: Vec::new(),
            deflater: Deflater::default(),
            wanted,
            inflater: Inflater::default(),
            random: SmallRng::seed_from_u64(config.node.0 ^ u64::from(shard) << 48),
            keys: RandomState::new(),
            log_bytes: 0,
            own_bytes: 0,
            holders: Holders::default(),
            max_log_bytes: config.log_bytes,
            pressure: 0,
            pressed_at: 0,
            squeezed_at: 0,
            grace_ms: GRACE_MS,
            flushed: Vec::new(),
        }
    }

    /// Begins a turn that was due after `wait_ms`; `None` if it waited for events only.
    pub(crate) fn begin_turn(&mut self, now: Now, wait_ms: Option<u64>) {
        let due_ms = self.now.ms.saturating_add(wait_ms.unwrap_or(u64::MAX));
        let is_late = now.ms > due_ms.saturating_add(LATE_MS);
        if is_late && (self.resumed_ms == 0 || now.ms >= self.resumed_ms + LATE_AGAIN_MS) {
            self.resumed_ms = now.ms;
        }
        self.now = now;
    }

    /// Whether there is something to do without waiting for an event.
    pub(crate) fn is_busy(&self) -> bool {
        !self.dirty_lanes.is_empty() || !self.dirty.is_empty() || !self.unread.is_empty()
    }

    /// Whether mail has to wait: the logs are full and what they hold was not offered to everybody yet.
    pub(crate) fn is_full(&self) -> bool {
        self.memory() > self.max_log_bytes && self.is_busy()
    }

    /// All that is held for clients and of them.
    pub(crate) fn memory(&self) -> usize {
        self.log_bytes + self.own_bytes + self.spares.held()
    }

    /// While the logs are full, a client that takes nothing is slow, whatever its bounds say: it is held to a part of
    /// them, and to less with each sixteenth that the logs grow by nevertheless.
    pub(crate) fn press(&mut self) {
        self.bound_own();
        let step = self.max_log_bytes / 16;
        if self.memory() > self.max_log_bytes.max(self.squeezed_at + step) {
            self.squeeze();
        }
        if self.memory() <= self.max_log_bytes {
            self.pressure = 0;
            self.squeezed_at = self.squeezed_at.min(self.memory());
            return;
        }
        if self.pressure > 0 && self.memory() < self.pressed_at + step {
            return;
        }
        self.pressure = MOST_PRESSURE.min(self.pressure + 1);
        for slot in self.slots.taken() {
            self.bound_lags(slot);
        }
        self.pressed_at = self.memory();
    }

    /// Gives memory back that logs asked for ahead of need. It costs a look at each, so it comes before clients have to
    /// suffer, and not again before more is held.
    fn squeeze(&mut self) {
        self.spares.clear();
        let freed = self.index.shrink();
        self.freed(freed);
        self.squeezed_at = self.memory();
    }

    pub(crate) fn id(&self, slot: u32) -> ConnectionId {
        ConnectionId { shard: self.shard, slot, generation: self.slots[slot].generation }
    }

    // === coming ===

    /// Makes a place for a client and subscribes it; answers once that is done.
    pub(crate) fn reserve(&mut self, reservation: Reservation) {
        let Reservation { visitor, guest, transport } = reservation;
        let Visitor { protocol, deflate, identity, channels, remote } = visitor;
        let passport = Passport {
            session: Session::new(identity),
            remote,
            opened_ms: self.now.ms,
            received: Count::default(),
            sent: Count::default(),
            _guest: guest,
            passed: 0,
            passed_s: (self.now.ms / 1_000) as u32,
            closing: None,
        };
        let (slot, _) = self.slots.open(protocol, passport);
        self.end_if_keyless(slot);
        if deflate {
            self.slots[slot].flags.set(Flags::DEFLATE);
        }
        self.slots[slot].cold().reserving =
            Some(Box::new(Reserving { transport, waiting_for: channels.len() }));
        for channel in channels {
            if let Err(error) = self.subscribe(slot, &channel, None) {
                self.refuse(slot, channel, error);
                return;
            }
        }
        self.arm(slot, self.now.ms + RESERVATION_MS);
        self.settle_reservation(slot);
    }

    /// Answers a reservation whose subscriptions are all live.
    fn settle_reservation(&mut self, slot: u32) {
        let connection = self.id(slot);
        let Some(cold) = &mut self.slots[slot].cold else { return };
        let Some(reserving) = cold.reserving.take_if(|reserving| reserving.waiting_for == 0) else { return };
        self.slots[slot].cool();
        match reserving.transport {
            Transport::Later(reply) => {
                if reply.send(Ok(Reserved { connection })).is_err() {
                    self.vacate(slot);
                }
            }
            Transport::Here(arrived) => self.arrived.push((slot, arrived)),
        }
    }

    fn refuse(&mut self, slot: u32, channel: ChannelName, error: CommandError) {
        if let Some(reserving) = self.slots[slot].cold().reserving.take() {
            let refusal = Refusal::Channel { channel, error };
            // Whoever asked may have gone; then nobody needs the answer.
            match reserving.transport {
                Transport::Later(reply) => drop(reply.send(Err(refusal))),
                Transport::Here(Arrived { link, handshake, .. }) => {
                    if let Some(answer) = self.guard(slot, || handshake.refused(refusal)) {
                        let _ = link.write(&[IoSlice::new(&answer)]);
                    }
                    link.finish();
                }
            }
        }
        self.vacate(slot);
    }

    /// A client for [`Self::welcome`], if there is one.
    pub(crate) fn next_arrived(&mut self) -> Option<(u32, Arrived)> {
        self.arrived.pop()
    }

    /// Lets a client in whose transport came along: the answer to its handshake goes before all else.
    pub(crate) fn welcome(&mut self, slot: u32, arrived: Arrived) {
        let Arrived { link, leftover, handshake } = arrived;
        self.send_with(slot, |out| out.extend_from_slice(&handshake.accepted()));
        if self.slots.is_taken(slot) {
            self.attach(slot, link, &leftover);
        }
    }

    /// Brings a reserved connection's transport, non-blocking and, if a socket, registered.
    pub(crate) fn attach(&mut self, slot: u32, link: Link, leftover: &Bytes) {
        let protocol = self.slots[slot].protocol;
        self.slots[slot].link = Some(link);
        self.metrics.opened(protocol);
        self.greet(slot, protocol);
        if !self.slots.is_taken(slot) {
            return;
        }
        // Spread over half an interval, so that clients that came together are not pinged together.
        let interval = self.ping_interval_ms();
        let first = self.random.random_range(interval / 2..=interval);
        self.arm(slot, self.now.ms + first);
        self.mark_dirty(slot);
        if let Some((reason, advice)) = self.slots[slot].cold().leaving.take() {
            self.close(slot, reason, advice);
        }
        self.slots[slot].cool();
        if self.slots[slot].flags.has(Flags::CLOSING) {
            return;
        }
        if !leftover.is_empty() {
            let mut bytes = leftover.to_vec();
            self.take_bytes(slot, &mut bytes);
        }
    }

    /// The first bytes: the client id, and for each subscription of the request that it is live.
    fn greet(&mut self, slot: u32, protocol: Protocol) {
        self.send_with(slot, |out| protocol.put_head(out));
        self.reply(slot, &Reply::Connected { node: self.node, connection: self.id(slot) });
        for at in 0..self.slots[slot].subscriptions() {
            let name = self.index.channel_of(self.slots[slot].subscription(at).lane).name.clone();
            self.reply(slot, &Reply::Subscribed { channel: &name, id: None });
        }
    }

    // === subscriptions ===

    pub(super) fn has_channel(&self, slot: u32, channel: &ChannelName) -> Option<usize> {
        let key = self.index.find(channel)?;
        let slot = &self.slots[slot];
        (0..slot.subscriptions()).find(|at| self.index.lane(slot.subscription(*at).lane).channel == key)
    }

    /// Subscribes where the session allows it, and asks for the channel where it is the shard's first.
    pub(super) fn subscribe(
        &mut self,
        slot: u32,
        channel: &ChannelName,
        id: Option<String>,
    ) -> Result<(), CommandError> {
        self.may_subscribe(slot, channel)?;
        let key = match self.index.find(channel) {
            Some(key) if self.index.channel(key).refused => return Err(CommandError::BrokerRefused),
            Some(key) => self.want_again(key),
            None => self.ask_for(channel)?,
        };
        let deflate = self.slots[slot].flags.has(Flags::DEFLATE);
        let form = self.slots[slot].protocol.wire_form(deflate);
        let at = self.slots[slot].subscriptions() as u32;
        let subscription = self.index.join(key, form, Subscriber { slot, at });
        self.slots[slot].push_subscription(subscription);
        self.count_sent(slot, subscription.lane, subscription.cursor, false);
        self.metrics.subscriptions.add(1);
        if self.index.channel(key).state == State::Live {
            self.joined(slot, channel, id.as_deref());
        } else {
            let generation = self.slots[slot].generation;
            self.index.channel_mut(key).waiters.push(Waiter { slot, generation, id });
        }
        Ok(())
    }

    fn may_subscribe(&self, slot: u32, channel: &ChannelName) -> Result<(), CommandError> {
        let now = self.circumstances(slot, channel);
        let passport = self.slots[slot].passport.as_ref().expect("a taken slot");
        passport.session.may_subscribe(channel, &now)
    }

    pub(super) fn circumstances(&self, slot: u32, channel: &ChannelName) -> Circumstances<'_> {
        Circumstances {
            policies: &self.rules.policies,
            limits: &self.rules.hub.limits,
            subscriptions: self.slots[slot].subscriptions(),
            subscribed: self.has_channel(slot, channel).is_some(),
            now_ms: self.now.ms,
        }
    }

    fn want_again(&mut self, key: u32) -> u32 {
        let state = &mut self.index.channel_mut(key).state;
        *state = match *state {
            State::Unwanted => State::Pending,
            // It was not given back yet.
            State::Leaving => State::Live,
            state => state,
        };
        key
    }

    fn ask_for(&mut self, channel: &ChannelName) -> Result<u32, CommandError> {
        let policy = self.rules.policies.channel(channel).map_err(|_| CommandError::UnknownChannel)?;
        let policy = Arc::clone(policy);
        self.submit(Task::Subscribe { channel: channel.clone() })?;
        self.metrics.channels.add(1);
        let latency = self.latencies.of(channel.namespace());
        Ok(self.index.open(channel.clone(), policy, latency))
    }

    /// Hands work out, if there is room.
    pub(super) fn submit(&self, task: Task) -> Result<(), CommandError> {
        let room = self.work.try_reserve().map_err(|_| CommandError::Overloaded)?;
        room.send(Work { shard: self.shard, task });
        Ok(())
    }

    /// A subscription is live.
    fn joined(&mut self, slot: u32, channel: &ChannelName, id: Option<&str>) {
        if let Some(reserving) = self.slots[slot].cold.as_mut().and_then(|cold| cold.reserving.as_mut()) {
            reserving.waiting_for -= 1;
        } else {
            self.reply(slot, &Reply::Subscribed { channel, id });
        }
    }

    /// Ends one subscription. Gives the id of the command that asked for it, where that is not answered yet.
    pub(super) fn unsubscribe(&mut self, slot: u32, at: usize) -> Option<String> {
        // This may move the cursor.
        self.carry_half(slot, at);
        let subscription = self.slots[slot].subscription(at);
        self.count_sent(slot, subscription.lane, subscription.cursor, true);
        self.let_go(slot, subscription.lane);
        self.slots[slot].remove_subscription(at);
        if at < self.slots[slot].subscriptions() {
            // The last one took this number.
            let moved = self.slots[slot].subscription(at);
            self.index.lane_mut(moved.lane).subscribers[moved.place as usize].at = at as u32;
        }
        if let Some(cold) = &mut self.slots[slot].cold {
            cold.skipped.retain(|lane| *lane != subscription.lane);
            if cold.half as usize == self.slots[slot].subscriptions() {
                self.slots[slot].cold().half = at as u32;
            }
        }
        let channel = self.index.lane(subscription.lane).channel;
        let waiters = &mut self.index.channel_mut(channel).waiters;
        let waiting = waiters.iter().position(|waiter| waiter.slot == slot);
        let unanswered = waiting.and_then(|at| waiters.swap_remove(at).id);
        let left = self.index.leave(subscription, &mut self.spares);
        if let Some((moved, place)) = left.moved {
            self.slots[moved.slot].subscription_mut(moved.at as usize).place = place;
        }
        self.freed(left.freed);
        self.metrics.subscriptions.sub(1);
        if let Some(key) = left.empty {
            self.give_back(key);
        }
        unanswered
    }

    /// Nobody here needs this channel any more.
    fn give_back(&mut self, key: u32) {
        let channel = self.index.channel_mut(key);
        channel.waiters.clear();
        if channel.state == State::Pending {
            channel.state = State::Unwanted;
            return;
        }
        let name = channel.name.clone();
        match self.submit(Task::Unsubscribe { channel: name.clone() }) {
            Ok(()) => self.forget_channel(key),
            Err(_) => {
                self.index.channel_mut(key).state = State::Leaving;
                self.leaving.push(name);
            }
        }
    }

    fn forget_channel(&mut self, key: u32) {
        self.index.close(key);
        self.metrics.channels.sub(1);
    }

    /// Tries again to give back channels; whether any are left.
    pub(crate) fn retry_leaving(&mut self) -> bool {
        while let Some(name) = self.leaving.pop() {
            let Some(key) = self.index.find(&name) else { continue };
            if self.index.channel(key).state != State::Leaving {
                continue;
            }
            if self.submit(Task::Unsubscribe { channel: name.clone() }).is_err() {
                self.leaving.push(name);
                return true;
            }
            self.forget_channel(key);
        }
        false
    }

    /// Keeps the passport's sum of what was sent: see [`Passport::sent`].
    pub(super) fn count_sent(&mut self, slot: u32, lane: u32, cursor: u64, at_end: bool) {
        let messages = self.index.lane(lane).log.messages_before(cursor);
        let sent = &mut self.slots[slot].passport.as_mut().expect("a taken slot").sent;
        let add =
            |sum: u64, value: u64| if at_end { sum.wrapping_add(value) } else { sum.wrapping_sub(value) };
        *sent = Count { bytes: add(sent.bytes, cursor), messages: add(sent.messages, messages) };
    }

    pub(super) fn held(&mut self, bytes: usize) {
        self.log_bytes += bytes;
        self.metrics.log_bytes.add(bytes as u64);
    }

    pub(super) fn freed(&mut self, bytes: usize) {
        self.log_bytes -= bytes;
        self.metrics.log_bytes.sub(bytes as u64);
    }

    // === completions ===

    pub(crate) fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Subscribed { channel, result } => self.subscribed(&channel, result),
            Completion::Published { connection, channel, id, result } => {
                if let Some(slot) = self.slots.find(connection) {
                    self.published(slot, &channel, id.as_deref(), result);
                }
            }
            Completion::Refreshed { connection, id, result } => {
                if let Some(slot) = self.slots.find(connection) {
                    self.refreshed(slot, id.as_deref(), result);
                }
            }
        }
    }

    fn subscribed(&mut self, channel: &ChannelName, result: Result<(), CommandError>) {
        let Some(key) = self.index.find(channel) else { return };
        if !matches!(self.index.channel(key).state, State::Pending | State::Unwanted) {
            return;
        }
        let waiters = std::mem::take(&mut self.index.channel_mut(key).waiters);
        match result {
            Ok(()) => self.channel_is_live(key, channel, waiters),
            Err(error) => self.channel_is_refused(key, channel, waiters, &error),
        }
    }

    fn channel_is_live(&mut self, key: u32, channel: &ChannelName, waiters: Vec<Waiter>) {
        let state = &mut self.index.channel_mut(key).state;
        let unwanted = *state == State::Unwanted;
        *state = State::Live;
        if unwanted {
            self.give_back(key);
            return;
        }
        for Waiter { slot, generation, id } in waiters {
            if self.slots.holds(slot, generation) && self.has_channel(slot, channel).is_some() {
                self.joined(slot, channel, id.as_deref());
                self.settle_reservation(slot);
            }
        }
    }

    fn channel_is_refused(
        &mut self,
        key: u32,
        channel: &ChannelName,
        waiters: Vec<Waiter>,
        error: &CommandError,
    ) {
        for Waiter { slot, generation, id } in waiters {
            if !self.slots.holds(slot, generation) {
                continue;
            }
            if self.slots[slot].cold.as_ref().is_some_and(|cold| cold.reserving.is_some()) {
                self.refuse(slot, channel.clone(), error.clone());
            } else if let Some(at) = self.has_channel(slot, channel) {
                self.unsubscribe(slot, at);
                self.fail(slot, error, Some(channel), id.as_deref());
            }
        }
        // Everyone who waits is a subscriber and the other way round, so nobody is left; the control runtime holds
        // nothing for this channel, so nothing is given back.
        self.forget_channel(key);
    }

    fn published(
        &mut self,
        slot: u32,
        channel: &ChannelName,
        id: Option<&str>,
        result: Result<bool, CommandError>,
    ) {
        let leaving = self.answered(slot);
        match (result, id) {
            (Ok(duplicate), Some(id)) => self.reply(slot, &Reply::Published { channel, id, duplicate }),
            (Ok(_), None) => {}
            (Err(error), id) => self.fail(slot, &error, Some(channel), id),
        }
        self.go_on(slot, leaving);
    }

    /// One thing less is waited for; how the connection is to leave, if it was the last.
    fn answered(&mut self, slot: u32) -> Option<Leave> {
        let cold = self.slots[slot].cold();
        cold.in_flight = cold.in_flight.saturating_sub(1);
        let leaving = cold.leaving.take_if(|_| cold.in_flight == 0);
        self.slots[slot].cool();
        leaving
    }

    fn go_on(&mut self, slot: u32, leaving: Option<Leave>) {
        if let Some((reason, advice)) = leaving
            && self.slots.is_taken(slot)
        {
            self.close(slot, reason, advice);
        }
        if self.slots.is_taken(slot) && !self.slots[slot].is_leaving() {
            self.resume_reading(slot);
        }
    }

    /// Goes by another token from here on: by its end and by its grants. Only its user stays.
    fn refreshed(&mut self, slot: u32, id: Option<&str>, result: Result<Identity, CommandError>) {
        let leaving = self.answered(slot);
        let session = &mut self.slots[slot].passport.as_mut().expect("a taken slot").session;
        match result {
            Ok(identity) if identity.user != session.identity.user => {
                let error =
                    CommandError::Unauthorized("the token is for another user: connect again".to_owned());
                self.fail(slot, &error, None, id);
            }
            Ok(identity) => {
                session.identity = identity;
                self.end_if_keyless(slot);
                // Sooner than it must: who does not answer a ping is found out by the deadline behind it.
                self.arm(slot, self.now.ms + self.pong_timeout_ms());
                self.reply(slot, &Reply::Refreshed { id });
                if self.slots.is_taken(slot) {
                    self.review(slot);
                }
            }
            Err(error) => self.fail(slot, &error, None, id),
        }
        self.go_on(slot, leaving);
    }

    /// Tells a client that its command failed, as its protocol can.
    pub(super) fn fail(
        &mut self,
        slot: u32,
        error: &CommandError,
        channel: Option<&ChannelName>,
        id: Option<&str>,
    ) {
        self.metrics.failed[error.kind()].add(1);
        match self.slots[slot].protocol.close_reason(error) {
            Some(reason) => self.close(slot, reason, None),
            None => self.reply(slot, &Reply::Error { error, channel, id }),
        }
    }

    // === publications ===

    pub(crate) fn publications(&mut self, batch: &[Arc<Delivery>]) {
        for publication in batch {
            let Some(key) = self.index.find(&publication.channel) else { continue };
            self.metrics.publications.add(1);
            let born = self.birth(publication);
            let about =
                publication.key.as_ref().map_or(NO_KEY, |key| self.keys.hash_one(key).max(NO_KEY + 1));
            let exposure = self.index.channel(key).policy.exposure;
            for lane in self.index.lanes_of(key) {
                if self.index.lane(lane).log.held() >= self.max_log_bytes / LANE_PART / 2
                    && !self.has_room(lane)
                {
                    continue;
                }
                let form = self.index.lane(lane).form;
                if form.is_deflated() {
                    self.append_compressed(lane, about, born, form, exposure, publication);
                } else {
                    self.append(lane, about, born, |out| {
                        form.put_publication(out, publication, exposure);
                        #[cfg(test)]
                        assert!(
                            !publication.payload.bytes().ends_with(super::read::PANIC_LATER),
                            "a test provokes it"
                        );
                    });
                }
            }
        }
    }

    /// Compressed once for all who negotiated it, unless it is short or its namespace does not want it.
    fn append_compressed(
        &mut self,
        lane: u32,
        about: Key,
        born: Moment,
        form: WireForm,
        exposure: Exposure,
        publication: &Delivery,
    ) {
        let Compression { enabled, level, min_bytes } = self.rules.hub.compression;
        let wanted = enabled && self.index.channel_of(lane).policy.compression;
        if !wanted || publication.payload.bytes().len() < min_bytes as usize {
            self.append(lane, about, born, |out| form.put_publication(out, publication, exposure));
            return;
        }
        if let Some(frames) = publication.packed(form, exposure) {
            self.append(lane, about, born, |out| out.extend_from_slice(frames));
            return;
        }
        self.wanted.ask(&publication.channel, form, exposure);
        let mut deflater = std::mem::take(&mut self.deflater);
        let plain = publication.payload.bytes().len();
        let head = |core: &Self| core.index.lane(lane).log.head();
        let before = head(self);
        self.append(lane, about, born, |out| {
            form.put_compressed(out, publication, exposure, &mut deflater, level);
        });
        self.deflater = deflater;
        self.metrics.deflate_in.add(plain as u64);
        self.metrics.deflate_out.add(head(self) - before);
    }

    /// Appends to a log, for everybody at once. Where `write` panics, nothing is left of what it wrote, and they are told
    /// of a loss: the publication would end every node that has subscribers.
    fn append(&mut self, lane_key: u32, about: Key, born: Moment, write: impl FnOnce(&mut Vec<u8>)) {
        if self.try_append(lane_key, about, born, write).is_err() {
            self.metrics.gaps.add(1);
            tracing::error!("encoding a publication panicked, its subscribers are sent a gap");
            self.gap_in(lane_key, true, "the message could not be sent");
        }
    }

    fn try_append(
        &mut self,
        lane_key: u32,
        about: Key,
        born: Moment,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> thread::Result<()> {
        let lane = self.index.lane_mut(lane_key);
        let (protocol, mut written) = (lane.form.protocol(), Ok(()));
        let added = lane.log.append(&mut self.spares, about, born, |out| {
            let before = out.len();
            written = catch_unwind(AssertUnwindSafe(|| write(out)));
            if written.is_err() {
                out.truncate(before);
                // A log has no empty frames; this one means nothing to a client.
                protocol.put_ping(out);
            }
        });
        lane.left = lane.subscribers.len() as u32;
        if !std::mem::replace(&mut lane.dirty, true) {
            self.dirty_lanes.push_back(lane_key);
        }
        self.held(added);
        written
    }

    /// Tells subscribers that publications were lost, in order with the publications. A bare client can only be told by
    /// closing, which is done where the loss is certain, but not where every channel of a link may have lost something:
    /// that would close all clients of the node at once.
    pub(crate) fn gap(&mut self, channels: &[ChannelName], certain: bool, reason: &'static str) {
        self.metrics.gaps.add(1);
        let keys = channels.iter().filter_map(|channel| self.index.find(channel));
        let lanes: Vec<u32> = keys.flat_map(|key| self.index.lanes_of(key)).collect();
        for lane in lanes {
            self.gap_in(lane, certain, reason);
        }
    }

    pub(crate) fn set_refused(&mut self, channel: &ChannelName, refused: bool) {
        if let Some(key) = self.index.find(channel) {
            self.index.channel_mut(key).refused = refused;
        }
    }

    pub(super) fn gap_in(&mut self, lane: u32, certain: bool, reason: &str) {
        match self.index.lane(lane).form.protocol() {
            protocol if protocol.has_replies() => self.append_gap(lane, protocol, reason),
            _ if certain => self.close_all_of(lane, CloseReason::Gap),
            _ => {}
        }
    }

    fn append_gap(&mut self, lane: u32, protocol: Protocol, reason: &str) {
        let name = self.index.channel_of(lane).name.clone();
        let reply = Reply::Gap { channel: &name, reason, from: None, to: None };
        let now = Moment::of_us(self.now.us);
        // There is nothing to tell instead.
        let _ = self.try_append(lane, NO_KEY, now, |out| protocol.put_reply(out, &reply));
    }

    fn close_all_of(&mut self, lane: u32, reason: CloseReason) {
        let subscribers = &self.index.lane(lane).subscribers;
        let slots: Vec<u32> = subscribers.iter().map(|subscriber| subscriber.slot).collect();
        for slot in slots {
            self.close(slot, reason, None);
        }
    }

    // === ending ===

    /// Ends a connection in good order: subscriptions at once, then the protocol's own words, then the transport.
    pub(super) fn close(&mut self, slot: u32, reason: CloseReason, advice: Option<Advice>) {
        if self.slots[slot].flags.has(Flags::CLOSING) {
            return;
        }
        if self.slots[slot].is_promised() {
            // Its handshake may have been answered: it is closed in its own protocol, once it is there. Nothing waits
            // for it until then.
            self.leave_all(slot);
            self.slots[slot].cold().leaving = Some((reason, advice));
            return;
        }
        if self.slots[slot].link.is_none() {
            self.refuse_reserved(slot);
            return;
        }
        self.begin_end(slot, reason);
        let protocol = self.slots[slot].protocol;
        let advice = advice.or_else(|| self.advice(reason)).map(|advice| self.spread(slot, advice));
        self.send_with(slot, |out| protocol.put_close(out, reason, advice));
    }

    /// What is advised where nothing else is: many may be closed at once for such a reason, and all would come back
    /// together.
    fn advice(&self, reason: CloseReason) -> Option<Advice> {
        let advice = Advice { after: Duration::ZERO, jitter: self.rules.reconnect_jitter };
        (reason.reconnect() == Reconnect::Yes).then_some(advice)
    }

    /// The end has begun: nothing is received or delivered any more, but what is in the outbox is sent.
    pub(super) fn begin_end(&mut self, slot: u32, reason: CloseReason) {
        self.slots[slot].flags.set(Flags::CLOSING);
        self.slots[slot].passport.as_mut().expect("a taken slot").closing = Some(reason);
        self.leave_all(slot);
        if let Some(cold) = &mut self.slots[slot].cold {
            cold.partial = BytesMut::new();
        }
        self.recount(slot);
        self.arm(slot, self.now.ms + CLOSE_MS);
    }

    fn leave_all(&mut self, slot: u32) {
        if let Some(cold) = &mut self.slots[slot].cold {
            cold.turns.clear();
        }
        for at in (0..self.slots[slot].subscriptions()).rev() {
            self.unsubscribe(slot, at);
        }
    }

    /// Ends a connection now. `reason` counts unless the end had begun for another.
    pub(super) fn end(&mut self, slot: u32, reason: CloseReason) {
        if self.slots[slot].link.is_none() {
            self.refuse_reserved(slot);
            return;
        }
        self.leave_all(slot);
        let rest = self.slots[slot].cold.as_ref().map_or(0, |cold| cold.outbox.rest());
        self.freed(rest);
        let connection = self.id(slot);
        let ended = self.free(slot);
        self.seats.give_back();
        let passport = ended.passport.expect("a taken slot");
        let reason = passport.closing.unwrap_or(reason);
        self.metrics.ended(ended.protocol, reason);
        self.log_access(connection, ended.protocol, &passport, reason);
    }

    /// A reserved connection's transport will not come.
    pub(crate) fn abandon(&mut self, connection: ConnectionId) {
        if let Some(slot) = self.slots.find(connection)
            && self.slots[slot].link.is_none()
        {
            self.vacate(slot);
        }
    }

    /// Ends a reservation.
    fn vacate(&mut self, slot: u32) {
        self.leave_all(slot);
        self.free(slot);
        self.seats.give_back();
    }

    fn free(&mut self, slot: u32) -> Slot {
        let slot = self.slots.close(slot);
        self.own_is(slot.cold.as_ref().map_or(0, |cold| cold.counted), 0);
        slot
    }

    fn refuse_reserved(&mut self, slot: u32) {
        let channel = match self.slots[slot].first.lane {
            NONE => None,
            lane => Some(self.index.channel_of(lane).name.clone()),
        };
        match channel {
            Some(channel) => self.refuse(slot, channel, CommandError::Unavailable),
            None => self.vacate(slot),
        }
    }

    fn log_access(
        &self,
        connection: ConnectionId,
        protocol: Protocol,
        passport: &Passport,
        reason: CloseReason,
    ) {
        let Passport { session, remote, opened_ms, received, sent, .. } = passport;
        tracing::info!(
            target: "access",
            client = client_id(self.node, connection),
            client.addr = %remote,
            protocol = protocol.name(),
            user = session.identity.user.as_deref(),
            duration_ms = self.now.ms - opened_ms,
            received_bytes = received.bytes,
            received_messages = received.messages,
            sent_bytes = sent.bytes,
            sent_messages = sent.messages,
            reason = reason.name(),
            "connection ended"
        );
    }

    /// The slot of a connection that is not over.
    pub(crate) fn find(&self, connection: ConnectionId) -> Option<u32> {
        self.slots.find(connection)
    }

    /// How many subscribers each channel has here.
    pub(crate) fn channel_counts(&self) -> Vec<(ChannelName, u32)> {
        let counts = self.index.channels().map(|(_, channel)| (channel.name.clone(), channel.subscribers));
        counts.filter(|(_, subscribers)| *subscribers > 0).collect()
    }

    /// Closes connections that were open `age` ago: one, or those of a user; says how many.
    pub(crate) fn disconnect(
        &mut self,
        connection: Option<ConnectionId>,
        user: Option<&str>,
        age: Duration,
        reason: CloseReason,
    ) -> usize {
        let concerned = match (connection, user) {
            (Some(connection), _) => self.slots.find(connection).into_iter().collect(),
            (None, Some(user)) => self.slots.of_user(user),
            // Closing everybody is a drain's business.
            (None, None) => Vec::new(),
        };
        let mut count = 0;
        for slot in concerned {
            let Some(passport) = &self.slots[slot].passport else { continue };
            let is_theirs = user.is_none_or(|user| passport.session.identity.user.as_deref() == Some(user));
            let was_open = u128::from(self.now.ms - passport.opened_ms) >= age.as_millis();
            if is_theirs && was_open && passport.closing.is_none() {
                self.close(slot, reason, None);
                count += 1;
            }
        }
        count
    }

    /// Closes the oldest connections for a drain.
    pub(crate) fn shed(&mut self, count: usize, advice: Advice) {
        let mut left = count;
        while left > 0 {
            if self.queue_out.is_empty() {
                self.queue_out = self.by_age();
            }
            let Some(connection) = self.queue_out.pop() else { return };
            if let Some(slot) = self.slots.find(connection)
                && !self.slots[slot].flags.has(Flags::CLOSING)
            {
                let advice = self.spread(slot, advice);
                self.leave(slot, CloseReason::Drain, advice);
                left -= 1;
            }
        }
    }

    /// Chooses the random part for a client that does not do so by itself, or all would come back together.
    fn spread(&mut self, slot: u32, advice: Advice) -> Advice {
        if self.slots[slot].protocol.has_jitter() {
            return advice;
        }
        let part = self.random.random_range(Duration::ZERO..=advice.jitter);
        Advice { after: advice.after + part, jitter: Duration::ZERO }
    }

    /// Closes a connection once what it asked for is answered.
    fn leave(&mut self, slot: u32, reason: CloseReason, advice: Advice) {
        match &mut self.slots[slot].cold {
            Some(cold) if cold.in_flight > 0 => {
                cold.leaving = Some((reason, Some(advice)));
                // A client that never stops asking would never leave.
                self.slots[slot].flags.set(Flags::PAUSED);
            }
            _ => self.close(slot, reason, Some(advice)),
        }
    }

    /// Connections that have not begun to end, the oldest last.
    fn by_age(&self) -> Vec<ConnectionId> {
        let taken = self.slots.taken().into_iter();
        let slot = |slot: &u32| &self.slots[*slot];
        let staying = taken.filter(|at| !slot(at).flags.has(Flags::CLOSING) && !slot(at).is_leaving());
        let mut ids: Vec<_> = staying.map(|slot| self.id(slot)).collect();
        ids.sort_unstable_by_key(|id| std::cmp::Reverse(id.generation));
        ids
    }

    /// Closes all connections without waiting for anything.
    pub(crate) fn force(&mut self) {
        for slot in self.slots.taken() {
            self.close(slot, CloseReason::DrainForced, None);
            if self.slots.is_taken(slot) {
                self.visit(slot);
            }
            if self.slots.is_taken(slot) {
                self.end(slot, CloseReason::DrainForced);
            }
        }
    }

    // === settings ===

    pub(crate) fn set_rules(&mut self, rules: Arc<Rules>, latencies: Latencies) {
        (self.rules, self.latencies) = (rules, latencies);
        let keys: Vec<u32> = self.index.channels().map(|(key, _)| key).collect();
        for key in keys {
            let channel = self.index.channel_mut(key);
            if let Ok(policy) = self.rules.policies.channel(&channel.name) {
                channel.policy = Arc::clone(policy);
            }
        }
        for slot in self.slots.taken() {
            self.review(slot);
        }
    }

    /// Ends the subscriptions that the settings no longer allow: one by one where the client can be told so.
    fn review(&mut self, slot: u32) {
        for at in (0..self.slots[slot].subscriptions()).rev() {
            if !self.slots.is_taken(slot) {
                return;
            }
            let name = self.index.channel_of(self.slots[slot].subscription(at).lane).name.clone();
            let identity = &self.slots[slot].passport.as_ref().expect("a taken slot").session.identity;
            if self.rules.policies.subscribe(identity, &name).is_ok() {
                continue;
            }
            if !self.slots[slot].protocol.has_subscriptions() || self.slots[slot].link.is_none() {
                self.close(slot, CloseReason::PermissionDenied, None);
                return;
            }
            let id = self.unsubscribe(slot, at);
            let error = &CommandError::PermissionDenied;
            self.reply(slot, &Reply::Error { error, channel: Some(&name), id: id.as_deref() });
            self.reply(slot, &Reply::Unsubscribed { channel: &name, id: None });
        }
    }

    /// Ends the sessions whose token was signed with none of the `good` keys, one each `apart`, by making it the end of
    /// their tokens.
    pub(crate) fn set_keys(&mut self, good: Arc<HashSet<KeyId>>, apart: Duration) {
        self.good_keys = Some(good);
        let mut after = Duration::ZERO;
        for slot in self.slots.taken() {
            if self.has_good_key(slot) || self.slots[slot].flags.has(Flags::CLOSING) {
                continue;
            }
            self.end_token(slot, after);
            after += apart;
            if self.slots[slot].link.is_some() {
                self.arm(slot, self.now.ms + self.pong_timeout_ms());
            }
        }
    }

    /// Whether its token's key, if it has a token, is among those of the settings. All are until those are known.
    fn has_good_key(&self, slot: u32) -> bool {
        let identity = &self.slots[slot].passport.as_ref().expect("a taken slot").session.identity;
        match (&self.good_keys, identity.grants.key) {
            (Some(good), Some(key)) => good.contains(&key),
            (None, _) | (_, None) => true,
        }
    }

    /// A token that was read by older settings than those of this shard ends at once.
    fn end_if_keyless(&mut self, slot: u32) {
        if !self.has_good_key(slot) {
            self.end_token(slot, Duration::ZERO);
        }
    }

    /// Its token ends then, if it does not end before.
    fn end_token(&mut self, slot: u32, after: Duration) {
        let at = self.now.unix_us / 1_000_000 + after.as_secs();
        let identity = &mut self.slots[slot].passport.as_mut().expect("a taken slot").session.identity;
        identity.expires_at = Some(identity.expires_at.map_or(at, |ends| ends.min(at)));
    }

    // === panics ===

    /// Runs what serves one connection alone and touches nothing else. `None` where it panicked: then that connection
    /// has to end, and nobody else is concerned.
    pub(super) fn guard<T>(&self, slot: u32, serve: impl FnOnce() -> T) -> Option<T> {
        let served = catch_unwind(AssertUnwindSafe(serve));
        if served.is_err() {
            self.metrics.panics.add(1);
            let protocol = self.slots[slot].protocol.name();
            tracing::error!(protocol, "serving a connection panicked, closing it");
        }
        served.ok()
    }

    // === time ===

    pub(super) fn ping_interval_ms(&self) -> u64 {
        u64::from(self.rules.hub.ping_interval_seconds) * 1_000
    }

    fn pong_timeout_ms(&self) -> u64 {
        u64::from(self.rules.hub.pong_timeout_seconds) * 1_000
    }

    /// Sets the one deadline of a connection; the end of its token, its age or its patience comes first if it is
    /// nearer. Its patience does not while a pong is waited for: a delivery meanwhile would leave a deadline that came
    /// too early for the pong.
    fn arm(&mut self, slot: u32, at_ms: u64) {
        let idle = self.idle_ends_ms(slot).filter(|_| !self.slots[slot].flags.has(Flags::PINGED));
        let ends = [self.expires_ms(slot), self.age_ends_ms(slot), idle];
        let at_ms = ends.into_iter().flatten().fold(at_ms, u64::min);
        let (tick, generation) = (self.wheel.tick_at(at_ms), self.slots[slot].generation);
        self.slots[slot].timer = tick;
        self.wheel.insert(Entry { slot, generation, tick, kind: Kind::Deadline });
    }

    /// When the token ends, on the shard's clock.
    fn expires_ms(&self, slot: u32) -> Option<u64> {
        let passport = self.slots[slot].passport.as_ref().expect("a taken slot");
        if passport.closing.is_some() {
            return None;
        }
        let expires_unix_ms = passport.session.identity.expires_at?.saturating_mul(1_000);
        Some(self.now.ms.saturating_add(expires_unix_ms.saturating_sub(self.now.unix_us / 1_000)))
    }

    /// When it has the age of the settings, which is another by up to a tenth for each connection, so that those that
    /// came together do not leave together.
    fn age_ends_ms(&self, slot: u32) -> Option<u64> {
        let age = u64::from(self.rules.hub.limits.max_connection_age_seconds);
        let Slot { passport, generation, .. } = &self.slots[slot];
        let passport = passport.as_ref().filter(|passport| age > 0 && passport.closing.is_none())?;
        // The golden ratio spreads numbers that follow each other.
        let spread = u64::from(generation.wrapping_mul(0x9E37_79B9) >> 16);
        Some(passport.opened_ms + age * 900 + age * 200 * spread / 65_536)
    }

    /// When it has been idle for as long as the settings allow, if nothing passes until then.
    fn idle_ends_ms(&self, slot: u32) -> Option<u64> {
        let idle = u64::from(self.rules.hub.limits.idle_timeout_seconds);
        let passport = self.slots[slot].passport.as_ref()?;
        let passed_ms = (u64::from(passport.passed_s) * 1_000).max(self.resumed_ms);
        (idle > 0 && passport.closing.is_none()).then(|| passed_ms + idle * 1_000)
    }

    /// Whether no message has passed for the time of the settings. Deliveries are not counted one by one for this:
    /// the cursors say whether there were any.
    fn is_idle(&mut self, slot: u32) -> bool {
        let mut passed = 0_u64;
        for at in 0..self.slots[slot].subscriptions() {
            let Subscription { cursor, lane, .. } = self.slots[slot].subscription(at);
            passed = passed.wrapping_add(self.index.lane(lane).log.messages_before(cursor));
        }
        let now_s = (self.now.ms / 1_000) as u32;
        let passport = self.slots[slot].passport.as_mut().expect("a taken slot");
        passed = passed.wrapping_add(passport.sent.messages).wrapping_add(passport.received.messages);
        if passport.passed != passed as u32 {
            passport.passed = passed as u32;
            passport.passed_s = now_s;
        }
        self.idle_ends_ms(slot).is_some_and(|at| at <= self.now.ms)
    }

    /// Acts on the deadlines that have passed.
    pub(crate) fn expire(&mut self, due: &[Entry]) {
        for Entry { slot, generation, tick, kind } in due {
            if !self.slots.holds(*slot, *generation) {
                continue;
            }
            match kind {
                Kind::Stall => self.look_at_stall(*slot),
                Kind::Lag => self.look_at_lag(*slot),
                Kind::Deadline if self.slots[*slot].timer == *tick => self.deadline(*slot),
                Kind::Deadline => {}
            }
        }
    }

    fn deadline(&mut self, slot: u32) {
        let flags = self.slots[slot].flags;
        if self.slots[slot].link.is_none() {
            if !self.put_off(slot, RESERVATION_MS) {
                self.refuse_reserved(slot);
            }
        } else if flags.has(Flags::CLOSING) {
            self.end(slot, CloseReason::ConnectionLost);
        } else if self.expires_ms(slot).is_some_and(|at| at <= self.now.ms) {
            self.close(slot, CloseReason::TokenExpired, None);
        } else if self.age_ends_ms(slot).is_some_and(|at| at <= self.now.ms) {
            self.close(slot, CloseReason::MaxAge, None);
        } else if self.is_idle(slot) {
            self.close(slot, CloseReason::Idle, None);
        } else if !flags.has(Flags::PINGED) {
            self.ping(slot);
        } else if flags.has(Flags::SILENT) && self.put_off(slot, self.pong_timeout_ms()) {
        } else if flags.has(Flags::SILENT) && flags.has(Flags::STALLED) {
            // The ping never reached it.
            self.close_stalled(slot);
        } else if flags.has(Flags::SILENT) {
            self.close(slot, CloseReason::NoPong, None);
        } else {
            self.slots[slot].flags.clear(Flags::PINGED);
            let rest = self.ping_interval_ms().saturating_sub(self.pong_timeout_ms()).max(1_000);
            self.arm(slot, self.now.ms + rest);
        }
    }

    /// Arms the deadline again where this thread did not run for a part of the time that the client had; returns `true`
    /// if so. What the client sent meanwhile is read first.
    fn put_off(&mut self, slot: u32, time_ms: u64) -> bool {
        let ends_ms = self.resumed_ms + time_ms;
        let is_early = self.resumed_ms > 0 && self.now.ms < ends_ms;
        if is_early {
            self.arm(slot, ends_ms);
        }
        is_early
    }

    /// Asks whether the client is there. One that takes nothing is found out by the same deadline.
    fn ping(&mut self, slot: u32) {
        let protocol = self.slots[slot].protocol;
        let flags = &mut self.slots[slot].flags;
        flags.set(Flags::PINGED);
        if protocol.is_websocket() {
            flags.set(Flags::SILENT);
        }
        if let Some(cold) = &mut self.slots[slot].cold {
            cold.at_ping = cold.partial.len();
        }
        self.send_with(slot, |out| protocol.put_ping(out));
        if self.slots.is_taken(slot) {
            self.arm(slot, self.now.ms + self.pong_timeout_ms());
        }
    }
}

#[cfg(test)]
mod tests;
