//! A channel that anyone may use, for the playground and for the check.

use fanout_operator::api::FanoutCluster;
use sidecar_config::{Access, DEFAULT_NAMESPACE, Namespace};

/// Name of a channel in a namespace that lists none.
const ANY: &str = "lobby";

/// The first channel in which everyone may subscribe and publish.
pub(crate) fn open(cluster: &FanoutCluster) -> Option<String> {
    let open = |namespace: &&Namespace| {
        namespace.publish == Access::Allowed && namespace.subscribe == Access::Allowed
    };
    cluster.spec.namespaces.iter().find(open).map(|namespace| {
        let pattern = namespace.channels.first().map_or(ANY, String::as_str);
        let name = pattern.replace('*', ANY);
        if namespace.name == DEFAULT_NAMESPACE { name } else { format!("{}:{name}", namespace.name) }
    })
}

/// What to do where there is none.
pub(crate) const NONE: &str = "no namespace lets everyone publish and subscribe: give spec.namespaces one with `publish: allowed` and `subscribe: allowed`";

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(namespaces: &str) -> FanoutCluster {
        let spec = serde_yaml::from_str(&format!("namespaces: {namespaces}")).unwrap();
        FanoutCluster::new("demo", spec)
    }

    #[test]
    fn the_first_channel_open_to_everyone_is_chosen() {
        let open_to = |namespaces| open(&cluster(namespaces));
        assert_eq!(
            open_to("[{name: default, publish: allowed, subscribe: allowed, channels: [town]}]"),
            Some("town".into())
        );
        assert_eq!(
            open_to("[{name: a, subscribe: allowed}, {name: b, publish: allowed, subscribe: allowed}]"),
            Some("b:lobby".into())
        );
        assert_eq!(
            open_to("[{name: b, publish: allowed, subscribe: allowed, channels: ['room-*']}]"),
            Some("b:room-lobby".into())
        );
        assert_eq!(open_to("[{name: b, publish: token, subscribe: allowed}]"), None);
    }
}
