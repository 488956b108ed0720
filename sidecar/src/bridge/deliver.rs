//! Publications to the shards that want them: in order, one mail a shard and batch, every loss told.

use std::{collections::HashSet, mem, sync::Arc};

use super::{Metrics, gaps::Gaps, metrics::GapCause};
use crate::{
    domain::{ChannelName, Publication},
    hub::Hub,
    shard::{Full, Mail, Mailbox},
};

/// What waits to be mailed.
pub(super) struct Deliver {
    hub: Hub,
    gaps: Gaps,
    shards: Vec<Outgoing>,
    metrics: Metrics,
    came: u64,
}

/// One shard's.
struct Outgoing {
    mailbox: Mailbox,
    batch: Vec<Arc<Publication>>,
    /// Channels whose loss was told since the mailbox last took publications. Nothing came through since, so that
    /// one gap tells all that is lost; this bounds the mail that a stuck shard piles up.
    told: HashSet<ChannelName>,
}

impl Deliver {
    pub(super) fn new(hub: Hub, mailboxes: &[Mailbox], metrics: Metrics) -> Self {
        let outgoing = |mailbox: &Mailbox| Outgoing {
            mailbox: mailbox.clone(),
            batch: Vec::new(),
            told: HashSet::new(),
        };
        let shards = mailboxes.iter().map(outgoing).collect();
        Self { hub, gaps: Gaps::new(), shards, metrics, came: 0 }
    }

    /// For the shards that have subscribers of its channel.
    pub(super) fn publication(&mut self, publication: Publication) {
        let Self { hub, gaps, shards, metrics, came } = self;
        *came += 1;
        let routes = hub.routes();
        let Some(route) = routes.of(&publication.channel) else { return };
        let life = route.life;
        let is_gap = publication.origin.is_some_and(|origin| gaps.is_gap(&publication.channel, life, origin));
        let publication = Arc::new(publication);
        for &shard in route.shards {
            let Some(shard) = shards.get_mut(usize::from(shard)) else { continue };
            if is_gap {
                shard.tell_gap(Some(&publication.channel), GapCause::Sequence, metrics);
            }
            shard.batch.push(Arc::clone(&publication));
        }
        if is_gap {
            metrics.gap(GapCause::Sequence);
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
        let Self { hub: _, gaps, shards, metrics, came } = self;
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

    fn lost(&mut self, lost: &[Arc<Publication>], metrics: &Metrics) {
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
