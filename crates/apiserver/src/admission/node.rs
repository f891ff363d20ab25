//! What an agent may write: its own Node and Lease, and the pods that are bound to it.

use api::{Status, Value};
use ports::Identity;

use crate::server::RowRef;

/// `object` is the state before the write, or of a new object the one proposed. RBAC has allowed the verb already.
pub fn check_agent(who: &Identity, row: RowRef, object: &Value) -> Result<(), Status> {
    let Some(agent) = who.username.strip_prefix("system:node:").filter(|_| who.groups.iter().any(|g| g == "system:nodes")) else {
        return Ok(());
    };
    let meta = &object["metadata"];
    let name = meta["name"].as_str().unwrap_or_default();
    let refuse = |why: String| Err(Status::forbidden(row.group, row.plural, name, &why));
    match (row.group, row.plural) {
        ("", "nodes") if name != agent => refuse(format!("node {agent:?} is not allowed to modify node {name:?}")),
        ("", "pods") if object["spec"]["nodeName"] != agent => {
            refuse(format!("node {agent:?} can only write pods with spec.nodeName set to itself"))
        }
        ("coordination.k8s.io", "leases") if meta["namespace"] == "kube-node-lease" && name != agent => {
            refuse(format!("can only access node lease with the same name as the requesting node, {agent:?}"))
        }
        _ => Ok(()),
    }
}
