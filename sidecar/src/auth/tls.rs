//! Who this node is to its clients: the certificate of the client port, read from files.

use std::{fmt, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use sidecar_config::{Mistake, TlsSettings};

use super::Reading;

/// A certificate and its key, ready for handshakes. Cheap to clone.
#[derive(Clone)]
pub struct TlsIdentity(Arc<ServerConfig>);

impl TlsIdentity {
    /// Reads certificate and key, and sees that they belong together.
    ///
    /// # Errors
    /// What is wrong, by the setting that names the file.
    pub fn load(settings: &TlsSettings) -> Result<Self, Vec<Mistake>> {
        let mut reading = Reading::default();
        Self::read(settings, &mut reading).ok_or_else(|| reading.take_mistakes())
    }

    /// The same; `None` where the reading has a mistake more.
    pub fn read(settings: &TlsSettings, reading: &mut Reading<'_>) -> Option<Self> {
        let TlsSettings { cert_file, key_file } = settings;
        let chain = reading.secret("hub.tls.certFile", cert_file).map(|pem| certificates(&pem));
        let key = reading.secret("hub.tls.keyFile", key_file).map(|pem| private_key(&pem));
        let mut good = |error: Mistake| reading.mistake(&error.path, error.message);
        let chain = chain.and_then(|chain| chain.map_err(&mut good).ok());
        let key = key.and_then(|key| key.map_err(&mut good).ok());
        Self::of(chain?, key?).map_err(good).ok()
    }

    fn of(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, Mistake> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring knows TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| {
                let what = format!("is not the key of the certificate in hub.tls.certFile: {error}");
                Mistake::new("hub.tls.keyFile", what)
            })?;
        config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// What a handshake needs.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0)
    }
}

/// HTTP/2's name in a TLS handshake (RFC 9113 §3.2).
pub const H2: &[u8] = b"h2";

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Mistake> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(Mistake::new("hub.tls.certFile", "contains no `-----BEGIN CERTIFICATE-----`")),
        Err(error) => Err(Mistake::new("hub.tls.certFile", format!("is not PEM: {error}"))),
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, Mistake> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|error| Mistake::new("hub.tls.keyFile", format!("contains no PEM private key: {error}")))
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}
