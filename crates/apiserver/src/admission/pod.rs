//! What a new pod gets from its namespace and cluster: account and token, tolerations, priority, runtime class, QoS.

use api::quantity::Quantity;
use api::{Status, Value};
use serde_json::json;

use super::{Admission, containers_mut, items, list};

/// Where containers find their account's token, the cluster's CA and their namespace.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// An hour and seven seconds: what tells a projected token of admission from one that was asked for.
const TOKEN_SECONDS: i64 = 3607;

fn name_of(pod: &Value) -> &str {
    let meta = &pod["metadata"];
    meta["name"].as_str().or_else(|| meta["generateName"].as_str()).unwrap_or_default()
}

fn account_of(pod: &Value) -> String {
    let spec = &pod["spec"];
    let given = [&spec["serviceAccountName"], &spec["serviceAccount"]].into_iter().filter_map(|v| v.as_str()).find(|s| !s.is_empty());
    given.unwrap_or("default").to_string()
}

/// The `default` account of a namespace is made by a controller soon after the namespace; a pod that comes sooner
/// would be refused for no reason its author can see, so it is made here.
pub async fn ensure_account(cx: &Admission<'_>, pod: &Value) -> Result<(), Status> {
    let account = account_of(pod);
    if account != "default" || cx.server.state.get(&format!("core/serviceaccounts/{}/default", cx.namespace)).is_some() {
        return Ok(());
    }
    let body = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    let path = format!("/api/v1/namespaces/{}/serviceaccounts", cx.namespace);
    match cx.server.ask(http::Method::POST, &path, Some(&body)).await {
        Err(status) if !status.is_already_exists() => Err(status),
        _ => Ok(()),
    }
}

pub fn service_account(cx: &Admission, pod: &mut Value) -> Result<(), Status> {
    if cx.old.is_some() || pod["metadata"]["annotations"][MIRROR].is_string() {
        return Ok(());
    }
    let account = account_of(pod);
    let key = format!("core/serviceaccounts/{}/{account}", cx.namespace);
    let Some(found) = cx.server.state.value(&key) else {
        let why = format!("error looking up service account {}/{account}: serviceaccount {account:?} not found", cx.namespace);
        return Err(Status::forbidden("", "pods", name_of(pod), &why));
    };
    let spec = &mut pod["spec"];
    spec["serviceAccountName"] = account.as_str().into();
    spec["serviceAccount"] = account.as_str().into();
    if items(spec, "imagePullSecrets").is_empty() && !items(&found, "imagePullSecrets").is_empty() {
        spec["imagePullSecrets"] = found["imagePullSecrets"].clone();
    }
    let wanted = spec["automountServiceAccountToken"].as_bool().or_else(|| found["automountServiceAccountToken"].as_bool());
    if wanted != Some(false) {
        mount_token(cx, spec);
    }
    Ok(())
}

fn mount_token(cx: &Admission, spec: &mut Value) {
    let present: Vec<String> = items(spec, "volumes").iter().filter_map(|v| v["name"].as_str()).map(String::from).collect();
    let existing = present.iter().find(|n| n.starts_with("kube-api-access-")).cloned();
    let volume = existing.clone().unwrap_or_else(|| {
        loop {
            let name = format!("kube-api-access-{}", cx.server.config.ids.suffix(5));
            if !present.contains(&name) {
                break name;
            }
        }
    });
    let mut used = false;
    for container in containers_mut(spec) {
        if items(container, "volumeMounts").iter().any(|m| m["mountPath"] == TOKEN_PATH) {
            continue;
        }
        used = true;
        list(container, "volumeMounts").push(json!({ "name": volume, "readOnly": true, "mountPath": TOKEN_PATH }));
    }
    if used && existing.is_none() {
        let field = json!({ "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } });
        let sources = json!([
            { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
            { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
            { "downwardAPI": { "items": [field] } },
        ]);
        list(spec, "volumes").push(json!({ "name": volume, "projected": { "defaultMode": 420, "sources": sources } }));
    }
}

/// Pods leave a node that is not ready or unreachable after a while, unless they say otherwise.
pub fn tolerations(cx: &Admission, pod: &mut Value) -> Result<(), Status> {
    if cx.old.is_some() {
        return Ok(());
    }
    let seconds = cx.server.config.default_toleration_seconds;
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covered = items(&pod["spec"], "tolerations").iter().any(|t| {
            let same_key = t["key"] == key || t["key"].as_str().unwrap_or_default().is_empty();
            same_key && matches!(t["effect"].as_str().unwrap_or_default(), "" | "NoExecute")
        });
        if !covered {
            let toleration = json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds });
            list(&mut pod["spec"], "tolerations").push(toleration);
        }
    }
    Ok(())
}

pub fn priority(cx: &Admission, pod: &mut Value) -> Result<(), Status> {
    if cx.old.is_some() {
        return Ok(());
    }
    let state = &cx.server.state;
    let asked = pod["spec"]["priorityClassName"].as_str().filter(|n| !n.is_empty()).map(String::from);
    let class = match &asked {
        Some(name) => {
            let found = state.value(&format!("scheduling.k8s.io/priorityclasses//{name}"));
            let why = format!("no PriorityClass with name {name} was found");
            Some(found.ok_or_else(|| Status::forbidden("", "pods", name_of(pod), &why))?)
        }
        None => {
            let classes = state.values("scheduling.k8s.io/priorityclasses//");
            classes.into_iter().filter(|c| c["globalDefault"] == true).min_by_key(|c| c["value"].as_i64())
        }
    };
    let value = class.as_ref().and_then(|c| c["value"].as_i64()).unwrap_or(0);
    if let Some(given) = pod["spec"]["priority"].as_i64()
        && given != value
    {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(Status::forbidden("", "pods", name_of(pod), &why));
    }
    let preemption = class.as_ref().and_then(|c| c["preemptionPolicy"].as_str()).unwrap_or("PreemptLowerPriority").to_string();
    pod["spec"]["priority"] = value.into();
    pod["spec"]["preemptionPolicy"] = preemption.into();
    if let Some(class) = class {
        pod["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
    }
    Ok(())
}

/// The named runtime class must exist; its overhead and its choice of nodes become the pod's.
pub fn runtime_class(cx: &Admission, pod: &mut Value) -> Result<(), Status> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str().map(String::from).filter(|_| cx.old.is_none()) else { return Ok(()) };
    let Some(class) = cx.server.state.value(&format!("node.k8s.io/runtimeclasses//{name}")) else {
        let why = format!("pod rejected: RuntimeClass {name:?} not found");
        return Err(Status::forbidden("", "pods", name_of(pod), &why));
    };
    let overhead = &class["overhead"]["podFixed"];
    if overhead.is_object() {
        let given = &pod["spec"]["overhead"];
        if given.is_object() && given != overhead {
            let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
            return Err(Status::forbidden("", "pods", name_of(pod), why));
        }
        pod["spec"]["overhead"] = overhead.clone();
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let place = &mut pod["spec"]["nodeSelector"][key];
        if place.is_string() && place != value {
            let why = format!(
                "pod rejected: conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {place}"
            );
            return Err(Status::forbidden("", "pods", name_of(pod), &why));
        }
        *place = value.clone();
    }
    for toleration in items(&class["scheduling"], "tolerations") {
        let have = list(&mut pod["spec"], "tolerations");
        if !have.contains(toleration) {
            have.push(toleration.clone());
        }
    }
    Ok(())
}

/// A pod begins as Pending, with its class of service.
pub fn begin(cx: &Admission, pod: &mut Value) -> Result<(), Status> {
    if cx.old.is_none() {
        pod["status"] = json!({ "phase": "Pending", "qosClass": qos_class(&pod["spec"]) });
    }
    Ok(())
}

/// `Guaranteed` when every container's CPU and memory limits equal its requests, `BestEffort` when none says anything.
pub fn qos_class(spec: &Value) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for list in ["initContainers", "containers"] {
        for container in items(spec, list) {
            let resources = &container["resources"];
            for resource in ["cpu", "memory"] {
                let amount = |kind: &str| Quantity::from_value(&resources[kind][resource]).ok().filter(|q| !q.is_zero());
                let (request, limit) = (amount("requests"), amount("limits"));
                any |= request.is_some() || limit.is_some();
                guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let full = json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "1000m", "memory": "1Gi" } });
        let half = json!({ "requests": { "cpu": "100m" } });
        let table = [
            (json!([{}]), "BestEffort"),
            (json!([{ "resources": full }]), "Guaranteed"),
            (json!([{ "resources": full }, {}]), "Burstable"),
            (json!([{ "resources": half }]), "Burstable"),
            (json!([{ "resources": { "limits": { "cpu": "1", "memory": "1Gi" } } }]), "Guaranteed"),
        ];
        for (containers, expect) in table {
            assert_eq!(qos_class(&json!({ "containers": containers })), expect, "{containers}");
        }
    }
}
