//! Reviews: questions about identity and permission, answered from the request and never stored.

use std::collections::BTreeMap;

use api::{Status, Value};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use ports::{Attributes, Authorizer as _, Identity};
use serde_json::json;

use crate::generic::{Cx, show};
use crate::request::not_found;
use crate::respond::Body;

pub fn review(cx: &mut Cx, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Status> {
    let decoded = api::decode::decode(crate::negotiate::media_type(headers), &body)?;
    let mut review = decoded.object;
    cx.check_kind(&mut review)?;
    let strictness = cx.strictness()?;
    cx.check(&mut review, strictness, &decoded.duplicates)?;
    let spec = review["spec"].clone();
    let causes = (cx.row.hooks.validate)(&review, None);
    // Names are not asked of a review; everything else that is wrong is told.
    let causes: Vec<_> = causes.into_iter().filter(|c| c.field != "metadata.name").collect();
    if !causes.is_empty() {
        return Err(Status::invalid(cx.row.group, cx.row.kind, "", causes));
    }
    review["status"] = match cx.row.plural {
        "selfsubjectreviews" => json!({ "userInfo": cx.who }),
        "selfsubjectaccessreviews" => access(cx, &cx.who, &spec)?,
        "selfsubjectrulesreviews" => rules(cx, &spec)?,
        "subjectaccessreviews" => access(cx, &subject(&spec)?, &spec)?,
        "localsubjectaccessreviews" => {
            if spec["resourceAttributes"]["namespace"] != cx.info.namespace.as_str() {
                return Err(Status::bad_request("spec.resourceAttributes.namespace must match metadata.namespace"));
            }
            access(cx, &subject(&spec)?, &spec)?
        }
        "tokenreviews" => token(cx, &spec),
        _ => return Err(not_found()),
    };
    review["metadata"]["creationTimestamp"] = Value::Null;
    show(cx, StatusCode::CREATED, &review)
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter().filter_map(|v| v.as_str()).map(String::from).collect()
}

/// Whom a SubjectAccessReview asks about: exactly the groups it names.
fn subject(spec: &Value) -> Result<Identity, Status> {
    let username = spec["user"].as_str().unwrap_or_default().to_string();
    let groups = strings(&spec["groups"]);
    if username.is_empty() && groups.is_empty() {
        return Err(Status::bad_request("spec.user: at least one of user or group must be specified"));
    }
    let extra: BTreeMap<String, Vec<String>> =
        spec["extra"].as_object().into_iter().flatten().map(|(k, v)| (k.to_lowercase(), strings(v))).collect();
    Ok(Identity { username, uid: spec["uid"].as_str().unwrap_or_default().into(), groups, extra })
}

fn access(cx: &Cx, who: &Identity, spec: &Value) -> Result<Value, Status> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |v: &Value, field: &str| v[field].as_str().unwrap_or_default().to_string();
    let what = match (resource.is_object(), path.is_object()) {
        (true, false) => Attributes {
            verb: text(resource, "verb"),
            group: text(resource, "group"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            path: String::new(),
        },
        (false, true) => Attributes { verb: text(path, "verb"), path: text(path, "path"), ..Attributes::default() },
        _ => return Err(Status::bad_request("exactly one of nonResourceAttributes or resourceAttributes must be specified")),
    };
    Ok(match cx.server.rbac.authorize(who, &what) {
        Ok(()) => json!({ "allowed": true, "reason": "RBAC: allowed" }),
        // The refusal's words name the asker; that no role says yes is all there is to tell.
        Err(_) => json!({ "allowed": false }),
    })
}

fn rules(cx: &Cx, spec: &Value) -> Result<Value, Status> {
    let namespace = spec["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let all = cx.server.rbac.rules_of(&cx.who, namespace);
    let (paths, resources): (Vec<_>, Vec<_>) = all.iter().partition(|r| !r.urls.is_empty());
    let show = |rules: Vec<&crate::authz::Rule>| rules.iter().map(|r| r.to_value()).collect::<Vec<_>>();
    Ok(json!({ "resourceRules": show(resources), "nonResourceRules": show(paths), "incomplete": false }))
}

fn token(cx: &Cx, spec: &Value) -> Value {
    let audiences = strings(&spec["audiences"]);
    let wanted = if audiences.is_empty() { vec![cx.server.config.issuer.clone()] } else { audiences };
    match cx.server.token_identity(spec["token"].as_str().unwrap_or_default(), &wanted) {
        Ok(who) => json!({ "authenticated": true, "user": who, "audiences": wanted }),
        Err(why) => json!({ "authenticated": false, "user": {}, "error": why }),
    }
}
