//! What the agent needs of an image store; the binary adapts the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use async_trait::async_trait;
use serde::Deserialize;

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// Credentials from `imagePullSecrets`, for one registry (`registry.example:5000`, or with a path prefix).
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    pub registry: String,
    pub username: String,
    pub password: String,
    /// A bearer token instead of name and password; empty where there is none.
    pub token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Auth({} at {})", self.username, self.registry)
    }
}

/// Bytes fetched of bytes to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

/// An image that is ready to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// `docker.io/library/nginx@sha256:…`: a status' `imageID`.
    pub id: String,
    /// Of the platform's manifest: `sha256:…`, what `collect_garbage` is told is in use.
    pub digest: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    pub working_dir: String,
    /// `user`, `uid`, `user:group`, `uid:gid`, or empty.
    pub user: String,
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
    /// `SIGTERM`, `TERM`, `15`, or empty.
    pub stop_signal: String,
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    pub size_bytes: u64,
}

/// Why an image cannot be had; the text is what a user reads in an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("Container image {0:?} is not present with pull policy of Never")]
    NotPresent(String),
    #[error("failed to pull and unpack image {0:?}: {1}")]
    NotFound(String, String),
    #[error("failed to pull and unpack image {0:?}: {1}")]
    Unauthorized(String, String),
    #[error("failed to pull and unpack image {0:?}: {1}")]
    Unreachable(String, String),
    /// Not a name of an image at all.
    #[error("Failed to apply default image tag {0:?}: {1}")]
    InvalidName(String, String),
    #[error("failed to pull and unpack image {0:?}: {1}")]
    Invalid(String, String),
}

impl ImageError {
    /// The container's `waiting.reason`.
    pub fn waiting_reason(&self) -> &'static str {
        match self {
            Self::NotPresent(_) => "ErrImageNeverPull",
            Self::InvalidName(..) => "InvalidImageName",
            _ => "ErrImagePull",
        }
    }
}

/// One image as a node's status lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub names: Vec<String>,
    pub size_bytes: u64,
}

#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// Whether `ensure` needs no other machine.
    async fn present(&self, reference: &str) -> bool;

    /// Makes an image ready to run. Credentials are tried in order, then none. `progress` may be called often.
    async fn ensure(
        &self,
        reference: &str,
        policy: PullPolicy,
        auths: &[Auth],
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image, ImageError>;

    /// Images on this machine, largest first.
    async fn list(&self) -> Vec<Listed>;

    /// Frees what no name and none of `in_use` (digests) reaches, down to `budget_bytes`. Returns bytes freed.
    async fn collect_garbage(&self, in_use: &BTreeSet<String>, budget_bytes: u64) -> Result<u64, String>;
}

/// The policy a container gets when it says none: `Always` for `:latest` and for no tag (the API's default already says so).
pub fn pull_policy(policy: Option<&str>, image: &str) -> PullPolicy {
    let last = image.rsplit('/').next().unwrap_or_default();
    match policy {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some(_) => PullPolicy::IfNotPresent,
        None if image.contains('@') => PullPolicy::IfNotPresent,
        None if !last.contains(':') || last.ends_with(":latest") => PullPolicy::Always,
        None => PullPolicy::IfNotPresent,
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerAuth {
    username: String,
    password: String,
    auth: String,
    registrytoken: String,
}

/// The credentials of a `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg` secret. What cannot be read gives none.
pub fn docker_auths(data: &BTreeMap<String, k8s_openapi::ByteString>) -> Vec<Auth> {
    let config = match (data.get(".dockerconfigjson"), data.get(".dockercfg")) {
        (Some(json), _) => serde_json::from_slice::<DockerConfig>(&json.0).ok(),
        (None, Some(json)) => serde_json::from_slice(&json.0).ok().map(|auths| DockerConfig { auths }),
        (None, None) => None,
    };
    let auths = config.unwrap_or_default().auths;
    auths.into_iter().filter_map(|(registry, auth)| docker_auth(&registry, auth)).collect()
}

fn docker_auth(registry: &str, auth: DockerAuth) -> Option<Auth> {
    use base64::Engine;
    let (mut username, mut password) = (auth.username, auth.password);
    if username.is_empty()
        && let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(auth.auth.trim())
        && let Some((u, p)) = String::from_utf8_lossy(&decoded).split_once(':')
    {
        (username, password) = (u.to_string(), p.trim_end_matches('\0').to_string());
    }
    if username.is_empty() && auth.registrytoken.is_empty() {
        return None;
    }
    let registry = registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    // Docker's own name for its registry.
    let registry = registry.trim_end_matches("/v1").trim_end_matches("/v2");
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
    Some(Auth { registry: registry.to_string(), username, password, token: auth.registrytoken })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_default_by_tag() {
        for (image, policy) in [
            ("nginx", PullPolicy::Always),
            ("nginx:latest", PullPolicy::Always),
            ("localhost:5000/nginx", PullPolicy::Always),
            ("localhost:5000/nginx:1", PullPolicy::IfNotPresent),
            ("nginx@sha256:00", PullPolicy::IfNotPresent),
        ] {
            assert_eq!(pull_policy(None, image), policy, "{image}");
        }
        assert_eq!(pull_policy(Some("Never"), "nginx"), PullPolicy::Never);
    }

    #[test]
    fn credentials_are_found_in_all_their_spellings() {
        let json = br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpwOnE="},"r:5000":{"username":"a","password":"b"},"x":{}}}"#;
        let data = [(".dockerconfigjson".to_string(), k8s_openapi::ByteString(json.to_vec()))].into();
        let auths = docker_auths(&data);
        let got: Vec<(&str, &str, &str)> = auths.iter().map(|a| (&*a.registry, &*a.username, &*a.password)).collect();
        assert_eq!(got, [("docker.io", "u", "p:q"), ("r:5000", "a", "b")]);
        let data = [(".dockercfg".to_string(), k8s_openapi::ByteString(br#"{"r":{"auth":"YTpi"}}"#.to_vec()))].into();
        assert_eq!(docker_auths(&data).len(), 1);
    }
}
