//! A certificate authority of a test's own.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

/// `ca.crt`, and `server.{crt,key}` and `client.{crt,key}` signed by it.
pub(crate) struct Certificates {
    pub(crate) directory: TempDir,
}

impl Certificates {
    /// The server's is for `name` alone.
    pub(crate) fn make(name: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "authority.test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(directory.path().join("ca.crt"), authority.pem()).unwrap();
        for (file, name) in [("server", name), ("client", "client.test")] {
            sign(directory.path(), file, name, &authority);
        }
        Self { directory }
    }
}

fn sign(directory: &Path, file: &str, name: &str, authority: &CertifiedIssuer<'_, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, authority).unwrap();
    fs::write(directory.join(file).with_extension("crt"), certificate.pem()).unwrap();
    fs::write(directory.join(file).with_extension("key"), key.serialize_pem()).unwrap();
}
