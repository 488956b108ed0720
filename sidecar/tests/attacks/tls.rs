//! Clients of a sidecar that speaks TLS: WebSockets over HTTP/1.1 and, by extended CONNECT (RFC 8441), over HTTP/2.

use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{body::Incoming, client::conn::http2, upgrade::Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use crate::support::Sidecar;

/// WebSockets of one HTTP/2 connection.
const STREAMS: usize = 50;

/// A certificate, and clients that trust it.
pub(crate) struct Tls {
    files: TempDir,
    certificate: CertificateDer<'static>,
}

/// WebSockets that nobody reads; they end with it.
pub(crate) struct Stuck {
    _runtime: Runtime,
    sockets: Vec<Upgraded>,
}

/// An event stream over HTTP/2 that nobody reads; it ends with it.
pub(crate) struct StuckEvents {
    _runtime: Runtime,
    _events: Incoming,
}

impl Tls {
    pub(crate) fn new() -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let files = tempfile::tempdir().unwrap();
        fs::write(files.path().join("tls.crt"), cert.pem()).unwrap();
        fs::write(files.path().join("tls.key"), signing_key.serialize_pem()).unwrap();
        Self { files, certificate: cert.der().clone() }
    }

    /// One that shows the certificate.
    pub(crate) fn sidecar(&self) -> Sidecar {
        self.sidecar_with("{}")
    }

    /// One with these limits.
    pub(crate) fn sidecar_with(&self, limits: &str) -> Sidecar {
        let at = |name: &str| self.files.path().join(name).display().to_string();
        let (cert, key) = (at("tls.crt"), at("tls.key"));
        Sidecar::start(&format!(
            "{{maxConnections: 2000, tls: {{certFile: {cert}, keyFile: {key}}}, limits: {limits}}}"
        ))
    }

    fn config(&self, protocol: &[u8]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    }

    /// HTTP/1.1 behind TLS.
    pub(crate) fn over(&self, socket: TcpStream) -> StreamOwned<ClientConnection, TcpStream> {
        let connection = ClientConnection::new(self.config(b"http/1.1"), name()).unwrap();
        StreamOwned::new(connection, socket)
    }
}

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// So many WebSockets over HTTP/2.
pub(crate) fn over_http2(tls: &Tls, address: SocketAddr, count: usize, path: &str) -> Stuck {
    let runtime = Runtime::new().unwrap();
    let sockets = runtime.block_on(async {
        let mut sockets = Vec::new();
        while sockets.len() < count {
            sockets.extend(connection(tls, address, STREAMS.min(count - sockets.len()), path).await.unwrap());
        }
        sockets
    });
    Stuck { _runtime: runtime, sockets }
}

/// An event stream over HTTP/2. While the runtime runs, its client takes what belongs to the connection, but nothing of
/// the stream; one that runs no more takes nothing at all.
pub(crate) fn events_over_http2(runtime: Runtime, tls: &Tls, address: SocketAddr, path: &str) -> StuckEvents {
    let events = runtime.block_on(async {
        let mut http = http2(tls, address).await.unwrap();
        let url = format!("https://localhost:{}{path}", address.port());
        let request = http::Request::get(url).body(Empty::new()).unwrap();
        let answer = http.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.into_body()
    });
    StuckEvents { _runtime: runtime, _events: events }
}

async fn http2(tls: &Tls, address: SocketAddr) -> io::Result<http2::SendRequest<Empty<Bytes>>> {
    let tcp = tokio::net::TcpStream::connect(address).await?;
    let stream = TlsConnector::from(tls.config(b"h2")).connect(name(), tcp).await?;
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (http, connection) = handshake.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(http)
}

async fn connection(tls: &Tls, address: SocketAddr, count: usize, path: &str) -> io::Result<Vec<Upgraded>> {
    let mut http = http2(tls, address).await?;
    let url = format!("https://localhost:{}{path}", address.port());
    let mut sockets = Vec::new();
    for _ in 0..count {
        http.ready().await.map_err(io::Error::other)?;
        let request = http::Request::connect(&url)
            .header("sec-websocket-version", "13")
            .extension(hyper::ext::Protocol::from_static("websocket"))
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let answer = http.send_request(request).await.map_err(io::Error::other)?;
        assert_eq!(answer.status(), 200);
        sockets.push(hyper::upgrade::on(answer).await.map_err(io::Error::other)?);
    }
    Ok(sockets)
}

impl Stuck {
    pub(crate) fn len(&self) -> usize {
        self.sockets.len()
    }
}
