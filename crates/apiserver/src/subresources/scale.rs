//! `/scale`: the replicas of a Deployment or ReplicaSet as `autoscaling/v1 Scale`.

use api::selector::Selector;
use api::{Cause, Status, Value};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use serde_json::json;

use crate::generic::{Change, Cx, Operation, write};
use crate::respond::{self, Body};

pub async fn serve(cx: &mut Cx<'_>, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Status> {
    match cx.info.verb.as_str() {
        "get" => {
            let parent = cx.value_of(&*cx.existing()?)?;
            show(cx, &parent)
        }
        "update" => {
            let manager = cx.field_manager(headers)?;
            let dry_run = cx.query.dry_run()?;
            let decoded = api::decode::decode(crate::negotiate::media_type(headers), &body)?;
            let change = Change { manager: &manager, operation: Operation::Update, subresource: "scale", dry_run };
            patch(cx, &change, |_, _| Ok(decoded.object.clone())).await
        }
        "patch" => crate::generic::patch(cx, headers, body).await,
        _ => Err(crate::request::not_found()),
    }
}

/// Writes what `propose` makes of the present Scale back into the parent.
pub async fn patch(
    cx: &mut Cx<'_>,
    change: &Change<'_>,
    mut propose: impl FnMut(&mut Cx<'_>, &Value) -> Result<Value, Status>,
) -> Result<Response<Body>, Status> {
    let written = write(cx, change, |cx, parent| {
        let proposed = propose(cx, &of(parent))?;
        let name = cx.info.name.clone();
        let invalid = |cause| Status::invalid("autoscaling", "Scale", &name, vec![cause]);
        let replicas = match &proposed["spec"]["replicas"] {
            Value::Null => 0,
            Value::Number(n) if n.is_i64() || n.is_u64() => n.as_i64().unwrap_or(i64::MAX),
            other => return Err(invalid(Cause::type_invalid("spec.replicas", other, "must be an integer"))),
        };
        if !(0..=i64::from(i32::MAX)).contains(&replicas) {
            return Err(invalid(Cause::invalid("spec.replicas", &replicas.into(), "must be greater than or equal to 0")));
        }
        let mut parent = parent.clone();
        parent["spec"]["replicas"] = replicas.into();
        for field in ["resourceVersion", "uid"] {
            if let Some(given) = proposed["metadata"][field].as_str() {
                parent["metadata"][field] = given.into();
            }
        }
        Ok(parent)
    })
    .await?;
    show(cx, &written)
}

fn show(cx: &Cx, parent: &Value) -> Result<Response<Body>, Status> {
    Ok(respond::document(StatusCode::OK, &cx.format, vec![Bytes::from(of(parent).to_string())]))
}

fn of(parent: &Value) -> Value {
    let selector = Selector::from_value(&parent["spec"]["selector"]).map(|s| s.to_string()).unwrap_or_default();
    let mut metadata = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !parent["metadata"][field].is_null() {
            metadata.insert(field.into(), parent["metadata"][field].clone());
        }
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": { "replicas": parent["spec"]["replicas"].as_i64().unwrap_or(0) },
        "status": { "replicas": parent["status"]["replicas"].as_i64().unwrap_or(0), "selector": selector },
    })
}
