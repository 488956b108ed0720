//! Whether nodes of the first version may be there: they speak by other names, which backends reach as well, so that
//! nobody listens there for longer than needed. Pure; time passes by ticks.

use super::members::TICK;

/// For how long they are expected after each connect, and after each sign of one. 30 s.
const WINDOW: u32 = (30_000 / TICK.as_millis()) as u32;
/// Signs count for so long after a connect: longer than a rollout takes, and an end for whoever forges them. 1 hour.
const LONGEST: u32 = (3_600_000 / TICK.as_millis()) as u32;

/// See the module.
#[derive(Debug)]
pub(super) struct Former {
    left: u32,
    /// For how long signs still count.
    believed: u32,
    refused: bool,
}

impl Former {
    pub(super) fn new() -> Self {
        Self { left: WINDOW, believed: LONGEST, refused: false }
    }

    /// One may be there: this node connected, or DNS lists more nodes than are heard.
    pub(super) fn expected(&mut self) {
        (self.left, self.believed) = (WINDOW, LONGEST);
    }

    /// One was heard, or something that looks like one.
    pub(super) fn heard(&mut self) {
        self.left = self.left.max(WINDOW.min(self.believed));
    }

    pub(super) fn tick(&mut self) {
        self.left = self.left.saturating_sub(1);
        self.believed = self.believed.saturating_sub(1);
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
        (0..seconds * 2).for_each(|_| former.tick());
    }

    #[test]
    fn the_former_names_are_wanted_for_30_s_after_each_sign_of_an_old_node() {
        let mut former = Former::new();
        pass(&mut former, 29);
        assert!(former.is_wanted());
        former.heard();
        pass(&mut former, 29);
        assert!(former.is_wanted());
        pass(&mut former, 1);
        assert!(!former.is_wanted());
    }

    #[test]
    fn signs_of_old_nodes_are_believed_for_an_hour_after_a_connect() {
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
        former.expected();
        hear(&mut former, 30);
        assert!(former.is_wanted());
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
