//! What others break is put back; what nobody breaks is left alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fanout_e2e::{Fanout, audit_log, operator, warm_up, with_operator};
use fanout_lab::{ApiRequest, AuditLog, Namespace, sample};
use serde_json::{Value, json};

/// The promise is one second; `kubectl` itself takes part of another.
const AT_ONCE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_deleted_or_edited_child_is_back_at_once() {
    with_operator("drift", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        fanout.ready(2).await?;
        for child in ["service/chat", "service/chat-api", "networkpolicy/chat", "poddisruptionbudget/chat"] {
            let uid = uid(namespace, child).await?;
            namespace.kubectl(&["delete", child, "--wait=false"]).await?;
            let took = until(namespace, child, |object| object["metadata"]["uid"] != uid.as_str()).await?;
            eprintln!("{child} was back after {} ms", took.as_millis());
        }
        let edit = json!({"spec": {"selector": {"fanout.dev/cluster": "another"}}}).to_string();
        namespace.kubectl(&["patch", "service/chat", "--type=merge", "-p", &edit]).await?;
        let selected = "/spec/selector/fanout.dev~1cluster";
        until(namespace, "service/chat", |object| object.pointer(selected) == Some(&json!("chat"))).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn what_somebody_took_from_a_generated_secret_or_a_replica_set_is_put_back_at_once() {
    with_operator("mend", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let nodes = fanout.ready(2).await?;
        let secret = "secret/chat-api-key";
        namespace.kubectl(&["label", secret, "fanout.dev/cluster-"]).await?;
        let label = "/metadata/labels/fanout.dev~1cluster";
        until(namespace, secret, |object| object.pointer(label) == Some(&json!("chat"))).await?;
        let gone = json!({"data": {"api-key": null}}).to_string();
        namespace.kubectl(&["patch", secret, "--type=merge", "-p", &gone]).await?;
        until(namespace, secret, |object| object.pointer("/data/api-key").is_some_and(Value::is_string))
            .await?;

        let set = namespace.kubectl(&["get", "rs", "-l", "fanout.dev/cluster=chat", "-o", "name"]).await?;
        namespace.kubectl(&["annotate", set.trim(), "fanout.dev/rendered-"]).await?;
        let rendered = "/metadata/annotations/fanout.dev~1rendered";
        until(namespace, set.trim(), |object| object.pointer(rendered).is_some()).await?;
        fanout.grow(&nodes, 3).await?;
        fanout.condition("Degraded", "False").await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn what_server_side_apply_cannot_undo_is_taken_back_at_once() {
    with_operator("undo", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let nodes = fanout.ready(2).await?;
        // As `kubectl edit` sends it: the old key is deleted, the new one added.
        let moved = json!({"spec": {"ports": [
            {"name": "client", "port": 81, "targetPort": "client"},
            {"$patch": "delete", "port": 80},
        ]}});
        patch(namespace, "service/chat", "strategic", &moved).await?;
        until(namespace, "service/chat", |object| {
            object["spec"]["ports"].as_array().is_some_and(|ports| ports.len() == 1 && ports[0]["port"] == 80)
        })
        .await?;
        let more = json!({"spec": {"selector": {"never": "matches"}}});
        patch(namespace, "service/chat", "merge", &more).await?;
        until(namespace, "service/chat", |object| object["spec"]["selector"]["never"].is_null()).await?;
        patch(namespace, "configmap/chat-live", "merge", &json!({"data": {"more": "x"}})).await?;
        until(namespace, "configmap/chat-live", |object| object["data"]["more"].is_null()).await?;

        let set = namespace.kubectl(&["get", "rs", "-l", "fanout.dev/cluster=chat", "-o", "name"]).await?;
        let set = set.trim();
        namespace.kubectl(&["set", "env", set, "--containers=fanout", "THEIRS=x"]).await?;
        let env = "/spec/template/spec/containers/0/env";
        until(namespace, set, |object| {
            let env = object.pointer(env).and_then(Value::as_array);
            env.is_some_and(|env| env.iter().all(|variable| variable["name"] != "THEIRS"))
        })
        .await?;
        let host = json!({"spec": {"template": {"spec": {"hostPID": true, "tolerations": [{"operator": "Exists"}]}}}});
        patch(namespace, set, "merge", &host).await?;
        until(namespace, set, |object| {
            let pod = &object["spec"]["template"]["spec"];
            pod["hostPID"].is_null() && pod["tolerations"].is_null()
        })
        .await?;
        let nonsense = r#"fanout.dev/rendered={"replicaSet":"x","bootConfigMap":null}"#;
        namespace.kubectl(&["annotate", set, "--overwrite", nonsense]).await?;
        let rendered = "/metadata/annotations/fanout.dev~1rendered";
        until(namespace, set, |object| {
            object.pointer(rendered).and_then(Value::as_str).is_some_and(|text| text.len() > 1_000)
        })
        .await?;
        fanout.grow(&nodes, 3).await?;
        fanout.condition("Degraded", "False").await?;
        Ok(())
    })
    .await;
}

/// What a platform adds to every workload of a namespace: a label, an environment variable and, where there are others
/// already, a toleration.
fn platform_policy(namespace: &str) -> Value {
    let name = format!("platform-{namespace}");
    let label = r#"Object{spec: Object.spec{template: Object.spec.template{metadata: Object.spec.template.metadata{labels: {"platform": "x"}}}}}"#;
    let more = r#"(has(object.spec.template.spec.tolerations) && !object.spec.template.spec.tolerations.exists(t, t.key == "platform")
          ? [JSONPatch{op: "add", path: "/spec/template/spec/tolerations/-", value: Object.spec.template.spec.tolerations{key: "platform", operator: "Exists"}}] : [])
        + (object.spec.template.spec.containers[0].env.exists(e, e.name == "PLATFORM")
          ? [] : [JSONPatch{op: "add", path: "/spec/template/spec/containers/0/env/-", value: Object.spec.template.spec.containers.env{name: "PLATFORM", value: "x"}}])"#;
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["replicasets", "statefulsets"]}],
            },
            "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            "mutations": [
                {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": label}},
                {"patchType": "JSONPatch", "jsonPatch": {"expression": more}},
            ],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name},
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]})
}

#[tokio::test]
async fn lab_an_admission_policy_has_the_last_word_and_no_pod_pays_for_it() {
    with_operator("admission", async |namespace| {
        let audit = audit_log(namespace.cluster())?;
        let policy = platform_policy(namespace.name()).to_string();
        namespace.apply(&policy).await?;
        let held = under_a_policy(namespace, &audit).await;
        namespace.try_kubectl(&["delete", "-f", "-"], Some(&policy)).await?.ok("the policy's end")?;
        held
    })
    .await;
}

async fn under_a_policy(namespace: &Namespace, audit: &AuditLog) -> Result<()> {
    let own = json!([{"key": "own", "operator": "Exists"}]);
    let template = json!({"podTemplate": {"spec": {"tolerations": own}}});
    let fanout = Fanout::apply(namespace, "chat", template).await?;
    // Ready: nodes serve, whoever has the last word about a template.
    let nodes = fanout.ready(2).await?;
    let redis = uid(namespace, "pod/chat-redis-0").await?;
    let degraded = fanout.condition("Degraded", "True").await?;
    ensure!(degraded.reason == "RepairDisputed", "{degraded:?}");
    let began = audit.position()?;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let requests = audit.requests_since(began, operator::USER)?;
    let writes = requests.iter().filter(|request| concerns(request, namespace.name())).count();
    ensure!(writes <= 2, "{writes} writes in 30 s");
    fanout.grow(&nodes, 3).await?;
    ensure!(uid(namespace, "pod/chat-redis-0").await? == redis, "the Redis was restarted");
    Ok(())
}

#[tokio::test]
async fn lab_an_idle_cluster_with_clients_causes_no_write() {
    with_operator("idle", async |namespace| {
        let audit = audit_log(namespace.cluster())?;
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let nodes = fanout.ready(2).await?;
        let mut clients = fanout.clients(&nodes).await?;
        warm_up(&mut clients).await?;
        // The clients are counted in status within 30 s; after that there is nothing to say.
        namespace
            .until("status to count the clients", Duration::from_secs(60), async || {
                Ok((fanout.object().await?["status"]["connections"] == clients.len()).then_some(()))
            })
            .await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let began = audit.position()?;
        sample("every client's connection", Duration::from_secs(60), async || {
            Ok(clients.iter().all(fanout_lab::WebSocket::is_open))
        })
        .await?;
        let requests = audit.requests_since(began, operator::USER)?;
        let writes: Vec<_> = requests.iter().filter(|request| concerns(request, namespace.name())).collect();
        ensure!(writes.is_empty(), "{} writes in 60 s: {writes:#?}", writes.len());
        Ok(())
    })
    .await;
}

async fn patch(namespace: &Namespace, child: &str, kind: &str, patch: &Value) -> Result<()> {
    let patch = patch.to_string();
    namespace.kubectl(&["patch", child, &format!("--type={kind}"), "-p", &patch]).await.map(drop)
}

/// Whether it writes something of a cluster. The Lease by which the operator holds the namespace is renewed all the time.
fn concerns(request: &ApiRequest, namespace: &str) -> bool {
    request.is_write() && request.namespace == namespace && request.resource != "leases"
}

async fn uid(namespace: &Namespace, child: &str) -> Result<String> {
    let object = namespace.get(&[child]).await?;
    Ok(object["metadata"]["uid"].as_str().context("an object without a uid")?.to_owned())
}

async fn until(namespace: &Namespace, child: &str, is_met: impl Fn(&Value) -> bool) -> Result<Duration> {
    let began = Instant::now();
    let what = format!("{child} to be put back");
    namespace
        .until(&what, AT_ONCE, async || Ok(is_met(&namespace.get(&[child]).await?).then_some(())))
        .await?;
    Ok(began.elapsed())
}
