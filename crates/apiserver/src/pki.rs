//! The cluster's certificates and keys: one CA, a server certificate, client certificates, the service-account key.
//!
//! Files live in one directory, all 0600 and written atomically; what is there and still good is used again. Knows
//! certificates. Does not know who may do what.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::SharedClock;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::limits;
use crate::token::TokenKey;

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path}: not a certificate or key of this cluster: {why}")]
    Damaged { path: PathBuf, why: String },
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("TLS: {0}")]
    Tls(String),
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

pub struct Pki {
    dir: PathBuf,
    clock: SharedClock,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
    token_key: Arc<TokenKey>,
}

impl Pki {
    /// Opens the directory, making what is missing: the CA and the service-account key.
    pub fn open(dir: &Path, clock: SharedClock) -> Result<Pki, PkiError> {
        std::fs::create_dir_all(dir).map_err(|source| PkiError::File { path: dir.into(), source })?;
        let ca = match read_pair(dir, "ca")? {
            Some(pair) => pair,
            None => {
                let pair = make_ca(&clock)?;
                write_pair(dir, "ca", &pair)?;
                pair
            }
        };
        let damaged = |path: PathBuf| move |e: rcgen::Error| PkiError::Damaged { path, why: e.to_string() };
        let key = KeyPair::from_pem(&ca.key).map_err(damaged(dir.join("ca.key")))?;
        let issuer = Issuer::from_ca_cert_pem(&ca.cert, key).map_err(damaged(dir.join("ca.crt")))?;
        let token_key = Arc::new(open_token_key(dir)?);
        Ok(Pki { dir: dir.into(), clock, ca_pem: ca.cert, issuer, token_key })
    }

    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// What signs service-account tokens.
    pub fn token_key(&self) -> Arc<TokenKey> {
        self.token_key.clone()
    }

    /// A client certificate: the common name is the user, the organization is the group.
    pub fn client(&self, user: &str, group: &str) -> Result<Pair, PkiError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = distinguished(user, Some(group));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    /// A server certificate for names and addresses (addresses in text form become IP SANs).
    pub fn server(&self, common_name: &str, names: &[String]) -> Result<Pair, PkiError> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = distinguished(common_name, None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    fn issue(&self, mut params: CertificateParams) -> Result<Pair, PkiError> {
        let (y, m, d) = day(&self.clock, -1);
        params.not_before = rcgen::date_time_ymd(y, m, d);
        let (y, m, d) = day(&self.clock, limits::CERT_DAYS);
        params.not_after = rcgen::date_time_ymd(y, m, d);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
    }

    /// The pair named `name` in the directory; made anew when it is missing, near its end, of another CA, or lacks a name.
    pub fn server_kept(&self, name: &str, names: &[String]) -> Result<Pair, PkiError> {
        self.kept(name, names, || self.server("staithe", names))
    }

    pub fn client_kept(&self, name: &str, user: &str, group: &str) -> Result<Pair, PkiError> {
        self.kept(name, &[], || self.client(user, group))
    }

    fn kept(&self, name: &str, names: &[String], make: impl Fn() -> Result<Pair, PkiError>) -> Result<Pair, PkiError> {
        if let Some(pair) = read_pair(&self.dir, name)?
            && self.still_good(&pair.cert, names)
        {
            return Ok(pair);
        }
        let pair = make()?;
        write_pair(&self.dir, name, &pair)?;
        Ok(pair)
    }

    fn still_good(&self, pem: &str, names: &[String]) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
        let Ok(ca) = CertificateDer::from_pem_slice(self.ca_pem.as_bytes()) else { return false };
        let (Ok((_, cert)), Ok((_, ca))) = (X509Certificate::from_der(&der), X509Certificate::from_der(&ca)) else { return false };
        let left_s = cert.validity().not_after.timestamp() - self.clock.now().as_second();
        let have = alternative_names(&cert);
        left_s > limits::CERT_RENEW_DAYS * 86_400 && cert.issuer() == ca.subject() && names.iter().all(|n| have.contains(n))
    }

    /// TLS for the API: the kept server certificate, client certificates of our CA asked for but not demanded.
    pub fn tls(&self, names: &[String]) -> Result<rustls::ServerConfig, PkiError> {
        let pair = self.server_kept("server", names)?;
        let tls = |e: &dyn std::fmt::Display| PkiError::Tls(e.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).map_err(|e| tls(&e))?;
        roots.add(ca).map_err(|e| tls(&e))?;
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| tls(&e))?;
        let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pair.cert.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).map_err(|e| tls(&e))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certs.map_err(|e| tls(&e))?, key)
            .map_err(|e| tls(&e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// A kubeconfig with everything inline.
    pub fn kubeconfig(&self, server: &str, context: &str, pair: &Pair) -> String {
        let b64 = |s: &str| BASE64_STANDARD.encode(s);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": context,
            "clusters": [{ "name": context, "cluster": { "server": server, "certificate-authority-data": b64(&self.ca_pem) } }],
            "users": [{ "name": "admin", "user": { "client-certificate-data": b64(&pair.cert), "client-key-data": b64(&pair.key) } }],
            "contexts": [{ "name": context, "context": { "cluster": context, "user": "admin" } }],
        });
        // JSON is YAML.
        format!("{config:#}\n")
    }

    /// Writes `admin.kubeconfig` (0600) for user `system:admin`, group `system:masters`, and returns its path.
    pub fn write_admin_kubeconfig(&self, server: &str, context: &str) -> Result<PathBuf, PkiError> {
        let pair = self.client_kept("admin", "system:admin", "system:masters")?;
        let path = self.dir.join("admin.kubeconfig");
        write_secret(&path, &self.kubeconfig(server, context, &pair))?;
        Ok(path)
    }
}

/// The names the API server's certificate must carry, besides the node's own.
pub fn server_names(service_ip: &str, cluster_domain: &str, extra: &[String]) -> Vec<String> {
    let mut names: Vec<String> =
        ["localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(String::from).into();
    names.push(format!("kubernetes.default.svc.{cluster_domain}"));
    names.push(service_ip.to_string());
    for name in extra {
        if !name.is_empty() && !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// The user and groups of a client certificate: common name and organizations.
pub fn identity_of(der: &[u8]) -> Option<ports::Identity> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let user = cert.subject().iter_common_name().next()?.as_str().ok()?.to_string();
    let groups: Vec<&str> = cert.subject().iter_organization().filter_map(|o| o.as_str().ok()).collect();
    (!user.is_empty()).then(|| ports::Identity::new(user, &groups))
}

fn make_ca(clock: &SharedClock) -> Result<Pair, PkiError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = distinguished(&format!("staithe-ca@{}", clock.now().as_second()), None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let (y, m, d) = day(clock, -1);
    params.not_before = rcgen::date_time_ymd(y, m, d);
    let (y, m, d) = day(clock, limits::CA_DAYS);
    params.not_after = rcgen::date_time_ymd(y, m, d);
    let cert = params.self_signed(&key)?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

fn open_token_key(dir: &Path) -> Result<TokenKey, PkiError> {
    let path = dir.join("service-account.key");
    let pem = match read(&path)? {
        Some(pem) => pem,
        None => {
            let pem = KeyPair::generate()?.serialize_pem();
            write_secret(&path, &pem)?;
            pem
        }
    };
    let key = KeyPair::from_pem(&pem).map_err(|e| PkiError::Damaged { path: path.clone(), why: e.to_string() })?;
    TokenKey::from_pkcs8(key.serialized_der()).map_err(|why| PkiError::Damaged { path, why })
}

fn distinguished(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

fn alternative_names(cert: &X509Certificate) -> Vec<String> {
    let Ok(Some(san)) = cert.subject_alternative_name() else { return Vec::new() };
    let name = |n: &GeneralName| match n {
        GeneralName::DNSName(s) => Some(s.to_string()),
        GeneralName::IPAddress(b) => match <[u8; 4]>::try_from(*b) {
            Ok(v4) => Some(std::net::Ipv4Addr::from(v4).to_string()),
            Err(_) => <[u8; 16]>::try_from(*b).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string()),
        },
        _ => None,
    };
    san.value.general_names.iter().filter_map(name).collect()
}

/// The calendar day `days` from now, UTC.
fn day(clock: &SharedClock, days: i64) -> (i32, u8, u8) {
    let then = base::Timestamp::from_second(clock.now().as_second() + days * 86_400).unwrap_or(base::Timestamp::UNIX_EPOCH);
    let text = base::rfc3339(then);
    let mut parts = text.get(..10).unwrap_or("1970-01-01").split('-');
    let mut next = || parts.next().and_then(|p| p.parse::<u16>().ok()).unwrap_or(1);
    (i32::from(next()), next() as u8, next() as u8)
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File { path: path.into(), source }),
    }
}

fn read_pair(dir: &Path, name: &str) -> Result<Option<Pair>, PkiError> {
    let (cert, key) = (read(&dir.join(format!("{name}.crt")))?, read(&dir.join(format!("{name}.key")))?);
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(Pair { cert, key })),
        // A crash between the two writes leaves the key alone; a certificate without its key is of no use either.
        _ => Ok(None),
    }
}

/// The key first: a certificate on disk always has its key.
fn write_pair(dir: &Path, name: &str, pair: &Pair) -> Result<(), PkiError> {
    write_secret(&dir.join(format!("{name}.key")), &pair.key)?;
    write_secret(&dir.join(format!("{name}.crt")), &pair.cert)
}

/// Writes a file that only its owner reads: to a temporary name, synced, renamed.
pub fn write_secret(path: &Path, text: &str) -> Result<(), PkiError> {
    let failed = |source| PkiError::File { path: path.into(), source };
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let tmp = path.with_file_name(name);
    let _ = std::fs::remove_file(&tmp);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&tmp, path).map_err(failed)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ManualClock;

    #[test]
    fn keeps_what_is_good_and_renews_what_is_not() {
        let dir = std::env::temp_dir().join(format!("staithe-pki-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        let names = server_names("10.43.0.1", "cluster.local", &["192.0.2.7".into(), "node-1".into()]);
        let pki = Pki::open(&dir, clock.clone()).unwrap();
        let first = pki.server_kept("server", &names).unwrap();
        pki.tls(&names).unwrap();
        let admin = pki.write_admin_kubeconfig("https://127.0.0.1:6443", "staithe").unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        for file in [admin, dir.join("ca.key"), dir.join("service-account.key")] {
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        }

        let again = Pki::open(&dir, clock.clone()).unwrap();
        assert_eq!(again.ca_pem(), pki.ca_pem());
        assert_eq!(again.server_kept("server", &names).unwrap().cert, first.cert);
        let more = server_names("10.43.0.1", "cluster.local", &["192.0.2.8".into()]);
        assert_ne!(again.server_kept("server", &more).unwrap().cert, first.cert, "a new name needs a new certificate");
        let second = again.server_kept("server", &more).unwrap();
        clock.advance(std::time::Duration::from_secs(320 * 86_400));
        assert_ne!(again.server_kept("server", &more).unwrap().cert, second.cert, "near its end it is renewed");

        let client = pki.client("ann", "devs").unwrap();
        let der = CertificateDer::from_pem_slice(client.cert.as_bytes()).unwrap();
        let who = identity_of(&der).unwrap();
        assert_eq!((who.username.as_str(), who.groups), ("ann", vec!["devs".to_string(), "system:authenticated".into()]));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
