//! A container's environment: `envFrom`, `env` with its sources, Service variables, and what the image brings.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container as Spec, EnvVarSource, Pod, ResourceFieldSelector};

use super::{SpecError, expand, services};
use crate::images::Image;
use crate::lookup::LookupError;
use crate::pod::PodCx;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What fields of a pod may refer to beyond the pod.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields {
    pub pod_ips: Vec<String>,
    pub host_ip: String,
    pub node_cpu_millis: u64,
    pub node_memory_bytes: u64,
    pub node_ephemeral_bytes: u64,
}

impl Fields {
    pub fn of(cx: &PodCx) -> Self {
        Self {
            pod_ips: cx.addresses.iter().map(ToString::to_string).collect(),
            host_ip: cx.shared.node_ip.to_string(),
            node_cpu_millis: cx.shared.allocatable.cpu_millis,
            node_memory_bytes: cx.shared.allocatable.memory_bytes,
            node_ephemeral_bytes: cx.shared.allocatable.ephemeral_bytes,
        }
    }
}

/// `env` and `envFrom` with Service variables, in order; what comes later under one name has replaced what came before.
pub(super) async fn variables(cx: &PodCx, spec: &Spec) -> Result<Vec<(String, String)>, SpecError> {
    let links = cx.pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let (host, port) = &cx.shared.config.kubernetes_service;
    let services = services::variables(&cx.shared.services.snapshot(), cx.namespace(), links, host, *port);
    let mut out = Ordered::default();
    for source in spec.env_from.iter().flatten() {
        let prefix = source.prefix.clone().unwrap_or_default();
        for (key, value) in env_from(cx, source).await? {
            out.set(format!("{prefix}{key}"), value);
        }
    }
    let fields = Fields::of(cx);
    for variable in spec.env.iter().flatten() {
        let value = match &variable.value_from {
            None => {
                let known = |name: &str| out.get(name).or_else(|| services.get(name)).cloned();
                expand_with(variable.value.as_deref().unwrap_or_default(), &known)
            }
            Some(source) => match value_from(cx, spec, source, &fields).await? {
                Some(value) => value,
                None => continue,
            },
        };
        out.set(variable.name.clone(), value);
    }
    for (name, value) in services {
        if out.get(&name).is_none() {
            out.set(name, value);
        }
    }
    Ok(out.0)
}

/// What the image sets, unless the container does; then `HOSTNAME` and a `PATH`.
pub(super) fn with_image(variables: Vec<(String, String)>, image: &Image, hostname: &str) -> Vec<(String, String)> {
    let mut out = Ordered::default();
    out.set("PATH".into(), DEFAULT_PATH.into());
    out.set("HOSTNAME".into(), hostname.into());
    let image = image.env.iter().map(|e| e.split_once('=').unwrap_or((e, ""))).map(|(n, v)| (n.to_string(), v.to_string()));
    for (name, value) in image.chain(variables) {
        out.set(name, value);
    }
    out.0
}

#[derive(Default)]
struct Ordered(Vec<(String, String)>);

impl Ordered {
    fn get(&self, name: &str) -> Option<&String> {
        self.0.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some(slot) => slot.1 = value,
            None => self.0.push((name, value)),
        }
    }
}

/// [`expand`] over names that are looked up as they come.
fn expand_with(text: &str, known: &dyn Fn(&str) -> Option<String>) -> String {
    let mut map = BTreeMap::new();
    for part in text.split("$(").skip(1) {
        if let Some((name, _)) = part.split_once(')')
            && let Some(value) = known(name)
        {
            map.insert(name.to_string(), value);
        }
    }
    expand(text, &map)
}

/// All keys of a ConfigMap or Secret that are names of variables.
async fn env_from(cx: &PodCx, source: &k8s_openapi::api::core::v1::EnvFromSource) -> Result<Vec<(String, String)>, SpecError> {
    let (pairs, kind, name): (Vec<(String, String)>, _, _) = if let Some(map) = &source.config_map_ref {
        let found = optional(cx.shared.lookup.config_map(cx.namespace(), &map.name).await, map.optional)?;
        (found.and_then(|m| m.data).unwrap_or_default().into_iter().collect(), "configmap", &map.name)
    } else if let Some(secret) = &source.secret_ref {
        let found = optional(cx.shared.lookup.secret(cx.namespace(), &secret.name).await, secret.optional)?;
        let data = found.and_then(|s| s.data).unwrap_or_default();
        (data.into_iter().map(|(k, v)| (k, String::from_utf8_lossy(&v.0).into_owned())).collect(), "secret", &secret.name)
    } else {
        return Ok(Vec::new());
    };
    let (good, bad): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(key, _)| is_variable_name(key));
    if !bad.is_empty() {
        let keys = bad.into_iter().map(|(k, _)| k).collect::<Vec<_>>().join(", ");
        let message = format!(
            "Keys [{keys}] from the EnvFrom {kind} {}/{name} were skipped since they are considered invalid environment variable names.",
            cx.namespace()
        );
        cx.shared.recorder.warning(&cx.whole(), "InvalidEnvironmentVariableNames", message);
    }
    Ok(good)
}

/// Printable ASCII without `=` (relaxed environment variable validation, as of v1.34; a superset of the older rule).
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

fn optional<T>(found: Result<T, LookupError>, may_miss: Option<bool>) -> Result<Option<T>, SpecError> {
    match found {
        Ok(object) => Ok(Some(object)),
        Err(LookupError::NotFound { .. }) if may_miss == Some(true) => Ok(None),
        Err(e) => Err(SpecError::Config(e.to_string())),
    }
}

async fn value_from(cx: &PodCx, spec: &Spec, source: &EnvVarSource, fields: &Fields) -> Result<Option<String>, SpecError> {
    let namespace = cx.namespace();
    if let Some(key) = &source.config_map_key_ref {
        let Some(map) = optional(cx.shared.lookup.config_map(namespace, &key.name).await, key.optional)? else { return Ok(None) };
        return match map.data.unwrap_or_default().remove(&key.key) {
            None if key.optional != Some(true) => {
                Err(SpecError::Config(format!("couldn't find key {} in ConfigMap {namespace}/{}", key.key, key.name)))
            }
            value => Ok(value),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let Some(secret) = optional(cx.shared.lookup.secret(namespace, &key.name).await, key.optional)? else { return Ok(None) };
        return match secret.data.unwrap_or_default().remove(&key.key) {
            None if key.optional != Some(true) => {
                Err(SpecError::Config(format!("couldn't find key {} in Secret {namespace}/{}", key.key, key.name)))
            }
            value => Ok(value.map(|v| String::from_utf8_lossy(&v.0).into_owned())),
        };
    }
    if let Some(selector) = &source.field_ref {
        return field(&cx.pod, &selector.field_path, fields).map(Some).map_err(SpecError::Config);
    }
    if let Some(selector) = &source.resource_field_ref {
        let container = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
            Some(name) => cx.spec(name).ok_or_else(|| SpecError::Config(format!("container {name} not found")))?,
            None => spec,
        };
        return resource(container, selector, fields).map(Some).map_err(SpecError::Config);
    }
    Ok(Some(String::new()))
}

/// `metadata.labels['app']`, `status.podIP` …: the downward API's fields.
pub(crate) fn field(pod: &Pod, path: &str, fields: &Fields) -> Result<String, String> {
    let meta = &pod.metadata;
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let spec = pod.spec.as_ref();
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => spec.map(|s| text(&s.node_name)).unwrap_or_default(),
        "spec.serviceAccountName" => spec.map(|s| text(&s.service_account_name)).unwrap_or_default(),
        "status.hostIP" | "status.hostIPs" => fields.host_ip.clone(),
        "status.podIP" => fields.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => fields.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `key="value"` a line, in the order of keys.
fn lines(map: &Option<BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
    lines.join("\n")
}

/// `limits.cpu` … in units of the divisor, rounded up. A limit that is not set is what the node can give.
pub(crate) fn resource(container: &Spec, selector: &ResourceFieldSelector, fields: &Fields) -> Result<String, String> {
    let (side, name) = selector.resource.split_once('.').ok_or_else(|| format!("unsupported resource: {}", selector.resource))?;
    let resources = container.resources.as_ref();
    let amount = match side {
        "limits" => super::limit(resources, name),
        "requests" => super::request(resources, name),
        _ => return Err(format!("unsupported resource: {}", selector.resource)),
    };
    let amount = amount.filter(|q| !q.is_zero()).unwrap_or_else(|| match (side, name) {
        ("limits", "cpu") => api::quantity::Quantity::from_millis(fields.node_cpu_millis as i64),
        ("limits", "memory") => api::quantity::Quantity::from_bytes(fields.node_memory_bytes),
        ("limits", "ephemeral-storage") => api::quantity::Quantity::from_bytes(fields.node_ephemeral_bytes),
        _ => api::quantity::Quantity::ZERO,
    });
    let divisor = selector.divisor.as_ref().and_then(|d| d.0.parse::<api::quantity::Quantity>().ok()).filter(|d| !d.is_zero());
    let divisor = divisor.unwrap_or(api::quantity::Quantity::from_units(1)).as_nanos();
    let value = (amount.as_nanos() + divisor - 1) / divisor;
    Ok(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ResourceRequirements;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    #[test]
    fn fields_of_a_pod() {
        let mut pod = Pod::default();
        pod.metadata.name = Some("web".into());
        pod.metadata.labels = Some([("app".to_string(), "a\"b".to_string()), ("z".to_string(), "1".to_string())].into());
        let fields = Fields { pod_ips: vec!["10.0.0.1".into()], host_ip: "1.1.1.1".into(), ..Fields::default() };
        for (path, want) in [
            ("metadata.name", "web"),
            ("metadata.labels['app']", "a\"b"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "app=\"a\\\"b\"\nz=\"1\""),
            ("status.podIP", "10.0.0.1"),
            ("status.hostIP", "1.1.1.1"),
        ] {
            assert_eq!(field(&pod, path, &fields).unwrap(), want, "{path}");
        }
        assert!(field(&pod, "spec.containers", &fields).is_err());
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let q = |s: &str| Quantity(s.to_string());
        let limits = [("cpu".to_string(), q("1500m")), ("memory".to_string(), q("64Mi"))].into();
        let spec = Spec { resources: Some(ResourceRequirements { limits: Some(limits), ..Default::default() }), ..Spec::default() };
        let fields = Fields { node_ephemeral_bytes: 7, ..Fields::default() };
        for (resource_name, divisor, want) in [
            ("limits.cpu", "", "2"),
            ("limits.cpu", "1m", "1500"),
            ("requests.cpu", "1m", "1500"),
            ("limits.memory", "1Mi", "64"),
            ("limits.ephemeral-storage", "1", "7"),
            ("requests.ephemeral-storage", "1", "0"),
        ] {
            let divisor = (!divisor.is_empty()).then(|| q(divisor));
            let selector = ResourceFieldSelector { resource: resource_name.into(), divisor, container_name: None };
            assert_eq!(resource(&spec, &selector, &fields).unwrap(), want, "{resource_name}");
        }
    }
}
