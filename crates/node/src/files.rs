//! The files that every container of a pod sees: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`, termination messages.
//!
//! Source: Kubernetes' documentation on host aliases and on DNS for Services and Pods.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

use crate::agent::Shared;
use crate::limits::{DNS_NAMESERVERS_MAX, DNS_SEARCH_BYTES_MAX, DNS_SEARCHES_MAX};
use crate::pod::Paths;

/// What of the node goes into the files.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub cluster_domain: String,
    pub dns: IpAddr,
    pub resolv_conf: PathBuf,
}

impl Settings {
    pub fn new(shared: &Shared) -> Self {
        Self {
            cluster_domain: shared.config.cluster_domain.clone(),
            dns: shared.config.network.dns_address(),
            resolv_conf: shared.config.resolv_conf.clone(),
        }
    }
}

/// The name a pod calls itself: `hostname`, else its own, at most 63 letters.
pub(crate) fn hostname(pod: &Pod) -> String {
    let given = pod.spec.as_ref().and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
    let name = given.unwrap_or_else(|| pod.metadata.name.clone().unwrap_or_default());
    let cut: String = name.chars().take(63).collect();
    let short = cut.trim_end_matches(['-', '.']).to_string();
    match pod.spec.as_ref() {
        Some(spec) if spec.set_hostname_as_fqdn == Some(true) && spec.subdomain.is_some() => {
            fqdn(pod, &short, "cluster.local").unwrap_or(short)
        }
        _ => short,
    }
}

pub(crate) fn node_hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn fqdn(pod: &Pod, hostname: &str, domain: &str) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.clone().filter(|s| !s.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{hostname}.{subdomain}.{namespace}.svc.{domain}"))
}

pub(crate) fn write(paths: &Paths, pod: &Pod, address: Option<IpAddr>, settings: &Settings) -> io::Result<()> {
    std::fs::create_dir_all(&paths.etc)?;
    let host_network = pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true));
    let base = if host_network { std::fs::read_to_string("/etc/hosts").unwrap_or_default() } else { String::new() };
    let node_resolv = node_resolv(&settings.resolv_conf);
    put(&paths.etc.join("hosts"), &hosts(pod, address, &settings.cluster_domain, host_network.then_some(base.as_str())))?;
    put(&paths.etc.join("resolv.conf"), &resolv_conf(pod, settings, &node_resolv))?;
    let name = if host_network { node_hostname() } else { hostname(pod) };
    put(&paths.etc.join("hostname"), &format!("{name}\n"))
}

/// In place: a running container has the file mounted.
fn put(path: &Path, text: &str) -> io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

/// An empty file that any user of the container may write.
pub(crate) fn create_message(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, "")?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
}

fn hosts(pod: &Pod, address: Option<IpAddr>, domain: &str, node: Option<&str>) -> String {
    let mut text = match node {
        Some(node) => format!("# Kubernetes-managed hosts file (host network).\n{node}"),
        None => {
            let mut text =
                String::from("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
            text += "fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
            let short = hostname(pod);
            let short = short.split('.').next().unwrap_or_default();
            if let Some(address) = address {
                match fqdn(pod, short, domain) {
                    Some(full) => text += &format!("{address}\t{full}\t{short}\n"),
                    None => text += &format!("{address}\t{short}\n"),
                }
            }
            text
        }
    };
    let aliases = pod.spec.as_ref().and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text += "\n# Entries added by HostAliases.\n";
        for alias in aliases {
            text += &format!("{}\t{}\n", alias.ip, alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t"));
        }
    }
    text
}

// ---- resolv.conf ---------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Resolver {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut out = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let rest = |w: std::str::SplitWhitespace<'_>| w.map(String::from).collect::<Vec<_>>();
            match words.next() {
                Some("nameserver") => out.nameservers.extend(words.next().map(String::from)),
                Some("search" | "domain") => out.searches = rest(words).into_iter().filter(|s| s != ".").collect(),
                Some("options") => out.options = rest(words),
                _ => {}
            }
        }
        out
    }

    fn merge(&mut self, config: &PodDNSConfig) {
        self.nameservers.extend(config.nameservers.iter().flatten().cloned());
        self.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            self.options.retain(|o| o.split(':').next() != Some(&name));
            self.options.push(match option.value.as_deref().filter(|v| !v.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }

    fn text(mut self) -> String {
        let unique = |list: &mut Vec<String>| {
            let mut seen = std::collections::BTreeSet::new();
            list.retain(|item| seen.insert(item.clone()));
        };
        unique(&mut self.nameservers);
        unique(&mut self.searches);
        self.nameservers.truncate(DNS_NAMESERVERS_MAX);
        self.searches.truncate(DNS_SEARCHES_MAX);
        while self.searches.join(" ").len() > DNS_SEARCH_BYTES_MAX {
            self.searches.pop();
        }
        let mut text = String::new();
        if !self.searches.is_empty() {
            text += &format!("search {}\n", self.searches.join(" "));
        }
        for server in &self.nameservers {
            text += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }
}

fn is_loopback(server: &str) -> bool {
    server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The node's own resolver. A stub on the loopback (systemd-resolved) cannot be reached from a pod: what it asks is taken.
fn node_resolv(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    if Resolver::parse(&text).nameservers.iter().all(|s| is_loopback(s))
        && let Ok(real) = std::fs::read_to_string("/run/systemd/resolve/resolv.conf")
    {
        return real;
    }
    text
}

fn resolv_conf(pod: &Pod, settings: &Settings, node: &str) -> String {
    let spec = pod.spec.clone().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let mut resolver = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Resolver::default(),
        "Default" => Resolver::parse(node),
        // As upstream: on the host's network the cluster's names only for those who ask for them.
        "ClusterFirst" if host_network => Resolver::parse(node),
        _ => {
            let (namespace, domain) = (pod.metadata.namespace.as_deref().unwrap_or_default(), &settings.cluster_domain);
            let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            searches.extend(Resolver::parse(node).searches);
            Resolver { nameservers: vec![settings.dns.to_string()], searches, options: vec!["ndots:5".into()] }
        }
    };
    if !host_network && spec.dns_policy.as_deref() == Some("Default") {
        resolver.nameservers.retain(|s| !is_loopback(s));
        if resolver.nameservers.is_empty() {
            resolver.nameservers.push(settings.dns.to_string());
        }
    }
    if let Some(config) = &spec.dns_config {
        resolver.merge(config);
    }
    resolver.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{HostAlias, PodDNSConfigOption, PodSpec};

    fn pod(spec: PodSpec) -> Pod {
        let mut pod = Pod { spec: Some(spec), ..Pod::default() };
        pod.metadata.name = Some("web-0".into());
        pod.metadata.namespace = Some("shop".into());
        pod
    }

    fn settings() -> Settings {
        Settings { cluster_domain: "cluster.local".into(), dns: "10.43.0.10".parse().unwrap(), resolv_conf: "/nonexistent".into() }
    }

    const NODE: &str = "nameserver 9.9.9.9\nsearch corp.example\noptions edns0\n";
    const CLUSTER: &str =
        "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.43.0.10\noptions ndots:5\n";
    const HOST: &str = "search corp.example\nnameserver 9.9.9.9\noptions edns0\n";

    #[test]
    fn policies() {
        for (policy, hosted, want) in [
            (None, false, CLUSTER),
            (Some("ClusterFirst"), true, HOST),
            (Some("ClusterFirstWithHostNet"), true, CLUSTER),
            (Some("Default"), false, HOST),
            (Some("None"), false, ""),
        ] {
            let pod = pod(PodSpec { dns_policy: policy.map(Into::into), host_network: Some(hosted), ..PodSpec::default() });
            assert_eq!(resolv_conf(&pod, &settings(), NODE), want, "{policy:?}");
        }
    }

    #[test]
    fn dns_config_is_merged() {
        let option = |n: &str, v: Option<&str>| PodDNSConfigOption { name: Some(n.into()), value: v.map(Into::into) };
        let config = PodDNSConfig {
            nameservers: Some(vec!["1.1.1.1".into(), "10.43.0.10".into()]),
            searches: Some(vec!["my.example".into()]),
            options: Some(vec![option("ndots", Some("2")), option("edns0", None)]),
        };
        let pod = pod(PodSpec { dns_config: Some(config), ..PodSpec::default() });
        let want = "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example my.example\n\
                    nameserver 10.43.0.10\nnameserver 1.1.1.1\noptions ndots:2 edns0\n";
        assert_eq!(resolv_conf(&pod, &settings(), NODE), want);
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let alias = HostAlias { ip: "1.2.3.4".into(), hostnames: Some(vec!["foo".into(), "bar".into()]) };
        let pod = pod(PodSpec { subdomain: Some("nginx".into()), host_aliases: Some(vec![alias]), ..PodSpec::default() });
        let text = hosts(&pod, "10.0.0.7".parse().ok(), "cluster.local", None);
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("10.0.0.7\tweb-0.nginx.shop.svc.cluster.local\tweb-0\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\tfoo\tbar\n"));
        let hosted = hosts(&pod, None, "cluster.local", Some("127.0.0.1 me\n"));
        assert!(hosted.starts_with("# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n"));
    }

    #[test]
    fn long_names_are_cut() {
        let mut long = pod(PodSpec::default());
        long.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b"));
        assert_eq!(hostname(&long), "a".repeat(62));
    }
}
