//! Ingresses, Services, EndpointSlices and Secrets in, the L7 router's tables out.
//!
//! Knows the Ingress API and our annotations. Does not match requests: the router compiles these tables into an index.
//! Two tables, because they change at different rates: [`Routes`] with every edit of an Ingress or a certificate,
//! [`Backends`] with every pod that comes or goes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

use k8s_openapi::api::core::v1::{Secret, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend, IngressClass, ServiceBackendPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};

use crate::objects::annotation;
use crate::services::{self, Protocol};
use crate::{Reason, Target};

/// The class that needs no IngressClass object to be ours.
pub const CLASS: &str = "staithe";
/// `spec.controller` of IngressClasses that are ours.
pub const CONTROLLER: &str = "staithe.dev/router";
const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
/// How classes were named before `spec.ingressClassName`; still in many manifests.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// How long until an answer must begin: `30s`, `1m30s`, `500ms`, or a number of seconds.
pub const TIMEOUT: &str = "staithe.dev/timeout";
/// How many other endpoints are tried when one cannot be connected to.
pub const RETRIES: &str = "staithe.dev/retries";
/// `"true"`: plain HTTP is answered with a redirect to HTTPS.
pub const REDIRECT_HTTPS: &str = "staithe.dev/redirect-https";
/// `http` (default), `h2c` or `https`: how endpoints are spoken to. A port's `appProtocol` says the same.
pub const BACKEND_PROTOCOL: &str = "staithe.dev/backend-protocol";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Routes {
    pub revision: u64,
    /// By lower-case host: exact, `*.example.org`, or empty for any.
    pub hosts: BTreeMap<String, Host>,
    /// For what no rule matches.
    pub default: Option<Route>,
    pub certificates: Vec<Certificate>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    pub paths: Vec<Path>,
    /// For what no path matches.
    pub default: Option<Route>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    pub path: String,
    /// Else by prefix, element by element.
    pub exact: bool,
    pub route: Route,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// `namespace/name` of the Ingress.
    pub ingress: String,
    /// A key of [`Backends`].
    pub backend: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    pub redirect_https: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// `namespace/name` of the Secret.
    pub secret: String,
    /// Server names it is for: those that the Ingress lists beside it, else the hosts of its rules.
    pub hosts: BTreeSet<String>,
    pub certificate_pem: String,
    pub key_pem: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backends {
    pub revision: u64,
    /// By `namespace/service:port`, and ` protocol` where it is not plain HTTP/1.1.
    pub backends: BTreeMap<String, Backend>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backend {
    /// `namespace/name`: what metrics are counted by.
    pub service: String,
    pub protocol: BackendProtocol,
    pub endpoints: BTreeSet<SocketAddrV4>,
    /// Why there is nobody, where it is not for lack of ready pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendProtocol {
    #[default]
    Http,
    /// HTTP/2 without TLS, as gRPC servers speak.
    H2c,
    /// TLS without verification: an endpoint's certificate cannot name a pod's address.
    Https,
}

impl BackendProtocol {
    fn parse(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "http" | "kubernetes.io/ws" | "ws" => Some(Self::Http),
            "h2c" | "kubernetes.io/h2c" | "grpc" => Some(Self::H2c),
            "https" | "kubernetes.io/wss" | "wss" => Some(Self::Https),
            _ => None,
        }
    }
}

pub struct Snapshot<'a> {
    pub ingresses: Vec<&'a Ingress>,
    pub classes: Vec<&'a IngressClass>,
    pub services: Vec<&'a Service>,
    pub slices: Vec<&'a EndpointSlice>,
    /// Those of type `kubernetes.io/tls`, at least.
    pub secrets: Vec<&'a Secret>,
    pub revision: u64,
}

/// Whether an Ingress is for this router.
pub fn is_ours(ingress: &Ingress, classes: &[&IngressClass]) -> bool {
    let spec_class = ingress.spec.as_ref().and_then(|s| s.ingress_class_name.as_deref());
    let by_controller = |c: &&&IngressClass| c.spec.as_ref().and_then(|s| s.controller.as_deref()) == Some(CONTROLLER);
    match spec_class.or_else(|| annotation(&ingress.metadata, CLASS_ANNOTATION)) {
        Some(name) => match classes.iter().find(|c| c.metadata.name.as_deref() == Some(name)) {
            Some(class) => by_controller(&class),
            None => name == CLASS,
        },
        None => classes.iter().filter(by_controller).any(|c| annotation(&c.metadata, DEFAULT_CLASS) == Some("true")),
    }
}

pub fn plan(snapshot: &Snapshot) -> (Routes, Backends, Vec<Reason>) {
    let mut ingresses: Vec<&Ingress> = snapshot.ingresses.iter().filter(|i| is_ours(i, &snapshot.classes)).copied().collect();
    // Who was first keeps what both want.
    ingresses.sort_by_key(|i| (i.metadata.creation_timestamp.as_ref().map(|t| t.0), full_name(&i.metadata)));
    let named = |s: &&'_ Service| full_name(&s.metadata);
    let secret = |s: &&'_ Secret| full_name(&s.metadata);
    let mut planner = Planner {
        services: snapshot.services.iter().map(|s| (named(s), *s)).collect(),
        slices: services::by_service(snapshot.slices.iter().copied()),
        secrets: snapshot.secrets.iter().map(|s| (secret(s), *s)).collect(),
        routes: Routes { revision: snapshot.revision, ..Routes::default() },
        backends: Backends { revision: snapshot.revision, ..Backends::default() },
        certificates: BTreeMap::new(),
        seen: BTreeMap::new(),
        reasons: Vec::new(),
    };
    for ingress in ingresses {
        planner.add(ingress);
    }
    planner.routes.certificates = planner.certificates.into_values().collect();
    (planner.routes, planner.backends, planner.reasons)
}

fn full_name(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> String {
    format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

struct Planner<'a> {
    services: BTreeMap<String, &'a Service>,
    slices: services::SlicesOf<'a>,
    secrets: BTreeMap<String, &'a Secret>,
    routes: Routes,
    backends: Backends,
    certificates: BTreeMap<String, Certificate>,
    /// Who owns a host's path: `(host, path, exact)`.
    seen: BTreeMap<(String, String, bool), String>,
    reasons: Vec<Reason>,
}

impl Planner<'_> {
    fn add(&mut self, ingress: &Ingress) {
        let Some(spec) = ingress.spec.as_ref() else { return };
        let settings = self.settings(ingress);
        let default = spec.default_backend.as_ref().map(|b| self.route(ingress, b, &settings));
        for rule in spec.rules.iter().flatten() {
            let host = rule.host.as_deref().unwrap_or_default().to_ascii_lowercase();
            let paths = rule.http.iter().flat_map(|h| h.paths.iter());
            for path in paths {
                self.add_path(ingress, &host, path, &settings);
            }
            let entry = self.routes.hosts.entry(host).or_default();
            if entry.default.is_none() {
                entry.default.clone_from(&default);
            }
        }
        if self.routes.default.is_none() {
            self.routes.default = default;
        }
        self.add_certificates(ingress);
    }

    fn add_path(&mut self, ingress: &Ingress, host: &str, path: &HTTPIngressPath, settings: &Settings) {
        let exact = path.path_type == "Exact";
        let text = path.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/").to_string();
        // `/shop/` and `/shop` are one prefix.
        let key = if exact { text.clone() } else { text.trim_end_matches('/').to_string() };
        let me = full_name(&ingress.metadata);
        let owner = self.seen.entry((host.to_string(), key, exact)).or_insert_with(|| me.clone());
        if *owner != me {
            let shown = if host.is_empty() { "any host" } else { host };
            let text = format!("path {text} of {shown} already belongs to Ingress {owner}");
            return self.warn(ingress, "PathAlreadyTaken", text);
        }
        let route = self.route(ingress, &path.backend, settings);
        self.routes.hosts.entry(host.to_string()).or_default().paths.push(Path { path: text, exact, route });
    }

    fn route(&mut self, ingress: &Ingress, backend: &IngressBackend, settings: &Settings) -> Route {
        Route { ingress: full_name(&ingress.metadata), backend: self.backend(ingress, backend, settings), ..settings.route.clone() }
    }

    /// The backend's key; makes the backend when it is met first.
    fn backend(&mut self, ingress: &Ingress, backend: &IngressBackend, settings: &Settings) -> String {
        let namespace = ingress.metadata.namespace.as_deref().unwrap_or_default();
        let Some(service) = backend.service.as_ref() else {
            self.warn(ingress, "BackendNotSupported", "only backends of kind Service are supported".to_string());
            let key = format!("{namespace}/:");
            let problem = Some("its Ingress names a backend that is not a Service".to_string());
            self.backends.backends.entry(key.clone()).or_insert(Backend { problem, ..Backend::default() });
            return key;
        };
        let name = format!("{namespace}/{}", service.name);
        let wanted = wanted_port(service.port.as_ref());
        let shown = match &wanted {
            Some(IntOrString::Int(n)) => n.to_string(),
            Some(IntOrString::String(s)) => s.clone(),
            None => String::new(),
        };
        let found = self.services.get(&name).copied();
        let port = found.zip(wanted.as_ref()).and_then(|(s, w)| services::port_by(s, w));
        let protocol =
            settings.protocol.or_else(|| port.as_ref()?.app_protocol.as_deref().and_then(BackendProtocol::parse)).unwrap_or_default();
        let suffix = match protocol {
            BackendProtocol::Http => "",
            BackendProtocol::H2c => " h2c",
            BackendProtocol::Https => " https",
        };
        let key = format!("{name}:{shown}{suffix}");
        if self.backends.backends.contains_key(&key) {
            return key;
        }
        let problem = match (found, &port) {
            (None, _) => Some(format!("service {name} does not exist")),
            (Some(_), None) => Some(format!("service {name} has no port {shown:?}")),
            _ => None,
        };
        if let Some(problem) = &problem {
            self.warn(ingress, "BackendNotFound", problem.clone());
        }
        let endpoints = port.map(|p| self.endpoints(namespace, &service.name, &p)).unwrap_or_default();
        self.backends.backends.insert(key.clone(), Backend { service: name, protocol, endpoints, problem });
        key
    }

    fn endpoints(&self, namespace: &str, service: &str, port: &ServicePort) -> BTreeSet<SocketAddrV4> {
        let Some(slices) = self.slices.get(&(namespace, service)) else { return BTreeSet::new() };
        services::ready(slices, port, Protocol::Tcp).map(|(_, at)| at).collect()
    }

    fn add_certificates(&mut self, ingress: &Ingress) {
        let namespace = ingress.metadata.namespace.as_deref().unwrap_or_default();
        for tls in ingress.spec.iter().flat_map(|s| s.tls.iter().flatten()) {
            let Some(secret) = tls.secret_name.as_deref().filter(|s| !s.is_empty()) else { continue };
            let name = format!("{namespace}/{secret}");
            let listed = tls.hosts.iter().flatten();
            let ruled = ingress.spec.iter().flat_map(|s| s.rules.iter().flatten()).filter_map(|r| r.host.as_ref());
            let hosts: BTreeSet<String> = match tls.hosts.as_deref() {
                Some([_, ..]) => listed.map(|h| h.to_ascii_lowercase()).collect(),
                _ => ruled.map(|h| h.to_ascii_lowercase()).collect(),
            };
            if let Some(known) = self.certificates.get_mut(&name) {
                known.hosts.extend(hosts);
                continue;
            }
            let data = self.secrets.get(&name).and_then(|s| s.data.as_ref());
            let part = |key: &str| data.and_then(|d| d.get(key)).map(|b| String::from_utf8_lossy(&b.0).into_owned());
            match (part("tls.crt"), part("tls.key")) {
                (Some(certificate_pem), Some(key_pem)) => {
                    let certificate = Certificate { secret: name.clone(), hosts, certificate_pem, key_pem };
                    self.certificates.insert(name, certificate);
                }
                _ => {
                    let text = format!(
                        "secret {name} with tls.crt and tls.key (type kubernetes.io/tls) does not exist; a self-signed certificate is served"
                    );
                    self.warn(ingress, "CertificateNotFound", text);
                }
            }
        }
    }

    fn settings(&mut self, ingress: &Ingress) -> Settings {
        let meta = &ingress.metadata;
        let mut settings = Settings::default();
        let mut bad = Vec::new();
        if let Some(text) = annotation(meta, TIMEOUT) {
            settings.route.timeout_ms = parse_duration_ms(text);
            bad.extend(settings.route.timeout_ms.is_none().then_some((TIMEOUT, text, "a duration such as 30s, 1m30s or 500ms")));
        }
        if let Some(text) = annotation(meta, RETRIES) {
            settings.route.retries = text.trim().parse().ok().filter(|n| *n <= 10);
            bad.extend(settings.route.retries.is_none().then_some((RETRIES, text, "a number from 0 to 10")));
        }
        if let Some(text) = annotation(meta, REDIRECT_HTTPS) {
            settings.route.redirect_https = text == "true";
            bad.extend((!matches!(text, "true" | "false")).then_some((REDIRECT_HTTPS, text, "\"true\" or \"false\"")));
        }
        if let Some(text) = annotation(meta, BACKEND_PROTOCOL) {
            settings.protocol = BackendProtocol::parse(text);
            bad.extend(settings.protocol.is_none().then_some((BACKEND_PROTOCOL, text, "http, h2c or https")));
        }
        for (key, value, wanted) in bad {
            self.warn(ingress, "BadAnnotation", format!("annotation {key}: {value:?} is not {wanted}; it is ignored"));
        }
        settings
    }

    fn warn(&mut self, ingress: &Ingress, code: &'static str, text: String) {
        self.reasons.push(Reason::warning(code, text).about(Target::of(ingress)));
    }
}

#[derive(Default)]
struct Settings {
    route: Route,
    protocol: Option<BackendProtocol>,
}

fn wanted_port(port: Option<&ServiceBackendPort>) -> Option<IntOrString> {
    let port = port?;
    match (port.name.as_deref(), port.number) {
        (Some(name), _) if !name.is_empty() => Some(IntOrString::String(name.to_string())),
        (_, Some(number)) => Some(IntOrString::Int(number)),
        _ => None,
    }
}

/// Go's durations (`1m30s`, `1.5s`), or a bare number of seconds. At most a day, more than nothing.
fn parse_duration_ms(text: &str) -> Option<u64> {
    const DAY_MS: f64 = 86_400_000.0;
    let text = text.trim();
    let in_range = |ms: f64| (ms > 0.0 && ms <= DAY_MS).then_some(ms.max(1.0) as u64);
    if let Ok(seconds) = text.parse::<f64>() {
        return in_range(seconds * 1000.0);
    }
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "ms" => 1.0,
                "s" => 1000.0,
                "m" => 60_000.0,
                "h" => 3_600_000.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    in_range(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    struct World {
        ingresses: Vec<Ingress>,
        classes: Vec<IngressClass>,
        services: Vec<Service>,
        slices: Vec<EndpointSlice>,
        secrets: Vec<Secret>,
    }

    impl World {
        fn new(ingresses: Value) -> Self {
            let parse = |v: Value| serde_json::from_value(v).unwrap();
            Self {
                ingresses: serde_json::from_value(ingresses).unwrap(),
                classes: vec![],
                services: vec![parse(json!({"metadata": {"name": "web", "namespace": "d"},
                    "spec": {"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]}}))],
                slices: vec![
                    serde_json::from_value(json!({"metadata": {"name": "web-1", "namespace": "d",
                    "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
                    "ports": [{"name": "http", "port": 8080}],
                    "endpoints": [{"addresses": ["10.42.0.5"]}, {"addresses": ["10.42.0.6"], "conditions": {"ready": false}}]}))
                    .unwrap(),
                ],
                secrets: vec![],
            }
        }

        fn plan(&self) -> (Routes, Backends, Vec<Reason>) {
            plan(&Snapshot {
                ingresses: self.ingresses.iter().collect(),
                classes: self.classes.iter().collect(),
                services: self.services.iter().collect(),
                slices: self.slices.iter().collect(),
                secrets: self.secrets.iter().collect(),
                revision: 3,
            })
        }
    }

    fn ingress(name: &str, host: &str, path: &str, service: &str, port: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"ingressClassName": "staithe", "rules": [
            {"host": host, "http": {"paths": [{"path": path, "pathType": "Prefix",
                "backend": {"service": {"name": service, "port": port}}}]}}]}})
    }

    #[test]
    fn a_rule_leads_to_ready_endpoints_by_port_name_or_number() {
        let w = World::new(json!([
            ingress("a", "A.example", "/", "web", json!({"name": "http"})),
            ingress("b", "b.example", "/x", "web", json!({"number": 80}))
        ]));
        let (routes, backends, reasons) = w.plan();
        assert!(reasons.is_empty(), "{reasons:?}");
        assert_eq!(routes.hosts["a.example"].paths[0].route.backend, "d/web:http");
        let ends: Vec<String> = backends.backends["d/web:80"].endpoints.iter().map(|e| e.to_string()).collect();
        assert_eq!(ends, ["10.42.0.5:8080"]);
    }

    #[test]
    fn the_first_ingress_keeps_a_path_and_missing_services_are_reasons() {
        let w = World::new(json!([
            ingress("a", "a.example", "/x", "web", json!({"number": 80})),
            ingress("b", "a.example", "/x/", "web", json!({"number": 80})),
            ingress("c", "c.example", "/", "nope", json!({"number": 80})),
            ingress("d", "d.example", "/", "web", json!({"name": "grpc"}))
        ]));
        let (routes, backends, reasons) = w.plan();
        let codes: Vec<_> = reasons.iter().map(|r| r.code).collect();
        assert_eq!(codes, ["PathAlreadyTaken", "BackendNotFound", "BackendNotFound"]);
        assert_eq!(routes.hosts["a.example"].paths.len(), 1);
        assert_eq!(backends.backends["d/nope:80"].problem.as_deref(), Some("service d/nope does not exist"));
        assert_eq!(backends.backends["d/web:grpc"].problem.as_deref(), Some("service d/web has no port \"grpc\""));
    }

    #[test]
    fn classes_decide_whose_an_ingress_is() {
        let class = |name: &str, controller: &str, default: bool| -> IngressClass {
            let annotations = if default { json!({DEFAULT_CLASS: "true"}) } else { json!({}) };
            serde_json::from_value(json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"controller": controller}}))
                .unwrap()
        };
        let with = |class: Option<&str>| -> Ingress {
            serde_json::from_value(json!({"metadata": {"name": "i"}, "spec": {"ingressClassName": class}})).unwrap()
        };
        let (ours, other) = (class("edge", CONTROLLER, true), class("nginx", "k8s.io/ingress-nginx", false));
        assert!(is_ours(&with(Some("staithe")), &[]));
        assert!(!is_ours(&with(Some("nginx")), &[&other]));
        assert!(is_ours(&with(Some("edge")), &[&ours]));
        assert!(is_ours(&with(None), &[&other, &ours]));
        assert!(!is_ours(&with(None), &[&other]));
        assert!(!is_ours(&with(None), &[&class("nginx", "k8s.io/ingress-nginx", true)]));
    }

    #[test]
    fn annotations_set_timeouts_and_say_what_is_wrong() {
        let mut one = ingress("a", "a.example", "/", "web", json!({"number": 80}));
        one["metadata"]["annotations"] = json!({TIMEOUT: "1m30s", RETRIES: "3", REDIRECT_HTTPS: "true", BACKEND_PROTOCOL: "h2c"});
        let mut two = ingress("b", "b.example", "/", "web", json!({"number": 80}));
        two["metadata"]["annotations"] = json!({TIMEOUT: "soon", RETRIES: "-1", REDIRECT_HTTPS: "yes", BACKEND_PROTOCOL: "spdy"});
        let (routes, backends, reasons) = World::new(json!([one, two])).plan();
        let route = &routes.hosts["a.example"].paths[0].route;
        assert_eq!((route.timeout_ms, route.retries, route.redirect_https), (Some(90_000), Some(3), true));
        assert_eq!(backends.backends["d/web:80 h2c"].protocol, BackendProtocol::H2c);
        assert_eq!(reasons.len(), 4);
        for (text, ms) in [
            ("30s", Some(30_000)),
            ("500ms", Some(500)),
            ("2", Some(2000)),
            ("1.5s", Some(1500)),
            ("", None),
            ("5x", None),
            ("-3s", None),
            ("99h", None),
        ] {
            assert_eq!(parse_duration_ms(text), ms, "{text}");
        }
    }

    #[test]
    fn certificates_come_from_secrets_with_the_hosts_that_want_them() {
        let mut i = ingress("a", "a.example", "/", "web", json!({"number": 80}));
        i["spec"]["tls"] = json!([{"hosts": ["a.example"], "secretName": "t"}, {"hosts": ["b.example"], "secretName": "none"}]);
        let mut w = World::new(json!([i]));
        w.secrets = vec![
            serde_json::from_value(json!({"metadata": {"name": "t", "namespace": "d"}, "data": {"tls.crt": "QQ==", "tls.key": "Qg=="}}))
                .unwrap(),
        ];
        let (routes, _, reasons) = w.plan();
        assert_eq!(routes.certificates.len(), 1);
        assert_eq!((routes.certificates[0].certificate_pem.as_str(), routes.certificates[0].key_pem.as_str()), ("A", "B"));
        assert_eq!(reasons[0].code, "CertificateNotFound");
    }

    #[test]
    fn a_default_backend_serves_its_own_hosts_and_what_nobody_matches() {
        let mut i = ingress("a", "a.example", "/x", "web", json!({"number": 80}));
        i["spec"]["defaultBackend"] = json!({"service": {"name": "web", "port": {"number": 80}}});
        let (routes, ..) = World::new(json!([i])).plan();
        assert!(routes.default.is_some() && routes.hosts["a.example"].default.is_some());
    }
}
