//! Pods and everything in them, also in templates.

use serde_json::{Value, json};

use super::{absent, each, ensure, set, within};

const FILE_MODE: i64 = 0o644;
const VOLUME_SOURCES_WITH_MODE: [&str; 4] = ["secret", "configMap", "downwardAPI", "projected"];
const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// A Pod, with what only running pods get, not templates.
pub fn pod(object: &mut Value) {
    let Some(spec) = ensure(object, "spec") else { return };
    set(spec, "enableServiceLinks", true);
    pod_spec(spec);
    let host_network = spec["hostNetwork"] == true;
    for list in ["initContainers", "containers"] {
        for container in each(spec, list) {
            requests_from_limits(container);
            if host_network {
                each(container, "ports").for_each(host_port);
            }
        }
    }
}

/// What is limited and not requested is requested in full.
fn requests_from_limits(container: &mut Value) {
    let Some(resources) = within(container, "resources") else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).filter(|l| !l.is_empty()).cloned() else { return };
    let Some(requests) = ensure(resources, "requests").and_then(Value::as_object_mut) else { return };
    for (name, amount) in limits {
        requests.entry(name).or_insert(amount);
    }
}

fn host_port(port: &mut Value) {
    let number = port["containerPort"].clone();
    if absent(port, "hostPort") || port["hostPort"] == 0 {
        port["hostPort"] = number;
    }
}

/// The `spec.template` of a workload.
pub fn template(workload_spec: &mut Value) {
    if let Some(spec) = within(workload_spec, "template").and_then(|t| ensure(t, "spec")) {
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut Value) {
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "restartPolicy", "Always");
    set(spec, "schedulerName", "default-scheduler");
    set(spec, "terminationGracePeriodSeconds", 30);
    ensure(spec, "securityContext");
    service_account(spec);
    each(spec, "volumes").for_each(volume);
    for list in CONTAINER_LISTS {
        each(spec, list).for_each(container);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are always told.
fn service_account(spec: &mut Value) {
    let name = ["serviceAccountName", "serviceAccount"].iter().find_map(|f| spec[*f].as_str().filter(|n| !n.is_empty()));
    if let Some(name) = name.map(String::from) {
        spec["serviceAccount"] = name.as_str().into();
        spec["serviceAccountName"] = name.into();
    }
}

fn volume(volume: &mut Value) {
    let Some(map) = volume.as_object_mut() else { return };
    if map.keys().all(|k| k == "name") {
        map.insert("emptyDir".into(), json!({}));
    }
    for source in VOLUME_SOURCES_WITH_MODE {
        if let Some(source) = within(volume, source) {
            set(source, "defaultMode", FILE_MODE);
            each(source, "items").for_each(field_ref);
            for projection in each(source, "sources") {
                if let Some(api) = within(projection, "downwardAPI") {
                    each(api, "items").for_each(field_ref);
                }
                if let Some(token) = within(projection, "serviceAccountToken") {
                    set(token, "expirationSeconds", 3600);
                }
            }
        }
    }
    if let Some(path) = within(volume, "hostPath") {
        set(path, "type", "");
    }
    if let Some(image) = within(volume, "image") {
        let policy = pull_policy(image["reference"].as_str().unwrap_or_default());
        set(image, "pullPolicy", policy);
    }
}

fn field_ref(holder: &mut Value) {
    if let Some(reference) = within(holder, "fieldRef") {
        set(reference, "apiVersion", "v1");
    }
}

fn container(container: &mut Value) {
    let policy = pull_policy(container["image"].as_str().unwrap_or_default());
    set(container, "imagePullPolicy", policy);
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    ensure(container, "resources");
    each(container, "ports").for_each(|p| set(p, "protocol", "TCP"));
    for env in each(container, "env") {
        if let Some(from) = within(env, "valueFrom") {
            field_ref(from);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = within(container, name) {
            probe(p);
        }
    }
    if let Some(lifecycle) = within(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = within(lifecycle, hook) {
                http_get(hook);
            }
        }
    }
}

fn probe(probe: &mut Value) {
    for (key, value) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)] {
        // A zero is what Go sends for nothing.
        if absent(probe, key) || probe[key] == 0 {
            probe[key] = value.into();
        }
    }
    http_get(probe);
    if let Some(grpc) = within(probe, "grpc") {
        set(grpc, "service", "");
    }
}

fn http_get(handler: &mut Value) {
    if let Some(http) = within(handler, "httpGet") {
        set(http, "path", "/");
        set(http, "scheme", "HTTP");
    }
}

/// `Always` for `latest` and for a reference without tag and digest, else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(n, _)| (n, true));
    // A colon before a slash is a registry's port.
    let tag = name.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    match tag {
        Some("latest") => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}
