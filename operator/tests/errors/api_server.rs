//! As much of an API server as the operator's errors need: objects in memory, versions, watches, and answers that
//! a test makes wrong. Behaviour is proved on the lab; this is for what a real one does not do on command.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use fanout_operator::api_client::DeadlineLayer;
use futures::{StreamExt, channel::mpsc, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use k8s_openapi::ByteString;
use kube::client::Body;
use serde_json::{Value, json};
use tower::Layer;

type Frames = UnsyncBoxBody<bytes::Bytes, std::io::Error>;

/// The server. Clones share its objects.
#[derive(Clone, Default)]
pub(crate) struct ApiServer(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    version: u64,
    /// By path.
    objects: BTreeMap<String, Value>,
    /// All that ever happened: version, path of the collection, event.
    history: Vec<(u64, String, Value)>,
    watches: Vec<(String, String, mpsc::UnboundedSender<Value>)>,
    reads: Vec<String>,
    writes: Vec<String>,
    /// What was sent with each write: method, path and body.
    sent: Vec<(Method, String, Value)>,
    /// Collections whose watches tell nothing.
    silent: Vec<String>,
    faults: Vec<Fault>,
    terminating: bool,
    admission: Option<Admission>,
    /// The request under way is a dry run: it is answered, and nothing is kept.
    dry_run: bool,
}

/// The status of an answer that never comes.
const NEVER: u16 = 0;
/// What changes each object that is written by the operator: its path and the object.
type Admission = Box<dyn Fn(&str, &mut Value) + Send>;

/// Answers a request wrongly.
struct Fault {
    method: Method,
    path: String,
    answer: (u16, Value),
    times: usize,
}

// === impl ApiServer ===

impl ApiServer {
    /// A client of this server.
    pub(crate) fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, tower::BoxError>(server.answer(request).await) }
        });
        kube::Client::new(DeadlineLayer.layer(service), "test")
    }

    /// Makes an object, as somebody other than the operator.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.lock().store(path, object);
    }

    /// An object, if there is one.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.lock().objects.get(path).cloned()
    }

    /// Every object below a path.
    pub(crate) fn below(&self, path: &str) -> Vec<Value> {
        let below = format!("{path}/");
        self.lock()
            .objects
            .iter()
            .filter(|(known, _)| known.starts_with(&below))
            .map(|(_, o)| o.clone())
            .collect()
    }

    /// Merges into an object, as somebody other than the operator.
    pub(crate) fn edit(&self, path: &str, patch: &Value) {
        let mut object = self.get(path).expect("the object to edit exists");
        merge(&mut object, patch);
        self.lock().store(path, object);
    }

    /// Deletes an object, as somebody other than the operator.
    pub(crate) fn delete(&self, path: &str) {
        self.lock().remove(path);
    }

    /// Ends every watch of a collection, as an API server does that goes away or that serves it no longer.
    pub(crate) fn end_watches(&self, path: &str) {
        self.lock().watches.retain(|(watched, _, _)| watched != path);
    }

    /// Answers the next `times` requests of this kind with `status`.
    pub(crate) fn fail(&self, method: Method, path: &str, status: u16, times: usize) {
        self.refuse(method, path, status, failure_status(status), times);
    }

    /// The same with an answer of the test's own.
    pub(crate) fn refuse(&self, method: Method, path: &str, code: u16, status: Value, times: usize) {
        self.lock().faults.push(Fault { method, path: path.to_owned(), answer: (code, status), times });
    }

    /// From here on answers as it should.
    pub(crate) fn recover(&self) {
        self.lock().faults.clear();
    }

    /// From here on each object that the operator writes is changed so, as by a mutating admission policy.
    pub(crate) fn admit(&self, admission: impl Fn(&str, &mut Value) + Send + 'static) {
        self.lock().admission = Some(Box::new(admission));
    }

    /// From here on nothing new is taken, as in a namespace that is being deleted.
    pub(crate) fn terminate(&self) {
        self.lock().terminating = true;
    }

    /// Writes since the last call, the Lease's apart, as `PATCH /api/…`.
    pub(crate) fn take_writes(&self) -> Vec<String> {
        let mut writes = std::mem::take(&mut self.lock().writes);
        writes.retain(|write| !write.contains("/leases"));
        writes
    }

    /// Writes since the last call with what was sent, the Lease's apart.
    pub(crate) fn take_sent(&self) -> Vec<(Method, String, Value)> {
        let mut sent = std::mem::take(&mut self.lock().sent);
        sent.retain(|(_, path, _)| !path.contains("/leases"));
        sent
    }

    /// Paths that were read since the last call.
    pub(crate) fn take_reads(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().reads)
    }

    /// From here on the watches of a collection tell nothing, as those of a slow API server.
    pub(crate) fn silence(&self, collection: &str) {
        self.lock().silent.push(collection.to_owned());
    }

    /// Never answers the next request of this kind.
    pub(crate) fn hang(&self, method: Method, path: &str) {
        self.fail(method, path, NEVER, 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Frames> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default();
        let query: BTreeMap<String, String> = form(query);
        let sent: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if parts.method == Method::GET {
            self.lock().reads.push(path.clone());
        }
        let fault = self.lock().fault(&parts.method, &path);
        match fault {
            Some((NEVER, _)) => std::future::pending().await,
            Some((code, status)) => return answer(StatusCode::from_u16(code).unwrap(), &status),
            None => {}
        }
        let mut state = self.lock();
        state.dry_run = query.contains_key("dryRun");
        let applies =
            parts.headers.get("content-type").is_some_and(|kind| kind == "application/apply-patch+yaml");
        let answer = match parts.method {
            Method::GET if query.contains_key("watch") => state.watch(&path, &query),
            Method::GET => state.read(&path, &query),
            Method::PATCH if applies => state.apply(&path, sent),
            method => state.write(&method, &path, sent),
        };
        state.dry_run = false;
        answer
    }
}

// === impl State ===

impl State {
    fn fault(&mut self, method: &Method, path: &str) -> Option<(u16, Value)> {
        let meant =
            |fault: &&mut Fault| fault.times > 0 && fault.method == *method && path.contains(&fault.path);
        let fault = self.faults.iter_mut().find(meant)?;
        fault.times -= 1;
        Some(fault.answer.clone())
    }

    fn read(&self, path: &str, query: &BTreeMap<String, String>) -> Response<Frames> {
        if let Some(object) = self.objects.get(path) {
            return success(object);
        }
        // A path of a collection ends in a plural, and every plural here in an s.
        if !path.ends_with('s') || path.split('/').next_back().is_some_and(|last| last.contains('-')) {
            return failure(404);
        }
        let selector = query.get("labelSelector").map(String::as_str).unwrap_or_default();
        let items: Vec<_> = self
            .objects
            .iter()
            .filter(|(known, object)| is_listed(collection(known), path) && selects(selector, object))
            .map(|(_, object)| object)
            .collect();
        success(
            &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": self.version.to_string()}, "items": items}),
        )
    }

    fn watch(&mut self, path: &str, query: &BTreeMap<String, String>) -> Response<Frames> {
        let since: u64 = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        let selector = query.get("labelSelector").cloned().unwrap_or_default();
        let past: Vec<_> = self
            .history
            .iter()
            .filter(|(version, known, event)| {
                *version > since && is_listed(known, path) && selects(&selector, &event["object"])
            })
            .map(|(_, _, event)| event.clone())
            .collect();
        let (sender, live) = mpsc::unbounded();
        self.watches.push((path.to_owned(), selector, sender));
        let lines = stream::iter(past).chain(live).map(|event| {
            let line = format!("{event}\n");
            Ok(http_body::Frame::data(bytes::Bytes::from(line)))
        });
        Response::new(StreamBody::new(lines).boxed_unsync())
    }

    fn write(&mut self, method: &Method, path: &str, sent: Value) -> Response<Frames> {
        if !self.dry_run {
            self.writes.push(format!("{method} {path}"));
            self.sent.push((method.clone(), path.to_owned(), sent.clone()));
        }
        match *method {
            Method::POST => self.create(path, sent),
            Method::PUT => self.replace(path, sent),
            Method::PATCH => self.patch(path, &sent),
            Method::DELETE => match self.remove(path) {
                Some(object) => success(&object),
                None => failure(404),
            },
            _ => failure(405),
        }
    }

    fn create(&mut self, collection: &str, mut sent: Value) -> Response<Frames> {
        encode(&mut sent);
        let path = format!("{collection}/{}", sent["metadata"]["name"].as_str().unwrap_or_default());
        if self.objects.contains_key(&path) {
            return failure(409);
        }
        if self.terminating {
            return terminating();
        }
        success(&self.store(&path, sent))
    }

    fn replace(&mut self, path: &str, sent: Value) -> Response<Frames> {
        match self.objects.get(path) {
            Some(known) if known["metadata"]["resourceVersion"] != sent["metadata"]["resourceVersion"] => {
                failure(409)
            }
            Some(_) => success(&self.store(path, sent)),
            None => failure(404),
        }
    }

    /// Server-side apply: what is sent wins, what is not stays. What is sent of a list that is merged by keys is merged
    /// into what is there; the operator's other fields are taken for somebody else's.
    fn apply(&mut self, path: &str, sent: Value) -> Response<Frames> {
        let object_path = path.strip_suffix("/status").unwrap_or(path);
        let merged = match self.objects.get(object_path) {
            Some(known) => merge_lists("", known, sent),
            None => sent,
        };
        if has_duplicate_ports(&merged) {
            self.writes.push(format!("PATCH {path}"));
            return answer(
                StatusCode::UNPROCESSABLE_ENTITY,
                &invalid("Service", "spec.ports[1].name", "Duplicate value"),
            );
        }
        self.write(&Method::PATCH, path, merged)
    }

    fn patch(&mut self, path: &str, sent: &Value) -> Response<Frames> {
        let object_path = path.strip_suffix("/status").unwrap_or(path);
        let known = self.objects.get(object_path).cloned();
        let seen = &sent["metadata"]["resourceVersion"];
        if let Some(known) =
            known.as_ref().filter(|known| !seen.is_null() && known["metadata"]["resourceVersion"] != *seen)
        {
            let _ = known;
            return failure(409);
        }
        if known.is_none() && self.terminating {
            return terminating();
        }
        let mut made = known.clone().unwrap_or_else(|| json!({}));
        let mut sent = sent.clone();
        encode(&mut sent);
        merge(&mut made, &sent);
        if let Some(admission) = &self.admission {
            admission(object_path, &mut made);
        }
        if has_nameless_container(&made) {
            let status = invalid("Pod", "spec.template.spec.containers[0].name", "Required value");
            return answer(StatusCode::UNPROCESSABLE_ENTITY, &status);
        }
        if known.as_ref() == Some(&made) {
            return success(&made);
        }
        success(&self.store(object_path, made))
    }

    fn store(&mut self, path: &str, mut object: Value) -> Value {
        if self.dry_run {
            object["metadata"]["namespace"] = json!("test");
            return object;
        }
        self.version += 1;
        let kind = if self.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(self.version.to_string());
        metadata["namespace"] = json!("test");
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{}", self.version));
            metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let before = self.objects.insert(path.to_owned(), object.clone());
        self.tell(path, kind, &object);
        if let Some(before) = before {
            self.tell_of_leaving(path, &before, &object);
        }
        object
    }

    fn remove(&mut self, path: &str) -> Option<Value> {
        let object = self.objects.remove(path)?;
        self.version += 1;
        self.tell(path, "DELETED", &object);
        Some(object)
    }

    fn tell(&mut self, path: &str, kind: &str, object: &Value) {
        let event = json!({"type": kind, "object": object});
        let of = collection(path);
        if self.silent.iter().any(|silent| silent == of) {
            return;
        }
        self.history.push((self.version, of.to_owned(), event.clone()));
        self.watches.retain(|(watched, selector, sender)| {
            !is_listed(of, watched)
                || !selects(selector, object)
                || sender.unbounded_send(event.clone()).is_ok()
        });
    }

    /// To whoever watches by a label, an object that lost it is gone.
    fn tell_of_leaving(&mut self, path: &str, before: &Value, object: &Value) {
        let of = collection(path);
        if self.silent.iter().any(|silent| silent == of) {
            return;
        }
        let event = json!({"type": "DELETED", "object": before});
        self.watches.retain(|(watched, selector, sender)| {
            !is_listed(of, watched)
                || !selects(selector, before)
                || selects(selector, object)
                || sender.unbounded_send(event.clone()).is_ok()
        });
    }
}

/// `stringData` is written and never read: it becomes `data`.
fn encode(sent: &mut Value) {
    let Some(Value::Object(plain)) = sent.as_object_mut().and_then(|sent| sent.remove("stringData")) else {
        return;
    };
    for (key, text) in plain {
        sent["data"][key] = json!(ByteString(text.as_str().unwrap_or_default().into()));
    }
}

/// Whether a path lists a collection: by its own path, or by that of all namespaces.
fn is_listed(collection: &str, path: &str) -> bool {
    collection == path || collection.replacen("namespaces/test/", "", 1) == path
}

fn collection(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(collection, _)| collection)
}

/// `key` or `key=value`.
fn selects(selector: &str, object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    match selector.split_once('=') {
        _ if selector.is_empty() => true,
        Some((key, value)) => labels[key] == value,
        None => !labels[selector].is_null(),
    }
}

fn merge(into: &mut Value, patch: &Value) {
    let (Value::Object(fields), true) = (patch, into.is_object()) else {
        *into = patch.clone();
        return;
    };
    for (name, value) in fields {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(name);
        } else {
            let place = into.as_object_mut().unwrap().entry(name.clone()).or_insert_with(|| json!({}));
            merge(place, value);
        }
    }
}

/// `sent` with the items of `known` that it does not name, in lists that are merged by keys.
fn merge_lists(name: &str, known: &Value, sent: Value) -> Value {
    match (known, sent) {
        (Value::Object(known), Value::Object(sent)) => {
            let fields = sent.into_iter().map(|(name, value)| {
                let merged = merge_lists(&name, known.get(&name).unwrap_or(&Value::Null), value);
                (name, merged)
            });
            Value::Object(fields.collect())
        }
        (Value::Array(known), Value::Array(sent)) if MERGED.contains(&name) => {
            let key = |item: &Value| {
                ["port", "name"].map(|key| item[key].clone()).into_iter().find(|key| !key.is_null())
            };
            let foreign: Vec<_> =
                known.iter().filter(|item| sent.iter().all(|sent| key(sent) != key(item))).cloned().collect();
            let ours = sent.into_iter().map(|sent| {
                let same = known.iter().find(|item| key(item) == key(&sent)).cloned().unwrap_or(Value::Null);
                let mut made = if same.is_object() { same.clone() } else { json!({}) };
                merge(&mut made, &merge_lists("", &same, sent));
                made
            });
            Value::Array(ours.chain(foreign).collect())
        }
        (_, sent) => sent,
    }
}

/// Lists that are merged by keys: a Service's port by its number, all else by its name.
const MERGED: [&str; 4] = ["ports", "containers", "env", "volumes"];

fn has_duplicate_ports(object: &Value) -> bool {
    let names: Vec<_> =
        object["spec"]["ports"].as_array().into_iter().flatten().map(|port| &port["name"]).collect();
    names.iter().enumerate().any(|(at, name)| names[..at].contains(name))
}

fn has_nameless_container(object: &Value) -> bool {
    let containers = object["spec"]["template"]["spec"]["containers"].as_array().into_iter().flatten();
    containers.into_iter().any(|container| container["name"].as_str().is_none_or(str::is_empty))
}

/// The answer to an object that is not valid.
pub(crate) fn invalid(kind: &str, field: &str, what: &str) -> Value {
    let causes = json!([{"reason": "FieldValueInvalid", "message": what, "field": field}]);
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422, "reason": "Invalid", "details": {"causes": causes},
        "message": format!("{kind} \"chat\" is invalid: {field}: {what}")})
}

fn form(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('=').or(Some((pair, ""))));
    pairs.map(|(key, value)| (key.to_owned(), value.replace("%2F", "/").replace("%3D", "="))).collect()
}

fn success(object: &Value) -> Response<Frames> {
    answer(StatusCode::OK, object)
}

fn failure(code: u16) -> Response<Frames> {
    answer(StatusCode::from_u16(code).unwrap(), &failure_status(code))
}

fn failure_status(code: u16) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "as the test wants it"})
}

fn terminating() -> Response<Frames> {
    let causes = json!([{"reason": "NamespaceTerminating", "message": "namespace test is being terminated", "field": "metadata.namespace"}]);
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "details": {"causes": causes}, "message": "unable to create new content in namespace test because it is being terminated"});
    answer(StatusCode::FORBIDDEN, &status)
}

fn answer(code: StatusCode, body: &Value) -> Response<Frames> {
    let whole = http_body_util::Full::new(bytes::Bytes::from(body.to_string()));
    let mut response = Response::new(whole.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = code;
    response
}
