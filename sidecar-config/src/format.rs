//! Formats of text fields. Each is a `format` of the schema and is validated with everything else, so that an invalid
//! value is reported at its path together with all other mistakes. A field declares its format with `extend("format" =
//! …)`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Format of a text field.
pub(crate) struct Format {
    /// Name of the format in the schema.
    pub(crate) name: &'static str,
    /// Returns `true` if a text has this format.
    pub(crate) fits: fn(&str) -> bool,
    /// Message that follows a text without this format.
    pub(crate) complaint: &'static str,
}

/// All formats that fields declare.
pub(crate) const FORMATS: [Format; 5] = [
    Format {
        name: "socket-address",
        fits: |text| text.parse::<SocketAddr>().is_ok(),
        complaint: "is not a listen address: use an IP address and a port, such as `0.0.0.0:8000` or `[::]:8000`",
    },
    Format {
        name: "network",
        fits: |text| text.parse::<IpNet>().is_ok(),
        complaint: "is not a network: use a form such as `10.0.0.0/8` or `fd00::/8`, or `192.0.2.1/32` for a single address",
    },
    Format {
        name: "origin",
        fits: is_origin,
        complaint: "is not an origin: use `https://app.example`, `https://*.example` or `*`",
    },
    Format {
        name: "host-port",
        fits: is_host_port,
        complaint: "is not an address: use a host and a port from 1 to 65535, such as `redis:6379` or `[fd00::1]:6379`",
    },
    Format {
        name: "server-name",
        fits: |text| text.parse::<IpAddr>().is_ok() || is_dns_name(text),
        complaint: "is not a valid server name: use a DNS name or an IP address",
    },
];

/// Returns the message for a text that does not have the format `name`.
pub(crate) fn complaint(name: &str) -> Option<&'static str> {
    FORMATS.iter().find(|format| format.name == name).map(|format| format.complaint)
}

/// `*`, or `scheme://host[:port]` where the host may begin with `*.`.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return text == "*" };
    let host = host.strip_prefix("*.").unwrap_or(host);
    !scheme.is_empty() && !host.is_empty() && !host.contains(['*', '/', ' '])
}

fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let ip = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let named = match ip {
        Some(ip) => ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()),
        None => !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || "/:@[]".contains(c)),
    };
    // `parse` alone would take a sign.
    named && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// As TLS libraries see it: the last label of a number would be an address.
fn is_dns_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        matches!(label.len(), 1..=63)
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= 253 && text.split('.').all(label) && !text.rsplit('.').next().is_some_and(number)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn fits(name: &str, text: &str) -> bool {
        let format = FORMATS.iter().find(|format| format.name == name).expect("a format of that name");
        (format.fits)(text)
    }

    #[test]
    fn each_kind_of_text_takes_its_own_and_refuses_others() {
        for (name, good, bad) in [
            (
                "socket-address",
                &["0.0.0.0:0", "[::]:8000", "127.0.0.1:65535"][..],
                &["", "localhost:8000", "0.0.0.0", ":8000", "0.0.0.0:70000", "::1:80"][..],
            ),
            (
                "network",
                &["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"],
                &["", "10.0.0.1", "10.0.0.0/33", "proxy", "10.0.0.0/8 "],
            ),
            (
                "origin",
                &["*", "https://app.example", "https://*.example:8443", "http://[::1]:80"],
                &["", "https://*", "app.example", "https://", "://a", "https://a/b", "https://a.*.b"],
            ),
            (
                "host-port",
                &["redis:6379", "10.0.0.1:1", "[fd00::1]:65535", "redis.default.svc:6379"],
                &[
                    "",
                    "redis",
                    "redis:",
                    "redis:0",
                    "redis:65536",
                    "redis:+1",
                    ":6379",
                    "a@b:1",
                    "fd00::1:6379",
                    "[redis]:1",
                ],
            ),
            (
                "server-name",
                &["redis", "redis.default.svc", "redis.example.", "10.0.0.1", "::1", "a_b.example"],
                &["", "redis:6379", "a..b", "-a.example", "a-", "a b", "10.0.0.999", "*.example"],
            ),
        ] {
            for text in good {
                assert!(fits(name, text), "{name} refuses {text:?}");
            }
            for text in bad {
                assert!(!fits(name, text), "{name} takes {text:?}");
            }
        }
    }

    #[test]
    fn every_kind_that_a_schema_names_is_checked() {
        fn named(schema: &Value, found: &mut Vec<String>) {
            match schema {
                Value::Object(fields) => {
                    found.extend(fields.get("format").and_then(Value::as_str).map(ToOwned::to_owned));
                    fields.values().for_each(|field| named(field, found));
                }
                Value::Array(items) => items.iter().for_each(|item| named(item, found)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        let mut found = Vec::new();
        for schema in [crate::schema::<crate::BootSettings>(), crate::schema::<crate::LiveSettings>()] {
            named(&schema, &mut found);
        }
        // Those of numbers are the schema's own words for their size.
        found.retain(|name| !name.starts_with("uint"));
        assert!(found.iter().all(|name| complaint(name).is_some()), "{found:?}");
        assert!(FORMATS.iter().all(|format| found.iter().any(|name| name == format.name)), "{found:?}");
    }
}
