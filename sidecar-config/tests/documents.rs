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
fn a_live_document_of_defaults_opens_nothing() {
    let live: LiveSettings = parse("{}").unwrap();
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
        "hub.pingIntervall: unknown key",
        "namespaces[0].name: ",
        "namespaces[1].publish: ",
    ] {
        assert!(found.iter().any(|line| line.starts_with(start)), "{start} in {found:#?}");
    }
    assert_eq!(found.len(), 5, "{found:#?}");
}

#[test]
fn texts_that_are_parsed_are_told_at_their_path_with_what_is_allowed() {
    let found = mistakes::<BootSettings>(
        "{listen: {client: 'localhost:8000', api: 8001, admin: '0.0.0.0'}, \
          broker: {redis: {address: 'redis:99999', channelPrefix: p, tls: {serverName: 'a b'}}}}",
    );
    let address =
        "is not a listen address: use an IP address and a port, such as `0.0.0.0:8000` or `[::]:8000`";
    for line in [
        &format!("listen.client: \"localhost:8000\" {address}"),
        "listen.api: 8001 is not of type \"string\"",
        &format!("listen.admin: \"0.0.0.0\" {address}"),
        "broker.redis.address: \"redis:99999\" is not an address: use a host and a port from 1 to 65535, such as \
            `redis:6379` or `[fd00::1]:6379`",
        "broker.redis.tls.serverName: \"a b\" is not a valid server name: use a DNS name or an IP address",
    ] {
        assert!(found.iter().any(|told| told == line), "{line} in {found:#?}");
    }
    assert_eq!(found.len(), 5, "{found:#?}");
    let found = mistakes::<LiveSettings>("hub: {trustedProxies: [10.0.0.0/8, 10.0.0.1, fd00::/8, proxy]}");
    let network = "is not a network: use a form such as `10.0.0.0/8` or `fd00::/8`, or `192.0.2.1/32` for a single address";
    assert_eq!(
        found,
        [
            format!("hub.trustedProxies[1]: \"10.0.0.1\" {network}"),
            format!("hub.trustedProxies[3]: \"proxy\" {network}"),
        ]
    );
}

#[test]
fn a_name_that_is_none_is_told_with_all_that_are() {
    let found = mistakes::<LiveSettings>(
        "{logLevel: loud, onUnavailable: Panic, namespaces: [{name: a, publish: everyone, slowConsumer: {policy: 7}}]}",
    );
    assert_eq!(
        found,
        [
            "logLevel: \"loud\" is not one of \"error\", \"warn\", \"info\", \"debug\" or \"trace\"",
            "namespaces[0].publish: \"everyone\" is not one of \"allowed\", \"token\" or \"denied\"",
            "namespaces[0].slowConsumer.policy: 7 is not one of \"disconnect\", \"dropOldest\", \"dropNewest\" or \"conflate\"",
            "onUnavailable: \"Panic\" is not one of \"KeepClients\" or \"NotReady\"",
        ]
    );
}

#[test]
fn a_mistake_in_a_section_that_may_be_absent_is_told_at_its_own_path() {
    let found = mistakes::<LiveSettings>(
        "{hub: {tls: {certFile: /c, keyFil: /k}}, auth: {jwt: {keys: [{algorithm: none, file: /k}]}}}",
    );
    assert_eq!(
        found,
        [
            "auth.jwt.keys[0].algorithm: \"none\" is not one of \"HS256\", \"HS384\", \"HS512\", \"RS256\", \"ES256\" or \"EdDSA\"",
            "hub.tls: \"keyFile\" is a required property",
            "hub.tls.keyFil: unknown key",
        ]
    );
    assert_eq!(mistakes::<BootSettings>("broker: {redis: 7}"), ["broker.redis: 7 is not of type \"object\""]);
}

#[test]
fn a_value_that_only_its_type_refuses_is_told_with_its_path() {
    let found = mistakes::<LiveSettings>("hub: {limits: {headerBytes: 4096.0}}");
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].starts_with("hub.limits.headerBytes: ") && found[0].contains("4096.0"), "{found:#?}");
}

#[test]
fn mistakes_that_a_schema_sees_and_those_that_it_cannot_see_are_told_together() {
    let found = mistakes::<BootSettings>(
        "{lisen: {}, broker: {redis: {address: r, channelPrefix: p, tls: {certFile: /c}}, memory: {}}}",
    );
    for start in
        ["lisen: ", "broker.redis.address: ", "broker: set exactly one", "broker.redis.tls: `certFile`"]
    {
        assert!(found.iter().any(|line| line.starts_with(start)), "{start} in {found:#?}");
    }
    assert_eq!(found.len(), 4, "{found:#?}");
    let found = mistakes::<LiveSettings>("{logLevel: loud, namespaces: [{name: a}, 7, {name: a}]}");
    assert_eq!(found.len(), 3, "{found:#?}");
}

#[test]
fn a_misspelt_broker_is_one_mistake() {
    assert_eq!(mistakes::<BootSettings>("broker: {memori: {}}"), ["broker.memori: unknown key"]);
    assert_eq!(mistakes::<BootSettings>("broker: {}"), ["broker: set exactly one of `memory` and `redis`"]);
}

#[test]
fn what_a_schema_cannot_say_is_checked_too() {
    let both = "broker: {memory: {}, redis: {address: 'r:1', channelPrefix: p}}";
    assert_eq!(mistakes::<BootSettings>(both), ["broker: set exactly one of `memory` and `redis`"]);
    let found = mistakes::<LiveSettings>(
        "{namespaces: [{name: a}, {name: a}], hub: {allowedOrigins: ['https://*']}}",
    );
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("hub.allowedOrigins[0]: \"https://*\" is not an origin"));
    assert!(found[1].starts_with("namespaces[1].name: `a` is listed twice"));
}

#[test]
fn the_namespace_of_the_nodes_may_not_be_listed() {
    let found = mistakes::<LiveSettings>("namespaces: [{name: fanout, subscribe: allowed}]");
    assert_eq!(
        found,
        ["namespaces[0].name: `fanout` is reserved for internal use by the nodes: choose another name"]
    );
}

#[test]
fn text_that_is_no_yaml_is_told_with_its_line() {
    let found = mistakes::<LiveSettings>("hub:\n  maxConnections: [1");
    assert!(found[0].contains("is not valid YAML") && found[0].contains("line 2"), "{found:?}");
}

#[test]
fn a_text_without_a_document_is_no_document_of_defaults() {
    for text in ["", "\n", "---\n", "# to be written\n", "null", "~", "\u{feff}"] {
        let found = mistakes::<LiveSettings>(text);
        assert_eq!(
            found,
            [
                "the document is empty, like a file that is still being written: use `{}` for a document with only defaults"
            ],
            "{text:?}"
        );
        assert!(mistakes::<BootSettings>(text)[0].starts_with("the document is empty"), "{text:?}");
    }
    assert!(mistakes::<LiveSettings>("{}\n---\n{}\n")[0].starts_with("the document is one of 2 documents"));
}

#[test]
fn a_repeated_key_is_told_with_its_path_and_line() {
    let found = mistakes::<LiveSettings>("hub:\n  maxConnections: 5\n  maxConnections: 50000\nhub: {}\n");
    assert_eq!(
        found,
        [
            "hub.maxConnections: duplicate key: keep only one of them (line 3, column 3)",
            "hub: duplicate key: keep only one of them (line 4, column 1)",
        ]
    );
    let found = mistakes::<BootSettings>("broker: {memory: {}}\nbroker: {memory: {}}\n");
    assert_eq!(found, ["broker: duplicate key: keep only one of them (line 2, column 1)"]);
}

#[test]
fn a_key_that_looks_right_and_is_not_shows_why() {
    let found = mistakes::<LiveSettings>("\u{feff}\u{feff}logLevel: info\n");
    assert_eq!(found, ["\\u{feff}logLevel: unknown key"]);
    let found = mistakes::<LiveSettings>("logLevel: info\n\u{feff}onUnavailable: NotReady\n");
    assert!(found[1].contains("byte order mark") && found[1].ends_with("(line 2)"), "{found:?}");
    // At the beginning of a file it is part of the encoding.
    parse::<LiveSettings>("\u{feff}logLevel: info").unwrap();
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

#[test]
fn settings_that_contradict_each_other_are_told_by_their_places_and_the_defaults_do_not() {
    let told = |text: &str| -> Vec<String> {
        let settings: LiveSettings = parse(text).unwrap();
        settings.warnings().into_iter().map(|mistake| mistake.path).collect()
    };
    assert!(told("namespaces: [{name: default}, {name: chat}]").is_empty());
    for (text, path) in [
        ("hub: {limits: {frameBytes: 200000}}", "hub.limits.frameBytes"),
        ("hub: {limits: {headerBytes: 4096}}", "hub.limits.queryBytes"),
        ("hub: {pingIntervalSeconds: 9}", "hub.pongTimeoutSeconds"),
        ("hub: {maxMessageBytes: 100, compression: {enabled: true}}", "hub.compression.minBytes"),
        (
            "namespaces: [{name: a}, {name: b, slowConsumer: {maxLagBytes: 65535}}]",
            "namespaces[1].slowConsumer.maxLagBytes",
        ),
        (
            "namespaces: [{name: a, rateLimit: {publishesPerSecond: 1001}}]",
            "namespaces[0].rateLimit.publishesPerSecond",
        ),
        ("namespaces: [{name: a, rateLimit: {burst: 2001}}]", "namespaces[0].rateLimit.burst"),
    ] {
        assert_eq!(told(text), [path], "{text}");
    }
}
