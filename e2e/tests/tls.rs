//! TLS on the client port, with HTTP/2, and a certificate that is renewed while clients stay.

use std::{io::Write, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use fanout_e2e::{Fanout, with_operator};
use fanout_lab::{Namespace, Pod, await_condition};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::json;
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    time::timeout,
};

/// The kubelet looks at Secrets once a minute, the sidecar once a second.
const RENEWAL: Duration = Duration::from_secs(150);

#[tokio::test]
async fn clients_speak_tls_and_a_renewed_certificate_is_used_without_a_restart() {
    with_operator("tls", async |namespace| {
        let first = certificate(namespace).await?;
        let hub = json!({"tls": {"secretRef": {"name": "certificate"}}});
        let fanout = Fanout::apply(namespace, "chat", json!({"hub": hub})).await?;
        let nodes = fanout.ready(2).await?;
        ensure!(
            fanout.object().await?["status"]["endpoint"]
                .as_str()
                .is_some_and(|url| url.starts_with("wss://"))
        );
        let mut clients = Vec::new();
        for pod in &nodes {
            ensure!(http_version(first.path(), pod).await? == "2", "HTTP/2 was not agreed on");
            clients.push(listen(first.path(), pod)?);
        }
        await_condition("the clients to be counted", Duration::from_secs(60), async || {
            Ok((fanout.object().await?["status"]["connections"] == nodes.len()).then_some(()))
        })
        .await?;
        let second = certificate(namespace).await?;
        await_condition("the renewed certificate on every node", RENEWAL, async || {
            for pod in &nodes {
                if http_version(second.path(), pod).await.is_err() {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await?;
        let channel = format!("{}.chat:lobby", namespace.name());
        namespace.exec("chat-redis-0", None, &["redis-cli", "PUBLISH", &channel, "over TLS"]).await?;
        for client in &mut clients {
            hears(client, "data: over TLS\n").await?;
        }
        let now = fanout.nodes().await?;
        ensure!(now.iter().all(|pod| pod.restarts == 0), "a container was restarted");
        ensure!(nodes.iter().all(|pod| now.iter().any(|node| node.uid == pod.uid)), "pods were replaced");
        Ok(())
    })
    .await;
}

/// Makes a new certificate for `chat`, puts it into the Secret, and gives the file of those who trust it.
async fn certificate(namespace: &Namespace) -> Result<tempfile::NamedTempFile> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["chat".to_owned()])?;
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "certificate"},
        "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": cert.pem(), "tls.key": signing_key.serialize_pem()},
    });
    namespace.apply(&secret.to_string()).await?;
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(cert.pem().as_bytes())?;
    Ok(file)
}

fn curl(trusted: &Path, pod: &Pod) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--no-buffer", "--max-time", "300", "--cacert"]).arg(trusted);
    curl.args(["--connect-to", &format!("chat:8000:{}:8000", pod.ip.as_deref().unwrap_or_default())]);
    curl.kill_on_drop(true);
    curl
}

async fn http_version(trusted: &Path, pod: &Pod) -> Result<String> {
    let mut curl = curl(trusted, pod);
    let asked = curl.args(["--output", "/dev/null", "--write-out", "%{http_version}", "https://chat:8000/"]);
    let answer = asked.output().await.context("failed to run curl")?;
    ensure!(answer.status.success(), "curl: {}", String::from_utf8_lossy(&answer.stderr));
    Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
}

fn listen(trusted: &Path, pod: &Pod) -> Result<Child> {
    let mut curl = curl(trusted, pod);
    curl.arg("https://chat:8000/sse/lobby").stdout(Stdio::piped()).spawn().context("failed to run curl")
}

async fn hears(client: &mut Child, text: &str) -> Result<()> {
    let stdout = client.stdout.as_mut().context("curl's output")?;
    let mut heard = Vec::new();
    let listening = async {
        while !String::from_utf8_lossy(&heard).contains(text) {
            ensure!(stdout.read_buf(&mut heard).await? > 0, "the stream ended");
        }
        Ok(())
    };
    timeout(Duration::from_secs(20), listening).await.with_context(|| format!("{text:?} did not come"))?
}
