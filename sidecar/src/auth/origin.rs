//! Origins of web pages (RFC 6454) that may connect.

/// Origins that are allowed.
#[derive(Debug, Default)]
pub(super) struct Origins(Vec<Allowed>);

#[derive(Debug, PartialEq, Eq)]
enum Allowed {
    Any,
    Exact(String),
    /// `https://*.example:8443` as (`https://`, `.example:8443`).
    Subdomains {
        scheme: String,
        suffix: String,
    },
}

impl Origins {
    /// Origins of checked settings.
    pub(super) fn new(origins: &[String]) -> Self {
        Self(origins.iter().map(|origin| Allowed::new(origin)).collect())
    }

    /// Whether a page of this origin may connect.
    pub(super) fn admit(&self, origin: &str) -> bool {
        let origin = canonical(origin);
        self.0.iter().any(|allowed| allowed.admits(&origin))
    }

    /// Whether an entry names this origin or its domain, so that a page of it may send credentials. `null` is the origin of
    /// every sandbox and file.
    pub(super) fn name(&self, origin: &str) -> bool {
        let origin = canonical(origin);
        let named = |allowed: &&Allowed| **allowed != Allowed::Any;
        origin != "null" && self.0.iter().filter(named).any(|allowed| allowed.admits(&origin))
    }
}

impl Allowed {
    fn new(origin: &str) -> Self {
        let origin = canonical(origin);
        match origin.split_once("*.") {
            Some((scheme, host)) => {
                Self::Subdomains { scheme: scheme.to_owned(), suffix: format!(".{host}") }
            }
            None if origin == "*" => Self::Any,
            None => Self::Exact(origin),
        }
    }

    fn admits(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == origin,
            Self::Subdomains { scheme, suffix } => origin
                .strip_prefix(scheme.as_str())
                .and_then(|host| host.strip_suffix(suffix.as_str()))
                // What stands for the star is labels of a host name: not empty, no port, no user, no path.
                .is_some_and(|labels| !labels.is_empty() && !labels.contains([':', '/', '@'])),
        }
    }
}

/// Scheme and host are equal in either case, and browsers leave out a scheme's own port.
fn canonical(origin: &str) -> String {
    let origin = origin.trim().to_ascii_lowercase();
    let short = match origin.split_once("://") {
        Some(("https" | "wss", _)) => origin.strip_suffix(":443"),
        Some(("http" | "ws", _)) => origin.strip_suffix(":80"),
        _ => None,
    };
    short.map(str::to_owned).unwrap_or(origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(allowed: &str, origin: &str) -> bool {
        Origins::new(&[allowed.to_owned()]).admit(origin)
    }

    #[test]
    fn an_origin_is_compared_whole_and_without_case() {
        assert!(admit("https://App.example", "https://app.example"));
        assert!(admit("https://app.example:443", "https://app.example"));
        for origin in [
            "http://app.example",
            "https://app.example:8443",
            "https://app.example.evil",
            "https://evilapp.example",
            "null",
            "",
        ] {
            assert!(!admit("https://app.example", origin), "{origin}");
        }
    }

    #[test]
    fn a_star_stands_for_subdomains_and_not_for_the_domain() {
        for origin in ["https://a.example.com", "https://a.b.example.com", "https://A.EXAMPLE.com:443"] {
            assert!(admit("https://*.example.com", origin), "{origin}");
        }
        for origin in [
            "https://example.com",
            "https://.example.com",
            "https://evilexample.com",
            "http://a.example.com",
            "https://a.example.com:8443",
            "https://evil.test/x.example.com",
            "https://evil.test:1.example.com",
            "https://u@a.example.com",
            "https://a.example.com.evil",
        ] {
            assert!(!admit("https://*.example.com", origin), "{origin}");
        }
        assert!(admit("https://*.example.com:8443", "https://a.example.com:8443"));
    }

    #[test]
    fn a_page_that_comes_in_by_the_star_is_not_named() {
        let origins =
            |list: &[&str]| Origins::new(&list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        let both = origins(&["*", "https://app.example", "https://*.example.com", "null"]);
        for (origin, named) in [
            ("https://app.example", true),
            ("https://a.example.com", true),
            ("https://other.test", false),
            ("null", false),
        ] {
            assert!(both.admit(origin));
            assert_eq!(both.name(origin), named, "{origin}");
        }
    }

    #[test]
    fn only_the_star_admits_every_origin() {
        assert!(admit("*", "null") && admit("*", "https://anything.test"));
        assert!(!Origins::new(&[]).admit("https://app.example"));
    }
}
