//! Whether other nodes hear this one. A node on a server of its own hears its own canary and nobody else: where there are
//! other nodes, one of them has to say that it hears this one.
//!
//! A missing echo is a doubt, not a proof: the others may be gone or stopped. It makes no node unready. The server's role
//! and address are checked all the time; a doubt that lasts has the link made again, once, which leads to the right server
//! where a Service has moved on under the same address.

use std::time::Duration;

use tokio::time::Instant;

use super::Peers;
use crate::broker::Watchdog;

/// Nodes echo each other every three seconds; several may be lost.
const SILENCE: Duration = Duration::from_secs(15);
/// A doubt that lasts this long has the link made again. Longer than DNS names nodes that are gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for a node that was never heard: the others are listed before they are ready, so they may still be starting.
const PATIENCE_AT_FIRST: Duration = Duration::from_secs(300);
/// Between two times that the link is made again because of a doubt.
const PAUSE: Duration = Duration::from_secs(600);

/// What is known of the other nodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Others are heard, or listed by DNS.
    pub(super) are_others: bool,
    /// None of those that are heard can say whom it hears.
    pub(super) are_mute: bool,
    /// When one last said that it hears this node.
    pub(super) echoed_at: Option<Instant>,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Some other node hears this one, or there is none.
    Heard,
    /// None does.
    Doubt,
    /// None does, for so long that the link is to be made again.
    Rebuild,
}

/// The doubt.
pub(super) struct Echo {
    watchdog: Watchdog,
    last: Option<Instant>,
    rebuilt_at: Option<Instant>,
    /// The link was made again since the last echo.
    tried: bool,
}

impl Seen {
    pub(super) fn of(peers: &Peers) -> Self {
        Self {
            are_others: peers.others() > 0 || peers.listed().is_some_and(|others| others > 0),
            are_mute: peers.are_mute(),
            echoed_at: peers.echoed_at(),
        }
    }
}

impl Echo {
    pub(super) fn new(now: Instant) -> Self {
        Self { watchdog: Watchdog::new(now), last: None, rebuilt_at: None, tried: false }
    }

    pub(super) fn judge(&mut self, seen: Seen, now: Instant) -> Verdict {
        let Seen { are_others, are_mute, echoed_at } = seen;
        self.watchdog.check(now);
        let echoed = std::mem::replace(&mut self.last, echoed_at) != echoed_at;
        if echoed || !are_others || are_mute {
            self.watchdog.heard(now);
            self.tried &= !echoed;
            // Without any echo so far, there were no others until now.
            return if echoed_at.is_some() || !are_others || are_mute {
                Verdict::Heard
            } else {
                Verdict::Doubt
            };
        }
        let silence = self.watchdog.silence(now);
        if silence < SILENCE && echoed_at.is_some() {
            return Verdict::Heard;
        }
        let rested = self.rebuilt_at.is_none_or(|at| now - at >= PAUSE);
        let patience = if echoed_at.is_some() { PATIENCE } else { PATIENCE_AT_FIRST };
        if silence < patience || self.tried || !rested {
            return Verdict::Doubt;
        }
        (self.rebuilt_at, self.tried) = (Some(now), true);
        Verdict::Rebuild
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Judges each second from `from` to `to`; the seconds in which the link was made again, and the last verdict.
    fn watch(echo: &mut Echo, start: Instant, from: u32, to: u32, seen: Seen) -> (Vec<u32>, Verdict) {
        let (mut rebuilt, mut last) = (Vec::new(), Verdict::Heard);
        for second in from..=to {
            last = echo.judge(seen, start + second * SECOND);
            if last == Verdict::Rebuild {
                rebuilt.push(second);
            }
        }
        (rebuilt, last)
    }

    fn seen(echoed_at: Option<Instant>) -> Seen {
        Seen { are_others: true, are_mute: false, echoed_at }
    }

    #[test]
    fn a_node_alone_is_not_doubted_nor_one_among_nodes_that_cannot_echo() {
        let start = Instant::now();
        let alone = Seen { are_others: false, are_mute: false, echoed_at: None };
        assert_eq!(watch(&mut Echo::new(start), start, 0, 900, alone), (vec![], Verdict::Heard));
        let mute = Seen { are_others: true, are_mute: true, echoed_at: None };
        assert_eq!(watch(&mut Echo::new(start), start, 0, 900, mute), (vec![], Verdict::Heard));
    }

    #[test]
    fn others_that_never_echoed_are_given_time_to_start() {
        let start = Instant::now();
        let mut echo = Echo::new(start);
        assert_eq!(echo.judge(seen(None), start), Verdict::Doubt);
        assert_eq!(watch(&mut echo, start, 1, 3_600, seen(None)), (vec![300], Verdict::Doubt));
        let mut echo = Echo::new(start);
        let alone = Seen { are_others: false, ..seen(None) };
        assert_eq!(watch(&mut echo, start, 0, 1_000, alone), (vec![], Verdict::Heard));
        assert_eq!(watch(&mut echo, start, 1_001, 1_299, seen(None)), (vec![], Verdict::Doubt));
        assert_eq!(watch(&mut echo, start, 1_300, 5_000, seen(None)), (vec![1_300], Verdict::Doubt));
    }

    #[test]
    fn an_echo_ends_the_doubt() {
        let start = Instant::now();
        let mut echo = Echo::new(start);
        assert_eq!(echo.judge(seen(Some(start)), start), Verdict::Heard);
        assert_eq!(watch(&mut echo, start, 1, 14, seen(Some(start))), (vec![], Verdict::Heard));
        assert_eq!(watch(&mut echo, start, 15, 59, seen(Some(start))), (vec![], Verdict::Doubt));
        assert_eq!(watch(&mut echo, start, 60, 900, seen(Some(start))), (vec![60], Verdict::Doubt));
        let again = Some(start + 901 * SECOND);
        assert_eq!(watch(&mut echo, start, 901, 910, seen(again)), (vec![], Verdict::Heard));
        assert_eq!(watch(&mut echo, start, 911, 2_000, seen(again)), (vec![961], Verdict::Doubt));
    }

    #[test]
    fn a_node_that_was_stopped_waits_for_what_it_could_not_hear() {
        let start = Instant::now();
        let mut echo = Echo::new(start);
        assert_eq!(echo.judge(seen(Some(start)), start), Verdict::Heard);
        assert_eq!(watch(&mut echo, start, 100, 114, seen(Some(start))), (vec![], Verdict::Heard));
    }
}
