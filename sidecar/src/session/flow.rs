//! How much a client sends: frames and bytes a second, whatever they say. Pure.

use sidecar_config::Limits;

/// What was sent lately, less what the limits admit since: nothing to begin with. Twelve bytes of every connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flow {
    at_ms: u32,
    frames: u32,
    bytes: u32,
}

/// The time is moved on in steps of this, so that no fraction is lost.
const STEP_MS: u32 = 128;

impl Flow {
    /// Counts what came; false once it is more than two seconds' worth. One message of `max_message` bytes always fits.
    pub fn take(
        &mut self,
        frames: u32,
        bytes: usize,
        max_message: usize,
        limits: &Limits,
        now_ms: u64,
    ) -> bool {
        let Limits { messages_per_second, bytes_per_second, .. } = *limits;
        self.forget(messages_per_second, bytes_per_second, now_ms);
        self.frames = self.frames.saturating_add(frames);
        self.bytes = self.bytes.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        let most_bytes =
            bytes_per_second.saturating_mul(2).max(u32::try_from(max_message).unwrap_or(u32::MAX));
        self.frames <= messages_per_second.saturating_mul(2) && self.bytes <= most_bytes
    }

    fn forget(&mut self, messages_per_second: u32, bytes_per_second: u32, now_ms: u64) {
        // It wraps after 49 days, which forgets too much once.
        let elapsed = (now_ms as u32).wrapping_sub(self.at_ms);
        if elapsed < STEP_MS {
            return;
        }
        let admitted = |per_second: u32| {
            u32::try_from(u64::from(per_second) * u64::from(elapsed) / 1_000).unwrap_or(u32::MAX)
        };
        self.frames = self.frames.saturating_sub(admitted(messages_per_second));
        self.bytes = self.bytes.saturating_sub(admitted(bytes_per_second));
        self.at_ms = now_ms as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_keep_up_its_rate_and_send_two_seconds_of_it_at_once() {
        let limits = Limits { messages_per_second: 100, bytes_per_second: 1_000, ..Limits::default() };
        let mut flow = Flow::default();
        for ms in (0..60_000).step_by(10) {
            assert!(flow.take(1, 10, 500, &limits, ms), "{ms}");
        }
        let mut flow = Flow::default();
        assert!((0..200).all(|_| flow.take(1, 0, 500, &limits, 5_000)));
        assert!(!flow.take(1, 0, 500, &limits, 5_000));
        assert!(flow.take(1, 0, 500, &limits, 5_500), "half a second admits fifty");
    }

    #[test]
    fn bytes_are_bounded_as_well_but_a_message_within_its_limit_always_fits() {
        let limits = Limits { messages_per_second: 100, bytes_per_second: 1_000, ..Limits::default() };
        let mut flow = Flow::default();
        assert!(flow.take(1, 50_000, 50_000, &limits, 0));
        assert!(!flow.take(1, 1, 50_000, &limits, 0));
        let mut flow = Flow::default();
        assert!(flow.take(1, 2_000, 500, &limits, 0));
        assert!(!flow.take(1, 1, 500, &limits, 0));
    }
}
