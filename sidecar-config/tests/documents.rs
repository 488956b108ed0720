//! The two documents as a person writes them, right and wrong.

use serde_json::Value;
use sidecar_config::{Access, BootSettings, BrokerKind, CHANGE_CLASS, LiveSettings, parse, schema};

fn mistakes<D: sidecar_config::Document + std::fmt::Debug>(text: &str) -> Vec<String> {
    parse::<D>(text).expect_err("the document has mistakes").0.iter().map(ToString::to_string).collect()
}

#[test]
fn the_smallest_boot_document_names_a_broker() {
    let boot: BootSettings = parse("broker: {memory: {}}").unwrap();
    assert_eq!(boot.broker.kind(), Some(BrokerKind::Memory));
    assert_eq!(boot.listen.client.port(), 8000);
}

#[test]
fn an_empty_live_document_opens_nothing() {
    let live: LiveSettings = parse("").unwrap();
    assert!(
        live.namespaces.is_empty()
            && live.hub.allowed_origins.is_empty()
            && live.auth.api_key_files.is_empty()
    );
    let live: LiveSettings = parse("namespaces: [{name: default}]").unwrap();
    assert_eq!((live.namespaces[0].publish, live.namespaces[0].subscribe), (Access::Denied, Access::Denied));
}

#[test]
fn every_mistake_is_reported_with_its_path() {
    let found = mistakes::<LiveSettings>(
        "{logLevel: loud, hub: {maxConnections: 0, pingIntervall: 3}, namespaces: [{name: 'a b'}, {publish: maybe, name: x}]}",
    );
    for start in [
        "logLevel: \"loud\"",
        "hub.maxConnections: 0",
        "hub.pingIntervall: is an unknown key",
        "namespaces[0].name: ",
        "namespaces[1].publish: ",
    ] {
        assert!(found.iter().any(|line| line.starts_with(start)), "{start} in {found:#?}");
    }
    assert_eq!(found.len(), 5, "{found:#?}");
}

#[test]
fn what_a_schema_cannot_say_is_checked_too() {
    let both = "broker: {memory: {}, redis: {address: 'r:1', channelPrefix: p}}";
    assert_eq!(mistakes::<BootSettings>(both), ["broker: needs exactly one of `memory` and `redis`"]);
    let found = mistakes::<LiveSettings>(
        "{namespaces: [{name: a}, {name: a}], hub: {allowedOrigins: ['https://*']}}",
    );
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("hub.allowedOrigins[0]: `https://*` is no origin"));
    assert!(found[1].starts_with("namespaces[1].name: `a` is listed twice"));
}

#[test]
fn the_namespace_of_the_nodes_may_not_be_listed() {
    let found = mistakes::<LiveSettings>("namespaces: [{name: fanout, subscribe: allowed}]");
    assert_eq!(found, ["namespaces[0].name: `fanout` is kept for the nodes themselves: choose another name"]);
}

#[test]
fn text_that_is_no_yaml_is_told_with_its_line() {
    let found = mistakes::<LiveSettings>("hub:\n  maxConnections: [1");
    assert!(found[0].contains("is no YAML") && found[0].contains("line 2"), "{found:?}");
}

#[test]
fn documents_survive_a_round_trip() {
    let boot: BootSettings =
        parse("broker: {redis: {address: 'redis:6379', channelPrefix: demo.chat, passwordFile: /p}}")
            .unwrap();
    assert_eq!(parse::<BootSettings>(&serde_yaml::to_string(&boot).unwrap()).unwrap(), boot);
    let live: LiveSettings =
        parse("namespaces: [{name: default, channels: [lobby], publish: allowed}]").unwrap();
    assert_eq!(parse::<LiveSettings>(&serde_yaml::to_string(&live).unwrap()).unwrap(), live);
}

#[test]
fn every_field_declares_its_class_of_change() {
    for (document, class) in [(schema::<BootSettings>(), "roll"), (schema::<LiveSettings>(), "hot")] {
        for (name, field) in document["properties"].as_object().unwrap() {
            assert_eq!(field.get(CHANGE_CLASS).and_then(Value::as_str), Some(class), "{name}");
        }
    }
}
