//! The API server's audit log: who wrote what, and what was refused. It is how a test counts writes instead of
//! believing the writer.

use std::{
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::PathBuf,
};

use anyhow::{Context, Result};
use serde_json::Value;

/// A finished request, as the API server recorded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRequest {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// Who asked, such as `system:serviceaccount:fanout:fanout-operator`.
    pub user: String,
    /// The kind's plural name, `/subresource` appended.
    pub resource: String,
    /// The object's namespace, empty where it has none.
    pub namespace: String,
    /// The object's name, empty for a list.
    pub name: String,
    /// The HTTP status it got.
    pub status: u64,
    /// Whether RBAC refused it; a status of 403 alone may be admission's, as in a namespace that is going away.
    pub forbidden: bool,
}

impl ApiRequest {
    /// Whether it changed something, or meant to.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    fn from_event(event: &Value) -> Option<Self> {
        let object = &event["objectRef"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let subresource = object["subresource"].as_str().map(|name| format!("/{name}")).unwrap_or_default();
        Some(Self {
            verb: text(&event["verb"]),
            user: text(event.pointer("/user/username")?),
            resource: text(&object["resource"]) + &subresource,
            namespace: text(&object["namespace"]),
            name: text(&object["name"]),
            status: event.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or_default(),
            forbidden: event["annotations"]["authorization.k8s.io/decision"] == "forbid",
        })
    }
}

/// The log's file. A position in it is taken before, and read from after, what is to be observed.
#[derive(Debug, Clone)]
pub struct AuditLog {
    path: PathBuf,
}

impl AuditLog {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where the log ends now.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn position(&self) -> Result<u64> {
        Ok(self.path.metadata().with_context(|| format!("failed to read {}", self.path.display()))?.len())
    }

    /// The requests of users whose name contains `user` that ended after `position`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn requests_since(&self, position: u64, user: &str) -> Result<Vec<ApiRequest>> {
        let mut file =
            File::open(&self.path).with_context(|| format!("failed to open {}", self.path.display()))?;
        file.seek(SeekFrom::Start(position))?;
        let mut requests = Vec::new();
        for line in BufReader::new(file).lines() {
            // The last line may be half written.
            let Ok(event) = serde_json::from_str::<Value>(&line?) else { continue };
            requests.extend(ApiRequest::from_event(&event).filter(|request| request.user.contains(user)));
        }
        Ok(requests)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refused_patch_of_a_status_is_a_forbidden_write() {
        let request = ApiRequest::from_event(&json!({
            "verb": "patch",
            "user": {"username": "system:serviceaccount:fanout-system:operator"},
            "objectRef": {"resource": "fanoutclusters", "subresource": "status", "namespace": "shop", "name": "chat"},
            "responseStatus": {"code": 403},
            "annotations": {"authorization.k8s.io/decision": "forbid"},
        }))
        .expect("an event with a user");
        assert_eq!(request.resource, "fanoutclusters/status");
        assert!(request.is_write() && request.forbidden);
    }

    #[test]
    fn a_watch_is_no_write() {
        let event = json!({"verb": "watch", "user": {"username": "x"}, "responseStatus": {"code": 200}});
        let request = ApiRequest::from_event(&event).expect("an event with a user");
        assert!(!request.is_write() && !request.forbidden);
    }
}
