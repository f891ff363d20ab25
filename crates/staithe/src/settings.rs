//! What `staithe up` can be told: flags, environment and a file mean the same settings; flags win, then the environment,
//! then the file, then the defaults below.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Every setting as a user may give it. Field names are the flags' and the file's keys.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Given {
    /// Where all state lives [default: /var/lib/staithe]
    #[arg(long, env = "STAITHE_DATA_DIR", value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Sockets and what must not outlive a reboot; on tmpfs [default: /run/staithe]
    #[arg(long, env = "STAITHE_RUN_DIR", value_name = "DIR", help_heading = "Environment")]
    pub run_dir: Option<PathBuf>,
    /// Prefix of control groups, nftables table, links: several environments live on one machine side by side [default: staithe]
    #[arg(long, env = "STAITHE_INSTANCE", value_name = "NAME", help_heading = "Environment")]
    pub instance: Option<String>,
    /// This machine's name in the environment [default: the host name]
    #[arg(long, env = "STAITHE_NODE_NAME", value_name = "NAME", help_heading = "Environment")]
    pub node_name: Option<String>,
    /// This machine's address for pods and clients [default: the default route's source, else the first pod address]
    #[arg(long, env = "STAITHE_NODE_IP", value_name = "IP", help_heading = "Network")]
    pub node_ip: Option<IpAddr>,
    /// Pod addresses of all machines [default: 10.42.0.0/16]
    #[arg(long, env = "STAITHE_POD_CIDR", value_name = "CIDR", help_heading = "Network")]
    pub pod_cidr: Option<String>,
    /// Service addresses [default: 10.43.0.0/16]
    #[arg(long, env = "STAITHE_SERVICE_CIDR", value_name = "CIDR", help_heading = "Network")]
    pub service_cidr: Option<String>,
    /// NodePorts, first-last [default: 30000-32767]
    #[arg(long, env = "STAITHE_NODE_PORTS", value_name = "RANGE", help_heading = "Network")]
    pub node_ports: Option<String>,
    /// The API's port [default: 6443]
    #[arg(long, env = "STAITHE_API_PORT", value_name = "PORT", help_heading = "Network")]
    pub api_port: Option<u16>,
    /// The registry's port on loopback [default: 5000]
    #[arg(long, env = "STAITHE_REGISTRY_PORT", value_name = "PORT", help_heading = "Network")]
    pub registry_port: Option<u16>,
    /// The router's HTTP port [default: 80]
    #[arg(long, env = "STAITHE_HTTP_PORT", value_name = "PORT", help_heading = "Network")]
    pub http_port: Option<u16>,
    /// The router's HTTPS port [default: 443]
    #[arg(long, env = "STAITHE_HTTPS_PORT", value_name = "PORT", help_heading = "Network")]
    pub https_port: Option<u16>,
    /// The node-local DNS port; pods reach it by the DNS Service's address [default: 10053]
    #[arg(long, env = "STAITHE_DNS_PORT", value_name = "PORT", help_heading = "Network")]
    pub dns_port: Option<u16>,
    /// Registries that speak plain HTTP, beside loopback (host or host:port; may be repeated)
    #[arg(long, env = "STAITHE_PLAIN_REGISTRIES", value_name = "HOST", value_delimiter = ',', help_heading = "Images")]
    pub plain_registries: Option<Vec<String>>,
    /// Bytes that pulled images may take before unused ones are removed [default: 50Gi]
    #[arg(long, env = "STAITHE_IMAGE_BUDGET", value_name = "QUANTITY", help_heading = "Images")]
    pub image_budget: Option<String>,
    /// Seconds without a sign of life after which a machine counts as lost [default: 10]
    #[arg(long, env = "STAITHE_NODE_GRACE", value_name = "SECONDS", help_heading = "Environment")]
    pub node_grace: Option<u32>,
}

/// All settings, decided.
#[derive(Debug, Clone)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub instance: String,
    pub node_name: String,
    pub node_ip: Option<IpAddr>,
    pub pod_cidr: String,
    pub service_cidr: String,
    pub node_ports: (u16, u16),
    pub api_port: u16,
    pub registry_port: u16,
    pub http_port: u16,
    pub https_port: u16,
    pub dns_port: u16,
    pub plain_registries: Vec<String>,
    pub image_budget_bytes: u64,
    pub node_grace_s: u32,
}

pub const DATA_DIR: &str = "/var/lib/staithe";

impl Given {
    /// Reads a YAML file with the flags' names as keys.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_saphyr::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display()))
    }

    /// What is not given here is taken from `other`.
    pub fn or(self, other: Self) -> Self {
        macro_rules! merge { ($($field:ident),*) => { Self { $($field: self.$field.or(other.$field)),* } } }
        merge!(
            data_dir,
            run_dir,
            instance,
            node_name,
            node_ip,
            pod_cidr,
            service_cidr,
            node_ports,
            api_port,
            registry_port,
            http_port,
            https_port,
            dns_port,
            plain_registries,
            image_budget,
            node_grace
        )
    }

    pub fn decide(self) -> Result<Settings> {
        let instance = self.instance.unwrap_or_else(|| "staithe".into());
        let well_formed = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if instance.is_empty() || instance.len() > 20 || !well_formed(&instance) {
            bail!("--instance {instance:?}: 1 to 20 lower-case letters, digits and '-'");
        }
        let node_name = match self.node_name {
            Some(name) => name,
            None => host_name(),
        };
        if !api::names::dns1123_subdomain(&node_name).is_empty() {
            bail!("--node-name {node_name:?}: lower-case letters, digits, '-' and '.', as in a DNS name");
        }
        let ports = self.node_ports.unwrap_or_else(|| "30000-32767".into());
        let range = ports.split_once('-').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
        let node_ports = match range {
            Some((first, last)) if first > 0 && first <= last => (first, last),
            _ => bail!("--node-ports {ports:?}: first-last, as 30000-32767"),
        };
        let budget = self.image_budget.unwrap_or_else(|| "50Gi".into());
        let image_budget_bytes = match budget.parse::<api::quantity::Quantity>() {
            Ok(q) => q.as_bytes().try_into().unwrap_or(u64::MAX),
            Err(e) => bail!("--image-budget {budget:?}: {e}"),
        };
        let default_run = if instance == "staithe" { "/run/staithe".into() } else { PathBuf::from(format!("/run/{instance}")) };
        let absolute = |dir: PathBuf| std::path::absolute(&dir).with_context(|| format!("{} is not a path", dir.display()));
        Ok(Settings {
            data_dir: absolute(self.data_dir.unwrap_or_else(|| DATA_DIR.into()))?,
            run_dir: absolute(self.run_dir.unwrap_or(default_run))?,
            instance,
            node_name,
            node_ip: self.node_ip,
            pod_cidr: self.pod_cidr.unwrap_or_else(|| "10.42.0.0/16".into()),
            service_cidr: self.service_cidr.unwrap_or_else(|| "10.43.0.0/16".into()),
            node_ports,
            api_port: self.api_port.unwrap_or(6443),
            registry_port: self.registry_port.unwrap_or(5000),
            http_port: self.http_port.unwrap_or(80),
            https_port: self.https_port.unwrap_or(443),
            dns_port: self.dns_port.unwrap_or(10053),
            plain_registries: self.plain_registries.unwrap_or_default(),
            image_budget_bytes,
            node_grace_s: self.node_grace.unwrap_or(10),
        })
    }
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    if name.is_empty() { "node".into() } else { name.replace('_', "-") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, "api-port: 7000\nhttp-port: 8080\nnode-name: a\n").unwrap();
        let flags = Given { api_port: Some(7443), ..Given::default() };
        let s = flags.or(Given::from_file(&path).unwrap()).decide().unwrap();
        assert_eq!((s.api_port, s.http_port, s.https_port), (7443, 8080, 443));
        assert_eq!(s.data_dir, PathBuf::from(DATA_DIR));
    }

    #[test]
    fn mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, "api-prot: 7000\n").unwrap();
        let text = format!("{:#}", Given::from_file(&path).unwrap_err());
        assert!(text.contains("api-prot"), "{text}");
        let named = Given { node_name: Some("a".into()), ..Given::default() };
        for (given, word) in [
            (Given { node_ports: Some("9-3".into()), ..named.clone() }, "--node-ports"),
            (Given { instance: Some("A b".into()), ..named.clone() }, "--instance"),
            (Given { node_name: Some("A_b".into()), ..named.clone() }, "--node-name"),
            (Given { image_budget: Some("lots".into()), ..named.clone() }, "--image-budget"),
        ] {
            let text = given.decide().unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
    }
}
