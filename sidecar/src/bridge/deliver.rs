//! Publications to the shards that want them: in order, one mail a shard and batch, every loss told.

use std::{collections::HashSet, mem, sync::Arc};

use smallvec::SmallVec;

use super::{Metrics, gaps::Gaps, metrics::GapCause};
use crate::{
    broker::{Broker, LinkId},
    domain::{ChannelName, Origin, Publication},
    hub::{Hub, Route},
    shard::{Delivery, Full, Mail, Mailbox, Packer},
};

/// Bytes compressed before what waits is mailed: a few milliseconds' worth.
const MOST_PACKED: usize = 256 * 1_024;

/// What waits to be mailed.
pub(super) struct Deliver {
    hub: Hub,
    broker: Arc<dyn Broker>,
    gaps: Gaps,
    shards: Vec<Outgoing>,
    packer: Packer,
    /// Bytes that were compressed since what waits was last mailed.
    packed: usize,
    metrics: Metrics,
    came: u64,
    /// Payload bytes that a publication may have, as the settings say now.
    max_bytes: Box<dyn Fn() -> usize + Send + Sync>,
}

/// One shard's.
struct Outgoing {
    mailbox: Mailbox,
    batch: Vec<Arc<Delivery>>,
    /// Channels whose loss was told since the mailbox last took publications. Nothing came through since, so that
    /// one gap tells all that is lost; this bounds the mail that a stuck shard piles up.
    told: HashSet<ChannelName>,
}

impl Deliver {
    pub(super) fn new(
        hub: Hub,
        broker: Arc<dyn Broker>,
        mailboxes: &[Mailbox],
        packer: Packer,
        metrics: Metrics,
        max_bytes: Box<dyn Fn() -> usize + Send + Sync>,
    ) -> Self {
        let outgoing = |mailbox: &Mailbox| Outgoing {
            mailbox: mailbox.clone(),
            batch: Vec::new(),
            told: HashSet::new(),
        };
        let shards = mailboxes.iter().map(outgoing).collect();
        let gaps = Gaps::new(broker.links());
        Self { hub, broker, gaps, shards, packer, packed: 0, metrics, came: 0, max_bytes }
    }

    /// For the shards that have subscribers of its channel.
    pub(super) fn publication(&mut self, publication: Publication) {
        // What comes from a node was checked there, by settings that may have been others a moment ago.
        if publication.origin.is_none() && publication.payload.bytes().len() > (self.max_bytes)() {
            self.metrics.too_large.inc();
            self.came += 1;
            return self.lost(&publication.channel, GapCause::TooLarge);
        }
        let Self { hub, broker, gaps, shards, packer, packed, metrics, came, max_bytes: _ } = self;
        *came += 1;
        // Copied, for nothing is compressed under a lock.
        let route = hub
            .routes()
            .of(&publication.channel)
            .map(|Route { shards, life }| (SmallVec::<[u16; 6]>::from_slice(shards), life));
        let Some((route, life)) = route else { return };
        let link = broker.link(&publication.channel);
        let channel = &publication.channel;
        let is_gap = publication.origin.is_some_and(|origin| gaps.is_gap(channel, life, link, origin));
        let mut delivery = Delivery::from(publication);
        if route.len() > 1 {
            *packed += packer.pack(&mut delivery);
        }
        let delivery = Arc::new(delivery);
        for shard in route {
            let Some(shard) = shards.get_mut(usize::from(shard)) else { continue };
            if is_gap {
                shard.tell_gap(vec![delivery.channel.clone()], GapCause::Sequence, metrics);
            }
            shard.batch.push(Arc::clone(&delivery));
        }
        if is_gap {
            metrics.gap(GapCause::Sequence);
        }
        if *packed > MOST_PACKED {
            self.flush();
        }
    }

    /// A publication of this channel that this version cannot read.
    pub(super) fn unreadable(&mut self, channel: &ChannelName) {
        self.came += 1;
        self.lost(channel, GapCause::Unreadable);
    }

    /// Counts the number of a publication that repeated an earlier one, so that nobody misses it.
    pub(super) fn void(&mut self, channel: &ChannelName, origin: Origin) {
        let life = self.hub.routes().of(channel).map(|route| route.life);
        let link = self.broker.link(channel);
        if life.is_some_and(|life| self.gaps.is_gap(channel, life, link, origin)) {
            self.channel_gap(channel, GapCause::Sequence);
        }
    }

    /// Returns `true` if the channel has subscribers on this node, or had some a moment ago.
    pub(super) fn is_wanted(&self, channel: &ChannelName) -> bool {
        self.hub.routes().of(channel).is_some()
    }

    /// The link's connection is gone.
    pub(super) fn disconnected(&mut self, link: LinkId) {
        self.gaps.disconnected(link);
    }

    /// All subscriptions of the link are live.
    pub(super) fn connected(&mut self, link: LinkId) {
        self.gaps.connected(link);
    }

    /// Publications of any channel of the link may be lost.
    pub(super) fn resumed(&mut self, link: LinkId) {
        let mut channels = vec![Vec::new(); self.shards.len()];
        for (channel, shards) in
            self.hub.routes().all().filter(|(channel, _)| self.broker.link(channel) == link)
        {
            for shard in shards {
                if let Some(channels) = channels.get_mut(usize::from(*shard)) {
                    channels.push(channel.clone());
                }
            }
        }
        for (shard, channels) in self.shards.iter_mut().zip(channels) {
            shard.tell_gap(channels, GapCause::Reconnect, &self.metrics);
        }
        self.metrics.gap(GapCause::Reconnect);
    }

    /// The channel alone is not delivered any more, or is again.
    pub(super) fn set_refused(&mut self, channel: &ChannelName, refused: bool) {
        self.hub.set_refused(channel, refused);
        // Those that join from here on hear it from the hub.
        for shard in self.shards_of(channel) {
            if let Some(shard) = self.shards.get(usize::from(shard)) {
                shard.mailbox.send(Mail::Refused { channel: channel.clone(), refused });
            }
        }
        self.lost(channel, GapCause::Refused);
    }

    /// The channel is not asked for any more. Where it is back already, its loss was told of its earlier stay.
    pub(super) fn given_up(&mut self, channel: &ChannelName) {
        if self.hub.is_refused(channel) {
            self.set_refused(channel, false);
        }
    }

    /// Publications of the channel are lost: tells its subscribers, once.
    fn lost(&mut self, channel: &ChannelName, cause: GapCause) {
        self.gaps.lost(channel);
        self.channel_gap(channel, cause);
    }

    fn channel_gap(&mut self, channel: &ChannelName, cause: GapCause) {
        if !self.is_wanted(channel) {
            return;
        }
        for shard in self.shards_of(channel) {
            if let Some(shard) = self.shards.get_mut(usize::from(shard)) {
                shard.tell_gap(vec![channel.clone()], cause, &self.metrics);
            }
        }
        self.metrics.gap(cause);
    }

    fn shards_of(&self, channel: &ChannelName) -> SmallVec<[u16; 6]> {
        self.hub.routes().of(channel).map(|route| SmallVec::from_slice(route.shards)).unwrap_or_default()
    }

    /// Mails what waits.
    pub(super) fn flush(&mut self) {
        let Self { hub: _, broker: _, packer: _, gaps, shards, packed, metrics, came, max_bytes: _ } = self;
        *packed = 0;
        shards.iter_mut().for_each(|shard| shard.flush(metrics));
        metrics.received.inc_by(mem::take(came));
        metrics.channels_forgotten.inc_by(gaps.take_forgotten());
    }
}

impl Outgoing {
    /// Behind what came before it.
    fn tell_gap(&mut self, channels: Vec<ChannelName>, cause: GapCause, metrics: &Metrics) {
        self.flush(metrics);
        self.mail_gap(channels, cause);
    }

    fn mail_gap(&self, channels: Vec<ChannelName>, cause: GapCause) {
        if !channels.is_empty() {
            let (certain, reason) = (cause.is_certain(), cause.reason());
            self.mailbox.send(Mail::Gap { channels, certain, reason });
        }
    }

    fn flush(&mut self, metrics: &Metrics) {
        if self.batch.is_empty() {
            return;
        }
        match self.mailbox.publications(mem::take(&mut self.batch)) {
            Ok(()) => self.told.clear(),
            Err(Full(lost)) => self.lost(&lost, metrics),
        }
    }

    fn lost(&mut self, lost: &[Arc<Delivery>], metrics: &Metrics) {
        metrics.mailbox_full.inc_by(lost.len() as u64);
        for publication in lost {
            if self.told.insert(publication.channel.clone()) {
                metrics.gap(GapCause::MailboxFull);
                self.mail_gap(vec![publication.channel.clone()], GapCause::MailboxFull);
            }
        }
    }
}
