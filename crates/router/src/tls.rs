//! TLS on both sides: certificates by server name from a snapshot, and unverified TLS to endpoints that want it.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddrV4};
use std::sync::Arc;

use arc_swap::ArcSwap;
use plan::routes::Certificate;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
    #[error("cannot make the default certificate: {0}")]
    Default(#[from] rcgen::Error),
}

#[derive(Debug, Default)]
struct Names {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows `*.`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
}

/// Chooses the certificate by the name the client asks for; a self-signed one where nobody has given any.
pub struct Certificates {
    names: ArcSwap<Names>,
    default: Arc<CertifiedKey>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates")
    }
}

impl Certificates {
    pub fn new() -> Result<Arc<Self>, TlsError> {
        let made = rcgen::generate_simple_self_signed(vec!["staithe.invalid".to_string()])?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(|e| rustls::Error::General(e.to_string()))?;
        let default = CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider())?;
        Ok(Arc::new(Self { names: ArcSwap::default(), default: Arc::new(default) }))
    }

    /// Takes a snapshot's certificates; returns what is wrong with those that cannot be used.
    pub fn replace(&self, certificates: &[Certificate]) -> Vec<String> {
        let mut names = Names::default();
        let mut problems = Vec::new();
        for certificate in certificates {
            match load(certificate) {
                Ok(key) => {
                    for host in &certificate.hosts {
                        match host.strip_prefix("*.") {
                            Some(suffix) => names.wildcard.insert(suffix.to_string(), key.clone()),
                            None => names.exact.insert(host.clone(), key.clone()),
                        };
                    }
                }
                Err(problem) => problems.push(format!("secret {}: {problem}", certificate.secret)),
            }
        }
        self.names.store(Arc::new(names));
        problems
    }

    /// For `ServerConfig`: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn find(&self, name: &str) -> Arc<CertifiedKey> {
        let names = self.names.load();
        let name = name.to_ascii_lowercase();
        let wildcard = || name.split_once('.').and_then(|(_, rest)| names.wildcard.get(rest));
        names.exact.get(&name).or_else(wildcard).unwrap_or(&self.default).clone()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.find(hello.server_name().unwrap_or_default()))
    }
}

fn load(certificate: &Certificate) -> Result<Arc<CertifiedKey>, String> {
    let chain: Result<Vec<CertificateDer>, _> = CertificateDer::pem_slice_iter(certificate.certificate_pem.as_bytes()).collect();
    let chain = chain.map_err(|e| format!("tls.crt is not PEM: {e}"))?;
    if chain.is_empty() {
        return Err("tls.crt holds no certificate".to_string());
    }
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).map_err(|e| format!("tls.key is not a PEM key: {e}"))?;
    let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => "tls.key does not belong to tls.crt".to_string(),
        e => format!("tls.key cannot be used: {e}"),
    })?;
    Ok(Arc::new(certified))
}

/// To an endpoint that speaks TLS. Its certificate is not verified: it cannot name a pod's address, and the pod network
/// does not leave the machine unencrypted.
pub async fn connect(stream: TcpStream, address: SocketAddrV4) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    static CONFIG: std::sync::OnceLock<Arc<ClientConfig>> = std::sync::OnceLock::new();
    let config = match CONFIG.get() {
        Some(config) => config.clone(),
        None => {
            let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
            let builder = builder.map_err(std::io::Error::other)?.dangerous();
            let mut config = builder.with_custom_certificate_verifier(Arc::new(AnyCertificate)).with_no_client_auth();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            CONFIG.get_or_init(|| Arc::new(config)).clone()
        }
    };
    let name = ServerName::IpAddress(IpAddr::V4(*address.ip()).into());
    tokio_rustls::TlsConnector::from(config).connect(name, stream).await
}

#[derive(Debug)]
struct AnyCertificate;

impl AnyCertificate {
    fn algorithms() -> WebPkiSupportedAlgorithms {
        provider().signature_verification_algorithms
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &Self::algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &Self::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::algorithms().supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(hosts: &[&str]) -> Certificate {
        let made = rcgen::generate_simple_self_signed(hosts.iter().map(|h| h.to_string()).collect::<Vec<_>>()).unwrap();
        Certificate {
            secret: "d/t".into(),
            hosts: hosts.iter().map(|h| h.to_string()).collect(),
            certificate_pem: made.cert.pem(),
            key_pem: made.signing_key.serialize_pem(),
        }
    }

    #[test]
    fn the_most_specific_name_chooses_the_certificate() {
        let all = Certificates::new().unwrap();
        let (exact, wild) = (certificate(&["a.example"]), certificate(&["*.example"]));
        assert!(all.replace(&[exact, wild]).is_empty());
        let der = |name: &str| all.find(name).cert[0].clone();
        assert_ne!(der("a.example"), der("b.example"));
        assert_eq!(der("B.EXAMPLE"), der("c.example"));
        assert_eq!(der("x.c.example"), all.default.cert[0]);
        assert_eq!(der(""), all.default.cert[0]);
    }

    #[test]
    fn bad_certificates_are_named_and_the_others_work() {
        let all = Certificates::new().unwrap();
        let good = certificate(&["good.example"]);
        let mut swapped = certificate(&["swapped.example"]);
        swapped.key_pem = good.key_pem.clone();
        let garbage = Certificate { certificate_pem: "x".into(), ..good.clone() };
        let problems = all.replace(&[swapped, garbage, good]);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("does not belong") && problems[1].contains("no certificate"), "{problems:?}");
        assert_ne!(all.find("good.example").cert[0], all.default.cert[0]);
    }
}
