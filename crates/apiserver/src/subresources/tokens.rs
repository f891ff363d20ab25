//! `serviceaccounts/token`: tokens for accounts, bound to a pod where one is named.

use api::{Cause, Status, Value};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use serde_json::json;

use crate::generic::{Cx, show};
use crate::limits;
use crate::respond::Body;
use crate::token::{Bound, Grant};

pub async fn request(cx: &mut Cx<'_>, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Status> {
    let mut request = api::decode::decode(crate::negotiate::media_type(headers), &body)?.object;
    let account = cx.server.state.uid_of(&cx.key()).ok_or_else(|| cx.not_found())?;
    let spec = request["spec"].clone();
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(limits::TOKEN_SECONDS_DEFAULT);
    let invalid = |cause| Status::invalid("authentication.k8s.io", "TokenRequest", "", vec![cause]);
    if seconds < limits::TOKEN_SECONDS_MIN {
        return Err(invalid(Cause::invalid("spec.expirationSeconds", &seconds.into(), "may not specify a duration less than 10 minutes")));
    }
    if seconds > 1 << 32 {
        return Err(invalid(Cause::invalid(
            "spec.expirationSeconds",
            &seconds.into(),
            "may not specify a duration larger than 2^32 seconds",
        )));
    }
    let seconds = seconds.min(limits::TOKEN_SECONDS_MAX);
    let mut audiences: Vec<String> =
        spec["audiences"].as_array().map(Vec::as_slice).unwrap_or_default().iter().filter_map(|a| a.as_str()).map(String::from).collect();
    if audiences.is_empty() {
        audiences.push(cx.server.config.issuer.clone());
    }
    let bound = bound_to(cx, &spec["boundObjectRef"])?;
    let now_s = cx.server.config.clock.now().as_second();
    let grant = Grant {
        namespace: cx.info.namespace.clone(),
        account: cx.info.name.clone(),
        account_uid: account,
        bound,
        audiences: audiences.clone(),
        id: cx.server.config.ids.uid(),
        issued_s: now_s,
        expires_s: now_s + seconds,
    };
    let token = cx.server.config.token_key.sign(&cx.server.config.issuer, &grant).map_err(Status::internal)?;
    let expires = base::Timestamp::from_second(grant.expires_s).map_err(Status::internal)?;
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["metadata"] = json!({ "name": cx.info.name, "namespace": cx.info.namespace, "creationTimestamp": cx.now() });
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = seconds.into();
    request["status"] = json!({ "token": token, "expirationTimestamp": base::rfc3339(expires) });
    show(cx, StatusCode::CREATED, &request)
}

/// The pod or secret that ends the token; it must be there, and a pod must run as this account. A node's agent gets
/// tokens only for pods of its node.
fn bound_to(cx: &Cx, reference: &Value) -> Result<Vec<Bound>, Status> {
    let agent = cx.who.username.strip_prefix("system:node:").filter(|_| cx.who.groups.iter().any(|g| g == "system:nodes"));
    if !reference.is_object() {
        if agent.is_some() {
            let why = "node requested token not bound to a pod";
            return Err(Status::forbidden("", "serviceaccounts", &cx.info.name, why));
        }
        return Ok(Vec::new());
    }
    let name = reference["name"].as_str().unwrap_or_default().to_string();
    let namespace = &cx.info.namespace;
    let (kind, plural) = match reference["kind"].as_str() {
        Some("Pod") => ("pod", "pods"),
        Some("Secret") => ("secret", "secrets"),
        other => return Err(Status::bad_request(format!("cannot bind token for object of type {:?}", other.unwrap_or_default()))),
    };
    let found = cx.server.state.value(&format!("core/{plural}/{namespace}/{name}")).ok_or_else(|| Status::not_found("", plural, &name))?;
    let uid = found["metadata"]["uid"].as_str().unwrap_or_default().to_string();
    let wanted = reference["uid"].as_str().unwrap_or_default();
    if !wanted.is_empty() && wanted != uid {
        let why = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict("", plural, &name, &why));
    }
    let mut bound = vec![Bound { kind, name: name.clone(), uid }];
    if kind == "pod" {
        if found["spec"]["serviceAccountName"] != cx.info.name.as_str() {
            let why = format!("cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.", cx.info.name);
            return Err(Status::bad_request(why));
        }
        let node = found["spec"]["nodeName"].as_str().unwrap_or_default();
        if agent.is_some_and(|agent| agent != node) {
            let why = "node requested token bound to a pod scheduled on a different node";
            return Err(Status::forbidden("", "serviceaccounts", &cx.info.name, why));
        }
        if let Some(uid) = cx.server.state.uid_of(&format!("core/nodes//{node}")).filter(|_| !node.is_empty()) {
            bound.push(Bound { kind: "node", name: node.into(), uid });
        }
    }
    Ok(bound)
}
