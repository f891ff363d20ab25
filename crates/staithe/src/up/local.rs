//! The seams between organs on one machine: the tunnel in process, the image store as the agent sees it, who may use
//! the registry.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use artifacts::{Credentials, Reference, images::Images as Store};
use async_trait::async_trait;
use client::Client;
use node::images::{Auth, Image, ImageError, Images, Listed, Progress, PullPolicy};
use ports::{NodeHandler, Tunnels};
use registry::{Access, Action, Peer};

/// Agents that are connected; here they are in this process.
#[derive(Default)]
pub struct LocalTunnels(RwLock<BTreeMap<String, Arc<dyn NodeHandler>>>);

impl Tunnels for LocalTunnels {
    fn register(&self, node: &str, handler: Arc<dyn NodeHandler>) {
        self.0.write().unwrap_or_else(|e| e.into_inner()).insert(node.to_string(), handler);
    }

    fn node(&self, node: &str) -> Option<Arc<dyn NodeHandler>> {
        self.0.read().unwrap_or_else(|e| e.into_inner()).get(node).cloned()
    }
}

/// The artifact store as the agent's image store.
pub struct NodeImages(pub Store);

/// Blobs younger than this are never collected: a push names its manifest last.
const COLLECT_MIN_AGE: Duration = Duration::from_secs(3600);

fn translate(reference: &str, e: artifacts::Error) -> ImageError {
    use artifacts::Error as E;
    let name = reference.to_string();
    match e {
        E::BadReference(..) => ImageError::InvalidName(name, e.to_string()),
        E::NotFound(_) => ImageError::NotFound(name, e.to_string()),
        E::Unauthorized(..) => ImageError::Unauthorized(name, e.to_string()),
        E::Unreachable(..) => ImageError::Unreachable(name, e.to_string()),
        other => ImageError::Invalid(name, other.to_string()),
    }
}

#[async_trait]
impl Images for NodeImages {
    async fn present(&self, reference: &str) -> bool {
        Reference::parse(reference).is_ok_and(|r| self.0.local(&r).is_some())
    }

    async fn ensure(
        &self,
        reference: &str,
        policy: PullPolicy,
        auths: &[Auth],
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image, ImageError> {
        let never = policy == PullPolicy::Never;
        if never && !self.present(reference).await {
            return Err(ImageError::NotPresent(reference.to_string()));
        }
        let parsed = Reference::parse(reference).map_err(|e| translate(reference, e))?;
        let full = format!("{}/", parsed.name());
        let mine = auths.iter().filter(|a| full.starts_with(&format!("{}/", a.registry)));
        let credentials: Vec<Credentials> =
            mine.map(|a| Credentials { username: a.username.clone(), password: a.password.clone() }).collect();
        let tell = |p: artifacts::Progress| progress(Progress { done: p.done, total: p.total });
        let image = self.0.ensure(reference, policy == PullPolicy::Always, never, &credentials, &tell).await;
        let image = image.map_err(|e| translate(reference, e))?;
        Ok(Image {
            id: format!("{}@{}", parsed.name(), image.digest),
            digest: image.digest.to_string(),
            entrypoint: image.config.entrypoint,
            cmd: image.config.cmd,
            env: image.config.env,
            working_dir: image.config.working_dir,
            user: image.config.user,
            exposed_ports: image.config.exposed_ports.into_keys().collect(),
            volumes: image.config.volumes.into_keys().collect(),
            stop_signal: image.config.stop_signal,
            layers: image.layers,
            size_bytes: image.size_bytes,
        })
    }

    async fn list(&self) -> Vec<Listed> {
        let mut by_digest: BTreeMap<String, Listed> = BTreeMap::new();
        for listed in self.0.list() {
            let entry = by_digest.entry(listed.digest.to_string()).or_insert(Listed { names: Vec::new(), size_bytes: listed.size_bytes });
            entry.names.push(listed.name);
        }
        let mut all: Vec<Listed> = by_digest.into_values().collect();
        all.sort_by_key(|l| std::cmp::Reverse(l.size_bytes));
        all
    }

    async fn collect_garbage(&self, in_use: &BTreeSet<String>, budget_bytes: u64) -> Result<u64, String> {
        let in_use = in_use.iter().filter_map(|d| artifacts::Digest::parse(d).ok()).collect();
        let store = self.0.clone();
        let work = tokio::task::spawn_blocking(move || store.collect(&in_use, budget_bytes, COLLECT_MIN_AGE));
        work.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }
}

/// Who may use the registry: root of this machine over loopback, and everybody whose password is a token of the API that
/// may do the same with secrets of `kube-system` (pull needs any valid token).
pub struct RegistryAccess {
    pub client: Client,
}

#[async_trait]
impl Access for RegistryAccess {
    async fn allow(&self, peer: Peer, basic: Option<(&str, &str)>, action: Action, _repository: &str) -> Result<(), String> {
        if let Some(address) = peer.address
            && address.ip().is_loopback()
            && socket_owner(address) == Some(0)
        {
            return Ok(());
        }
        let Some((_, token)) = basic else {
            return Err("log in with any user name and a service-account token as the password (root on this machine needs none)".into());
        };
        let review = serde_json::json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token } });
        let answer: serde_json::Value =
            self.client.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await.map_err(|e| e.to_string())?;
        if answer["status"]["authenticated"] != true {
            return Err("wrong password: the password is a service-account token, as `kubectl create token NAME` prints it".into());
        }
        if action == Action::Pull {
            return Ok(());
        }
        let user = &answer["status"]["user"];
        let review = serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": user["username"], "groups": user["groups"],
                "resourceAttributes": { "group": "staithe.dev", "resource": "images", "verb": "create" },
            },
        });
        let answer: serde_json::Value =
            self.client.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await.map_err(|e| e.to_string())?;
        match answer["status"]["allowed"] == true {
            true => Ok(()),
            false => Err(format!("{} may not create images.staithe.dev", user["username"].as_str().unwrap_or("this user"))),
        }
    }
}

/// The uid that owns the client's end of a loopback connection, as the kernel lists it.
fn socket_owner(client: SocketAddr) -> Option<u32> {
    let IpAddr::V4(ip) = client.ip() else { return None };
    // `/proc/net/tcp`: local address as little-endian hex, uid in the eighth column.
    let wanted = format!("{:08X}:{:04X}", u32::from(ip).swap_bytes(), client.port());
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let mut lines = table.lines().skip(1).map(|l| l.split_whitespace().collect::<Vec<_>>());
    lines.find(|columns| columns.get(1) == Some(&wanted.as_str()))?.get(7)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_who_is_at_the_other_end() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let own = rustix::process::getuid().as_raw();
        assert_eq!(socket_owner(stream.local_addr().unwrap()), Some(own));
        assert_eq!(socket_owner("127.0.0.1:1".parse().unwrap()), None);
    }
}
