//! Second step: what the API server cannot see. Pure.
//!
//! [`referenced_secrets`] tells the first step what to read; [`validate`] judges what it found. A [`Problem`]
//! names the object, the key and the fix; it becomes a condition and an Event.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    api::{
        FanoutCluster, Reason,
        v1alpha1::{CaRef, ClientTls, CredentialsRef, LocalObjectName, RedisTlsSpec},
    },
    controller::build::{NodePlace, render_node},
    redis::RedisTarget,
    resources::config_map::{self, Readers},
};

/// What was read of the objects that a FanoutCluster names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dereferenced {
    /// Each Secret of [`referenced_secrets`] by name; `None` where it does not exist.
    pub secrets: BTreeMap<String, Option<SecretShape>>,
    /// Digest of the generated API key; `None` where there is none yet, or no container that would hold it.
    pub api_key: Option<String>,
    /// Versions of the sidecar in revisions that have pods.
    pub versions: BTreeSet<String>,
    /// Shortest time, in seconds, that the pods of such a revision have to end, of those whose sidecar was not told it.
    pub untold_grace_seconds: Option<u32>,
}

/// A Secret without its values: size in bytes of each key's value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretShape {
    /// Key → bytes.
    pub sizes: BTreeMap<String, usize>,
    /// Digest of the value that a generated API key has; `None` where there is no such value.
    pub api_key: Option<String>,
}

/// Something that a person must mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What kind of thing it is.
    pub reason: Reason,
    /// The object at fault, as `Secret/chat-keys`.
    pub object: String,
    /// The key or field in it.
    pub key: Option<String>,
    /// What is wrong and what to do: names object and key.
    pub message: String,
}

/// What is known to hold of a FanoutCluster after [`validate`].
#[derive(Clone, Debug, PartialEq)]
pub struct Validated {
    /// How nodes reach their broker.
    pub redis: RedisTarget,
    /// Digest of the API key that app containers are started with.
    pub api_key: Option<String>,
    /// The nodes that read the live settings.
    pub readers: Readers,
    /// What is missing of the Secrets that the spec names: pods that run go on, and new ones would wait for it.
    pub missing: Vec<Problem>,
}

/// What the spec wants of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    /// The field that names it, as `auth.apiKeysSecretRef`.
    field: String,
    /// Its name.
    name: String,
    /// The keys it must have; none: at least one of any name.
    keys: Vec<String>,
}

/// Names of the Secrets that the user made and the spec names.
pub fn referenced_secrets(cluster: &FanoutCluster) -> BTreeSet<String> {
    wanted(cluster).into_iter().map(|wanted| wanted.name).collect()
}

/// The shape of a Secret that has all that the spec wants of it: it stands for one that may not be read.
pub(super) fn presumed(cluster: &FanoutCluster, name: &str) -> SecretShape {
    let wanted = wanted(cluster).into_iter().filter(|wanted| wanted.name == name);
    // Where any key will do, its name does not matter.
    let keys =
        wanted.flat_map(|wanted| if wanted.keys.is_empty() { vec![String::new()] } else { wanted.keys });
    SecretShape { sizes: keys.map(|key| (key, 1)).collect(), api_key: None }
}

/// Judges a FanoutCluster by what it names.
///
/// # Errors
/// Every problem at once, where nothing can be made of the spec.
pub fn validate(cluster: &FanoutCluster, found: &Dereferenced) -> Result<Validated, Vec<Problem>> {
    let missing: Vec<_> =
        wanted(cluster).iter().flat_map(|wanted| wanted.problems(cluster.namespace(), found)).collect();
    let mut problems = proxies(cluster);
    let redis = RedisTarget::of(cluster);
    if redis.is_none() {
        problems.push(Problem::of_spec(
            "redis",
            "spec.redis must have exactly one of managed, external and memory: set one and remove the others",
        ));
    }
    match redis {
        Some(redis) if problems.is_empty() => {
            let versions = found.versions.iter().map(String::as_str);
            let readers = Readers {
                version: versions.fold(cluster.spec.version.as_str(), config_map::older).to_owned(),
                untold_grace_seconds: found.untold_grace_seconds,
            };
            Ok(Validated { redis, api_key: found.api_key.clone(), readers, missing })
        }
        Some(_) | None => Err(missing.into_iter().chain(problems).collect()),
    }
}

/// What works, and should be asked for otherwise. It never stands in the way: each was allowed once, or may be meant.
pub fn advice(cluster: &FanoutCluster) -> Vec<Problem> {
    let place = NodePlace::in_pod(cluster, RedisTarget::Memory);
    let contradictions = render_node(cluster, &place).1.warnings().into_iter().map(|mistake| Problem {
        reason: Reason::ContradictingBounds,
        ..Problem::of_spec(&mistake.path, format!("spec.{mistake}"))
    });
    prefix(cluster).into_iter().chain(contradictions).collect()
}

fn prefix(cluster: &FanoutCluster) -> Option<Problem> {
    let prefix = cluster.spec.redis.channel_prefix.as_ref()?;
    let (outer, _) = prefix.split_once(':')?;
    let message = format!(
        "spec.redis.channelPrefix `{prefix}` holds a colon, so that a FanoutCluster with the prefix `{outer}` on the same Redis reaches all of its channels: make a second FanoutCluster with a prefix without one, and move clients to it"
    );
    let reason = Reason::AmbiguousChannelPrefix;
    Some(Problem { reason, ..Problem::of_spec("redis.channelPrefix", message) })
}

fn wanted(cluster: &FanoutCluster) -> Vec<Wanted> {
    let auth = &cluster.spec.auth;
    let api_keys =
        auth.api_keys_secret_ref.iter().map(|keys| Wanted::new("auth.apiKeysSecretRef", &keys.name, []));
    let jwt = auth.jwt.iter().flat_map(|jwt| jwt.keys.iter().enumerate()).map(|(at, key)| {
        let wanted = &key.secret_key_ref;
        Wanted::new(&format!("auth.jwt.keys[{at}].secretKeyRef"), &wanted.name, [wanted.key.as_str()])
    });
    let external = cluster.spec.redis.external.as_ref();
    let credentials = external.and_then(|redis| redis.credentials_secret_ref.as_ref()).map(credentials);
    let tls = external.and_then(|redis| redis.tls.as_ref()).map(tls).unwrap_or_default();
    let certificate = cluster.spec.hub.tls.iter().map(|tls| {
        let ClientTls { secret_ref } = tls;
        Wanted::new("hub.tls.secretRef", &secret_ref.name, ["tls.crt", "tls.key"])
    });
    api_keys.chain(jwt).chain(certificate).chain(credentials).chain(tls).collect()
}

fn credentials(credentials: &CredentialsRef) -> Wanted {
    let CredentialsRef { name, username_key, password_key } = credentials;
    let keys = username_key.iter().chain([password_key]).map(String::as_str);
    Wanted::new("redis.external.credentialsSecretRef", name, keys)
}

fn tls(tls: &RedisTlsSpec) -> Vec<Wanted> {
    let RedisTlsSpec { ca_secret_ref, client_cert_secret_ref, server_name: _ } = tls;
    let ca = ca_secret_ref
        .iter()
        .map(|CaRef { name, key }| Wanted::new("redis.external.tls.caSecretRef", name, [key.as_str()]));
    let client = client_cert_secret_ref.iter().map(|LocalObjectName { name }| {
        Wanted::new("redis.external.tls.clientCertSecretRef", name, ["tls.crt", "tls.key"])
    });
    ca.chain(client).collect()
}

/// CEL refuses these already; an object from before the rule must not open less than it says in silence.
fn proxies(cluster: &FanoutCluster) -> Vec<Problem> {
    let networks = cluster.spec.hub.trusted_proxies.iter();
    let bad = networks.filter(|network| network.parse::<ipnet::IpNet>().is_err());
    bad.map(|network| {
        let message = format!(
            "`{network}` in spec.hub.trustedProxies is no network: write it as 10.0.0.0/8 or fd00::/8"
        );
        Problem::of_spec("hub.trustedProxies", message)
    })
    .collect()
}

// === impl Wanted ===

impl Wanted {
    fn new<'a>(field: &str, name: &str, keys: impl IntoIterator<Item = &'a str>) -> Self {
        let keys = keys.into_iter().map(str::to_owned).collect();
        Self { field: field.to_owned(), name: name.to_owned(), keys }
    }

    fn problems(&self, namespace: &str, found: &Dereferenced) -> Vec<Problem> {
        let Self { field, name, keys } = self;
        let Some(Some(SecretShape { sizes, api_key: _ })) = found.secrets.get(name) else {
            return vec![self.problem(
                Reason::SecretMissing,
                None,
                format!("Secret {namespace}/{name}, named in spec.{field}, does not exist: create it, or name another"),
            )];
        };
        if keys.is_empty() && sizes.values().all(|size| *size == 0) {
            let message = format!(
                "Secret {namespace}/{name}, named in spec.{field}, holds no value: add a key whose value is an API key"
            );
            return vec![self.problem(Reason::SecretKeyMissing, None, message)];
        }
        let missing = keys.iter().filter_map(|key| {
            let what = match sizes.get(key) {
                None => "has no key",
                Some(0) => "has nothing in key",
                Some(_) => return None,
            };
            let message = format!(
                "Secret {namespace}/{name}, named in spec.{field}, {what} `{key}`: add the value, or name another key"
            );
            Some(self.problem(Reason::SecretKeyMissing, Some(key), message))
        });
        missing.collect()
    }

    fn problem(&self, reason: Reason, key: Option<&String>, message: String) -> Problem {
        Problem { reason, object: format!("Secret/{}", self.name), key: key.cloned(), message }
    }
}

// === impl Problem ===

impl Problem {
    /// A setting that the sidecar of `spec.version` would refuse.
    pub(super) fn too_new(unknown: &config_map::Unknown, version: &str) -> Self {
        let config_map::Unknown { path, since } = unknown;
        let message = format!(
            "`{path}` needs version {since} of the sidecar, and spec.version is {version}: it has no effect until you raise spec.version"
        );
        Self { reason: Reason::VersionTooOld, ..Self::of_spec(path, message) }
    }

    fn of_spec(field: &str, message: impl Into<String>) -> Self {
        Self {
            reason: Reason::InvalidSpec,
            object: "FanoutCluster".to_owned(),
            key: Some(format!("spec.{field}")),
            message: message.into(),
        }
    }
}
