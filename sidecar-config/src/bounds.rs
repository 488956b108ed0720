//! Bounds that contradict each other: each is valid on its own, but together they cannot have the intended effect. They
//! are reported by `fanout-sidecar check`, by the condition `Advisory` of the FanoutCluster and by `kubectl fanout
//! dev`, and never rejected: a rule over several fields would reject every later change of a cluster that already uses
//! them.

use crate::{HubSettings, Limits, LiveSettings, Mistake, Namespace};

impl LiveSettings {
    /// Returns the settings that another setting makes impossible or useless, each with the path of the one to change.
    pub(crate) fn contradictions(&self) -> Vec<Mistake> {
        let HubSettings { max_message_bytes, ping_interval_seconds, pong_timeout_seconds, limits, .. } =
            &self.hub;
        let Limits { frame_bytes, header_bytes, query_bytes, messages_per_second, .. } = limits;
        let mut told = Vec::new();
        let mut tell = |is_so: bool, path: String, text: String| {
            if is_so {
                told.push(Mistake::new(path, text));
            }
        };
        // In framed mode, a message contains its payload in base64 at worst, plus the surrounding JSON.
        let most_bytes = u64::from(*max_message_bytes) * 2 + 16_384;
        tell(
            u64::from(*frame_bytes) > most_bytes,
            "hub.limits.frameBytes".to_owned(),
            format!("{frame_bytes} can never be reached: hub.maxMessageBytes is {max_message_bytes}"),
        );
        tell(
            query_bytes >= header_bytes,
            "hub.limits.queryBytes".to_owned(),
            format!(
                "{query_bytes} can never be reached: hub.limits.headerBytes ({header_bytes}) includes the request line"
            ),
        );
        tell(
            pong_timeout_seconds > ping_interval_seconds,
            "hub.pongTimeoutSeconds".to_owned(),
            format!(
                "{pong_timeout_seconds} s is longer than hub.pingIntervalSeconds ({ping_interval_seconds} s): pings are sent less often than the interval states"
            ),
        );
        tell(
            self.hub.compression.enabled && self.hub.compression.min_bytes > *max_message_bytes,
            "hub.compression.minBytes".to_owned(),
            format!(
                "{} disables compression: hub.maxMessageBytes is {max_message_bytes}",
                self.hub.compression.min_bytes
            ),
        );
        for (at, Namespace { slow_consumer, rate_limit, .. }) in self.namespaces.iter().enumerate() {
            let max_lag = slow_consumer.max_lag_bytes;
            tell(
                max_lag < *max_message_bytes,
                format!("namespaces[{at}].slowConsumer.maxLagBytes"),
                format!(
                    "{max_lag} is less than the maximum size of one message (hub.maxMessageBytes, {max_message_bytes}): no message can be queued behind a large one"
                ),
            );
            tell(
                rate_limit.publishes_per_second > *messages_per_second,
                format!("namespaces[{at}].rateLimit.publishesPerSecond"),
                format!(
                    "{} can never be reached: hub.limits.messagesPerSecond closes connections that exceed {messages_per_second}",
                    rate_limit.publishes_per_second
                ),
            );
            tell(
                rate_limit.burst > messages_per_second.saturating_mul(2),
                format!("namespaces[{at}].rateLimit.burst"),
                format!(
                    "{} can never be reached: hub.limits.messagesPerSecond closes connections that exceed a burst of {}",
                    rate_limit.burst,
                    messages_per_second.saturating_mul(2)
                ),
            );
        }
        told
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
        assert_eq!(told("{hub: {pingIntervalSeconds: 9}}"), ["hub.pongTimeoutSeconds"]);
        assert_eq!(told("{hub: {limits: {frameBytes: 200000}}}"), ["hub.limits.frameBytes"]);
    }

    #[test]
    fn the_defaults_do_not_contradict_each_other() {
        assert_eq!(told("{namespaces: [{name: a, slowConsumer: {maxLagBytes: 65536}}]}"), [""; 0]);
    }
}
