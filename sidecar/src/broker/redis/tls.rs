//! TLS to Redis. The files are read at each connect, so that a rotated certificate is followed.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName,
        pem::{self, PemObject},
    },
};
use sidecar_config::RedisTls;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Why there is no TLS, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("failed to read {path} (broker.redis.tls.{field}): {source}", path = path.display())]
    File { field: &'static str, path: PathBuf, source: pem::Error },
    #[error("{path} (broker.redis.tls.{field}) holds no certificate in PEM", path = path.display())]
    Empty { field: &'static str, path: PathBuf },
    #[error("the system has no trusted certificates: set broker.redis.tls.caFile")]
    NoSystemRoots,
    #[error("broker.redis.tls.certFile and keyFile do not fit together: {0}")]
    ClientIdentity(rustls::Error),
    #[error("a certificate of broker.redis.tls.caFile is broken: {0}")]
    Authority(rustls::Error),
    #[error("`{name}` is no server name: set broker.redis.tls.serverName: {source}")]
    ServerName { name: String, source: InvalidDnsNameError },
    #[error(
        "the TLS handshake with Redis as `{name}` failed: {source}; check broker.redis.tls.caFile and serverName, \
         and that the address is a TLS port"
    )]
    Handshake { name: String, source: io::Error },
}

/// Speaks TLS over `stream` to a server that proves to be `host`, or what the settings name.
pub(super) async fn connect(
    stream: TcpStream,
    settings: &RedisTls,
    host: &str,
) -> Result<TlsStream<TcpStream>, TlsError> {
    let name = settings.server_name.as_deref().unwrap_or(host).to_owned();
    let server = ServerName::try_from(name.clone())
        .map_err(|source| TlsError::ServerName { name: name.clone(), source })?;
    let connector = TlsConnector::from(Arc::new(config(settings)?));
    connector.connect(server, stream).await.map_err(|source| TlsError::Handshake { name, source })
}

fn config(settings: &RedisTls) -> Result<ClientConfig, TlsError> {
    let RedisTls { ca_file, cert_file, key_file, server_name: _ } = settings;
    let roots = match ca_file {
        Some(path) => authorities(path)?,
        None => system_roots()?,
    };
    // Named, not the process's default: which one that is depends on what else is linked.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring serves TLS 1.2 and 1.3")
        .with_root_certificates(roots);
    match (cert_file, key_file) {
        (Some(cert), Some(key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|source| file("keyFile", key, source))?;
            config
                .with_client_auth_cert(certificates("certFile", cert)?, key)
                .map_err(TlsError::ClientIdentity)
        }
        // One without the other was refused with the settings.
        _ => Ok(config.with_no_client_auth()),
    }
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("caFile", path)? {
        roots.add(certificate).map_err(TlsError::Authority)?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    // Some of a system's certificates are often broken; those that are not serve.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TlsError::NoSystemRoots) } else { Ok(roots) }
}

fn certificates(field: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|source| file(field, path, source))?;
    if certificates.is_empty() {
        Err(TlsError::Empty { field, path: path.to_owned() })
    } else {
        Ok(certificates)
    }
}

fn file(field: &'static str, path: &Path, source: pem::Error) -> TlsError {
    TlsError::File { field, path: path.to_owned(), source }
}
