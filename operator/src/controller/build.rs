//! Third step: every child as it should be. Pure: the same FanoutCluster gives the same bytes.
//!
//! `apply` writes what is in [`Resources`]; `plan` decides when a revision's ReplicaSet grows or shrinks, so no
//! number of replicas is in here. `kubectl fanout dev` takes [`NodePlace`] and [`render_node`] alone.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{ResourceExt, core::ObjectMeta};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::validate::Validated;
use crate::{
    api::{FanoutCluster, OPERATOR_CLASS},
    redis::managed,
    resources::{config_map, labels, network_policy, pdb, replica_set, secret, service, service_account},
};

pub use crate::resources::config_map::{NodePlace, Unknown, render_node};

/// What the operator was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorConfig {
    /// Repository of the sidecar's image where the spec names none.
    pub sidecar_repository: String,
    /// Image of the managed Redis where the spec names none.
    pub redis_image: String,
    /// Namespace the operator runs in; its pods may read the nodes' admin port.
    pub namespace: String,
    /// The FanoutClusters that it manages: those of this class, or those without one.
    pub class: Option<String>,
    /// Whether pods name the user they run as; not where the platform chooses one and refuses others.
    pub fixed_uids: bool,
    /// Name of the installation, of which one process leads: namespace and name of its Lease.
    pub installation: String,
}

/// Every child of a FanoutCluster. Destructure it without `..`, so that a new child cannot be forgotten.
#[derive(Clone, Debug, PartialEq)]
pub struct Resources {
    /// The pods, at the revision that the spec asks for.
    pub revision: RevisionSpec,
    /// What running nodes take over; `<name>-live`.
    pub live_config_map: ConfigMap,
    /// Settings that `spec.version` does not know; they are in no document.
    pub too_new: Vec<Unknown>,
    /// `<name>` for clients, `<name>-api` for backends, `<name>-nodes` headless.
    pub services: [Service; 3],
    /// Key of the server API; a value that is there is never overwritten.
    pub api_key: GeneratedSecret,
    /// The managed Redis, where the spec asks for one.
    pub managed_redis: Option<ManagedRedisResources>,
    /// The disruption budget; `None` also means that one from before must go.
    pub pdb: Option<PodDisruptionBudget>,
    /// Identity of the pods, with no token mounted.
    pub service_account: ServiceAccount,
    /// Policies; empty also means that those from before must go.
    pub network_policies: Vec<NetworkPolicy>,
}

/// One revision: written once, never rendered again by a newer operator.
#[derive(Clone, Debug, PartialEq)]
pub struct RevisionSpec {
    /// Its name, a hash of `canonical`; `<cluster>-<name>` is its ReplicaSet and its boot ConfigMap.
    pub name: String,
    /// The part of the spec it stands for; also annotation [`labels::REVISION_SPEC`] of the ReplicaSet.
    ///
    /// [`labels::REVISION_SPEC`]: crate::resources::labels::REVISION_SPEC
    pub canonical: Value,
    /// The ReplicaSet, without `spec.replicas`. JSON, so that what a newer Kubernetes knows of a pod passes through.
    pub replica_set: Value,
    /// Its boot document; immutable.
    pub boot_config_map: ConfigMap,
}

/// The managed Redis and what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct ManagedRedisResources {
    /// One replica; `apply` adds the digest of the password. Written once, and never rendered again by a newer operator.
    pub stateful_set: StatefulSet,
    /// The part of the spec that its pod stands for.
    pub canonical: Value,
    /// Its address.
    pub service: Service,
    /// Its password; a value that is there is never overwritten.
    pub password: GeneratedSecret,
    /// Its volume; it has no owner, so it outlives the FanoutCluster.
    pub claim: Option<PersistentVolumeClaim>,
}

/// A Secret with a random value. A value that is there is never overwritten, whoever wrote it; one that is gone is
/// made anew, and what follows from the value follows it.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedSecret {
    /// The Secret without values.
    pub shell: Secret,
    /// The key that holds the random value.
    pub key: &'static str,
    /// Further keys, and their text, in which `{}` stands for the value.
    pub also: &'static [(&'static str, &'static str)],
}

/// Every child of `cluster`.
pub fn build(cluster: &FanoutCluster, validated: &Validated, operator: &OperatorConfig) -> Resources {
    let Validated { redis, api_key, readers, missing: _ } = validated;
    Resources {
        revision: replica_set::revision(cluster, redis, api_key.as_deref(), operator),
        live_config_map: config_map::live(cluster, redis, readers),
        too_new: config_map::too_new(cluster, redis),
        services: service::services(cluster),
        api_key: secret::api_key(cluster),
        managed_redis: managed::resources(cluster, operator),
        pdb: pdb::pdb(cluster),
        service_account: service_account::service_account(cluster),
        network_policies: network_policy::policies(cluster, operator),
    }
}

// === impl Resources ===

impl Resources {
    /// Kind and name of every child, Secrets apart.
    pub fn names(&self) -> Vec<(&'static str, String)> {
        let Self {
            revision: RevisionSpec { name: _, canonical: _, replica_set, boot_config_map },
            live_config_map,
            too_new: _,
            services,
            api_key: _,
            managed_redis,
            pdb,
            service_account,
            network_policies,
        } = self;
        let set = replica_set["metadata"]["name"].as_str().unwrap_or_default();
        let mut names = vec![
            ("ReplicaSet", set.to_owned()),
            ("ConfigMap", boot_config_map.name_any()),
            ("ConfigMap", live_config_map.name_any()),
            ("ServiceAccount", service_account.name_any()),
        ];
        names.extend(services.iter().map(|service| ("Service", service.name_any())));
        names.extend(pdb.iter().map(|pdb| ("PodDisruptionBudget", pdb.name_any())));
        names.extend(network_policies.iter().map(|policy| ("NetworkPolicy", policy.name_any())));
        if let Some(redis) = managed_redis {
            let ManagedRedisResources { stateful_set, canonical: _, service, password: _, claim } = redis;
            names.extend([("StatefulSet", stateful_set.name_any()), ("Service", service.name_any())]);
            names.extend(claim.iter().map(|claim| ("PersistentVolumeClaim", claim.name_any())));
        }
        names
    }
}

// === impl OperatorConfig ===

impl OperatorConfig {
    /// Whether a FanoutCluster with this metadata is this operator's.
    pub fn manages(&self, metadata: &ObjectMeta) -> bool {
        let labels = metadata.labels.as_ref();
        let class = labels.and_then(|labels| labels.get(OPERATOR_CLASS)).filter(|class| !class.is_empty());
        class == self.class.as_ref()
    }
}

// === impl RevisionSpec ===

impl RevisionSpec {
    /// Whether a stored revision (annotation of its ReplicaSet, parsed) stands for the same pods. It may have been
    /// written by an operator that counted other fields, so names are not compared.
    pub fn stands_for(&self, stored: &Value) -> bool {
        let [stored, wanted] = [stored, &self.canonical].map(replica_set::canonical);
        // One whose key is not known now may hold any; so may a revision from before the key was counted, until it is
        // noted.
        let key = [&stored, &wanted].iter().any(|one| one["apiKey"].is_null())
            || stored["apiKey"] == wanted["apiKey"];
        key && ["spec", "restartedAt"].iter().all(|part| stored[*part] == wanted[*part])
    }
}

// === impl GeneratedSecret ===

impl GeneratedSecret {
    /// Name of the Secret.
    pub fn name(&self) -> &str {
        self.shell.metadata.name.as_deref().unwrap_or_default()
    }

    /// The Secret to create, with `random` as its value.
    pub fn with_value(&self, random: &str) -> Secret {
        let values = self.values(random).map(|(key, text)| (key.to_owned(), text)).collect();
        Secret { string_data: Some(values), ..self.shell.clone() }
    }

    /// What a Secret that exists lacks, as a merge patch of exactly the version that was read; `random` stands in for
    /// a value that is gone. `None`: nothing.
    pub fn repair(&self, live: &Secret, random: &str) -> Option<Value> {
        let kept = held(live, self.key).filter(|value| !value.is_empty());
        let value = kept.map_or(random.into(), String::from_utf8_lossy);
        let due = self.values(&value).filter(|(key, text)| match kept {
            Some(_) if *key == self.key => false,
            _ => held(live, key) != Some(text.as_bytes()),
        });
        let due: BTreeMap<_, _> = due.collect();
        // Those of `spec.childMetadata` are of the moment that it was made.
        let ours = |name: &str| name.starts_with(labels::PREFIX) || name.starts_with(labels::STANDARD);
        let labels = self.shell.metadata.labels.iter().flatten().filter(|(name, _)| ours(name));
        let lost: BTreeMap<_, _> =
            labels.filter(|(name, label)| live.labels().get(*name) != Some(*label)).collect();
        let owners = self.shell.metadata.owner_references.iter().flatten();
        let is_held = |owner: &OwnerReference| {
            let mut known = live.owner_references().iter();
            known.any(|known| known.uid == owner.uid && known.controller == owner.controller)
        };
        let disowned: Vec<_> = owners.filter(|owner| !is_held(owner)).collect();
        (!due.is_empty() || !lost.is_empty() || !disowned.is_empty()).then(|| {
            let mut metadata = json!({"resourceVersion": live.metadata.resource_version, "labels": lost});
            if !disowned.is_empty() {
                let others = live.owner_references().iter();
                let others = others.filter(|known| disowned.iter().all(|owner| owner.uid != known.uid));
                let owners = others.chain(disowned.iter().copied());
                metadata["ownerReferences"] = owners.map(|owner| json!(owner)).collect();
            }
            json!({"metadata": metadata, "stringData": due})
        })
    }

    /// Digest of the values of a Secret, our keys alone. It tells nothing of a random value.
    pub fn digest(&self, live: &Secret) -> String {
        digest(self.values("").map(|(key, _)| held(live, key).unwrap_or_default()))
    }

    /// Digest of the values that a Secret has once it is repaired; `None` where its random value is gone, for another
    /// takes its place.
    pub fn repaired_digest(&self, live: &Secret) -> Option<String> {
        let kept = held(live, self.key).filter(|value| !value.is_empty())?;
        let values: Vec<_> = self.values(&String::from_utf8_lossy(kept)).collect();
        let value_of = |(key, text): &'_ (&'static str, String)| {
            if *key == self.key { kept.to_vec() } else { text.clone().into_bytes() }
        };
        Some(digest(values.iter().map(value_of)))
    }

    fn values(&self, value: &str) -> impl Iterator<Item = (&'static str, String)> {
        let Self { shell: _, key, also } = self;
        let rest = also.iter().map(move |(key, text)| (*key, text.replace("{}", value)));
        std::iter::once((*key, value.to_owned())).chain(rest)
    }
}

fn digest(values: impl Iterator<Item = impl AsRef<[u8]>>) -> String {
    let mut digest = Sha256::new();
    for value in values {
        digest.update(value.as_ref().len().to_be_bytes());
        digest.update(value.as_ref());
    }
    digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn held<'a>(live: &'a Secret, key: &str) -> Option<&'a [u8]> {
    live.data.as_ref()?.get(key).map(|value| value.0.as_slice())
}

impl Default for OperatorConfig {
    fn default() -> Self {
        Self {
            sidecar_repository: "ghcr.io/fanout-dev/fanout-sidecar".to_owned(),
            redis_image: "docker.io/library/redis:7.2-alpine".to_owned(),
            namespace: "fanout-system".to_owned(),
            class: None,
            fixed_uids: true,
            installation: "fanout-system/fanout-operator".to_owned(),
        }
    }
}
