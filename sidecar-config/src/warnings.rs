//! Settings of a live document that are valid but probably unintended. They are reported and never rejected, because
//! existing clusters use them.

use ipnet::IpNet;

use crate::{LiveSettings, Mistake};

impl LiveSettings {
    /// Returns settings that are probably unintended, each with its path.
    pub fn warnings(&self) -> Vec<Mistake> {
        let mut warnings = Vec::new();
        for (at, network) in self.hub.trusted_proxies.iter().enumerate() {
            if network.addr() != network.network() {
                warnings.push(Mistake::new(format!("hub.trustedProxies[{at}]"), host_bits(network)));
            }
        }
        for (field, value) in
            self.auth.jwt.iter().flat_map(|jwt| [("issuer", &jwt.issuer), ("audience", &jwt.audience)])
        {
            if value.as_deref() == Some("") {
                let text =
                    "is empty, which hardly any token contains: omit it to accept any value, or set a value";
                warnings.push(Mistake::new(format!("auth.jwt.{field}"), text));
            }
        }
        warnings.extend(self.contradictions());
        warnings
    }
}

fn host_bits(network: &IpNet) -> String {
    format!(
        "`{network}` has host bits set and matches all of `{}`: write that instead, or `{}/{}` for the single address",
        network.trunc(),
        network.addr(),
        network.max_prefix_len()
    )
}

#[cfg(test)]
mod tests {
    use crate::{LiveSettings, parse};

    #[test]
    fn what_is_hardly_meant_is_told_with_its_path() {
        let live: LiveSettings = parse(
            "{hub: {trustedProxies: [10.0.0.0/8, 10.1.2.3/8, 'fd00::1/64']}, \
              auth: {jwt: {issuer: '', keys: [{algorithm: ES256, file: /k}]}}}",
        )
        .unwrap();
        let told: Vec<_> = live.warnings().iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 3, "{told:#?}");
        assert!(told[0].starts_with("hub.trustedProxies[1]: `10.1.2.3/8` has host bits"), "{told:#?}");
        assert!(told[0].contains("`10.0.0.0/8`") && told[0].contains("`10.1.2.3/32`"), "{told:#?}");
        assert!(told[1].contains("`fd00::/64`"), "{told:#?}");
        assert!(told[2].starts_with("auth.jwt.issuer: is empty"), "{told:#?}");
        assert!(LiveSettings::default().warnings().is_empty());
    }
}
