//! LimitRange: defaults for what a container does not say, bounds for what it does.

use api::quantity::Quantity;
use api::{Status, Value};

use super::{Admission, containers_mut, items};

pub fn admit(cx: &Admission, pod: &mut Value) -> Result<(), Status> {
    if cx.old.is_some() {
        return Ok(());
    }
    let ranges = cx.server.state.values(&format!("core/limitranges/{}/", cx.namespace));
    let limits = || ranges.iter().flat_map(|r| items(&r["spec"], "limits")).filter(|l| l["type"] == "Container");
    if limits().next().is_none() {
        return Ok(());
    }
    for container in containers_mut(&mut pod["spec"]) {
        for limit in limits() {
            fill(container, "limits", &limit["default"]);
            fill(container, "requests", &limit["defaultRequest"]);
        }
        let given = container["resources"]["limits"].clone();
        fill(container, "requests", &given);
    }
    let mut why = Vec::new();
    for limit in limits() {
        for list in ["initContainers", "containers"] {
            for container in items(&pod["spec"], list) {
                bounds(limit, &container["resources"], &mut why);
            }
        }
    }
    if why.is_empty() {
        return Ok(());
    }
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let text = if why.len() == 1 { why.remove(0) } else { format!("[{}]", why.join(", ")) };
    Err(Status::forbidden("", "pods", name, &text))
}

fn fill(container: &mut Value, kind: &str, defaults: &Value) {
    for (resource, amount) in defaults.as_object().into_iter().flatten() {
        let place = &mut container["resources"][kind][resource];
        if place.is_null() {
            *place = amount.clone();
        }
    }
    // Indexing a missing path leaves a null behind.
    if container["resources"][kind].is_null()
        && let Some(map) = container["resources"].as_object_mut()
    {
        map.remove(kind);
    }
}

fn bounds(limit: &Value, resources: &Value, why: &mut Vec<String>) {
    let amount = |v: &Value| Quantity::from_value(v).ok();
    for (resource, min) in limit["min"].as_object().into_iter().flatten() {
        let Some(least) = amount(min) else { continue };
        match amount(&resources["requests"][resource]) {
            None => why.push(format!("minimum {resource} usage per Container is {least}.  No request is specified")),
            Some(request) if request < least => {
                why.push(format!("minimum {resource} usage per Container is {least}, but request is {request}"))
            }
            Some(_) => {}
        }
    }
    for (resource, max) in limit["max"].as_object().into_iter().flatten() {
        let Some(most) = amount(max) else { continue };
        match amount(&resources["limits"][resource]) {
            None => why.push(format!("maximum {resource} usage per Container is {most}.  No limit is specified")),
            Some(given) if given > most => why.push(format!("maximum {resource} usage per Container is {most}, but limit is {given}")),
            Some(_) => {}
        }
    }
}
