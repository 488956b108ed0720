//! Events on a FanoutCluster and its pods. Sent where something happens or flips, never once per reconcile, so
//! that an idle cluster writes none.

use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::warn;

use crate::api::{FanoutCluster, Reason};

/// Kubernetes refuses an Event whose note is longer.
const NOTE_BYTES: usize = 1024;

/// Sends Events in the name of the operator. Clones share what was sent.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

/// Whether somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It went as it should.
    Normal,
    /// Something must be mended.
    Warning,
}

// === impl Events ===

impl Events {
    /// Events in the name of this process.
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter =
            Reporter { controller: "fanout.dev/operator".to_owned(), instance: Some(identity.to_owned()) };
        Self { recorder: Recorder::new(client, reporter) }
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
        let reference = cluster.object_ref(&());
        let event = Event {
            type_: match severity {
                Severity::Normal => EventType::Normal,
                Severity::Warning => EventType::Warning,
            },
            reason: reason.to_string(),
            note: Some(shorten(note, NOTE_BYTES)),
            action: "Reconcile".to_owned(),
            secondary: pod.map(|pod| pod_reference(cluster, pod)),
        };
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            warn!(%error, %reason, "failed to send an event");
        }
    }
}

fn pod_reference(cluster: &FanoutCluster, pod: &str) -> k8s_openapi::api::core::v1::ObjectReference {
    k8s_openapi::api::core::v1::ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.to_owned()),
        namespace: cluster.metadata.namespace.clone(),
        ..Default::default()
    }
}

fn shorten(text: &str, bytes: usize) -> String {
    let end = text.floor_char_boundary(bytes);
    text[..end].to_owned()
}
