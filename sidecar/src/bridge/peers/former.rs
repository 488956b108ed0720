//! Whether nodes of the first version may be there: they speak by other names, which backends reach as well, so that
//! nobody listens there for longer than needed. Pure; time passes by ticks.

use super::members::TICK;

/// Time with a link, from the start of the process and from each sign of one, in which they are expected. 30 s.
const WINDOW: u32 = (30_000 / TICK.as_millis()) as u32;
/// Nobody is expected later than this after the start of the process: longer than a rollout takes, and an end for whoever
/// forges signs. Neither a reconnect nor anything that others say moves it. 1 hour.
const LONGEST: u32 = (3_600_000 / TICK.as_millis()) as u32;

/// See the module.
#[derive(Debug)]
pub(super) struct Former {
    /// Ticks until none is expected any more, ...
    left: u32,
    /// ... and until signs no longer count.
    believed: u32,
    refused: bool,
}

impl Former {
    pub(super) fn new() -> Self {
        Self { left: WINDOW, believed: LONGEST, refused: false }
    }

    /// One was heard, or something that looks like one. Once none is expected, it comes too late.
    pub(super) fn heard(&mut self) {
        if self.left > 0 {
            self.left = WINDOW.min(self.believed);
        }
    }

    /// Time passed. Without a link nobody could have been heard meanwhile.
    pub(super) fn tick(&mut self, linked: bool) {
        self.believed = self.believed.saturating_sub(1);
        self.left = self.left.saturating_sub(u32::from(linked)).min(self.believed);
    }

    /// Redis refuses the present names to this node, or no longer does.
    pub(super) fn set_refused(&mut self, refused: bool) {
        self.refused = refused;
    }

    /// Whether only the former names are to be had.
    pub(super) fn is_all(&self) -> bool {
        self.refused
    }

    /// Whether this node speaks and listens by the former names.
    pub(super) fn is_wanted(&self) -> bool {
        self.refused || self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(former: &mut Former, seconds: u32) {
        (0..seconds * 2).for_each(|_| former.tick(true));
    }

    #[test]
    fn the_former_names_are_wanted_for_30_s_and_for_as_long_as_old_nodes_are_heard() {
        let mut former = Former::new();
        pass(&mut former, 29);
        assert!(former.is_wanted());
        former.heard();
        pass(&mut former, 29);
        assert!(former.is_wanted());
        pass(&mut former, 1);
        assert!(!former.is_wanted());
        former.heard();
        assert!(!former.is_wanted(), "the window is not opened again");
    }

    #[test]
    fn signs_of_old_nodes_are_believed_for_an_hour() {
        let mut former = Former::new();
        let hear = |former: &mut Former, minutes: u32| {
            for _ in 0..3 * minutes {
                former.heard();
                pass(former, 20);
            }
        };
        hear(&mut former, 59);
        assert!(former.is_wanted());
        hear(&mut former, 2);
        assert!(!former.is_wanted());
    }

    #[test]
    fn a_node_waits_for_its_first_link_within_the_hour() {
        let mut former = Former::new();
        let wait = |former: &mut Former, minutes: u32| (0..minutes * 120).for_each(|_| former.tick(false));
        wait(&mut former, 59);
        assert!(former.is_wanted());
        wait(&mut former, 1);
        assert!(!former.is_wanted());
    }

    #[test]
    fn where_redis_refuses_the_present_names_the_former_ones_stay() {
        let mut former = Former::new();
        former.set_refused(true);
        pass(&mut former, 60);
        assert!(former.is_wanted() && former.is_all());
        former.set_refused(false);
        assert!(!former.is_wanted());
    }
}
