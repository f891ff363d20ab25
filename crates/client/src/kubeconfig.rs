//! Kubeconfig files: which server, as whom, in which namespace.
//!
//! Reads what this client can use: certificates and tokens, inline or in files. What it cannot (exec plugins, passwords,
//! skipped verification) it refuses by name when that user or cluster is used.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::HttpSettings;
use crate::limits::KUBECONFIG_BYTES_MAX;

#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    #[error("no kubeconfig found (looked at {0}); name one with --kubeconfig or KUBECONFIG")]
    Missing(String),
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: not a kubeconfig: {why}")]
    Parse { path: PathBuf, why: String },
    #[error("{path}: {kind} {name:?} does not exist; there are: {known}")]
    Unknown { path: PathBuf, kind: &'static str, name: String, known: String },
    #[error("{path}: {what}")]
    Unusable { path: PathBuf, what: String },
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    current_context: Option<String>,
    clusters: Vec<Named<Cluster>>,
    contexts: Vec<Named<Context>>,
    users: Vec<Named<User>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "context", alias = "user")]
    value: T,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
}

/// One file, parsed. Relative paths in it are relative to its directory.
#[derive(Debug, Clone)]
pub struct Kubeconfig {
    pub path: PathBuf,
    file: File,
}

impl Kubeconfig {
    /// The first that exists of: `explicit`, `KUBECONFIG`'s entries, `~/.kube/config`, `<data_dir>/pki/admin.kubeconfig`.
    /// One that is named (the first two) must exist.
    pub fn find(explicit: Option<&Path>, data_dir: &Path) -> Result<Self, KubeconfigError> {
        if let Some(path) = explicit {
            return Self::load(path);
        }
        let named = std::env::var_os("KUBECONFIG").filter(|v| !v.is_empty());
        let candidates: Vec<PathBuf> = match &named {
            Some(list) => std::env::split_paths(list).filter(|p| !p.as_os_str().is_empty()).collect(),
            None => {
                let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
                home.into_iter().chain([data_dir.join("pki/admin.kubeconfig")]).collect()
            }
        };
        match candidates.iter().find(|path| path.exists()) {
            Some(path) => Self::load(path),
            None => {
                let looked = candidates.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
                Err(KubeconfigError::Missing(looked))
            }
        }
    }

    pub fn load(path: &Path) -> Result<Self, KubeconfigError> {
        let read = |source| KubeconfigError::Read { path: path.into(), source };
        let length = std::fs::metadata(path).map_err(read)?.len();
        if length > KUBECONFIG_BYTES_MAX {
            return Err(KubeconfigError::Parse { path: path.into(), why: format!("it has {length} bytes") });
        }
        Self::parse(path, &std::fs::read_to_string(path).map_err(read)?)
    }

    /// `path` is for messages and relative files.
    pub fn parse(path: &Path, text: &str) -> Result<Self, KubeconfigError> {
        let file = serde_saphyr::from_str(text).map_err(|e| KubeconfigError::Parse { path: path.into(), why: e.to_string() })?;
        Ok(Self { path: path.into(), file })
    }

    pub fn contexts(&self) -> impl Iterator<Item = &str> {
        self.file.contexts.iter().map(|c| c.name.as_str())
    }

    pub fn current_context(&self) -> Option<&str> {
        self.file.current_context.as_deref().filter(|c| !c.is_empty())
    }

    /// What to connect with, and the context's namespace (`default` if it names none). `context`: `None` for the current.
    pub fn settings(&self, context: Option<&str>) -> Result<(HttpSettings, String), KubeconfigError> {
        let name = match context.or(self.current_context()) {
            Some(name) => name,
            None if self.file.contexts.len() == 1 => &self.file.contexts[0].name,
            None => return Err(self.unusable("no current-context is set; name one with --context")),
        };
        let context = self.lookup("context", name, &self.file.contexts)?;
        let cluster = self.lookup("cluster", &context.cluster, &self.file.clusters)?;
        let empty = User::default();
        let user = if context.user.is_empty() { &empty } else { self.lookup("user", &context.user, &self.file.users)? };
        if cluster.insecure_skip_tls_verify {
            return Err(self.unusable("insecure-skip-tls-verify is not supported: give certificate-authority instead"));
        }
        if user.exec.is_some() || user.auth_provider.is_some() || user.username.is_some() {
            return Err(self.unusable("only client certificates and tokens are supported, not exec plugins, auth providers or passwords"));
        }
        let token = match (&user.token, &user.token_file) {
            (_, Some(path)) => Some(String::from_utf8_lossy(&self.read(path)?).trim().to_string()),
            (token, None) => token.clone(),
        };
        let settings = HttpSettings {
            server: cluster.server.clone(),
            ca_pem: self.data("certificate-authority-data", &cluster.certificate_authority_data, &cluster.certificate_authority)?,
            tls_server_name: cluster.tls_server_name.clone(),
            client_cert_pem: self.data("client-certificate-data", &user.client_certificate_data, &user.client_certificate)?,
            client_key_pem: self.data("client-key-data", &user.client_key_data, &user.client_key)?,
            bearer_token: token,
        };
        Ok((settings, context.namespace.clone().filter(|ns| !ns.is_empty()).unwrap_or_else(|| "default".into())))
    }

    fn lookup<'a, T>(&self, kind: &'static str, name: &str, all: &'a [Named<T>]) -> Result<&'a T, KubeconfigError> {
        all.iter().find(|n| n.name == name).map(|n| &n.value).ok_or_else(|| {
            let known = all.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", ");
            KubeconfigError::Unknown { path: self.path.clone(), kind, name: name.into(), known }
        })
    }

    fn unusable(&self, what: impl Into<String>) -> KubeconfigError {
        KubeconfigError::Unusable { path: self.path.clone(), what: what.into() }
    }

    /// Inline data wins over a file, as in kubectl.
    fn data(&self, what: &str, inline: &Option<String>, file: &Option<PathBuf>) -> Result<Option<Vec<u8>>, KubeconfigError> {
        match (inline, file) {
            (Some(text), _) if !text.is_empty() => {
                let bytes = STANDARD.decode(text.trim()).map_err(|e| self.unusable(format!("{what} is not base64: {e}")))?;
                Ok(Some(bytes))
            }
            (_, Some(path)) => self.read(path).map(Some),
            _ => Ok(None),
        }
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, KubeconfigError> {
        let path = self.path.parent().unwrap_or(Path::new("")).join(path);
        std::fs::read(&path).map_err(|source| KubeconfigError::Read { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
apiVersion: v1
kind: Config
current-context: a
clusters:
- name: c
  cluster: { server: "https://127.0.0.1:6443", certificate-authority-data: "Q0E=" }
- name: open
  cluster: { server: "https://x", insecure-skip-tls-verify: true }
contexts:
- name: a
  context: { cluster: c, user: u, namespace: shop }
- name: b
  context: { cluster: c, user: f }
- name: open
  context: { cluster: open, user: u }
- name: plugin
  context: { cluster: c, user: plugin }
- name: lost
  context: { cluster: gone, user: u }
users:
- name: u
  user: { client-certificate-data: "Q0VSVA==", client-key-data: "S0VZ" }
- name: f
  user: { tokenFile: token }
- name: plugin
  user: { exec: { command: aws } }
"#;

    #[test]
    fn reads_what_it_can_use_and_refuses_the_rest_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, TEXT).unwrap();
        std::fs::write(dir.path().join("token"), "secret\n").unwrap();
        let config = Kubeconfig::find(Some(&path), Path::new("/nowhere")).unwrap();
        let (settings, namespace) = config.settings(None).unwrap();
        assert_eq!((settings.server.as_str(), namespace.as_str()), ("https://127.0.0.1:6443", "shop"));
        assert_eq!(settings.ca_pem.as_deref(), Some(&b"CA"[..]));
        assert_eq!(settings.client_key_pem.as_deref(), Some(&b"KEY"[..]));
        let (settings, namespace) = config.settings(Some("b")).unwrap();
        assert_eq!((settings.bearer_token.as_deref(), namespace.as_str()), (Some("secret"), "default"));
        let refused = |context| config.settings(Some(context)).err().unwrap().to_string();
        assert!(refused("open").contains("insecure-skip-tls-verify"));
        assert!(refused("plugin").contains("exec plugins"));
        assert!(refused("lost").contains(r#"cluster "gone" does not exist; there are: c, open"#));
        assert!(refused("nope").contains(r#"context "nope" does not exist; there are: a, b"#));
    }
}
