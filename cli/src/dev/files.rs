//! Files of one run, in a temporary directory that goes with it: what a pod would have mounted.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use fanout_operator::{
    api::{
        FanoutCluster,
        v1alpha1::{ApiKeysRef, Auth, SecretKeyRef},
    },
    resources::secret,
};
use rand::RngExt;
use serde::Serialize;
use tempfile::{NamedTempFile, TempDir};

/// The directory of one run.
#[derive(Debug)]
pub(crate) struct Files {
    directory: TempDir,
    api_key: String,
}

// === impl Files ===

impl Files {
    /// A fresh directory with a fresh API key for `cluster`, for this user's eyes only.
    pub(crate) fn create(cluster: &FanoutCluster) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("fanout-dev-")
            .tempdir()
            .context("failed to make a temporary directory")?;
        let files = Self { directory, api_key: random_hex() };
        let generated = files.secrets().join("api-keys").join(secret::api_key_name(cluster));
        for made in [&generated, &files.secrets().join("jwt"), &files.redis()] {
            std::fs::create_dir_all(made).with_context(|| format!("failed to make {}", made.display()))?;
        }
        replace(&generated.join(secret::API_KEY), &files.api_key)?;
        Ok(files)
    }

    /// Lays out the Secrets that `cluster` names, from `given` (a directory each), as they are mounted in a pod.
    pub(crate) fn link_secrets(&self, cluster: &FanoutCluster, given: Option<&Path>) -> anyhow::Result<()> {
        let Auth { api_keys_secret_ref, jwt } = &cluster.spec.auth;
        if let Some(ApiKeysRef { name }) = api_keys_secret_ref {
            self.link("api-keys", name, given, "spec.auth.apiKeysSecretRef")?;
        }
        for (at, key) in jwt.iter().flat_map(|jwt| &jwt.keys).enumerate() {
            let SecretKeyRef { name, key } = &key.secret_key_ref;
            let field = format!("spec.auth.jwt.keys[{at}].secretKeyRef");
            let file = self.link("jwt", name, given, &field)?.join(key);
            ensure!(
                file.is_file(),
                "{field} names the key {key}, but {} is no file: make it",
                file.display()
            );
        }
        Ok(())
    }

    fn link(&self, kind: &str, name: &str, given: Option<&Path>, field: &str) -> anyhow::Result<PathBuf> {
        let given = given.with_context(|| {
            format!(
                "{field} names the Secret {name}: give its values with --secrets DIR, as files in DIR/{name}/"
            )
        })?;
        let source = given.join(name);
        let source = source.canonicalize().ok().filter(|path| path.is_dir()).with_context(|| {
            format!("{field} names the Secret {name}, but {} is no directory: make it", source.display())
        })?;
        let link = self.secrets().join(kind).join(name);
        match std::os::unix::fs::symlink(&source, &link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("failed to make {}", link.display()))
            }
            _ => Ok(source),
        }
    }

    /// Directory of the secrets, laid out as in a pod.
    pub(crate) fn secrets(&self) -> PathBuf {
        self.directory.path().join("secrets")
    }

    /// The key of the server API.
    pub(crate) fn api_key(&self) -> &str {
        &self.api_key
    }

    /// Working directory of Redis.
    pub(crate) fn redis(&self) -> PathBuf {
        self.directory.path().join("redis")
    }

    /// The live document, one for all nodes as in a cluster.
    pub(crate) fn live(&self) -> PathBuf {
        self.directory.path().join("live.yaml")
    }

    /// The boot document of a node.
    pub(crate) fn boot(&self, node: u16) -> PathBuf {
        self.directory.path().join(format!("boot-{node}.yaml"))
    }

    /// Writes a document at once: nobody reads half of it.
    pub(crate) fn write(&self, path: &Path, document: &impl Serialize) -> anyhow::Result<()> {
        replace(path, &serde_yaml::to_string(document).context("failed to write settings as YAML")?)
    }
}

fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("failed to write {}", path.display());
    let directory = path.parent().with_context(failed)?;
    let mut file = NamedTempFile::new_in(directory).with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(())
}

/// 128 random bits.
pub(crate) fn random_hex() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> FanoutCluster {
        let spec = "{auth: {jwt: {keys: [{algorithm: HS256, secretKeyRef: {name: signing, key: main}}]}}}";
        FanoutCluster::new("demo", serde_yaml::from_str(spec).unwrap())
    }

    #[test]
    fn a_secret_that_is_not_given_is_told_with_its_field_and_the_flag() {
        let files = Files::create(&cluster()).unwrap();
        let error = files.link_secrets(&cluster(), None).unwrap_err().to_string();
        assert_eq!(
            error,
            "spec.auth.jwt.keys[0].secretKeyRef names the Secret signing: give its values with --secrets DIR, as files in DIR/signing/"
        );
    }

    #[test]
    fn a_secret_that_is_given_lies_where_a_pod_would_have_it() {
        let given = tempfile::tempdir().unwrap();
        std::fs::create_dir(given.path().join("signing")).unwrap();
        let files = Files::create(&cluster()).unwrap();
        let error = files.link_secrets(&cluster(), Some(given.path())).unwrap_err().to_string();
        assert!(error.contains("names the key main"), "{error}");
        std::fs::write(given.path().join("signing/main"), "s3cret").unwrap();
        files.link_secrets(&cluster(), Some(given.path())).unwrap();
        let mounted = std::fs::read_to_string(files.secrets().join("jwt/signing/main")).unwrap();
        assert_eq!(mounted, "s3cret");
    }
}
