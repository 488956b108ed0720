//! Events on a FanoutCluster and its pods. Sent where something happens or begins to stand in the way, never once per
//! reconcile, so that an idle cluster writes none.
//!
//! kube's own recorder takes all Events of one reason for the same and shows the first one's note, so that of two
//! missing Secrets one would never be named. Here the note belongs to what makes two Events one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tracing::warn;

use crate::{
    api::{FanoutCluster, Reason},
    controller::chain,
};

/// Kubernetes refuses an Event whose note is longer.
const NOTE_BYTES: usize = 1024;

/// An Event that is said again within this time is counted instead of sent anew; client-go's number.
const SERIES: SignedDuration = SignedDuration::from_mins(6);

/// Who sends them, and how long the name of a process may be.
const CONTROLLER: &str = "fanout.dev/operator";
const INSTANCE_BYTES: usize = 128;

/// Sends Events in the name of the operator. Clones share what was sent.
#[derive(Clone)]
pub struct Events {
    client: Client,
    identity: String,
    sent: Arc<Mutex<HashMap<Saying, Sent>>>,
}

/// Whether somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// It went as it should.
    Normal,
    /// Something must be mended.
    Warning,
}

/// What makes two Events one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Saying {
    cluster: Option<String>,
    severity: Severity,
    reason: Reason,
    note: String,
    pod: Option<String>,
}

/// An Event that the API server has.
#[derive(Clone, Debug)]
struct Sent {
    name: String,
    count: i32,
    at: Timestamp,
}

// === impl Events ===

impl Events {
    /// Events in the name of this process.
    pub fn new(client: Client, identity: &str) -> Self {
        Self { client, identity: identity.to_owned(), sent: Arc::default() }
    }

    /// Something happened to a cluster, and perhaps to one of its pods. A failure to tell is logged: nothing that
    /// the operator does depends on an Event.
    pub async fn publish(
        &self,
        cluster: &FanoutCluster,
        severity: Severity,
        reason: Reason,
        note: &str,
        pod: Option<&str>,
    ) {
        let saying = Saying {
            cluster: cluster.metadata.uid.clone(),
            severity,
            reason,
            note: shorten(note, NOTE_BYTES),
            pod: pod.map(str::to_owned),
        };
        let now = Timestamp::now();
        let before = self.before(&saying, now);
        match self.send(cluster, &saying, before, now).await {
            Ok(sent) => drop(self.lock().insert(saying, sent)),
            Err(error) => warn!(error = %chain(&error), %reason, "failed to send an event"),
        }
    }

    /// The same Event, where it was sent a moment ago.
    fn before(&self, saying: &Saying, now: Timestamp) -> Option<Sent> {
        let mut sent = self.lock();
        sent.retain(|_, sent| now.duration_since(sent.at) < SERIES);
        sent.get(saying).cloned()
    }

    async fn send(
        &self,
        cluster: &FanoutCluster,
        saying: &Saying,
        before: Option<Sent>,
        now: Timestamp,
    ) -> kube::Result<Sent> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), cluster.namespace());
        if let Some(Sent { name, count, at: _ }) = before {
            let count = count.saturating_add(1);
            let series = json!({"series": {"count": count, "lastObservedTime": MicroTime(now)}});
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(series)).await {
                Ok(_) => return Ok(Sent { name, count, at: now }),
                // Somebody deleted it: it is said anew.
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let event = self.event(cluster, saying, now);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        Ok(Sent { name, count: 1, at: now })
    }

    fn event(&self, cluster: &FanoutCluster, saying: &Saying, now: Timestamp) -> Event {
        let Saying { cluster: _, severity, reason, note, pod } = saying;
        Event {
            metadata: ObjectMeta {
                // As client-go names them.
                name: Some(format!("{}.{:x}", cluster.name(), now.as_nanosecond())),
                namespace: Some(cluster.namespace().to_owned()),
                ..ObjectMeta::default()
            },
            action: Some("Reconcile".to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(note.clone()),
            reason: Some(reason.to_string()),
            regarding: Some(cluster.object_ref(&())),
            related: pod.as_ref().map(|pod| pod_reference(cluster, pod)),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(shorten(&self.identity, INSTANCE_BYTES)),
            type_: Some(severity.as_str().to_owned()),
            ..Event::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Saying, Sent>> {
        // Entries are replaced whole, so a panic elsewhere leaves nothing half done.
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Severity ===

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

fn pod_reference(cluster: &FanoutCluster, pod: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.to_owned()),
        namespace: cluster.metadata.namespace.clone(),
        ..ObjectReference::default()
    }
}

fn shorten(text: &str, bytes: usize) -> String {
    let end = text.floor_char_boundary(bytes);
    text[..end].to_owned()
}
