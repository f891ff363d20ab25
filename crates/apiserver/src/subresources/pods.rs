//! `pods/binding` (the scheduler's write) and `pods/eviction`.

use api::{Cause, Status, Value};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use serde_json::json;

use crate::generic::{Change, Cx, DeleteOptions, Operation, remove, write};
use crate::respond::Body;
use crate::server::success;

/// Gives a pod its node, once. Also served as `POST /bindings`, where the body names the pod.
pub async fn binding(cx: &mut Cx<'_>, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Status> {
    let manager = cx.field_manager(headers)?;
    let dry_run = cx.query.dry_run()?;
    let binding = api::decode::decode(crate::negotiate::media_type(headers), &body)?.object;
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_string();
    let kind = binding["target"]["kind"].as_str().unwrap_or("Node");
    if node.is_empty() || !matches!(kind, "" | "Node") {
        let cause = if node.is_empty() {
            Cause::required("target.name", "")
        } else {
            Cause::not_supported("target.kind", &kind.into(), &["Node", "<empty>"])
        };
        return Err(Status::invalid("", "Binding", &cx.info.name, vec![cause]));
    }
    let mut info = cx.info.clone();
    if info.name.is_empty() {
        info.name = binding["metadata"]["name"].as_str().unwrap_or_default().to_string();
    }
    let pods = api::table::by_path("", "v1", "pods").ok_or_else(crate::request::not_found)?;
    let mut on_pod = Cx { info: &info, row: pods, warnings: Vec::new(), who: cx.who.clone(), ..*cx };
    let change = Change { manager: &manager, operation: Operation::Update, subresource: "binding", dry_run };
    let now = cx.now();
    write(&mut on_pod, &change, |cx, pod| {
        let name = &cx.info.name;
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            return Err(cx.conflict(&format!("pod {name} is being deleted, cannot be assigned to a host")));
        }
        if let Some(node) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
            return Err(cx.conflict(&format!("pod {name} is already assigned to node {node:?}")));
        }
        let mut bound = pod.clone();
        // A binding of another pod of this name, or of an older state of it, is stale.
        for field in ["uid", "resourceVersion"] {
            if let Some(given) = binding["metadata"][field].as_str() {
                bound["metadata"][field] = given.into();
            }
        }
        for field in ["annotations", "labels"] {
            for (key, value) in binding["metadata"][field].as_object().into_iter().flatten() {
                bound["metadata"][field][key] = value.clone();
            }
        }
        bound["spec"]["nodeName"] = node.as_str().into();
        condition(&mut bound, json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now }));
        Ok(bound)
    })
    .await?;
    Ok(success(StatusCode::CREATED, Value::Null))
}

/// Sets a condition, replacing the one of its type.
fn condition(pod: &mut Value, condition: Value) {
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    if let Value::Array(all) = &mut pod["status"]["conditions"] {
        all.retain(|c| c["type"] != condition["type"]);
        all.push(condition);
    }
}

/// Deletes the pod as its eviction says. There are no disruption budgets yet that could forbid it.
pub async fn eviction(cx: &mut Cx<'_>, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Status> {
    let eviction = api::decode::decode(crate::negotiate::media_type(headers), &body)?.object;
    let name = eviction["metadata"]["name"].as_str().unwrap_or_default();
    if !name.is_empty() && name != cx.info.name {
        return Err(Status::bad_request(format!("name in URL does not match name in Eviction object: {} != {name}", cx.info.name)));
    }
    let mut options = DeleteOptions::parse(&eviction["deleteOptions"])?;
    options.dry_run |= cx.query.dry_run()?;
    let key = cx.key();
    remove(cx, &key, &options).await?;
    Ok(success(StatusCode::CREATED, Value::Null))
}
