//! The broker: another one than the managed, and one that dies.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fanout_e2e::{
    Fanout, exchange,
    pods::{IMAGE, all_ready, container, pod, pod_spec},
    warm_up, with_operator,
};
use fanout_lab::{Namespace, Pod, pods};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

/// A new pod on a busy machine, and what the operator waits before it calls a Redis away.
const DEADLINE: Duration = Duration::from_secs(90);

#[tokio::test]
async fn an_external_redis_with_a_password_and_tls_joins_the_nodes() {
    with_operator("external", async |namespace| {
        start_redis(namespace, "correct").await?;
        let fanout = Fanout::apply(namespace, "chat", json!({"redis": external()})).await?;
        let nodes = fanout.ready(2).await?;
        let mut clients = fanout.clients(&nodes).await?;
        warm_up(&mut clients).await?;
        exchange(&mut clients).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_wrong_password_is_told_and_mending_the_secret_heals_without_a_restart() {
    with_operator("password", async |namespace| {
        start_redis(namespace, "wrong").await?;
        let fanout = Fanout::apply(namespace, "chat", json!({"redis": external()})).await?;
        // The object, the key, and what to do.
        let words = ["check ", "key password of Secret/redis-credentials"];
        fanout.says("RedisReachable", "False", &words, DEADLINE).await?;
        let told = fanout.says("Degraded", "True", &words, DEADLINE).await?;
        ensure!(told.reason == "RedisUnreachable", "told {told:?}");
        let events = fanout.events("RedisUnreachable").await?;
        ensure!(words.iter().all(|word| events.contains(word)), "no Event says {words:?}:\n{events}");
        let before = uids(&fanout).await?;
        namespace.apply(&credentials("correct").to_string()).await?;
        fanout.condition("RedisReachable", "True").await?;
        let nodes = fanout.ready(2).await?;
        ensure!(uids(&fanout).await? == before, "pods were replaced");
        ensure!(nodes.iter().all(|pod| pod.restarts == 0), "containers were restarted");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_missing_secret_is_named_and_making_it_heals() {
    with_operator("missing", async |namespace| {
        start_redis(namespace, "correct").await?;
        namespace.kubectl(&["delete", "secret", "redis-credentials"]).await?;
        let fanout = Fanout::apply(namespace, "chat", json!({"redis": external()})).await?;
        let told = fanout.condition("Degraded", "True").await?;
        ensure!(
            told.reason == "SecretMissing" && told.message.contains("redis-credentials"),
            "told {told:?}"
        );
        let events =
            namespace.kubectl(&["get", "events", "--field-selector=involvedObject.name=chat"]).await?;
        ensure!(events.contains("redis-credentials"), "no Event names the Secret:\n{events}");
        namespace.apply(&credentials("correct").to_string()).await?;
        fanout.ready(2).await.map(drop)
    })
    .await;
}

#[tokio::test]
async fn a_wrong_image_of_the_managed_redis_is_named_and_correcting_it_heals() {
    with_operator("redis-image", async |namespace| {
        let image = "docker.io/library/redis:no-such-tag";
        let fanout =
            Fanout::apply(namespace, "chat", json!({"redis": {"managed": {"image": image}}})).await?;
        fanout.says("Degraded", "True", &[image], DEADLINE).await?;
        let events = fanout.events("ImagePullFailed").await?;
        ensure!(events.contains(image), "no Event names the image:\n{events}");
        let before = uids(&fanout).await?;
        fanout.patch(json!({"spec": {"redis": {"managed": {"image": null}}}})).await?;
        let nodes = fanout.ready(2).await?;
        fanout.condition("RedisReachable", "True").await?;
        fanout.condition("Degraded", "False").await?;
        ensure!(uids(&fanout).await? == before, "nodes were replaced");
        let mut clients = fanout.clients(&nodes).await?;
        warm_up(&mut clients).await?;
        exchange(&mut clients).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_deleted_password_of_the_managed_redis_is_made_anew_and_server_and_nodes_follow() {
    with_operator("redis-password", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let nodes = fanout.ready(2).await?;
        let mut clients = fanout.clients(&nodes).await?;
        warm_up(&mut clients).await?;
        let before = pods(namespace, "fanout.dev/redis=chat").await?;
        namespace.kubectl(&["delete", "secret", "chat-redis"]).await?;
        namespace
            .until("another pod of the Redis to be ready", DEADLINE, async || {
                let now = pods(namespace, "fanout.dev/redis=chat").await?;
                let other = |pod: &Pod| pod.ready && before.iter().all(|former| former.uid != pod.uid);
                Ok(now.iter().any(other).then_some(()))
            })
            .await?;
        // Who published now would be closed. The kubelet brings the new file to the nodes within two minutes.
        fanout.condition("RedisReachable", "False").await?;
        fanout.says("RedisReachable", "True", &[], Duration::from_secs(180)).await?;
        warm_up(&mut clients).await?;
        exchange(&mut clients).await?;
        let after = fanout.ready(2).await?;
        ensure!(after.iter().all(|pod| nodes.iter().any(|node| node.uid == pod.uid)), "nodes were replaced");
        ensure!(after.iter().all(|pod| pod.restarts == 0), "containers were restarted");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn clients_outlive_the_redis_pod_and_delivery_resumes() {
    with_operator("outage", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let nodes = fanout.ready(2).await?;
        let mut clients = fanout.clients(&nodes).await?;
        warm_up(&mut clients).await?;
        // A quota keeps the next pod from being made, so that the outage lasts until it was told.
        namespace.kubectl(&["create", "quota", "none", "--hard=pods=2"]).await?;
        namespace.kubectl(&["delete", "pod", "chat-redis-0", "--force", "--grace-period=0"]).await?;
        fanout.condition("RedisReachable", "False").await?;
        ensure!(clients.iter().all(fanout_lab::WebSocket::is_open), "a client was disconnected");
        let ready = fanout.nodes().await?.iter().filter(|pod| pod.ready).count();
        ensure!(ready == 2, "{ready} of 2 nodes stayed Ready; the default is KeepClients");
        namespace.kubectl(&["delete", "quota", "none"]).await?;
        all_ready(namespace, "fanout.dev/redis=chat", 1).await?;
        fanout.condition("RedisReachable", "True").await?;
        warm_up(&mut clients).await?;
        exchange(&mut clients).await?;
        Ok(())
    })
    .await;
}

async fn uids(fanout: &Fanout<'_>) -> Result<Vec<String>> {
    Ok(fanout.nodes().await?.into_iter().map(|pod| pod.uid).collect())
}

fn external() -> Value {
    json!({
        "external": {
            "addresses": ["redis:6379"],
            "credentialsSecretRef": {"name": "redis-credentials", "passwordKey": "password"},
            "tls": {"caSecretRef": {"name": "redis-tls", "key": "ca.crt"}, "serverName": "redis"},
        },
    })
}

fn credentials(password: &str) -> Value {
    secret("redis-credentials", &json!({"password": password}))
}

fn secret(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
}

/// A Redis that takes the password `correct` over TLS alone; the cluster's Secret says `password`.
async fn start_redis(namespace: &Namespace, password: &str) -> Result<()> {
    let command = "exec redis-server --port 0 --tls-port 6379 --requirepass correct --save '' --tls-auth-clients no \
        --tls-cert-file /tls/tls.crt --tls-key-file /tls/tls.key --tls-ca-cert-file /tls/ca.crt";
    let mut container = container(command, "20m");
    container["image"] = IMAGE.into();
    container["volumeMounts"] = json!([{"name": "tls", "mountPath": "/tls"}]);
    container["readinessProbe"] = json!({"tcpSocket": {"port": 6379}, "periodSeconds": 1});
    let mut spec = pod_spec(&container);
    spec["volumes"] = json!([{"name": "tls", "secret": {"secretName": "redis-tls"}}]);
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "redis"},
        "spec": {"selector": {"app": "redis"}, "ports": [{"port": 6379}]},
    });
    for object in
        [secret("redis-tls", &certificates("redis")?), credentials(password), service, pod("redis", &spec)]
    {
        namespace.apply(&object.to_string()).await?;
    }
    all_ready(namespace, "app=redis", 1).await
}

/// An authority, and a certificate it made for `host`.
fn certificates(host: &str) -> Result<Value> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::<String>::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).context("failed to make the authority")?;
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![host.to_owned()])?.signed_by(&key, &issuer)?;
    Ok(json!({"ca.crt": ca_certificate.pem(), "tls.crt": certificate.pem(), "tls.key": key.serialize_pem()}))
}
