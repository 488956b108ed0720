//! Bounds that contradict each other: each is allowed, together they cannot mean what they say. Told by `fanout-sidecar
//! check`, by the FanoutCluster's condition `Advisory` and by `kubectl fanout dev`, and never refused: a rule over
//! several fields would refuse every later change of a cluster that runs with them.

use crate::{LiveSettings, Mistake};

impl LiveSettings {
    /// Each pair of bounds of which one leaves the other no room, by the path of the one to change.
    pub fn contradictions(&self) -> Vec<Mistake> {
        let (hub, limits) = (&self.hub, &self.hub.limits);
        let mut found = Vec::new();
        if hub.pong_timeout_seconds >= hub.ping_interval_seconds {
            let text = format!(
                "is {}, not below hub.pingIntervalSeconds ({}): a ping must be answered before the next one",
                hub.pong_timeout_seconds, hub.ping_interval_seconds
            );
            found.push(Mistake::new("hub.pongTimeoutSeconds", text));
        }
        if limits.frame_bytes > hub.max_message_bytes {
            let text = format!(
                "is {}, above hub.maxMessageBytes ({}), which bounds each frame already: set it to 0 or lower",
                limits.frame_bytes, hub.max_message_bytes
            );
            found.push(Mistake::new("hub.limits.frameBytes", text));
        }
        for (at, namespace) in self.namespaces.iter().enumerate() {
            let lag = namespace.slow_consumer.max_lag_bytes;
            if lag < hub.max_message_bytes {
                let text = format!(
                    "is {lag}, below hub.maxMessageBytes ({}): one message may be more than a client may lag; raise it, or lower hub.maxMessageBytes",
                    hub.max_message_bytes
                );
                found.push(Mistake::new(format!("namespaces[{at}].slowConsumer.maxLagBytes"), text));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use crate::{LiveSettings, parse};

    fn told(document: &str) -> Vec<String> {
        let live: LiveSettings = parse(document).expect("each bound is allowed");
        live.contradictions().into_iter().map(|mistake| mistake.path).collect()
    }

    #[test]
    fn bounds_that_leave_each_other_no_room_are_told_with_their_path() {
        let namespaces = "[{name: a}, {name: b, slowConsumer: {maxLagBytes: 65535}}]";
        assert_eq!(
            told(&format!("{{namespaces: {namespaces}}}")),
            ["namespaces[1].slowConsumer.maxLagBytes"]
        );
        assert_eq!(told("{hub: {pingIntervalSeconds: 10}}"), ["hub.pongTimeoutSeconds"]);
        assert_eq!(told("{hub: {limits: {frameBytes: 65537}}}"), ["hub.limits.frameBytes"]);
    }

    #[test]
    fn the_defaults_do_not_contradict_each_other() {
        assert_eq!(told("{namespaces: [{name: a, slowConsumer: {maxLagBytes: 65536}}]}"), [""; 0]);
    }
}
