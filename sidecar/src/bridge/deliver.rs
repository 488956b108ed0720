//! Publications to the shards that want them: in order, one mail a shard and batch, every loss told.

use std::{collections::HashSet, mem, sync::Arc};

use smallvec::SmallVec;

use super::{Metrics, gaps::Gaps, metrics::GapCause};
use crate::{
    domain::{ChannelName, Publication},
    hub::{Hub, Route},
    shard::{Delivery, Full, Mail, Mailbox, Packer},
};

/// Bytes compressed before what waits is mailed: a few milliseconds' worth.
const MOST_PACKED: usize = 256 * 1_024;

/// What waits to be mailed.
pub(super) struct Deliver {
    hub: Hub,
    gaps: Gaps,
    shards: Vec<Outgoing>,
    packer: Packer,
    /// Bytes that were compressed since what waits was last mailed.
    packed: usize,
    metrics: Metrics,
    came: u64,
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
    pub(super) fn new(hub: Hub, mailboxes: &[Mailbox], packer: Packer, metrics: Metrics) -> Self {
        let outgoing = |mailbox: &Mailbox| Outgoing {
            mailbox: mailbox.clone(),
            batch: Vec::new(),
            told: HashSet::new(),
        };
        let shards = mailboxes.iter().map(outgoing).collect();
        Self { hub, gaps: Gaps::new(), shards, packer, packed: 0, metrics, came: 0 }
    }

    /// For the shards that have subscribers of its channel.
    pub(super) fn publication(&mut self, publication: Publication) {
        let Self { hub, gaps, shards, packer, packed, metrics, came } = self;
        *came += 1;
        // Copied, for nothing is compressed under a lock.
        let route = hub
            .routes()
            .of(&publication.channel)
            .map(|Route { shards, life }| (SmallVec::<[u16; 6]>::from_slice(shards), life));
        let Some((route, life)) = route else { return };
        let is_gap = publication.origin.is_some_and(|origin| gaps.is_gap(&publication.channel, life, origin));
        let mut delivery = Delivery::from(publication);
        if route.len() > 1 {
            *packed += packer.pack(&mut delivery);
        }
        let delivery = Arc::new(delivery);
        for shard in route {
            let Some(shard) = shards.get_mut(usize::from(shard)) else { continue };
            if is_gap {
                shard.tell_gap(Some(&delivery.channel), GapCause::Sequence, metrics);
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

    /// Anything may be lost, on every channel.
    pub(super) fn resumed(&mut self) {
        self.gaps.forget();
        for shard in &mut self.shards {
            shard.tell_gap(None, GapCause::Reconnect, &self.metrics);
        }
        self.metrics.gap(GapCause::Reconnect);
    }

    /// Mails what waits.
    pub(super) fn flush(&mut self) {
        let Self { hub: _, packer: _, gaps, shards, packed, metrics, came } = self;
        *packed = 0;
        shards.iter_mut().for_each(|shard| shard.flush(metrics));
        metrics.received.inc_by(mem::take(came));
        metrics.channels_forgotten.inc_by(gaps.take_forgotten());
    }
}

impl Outgoing {
    /// Behind what came before it.
    fn tell_gap(&mut self, channel: Option<&ChannelName>, cause: GapCause, metrics: &Metrics) {
        self.flush(metrics);
        self.mailbox.send(Mail::Gap { channel: channel.cloned(), reason: cause.reason() });
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
                let channel = Some(publication.channel.clone());
                self.mailbox.send(Mail::Gap { channel, reason: GapCause::MailboxFull.reason() });
            }
        }
    }
}
