//! Logs, exec, attach and port-forward: from a client's HTTP request to the session that the pod's agent opens.
//!
//! Knows WebSocket and SPDY framing and which channel carries what. Does not know how a container is entered.

mod exec;
mod logs;
mod portforward;
mod proxy;
mod spdy;
mod upgrade;

pub use exec::exec;
pub use logs::logs;
pub use portforward::port_forward;
pub use proxy::proxy;

use std::sync::Arc;

use api::{Reason, Status, Value};
use ports::NodeHandler;

use crate::Server;

/// The pod a stream goes to, and the agent that runs it.
pub struct Target {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub object: Value,
    pub handler: Arc<dyn NodeHandler>,
}

impl Target {
    /// Fails when the pod is not there, has no node yet, or its agent is away.
    pub fn find(server: &Server, namespace: &str, name: &str) -> Result<Target, Status> {
        let object = server.pod(namespace, name)?;
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
        if node.is_empty() {
            return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
        }
        let away = || Status::new(Reason::ServiceUnavailable, format!("the agent of node {node:?} is not connected"));
        let handler = server.config.tunnels.node(node).ok_or_else(away)?;
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_string();
        Ok(Target { namespace: namespace.into(), pod: name.into(), uid, object, handler })
    }

    /// The container asked for, or the pod's default: its annotation, else its only or first one.
    pub fn container(&self, asked: Option<&str>) -> Result<String, Status> {
        let spec = &self.object["spec"];
        let names = |list: &str| -> Vec<String> {
            let items = spec[list].as_array().map(Vec::as_slice).unwrap_or_default();
            items.iter().filter_map(|c| c["name"].as_str()).map(String::from).collect()
        };
        let (plain, init) = (names("containers"), names("initContainers"));
        let known = |name: &str| plain.iter().chain(&init).chain(&names("ephemeralContainers")).any(|n| n == name);
        if let Some(name) = asked {
            let missing = || Status::bad_request(format!("container {name} is not valid for pod {}", self.pod));
            return known(name).then(|| name.to_string()).ok_or_else(missing);
        }
        let default = self.object["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
        if let Some(name) = default.filter(|name| known(name)) {
            return Ok(name.to_string());
        }
        match (plain.as_slice(), init.as_slice()) {
            ([], _) => Err(Status::bad_request(format!("pod {} has no containers", self.pod))),
            ([only], _) => Ok(only.clone()),
            (many, init) => {
                let mut message = format!("a container name must be specified for pod {}, choose one of: [{}]", self.pod, many.join(" "));
                if !init.is_empty() {
                    message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                Err(Status::bad_request(message))
            }
        }
    }
}
