//! Variables about Services: `WEB_SERVICE_HOST`, and the older link style `WEB_PORT_80_TCP_ADDR`.
//!
//! Source: "Environment variables" of Kubernetes' Service documentation.

use std::collections::BTreeMap;

use client::Snapshot;
use k8s_openapi::api::core::v1::{Service, ServicePort};

/// The API server's own always; those of Services in the pod's namespace with `enableServiceLinks`.
pub(super) fn variables(services: &Snapshot<Service>, namespace: &str, links: bool, host: &str, port: u16) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    if links {
        for service in services.in_namespace(namespace) {
            let spec = service.spec.clone().unwrap_or_default();
            let address = spec.cluster_ip.filter(|ip| !ip.is_empty() && ip != "None");
            if let Some(address) = address {
                let name = service.metadata.name.as_deref().unwrap_or_default();
                add(&mut all, name, &address, &spec.ports.unwrap_or_default());
            }
        }
    }
    let https = ServicePort { name: Some("https".into()), port: port.into(), ..ServicePort::default() };
    add(&mut all, "kubernetes", host, &[https]);
    all
}

fn add(all: &mut BTreeMap<String, String>, service: &str, address: &str, ports: &[ServicePort]) {
    let name = upper(service);
    let Some(first) = ports.first() else { return };
    let mut set = |key: String, value: String| {
        all.insert(key, value);
    };
    set(format!("{name}_SERVICE_HOST"), address.to_string());
    set(format!("{name}_SERVICE_PORT"), first.port.to_string());
    for (i, port) in ports.iter().enumerate() {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            set(format!("{name}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string());
        }
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        let url = format!("{}://{}", protocol.to_lowercase(), join(address, port.port));
        if i == 0 {
            set(format!("{name}_PORT"), url.clone());
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
        set(prefix.clone(), url);
        set(format!("{prefix}_PROTO"), protocol.to_lowercase());
        set(format!("{prefix}_PORT"), port.port.to_string());
        set(format!("{prefix}_ADDR"), address.to_string());
    }
}

fn join(address: &str, port: i32) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ServiceSpec;

    fn service(namespace: &str, name: &str, ip: &str) -> Service {
        let ports = vec![ServicePort { name: Some("http".into()), port: 80, ..ServicePort::default() }];
        let mut s = Service {
            spec: Some(ServiceSpec { cluster_ip: Some(ip.into()), ports: Some(ports), ..Default::default() }),
            ..Default::default()
        };
        s.metadata.namespace = Some(namespace.into());
        s.metadata.name = Some(name.into());
        s
    }

    #[test]
    fn services_of_the_namespace_and_always_the_api_server() {
        let services =
            Snapshot::of([service("a", "my-web", "10.0.0.5"), service("a", "headless", "None"), service("b", "other", "10.0.0.6")]);
        let vars = variables(&services, "a", true, "10.43.0.1", 443);
        for (name, value) in [
            ("MY_WEB_SERVICE_HOST", "10.0.0.5"),
            ("MY_WEB_SERVICE_PORT", "80"),
            ("MY_WEB_SERVICE_PORT_HTTP", "80"),
            ("MY_WEB_PORT", "tcp://10.0.0.5:80"),
            ("MY_WEB_PORT_80_TCP_PROTO", "tcp"),
            ("MY_WEB_PORT_80_TCP_ADDR", "10.0.0.5"),
            ("KUBERNETES_SERVICE_HOST", "10.43.0.1"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
            ("KUBERNETES_PORT_443_TCP", "tcp://10.43.0.1:443"),
        ] {
            assert_eq!(vars.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!vars.keys().any(|k| k.starts_with("OTHER") || k.starts_with("HEADLESS")));
        assert!(variables(&services, "a", false, "x", 1).keys().all(|k| k.starts_with("KUBERNETES_")));
    }
}
