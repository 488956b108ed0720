//! Settings that change while clients stay.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use reqwest::StatusCode;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::{Setup, eventually, http, soon, with_sidecar};

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_document_is_in_force_without_closing_a_connection() {
    with_sidecar(Setup::open(), async |node| {
        let mut client = node.connect("/ws/lobby").await;
        assert_eq!(node.try_connect("/ws/new:a", &[]).await.map(drop).unwrap_err().0, StatusCode::NOT_FOUND);
        let namespaces = json!([
            {"name": "default", "publish": "allowed", "subscribe": "allowed"},
            {"name": "new", "publish": "allowed", "subscribe": "allowed"},
        ]);
        node.change("namespaces", namespaces);
        // Seen by itself: nobody says that the file changed.
        node.until_metric("fanout_settings_reloads_total", 1.0).await;
        node.connect("/ws/new:a").await;
        client.send("still here").await;
        assert_eq!(client.text().await, "still here");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_no_longer_allowed_ends() {
    with_sidecar(Setup::open(), async |node| {
        let mut lobby = node.connect("/ws/lobby").await;
        let mut room = node.connect("/ws/room-1").await;
        let open =
            json!([{"name": "default", "channels": ["lobby"], "publish": "allowed", "subscribe": "allowed"}]);
        node.change("namespaces", open);
        node.app.reload();
        assert_eq!(room.closed().await.0, 3507);
        lobby.send("1").await;
        assert_eq!(lobby.text().await, "1");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_document_is_refused_whole_and_the_old_one_stays() {
    with_sidecar(Setup::open(), async |node| {
        let before = node.app.metrics();
        let hash = |page: &str| {
            page.lines().find(|line| line.starts_with("fanout_settings_info")).map(str::to_owned)
        };
        node.write_live("{namespaces: [], hub: {maxConnections: none}}");
        node.until_metric("fanout_settings_rejected", 1.0).await;
        assert_eq!(hash(&node.app.metrics()), hash(&before));
        let mut client = node.connect("/ws/lobby").await;
        client.send("1").await;
        assert_eq!(client.text().await, "1", "the namespaces of the bad document are not in force");
        node.change("logLevel", json!("debug"));
        node.until_metric("fanout_settings_rejected", 0.0).await;
        assert_ne!(hash(&node.app.metrics()), hash(&before));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_goes_missing_leaves_the_old_keys_in_force_and_is_told() {
    with_sidecar(Setup::open(), async |node| {
        std::fs::remove_file(node.directory.path().join("key")).unwrap();
        node.until_metric("fanout_settings_warnings", 1.0).await;
        node.publish("lobby", &json!("by the old key")).await;
        let report: serde_json::Value =
            http().get(node.admin_url("/ready?verbose")).send().await.unwrap().json().await.unwrap();
        let warning = report["warnings"][0].as_str().unwrap();
        assert!(warning.starts_with("auth.apiKeyFiles[0]: failed to read"), "{report}");
        // What else is new is in force all the same.
        node.change("logLevel", json!("debug"));
        node.until_metric("fanout_settings_reloads_total", 2.0).await;
        assert!(node.app.metrics().contains("fanout_settings_rejected 0"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_document_closes_nobody() {
    with_sidecar(Setup::open(), async |node| {
        let mut client = node.connect("/ws/lobby").await;
        node.write_live("");
        node.until_metric("fanout_settings_rejected", 1.0).await;
        client.send("still here").await;
        assert_eq!(client.text().await, "still here");
    })
    .await;
}

/// Puts a new certificate and its key into a directory.
fn certify(directory: &Path) -> CertificateDer<'static> {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(directory.join("tls.crt"), cert.pem()).unwrap();
    fs::write(directory.join("tls.key"), signing_key.serialize_pem()).unwrap();
    cert.der().clone()
}

/// Whether a client that trusts this certificate alone is shown it.
async fn shows(address: SocketAddr, certificate: &CertificateDer<'static>) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = soon(TcpStream::connect(address)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    soon(TlsConnector::from(Arc::new(config)).connect(name, socket)).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_changes_on_disk_is_shown_without_a_restart() {
    let files = tempfile::tempdir().unwrap();
    let at = |name: &str| files.path().join(name);
    let first = certify(files.path());
    let tls = json!({"tls": {"certFile": at("tls.crt"), "keyFile": at("tls.key")}});
    with_sidecar(Setup::open().live("hub", tls), async |node| {
        assert!(shows(node.client_address(), &first).await);
        let second = certify(files.path());
        // Seen by itself: nobody says that the file changed.
        let new = async || shows(node.client_address(), &second).await.then_some(());
        eventually("the new certificate", new).await;
        assert!(!shows(node.client_address(), &first).await);
    })
    .await;
}
