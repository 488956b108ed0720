//! Whether this node may get clients: named parts, each held back until it is live.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use sidecar_config::OnUnavailable;

use crate::bridge::BrokerHealth;

/// All parts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

/// One part, held by whoever knows of it. Where it is dropped before it was ready, it stays missing.
#[derive(Debug)]
pub struct Part {
    all: Readiness,
    name: &'static str,
}

impl Readiness {
    /// A part that is not ready yet, and why.
    pub fn part(&self, name: &'static str, reason: &str) -> Part {
        self.parts().insert(name, Some(reason.to_owned()));
        Part { all: self.clone(), name }
    }

    /// What is not ready, and why; empty when the node is.
    pub fn missing(&self) -> Vec<(&'static str, String)> {
        self.parts().iter().filter_map(|(name, reason)| Some((*name, reason.clone()?))).collect()
    }

    /// Every part, as JSON.
    pub fn report(&self) -> Value {
        let parts = self.parts();
        let part = |(name, reason): (&&'static str, &Option<String>)| match reason {
            None => ((*name).to_owned(), json!({"ready": true})),
            Some(reason) => ((*name).to_owned(), json!({"ready": false, "reason": reason})),
        };
        let ready = parts.values().all(Option::is_none);
        json!({"ready": ready, "parts": parts.iter().map(part).collect::<serde_json::Map<_, _>>()})
    }

    fn parts(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    /// It is live.
    pub fn ready(&self) {
        self.set(Ok(()));
    }

    /// It is live, or why not. Whether that is a change.
    pub fn set(&self, state: Result<(), String>) -> bool {
        let reason = state.err();
        let before = self.all.parts().insert(self.name, reason.clone());
        before.flatten().is_none() != reason.is_none()
    }
}

/// When the broker lets the node be ready.
#[derive(Clone, Copy, Debug, Default)]
pub struct BrokerRule {
    /// Containers of the user run beside this process.
    pub app_containers: bool,
    /// A message got through once.
    pub was_verified: bool,
}

impl BrokerRule {
    /// With containers of the user beside it a node waits no longer than this for its first verified delivery: it
    /// would take the user's app out of the user's own Services.
    pub const APP_WAIT: Duration = Duration::from_secs(10);

    /// Whether the broker lets the node be ready, so long after its start.
    pub fn judge(
        &mut self,
        health: &BrokerHealth,
        policy: OnUnavailable,
        since: Duration,
    ) -> Result<(), String> {
        // A node that may not publish is proved as far as it can be: its subscriptions are answered.
        let proved = health.verified || health.receive_only;
        self.was_verified |= proved;
        let ready = match policy {
            OnUnavailable::KeepClients => {
                self.was_verified || (self.app_containers && since >= Self::APP_WAIT)
            }
            OnUnavailable::NotReady => proved,
        };
        let reason =
            || health.reason.as_deref().unwrap_or("no message has come back from the broker yet").to_owned();
        if ready { Ok(()) } else { Err(reason()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(verified: bool) -> BrokerHealth {
        let reason = (!verified).then(|| "connection refused".into());
        BrokerHealth { connected: verified, verified, reason, ..BrokerHealth::default() }
    }

    const NOW: Duration = Duration::ZERO;
    const KEEP: OnUnavailable = OnUnavailable::KeepClients;

    #[test]
    fn a_node_is_ready_once_every_part_is() {
        let readiness = Readiness::default();
        let (listeners, broker) =
            (readiness.part("listeners", "not bound"), readiness.part("broker", "unknown"));
        listeners.ready();
        assert_eq!(readiness.missing(), [("broker", "unknown".to_owned())]);
        assert!(broker.set(Ok(())));
        assert!(!broker.set(Ok(())), "no change");
        assert!(readiness.missing().is_empty());
        assert_eq!(readiness.report()["ready"], true);
        broker.set(Err("away".to_owned()));
        assert_eq!(readiness.report()["parts"]["broker"]["reason"], "away");
    }

    #[test]
    fn an_outage_keeps_a_node_ready_that_was_verified_once() {
        let mut rule = BrokerRule::default();
        assert_eq!(rule.judge(&health(false), KEEP, NOW), Err("connection refused".to_owned()));
        assert_eq!(
            rule.judge(&health(false), KEEP, 60 * BrokerRule::APP_WAIT),
            Err("connection refused".to_owned())
        );
        assert_eq!(rule.judge(&health(true), KEEP, NOW), Ok(()));
        assert_eq!(rule.judge(&health(false), KEEP, NOW), Ok(()));
    }

    #[test]
    fn a_node_beside_app_containers_waits_ten_seconds_at_most() {
        let mut rule = BrokerRule { app_containers: true, ..BrokerRule::default() };
        assert!(rule.judge(&health(false), KEEP, BrokerRule::APP_WAIT - Duration::from_millis(1)).is_err());
        assert_eq!(rule.judge(&health(false), KEEP, BrokerRule::APP_WAIT), Ok(()));
    }

    #[test]
    fn not_ready_follows_the_canary_both_ways() {
        let mut rule = BrokerRule { app_containers: true, ..BrokerRule::default() };
        for verified in [false, true, false, true] {
            let ready = rule.judge(&health(verified), OnUnavailable::NotReady, 2 * BrokerRule::APP_WAIT);
            assert_eq!(ready.is_ok(), verified);
        }
    }
}
