//! An Ingress without a class gets the default one.

use api::{Status, Value};

use super::Admission;

const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
const LEGACY: &str = "kubernetes.io/ingress.class";

pub fn default_class(cx: &Admission, object: &mut Value) -> Result<(), Status> {
    if cx.old.is_some() || object["spec"]["ingressClassName"].is_string() || object["metadata"]["annotations"][LEGACY].is_string() {
        return Ok(());
    }
    let classes = cx.server.state.values("networking.k8s.io/ingressclasses//");
    // The newest of several defaults, as upstream chooses; equal ages by name.
    let default = classes.iter().filter(|c| c["metadata"]["annotations"][DEFAULT] == "true").max_by(|a, b| {
        let age = |v: &Value| v["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_string();
        let name = |v: &Value| v["metadata"]["name"].as_str().unwrap_or_default().to_string();
        age(a).cmp(&age(b)).then(name(b).cmp(&name(a)))
    });
    if let Some(class) = default {
        object["spec"]["ingressClassName"] = class["metadata"]["name"].clone();
    }
    Ok(())
}
