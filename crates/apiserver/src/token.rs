//! Service-account tokens: JSON Web Tokens signed with ES256 (RFC 7515, 7518), and their public half as JWKS.
//!
//! Knows signatures and claims. Does not know whether the account or pod a token speaks of still exists.

use api::Value;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD as B64, Engine as _};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey};
use serde_json::json;

use crate::limits;

pub struct TokenKey {
    key: EcdsaKeyPair,
    kid: String,
    random: SystemRandom,
}

/// The object that a token is bound to, besides its account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// `pod`, `secret` or `node`
    pub kind: &'static str,
    pub name: String,
    pub uid: String,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub namespace: String,
    pub account: String,
    pub account_uid: String,
    pub bound: Vec<Bound>,
    pub audiences: Vec<String>,
    pub id: String,
    /// Seconds since the epoch.
    pub issued_s: i64,
    pub expires_s: i64,
}

impl TokenKey {
    pub fn from_pkcs8(der: &[u8]) -> Result<TokenKey, String> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random).map_err(|e| e.to_string())?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(TokenKey { kid: B64.encode(digest), key, random })
    }

    /// A key for tests and simulations, lost with the process.
    pub fn generate() -> Result<TokenKey, String> {
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).map_err(|e| e.to_string())?;
        TokenKey::from_pkcs8(der.as_ref())
    }

    pub fn sign(&self, issuer: &str, grant: &Grant) -> Result<String, String> {
        let mut kubernetes = json!({
            "namespace": grant.namespace,
            "serviceaccount": { "name": grant.account, "uid": grant.account_uid },
        });
        for bound in &grant.bound {
            kubernetes[bound.kind] = json!({ "name": bound.name, "uid": bound.uid });
        }
        let claims = json!({
            "iss": issuer,
            "aud": grant.audiences,
            "sub": format!("system:serviceaccount:{}:{}", grant.namespace, grant.account),
            "iat": grant.issued_s,
            "nbf": grant.issued_s,
            "exp": grant.expires_s,
            "jti": grant.id,
            "kubernetes.io": kubernetes,
        });
        let header = json!({ "alg": "ES256", "kid": self.kid });
        let signed = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
        let signature = self.key.sign(&self.random, signed.as_bytes()).map_err(|_| "signing failed".to_string())?;
        Ok(format!("{signed}.{}", B64.encode(signature)))
    }

    /// Checks signature, issuer and times; audiences are the caller's to check.
    pub fn verify(&self, issuer: &str, token: &str, now_s: i64) -> Result<Grant, &'static str> {
        if token.len() > limits::TOKEN_BYTES_MAX {
            return Err("token too long");
        }
        let (signed, signature) = token.rsplit_once('.').ok_or("not a token")?;
        let (header, claims) = signed.split_once('.').ok_or("not a token")?;
        let header: Value = decode(header)?;
        if header["alg"] != "ES256" || header["kid"] != self.kid.as_str() {
            return Err("unknown signing key");
        }
        let signature = B64.decode(signature).map_err(|_| "not a token")?;
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        public.verify(signed.as_bytes(), &signature).map_err(|_| "bad signature")?;
        let claims: Value = decode(claims)?;
        let second = |name: &str| claims[name].as_i64().ok_or("token lacks a time");
        let (not_before, expires) = (second("nbf")?, second("exp")?);
        if claims["iss"] != issuer {
            return Err("token of another issuer");
        }
        if now_s < not_before {
            return Err("token is not valid yet");
        }
        if now_s >= expires {
            return Err("token has expired");
        }
        grant_of(&claims, second("iat")?, expires).ok_or("token lacks its account")
    }

    /// The JSON Web Key Set that others verify with.
    pub fn jwks(&self) -> Value {
        // Uncompressed point: 0x04, x, y.
        let point = self.key.public_key().as_ref();
        let (x, y) = (B64.encode(&point[1..33]), B64.encode(&point[33..65]));
        json!({ "keys": [{ "use": "sig", "kty": "EC", "kid": self.kid, "crv": "P-256", "alg": "ES256", "x": x, "y": y }] })
    }
}

fn decode(part: &str) -> Result<Value, &'static str> {
    let bytes = B64.decode(part).map_err(|_| "not a token")?;
    serde_json::from_slice(&bytes).map_err(|_| "not a token")
}

fn grant_of(claims: &Value, issued_s: i64, expires_s: i64) -> Option<Grant> {
    let text = |v: &Value| v.as_str().map(String::from);
    let kubernetes = &claims["kubernetes.io"];
    let bound = ["pod", "secret", "node"]
        .into_iter()
        .filter_map(|kind| Some(Bound { kind, name: text(&kubernetes[kind]["name"])?, uid: text(&kubernetes[kind]["uid"])? }))
        .collect();
    let audiences = match &claims["aud"] {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => many.iter().filter_map(text).collect(),
        _ => Vec::new(),
    };
    Some(Grant {
        namespace: text(&kubernetes["namespace"])?,
        account: text(&kubernetes["serviceaccount"]["name"])?,
        account_uid: text(&kubernetes["serviceaccount"]["uid"])?,
        bound,
        audiences,
        id: text(&claims["jti"]).unwrap_or_default(),
        issued_s,
        expires_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_was_signed_and_nothing_else_passes() {
        let key = TokenKey::generate().unwrap();
        let grant = Grant {
            namespace: "shop".into(),
            account: "orders".into(),
            account_uid: "u1".into(),
            bound: vec![Bound { kind: "pod", name: "orders-1".into(), uid: "p1".into() }],
            audiences: vec!["a".into()],
            id: "j".into(),
            issued_s: 1_000,
            expires_s: 2_000,
        };
        let token = key.sign("iss", &grant).unwrap();
        assert_eq!(key.verify("iss", &token, 1_500).unwrap(), grant);
        assert_eq!(key.verify("iss", &token, 2_000), Err("token has expired"));
        assert_eq!(key.verify("iss", &token, 999), Err("token is not valid yet"));
        assert_eq!(key.verify("other", &token, 1_500), Err("token of another issuer"));
        assert_eq!(TokenKey::generate().unwrap().verify("iss", &token, 1_500), Err("unknown signing key"));
        let mut parts: Vec<String> = token.split('.').map(String::from).collect();
        parts[1] = B64.encode(String::from_utf8(B64.decode(&parts[1]).unwrap()).unwrap().replace("orders", "admins"));
        assert_eq!(key.verify("iss", &parts.join("."), 1_500), Err("bad signature"));
        for bad in ["", ".", "..", "a.b.c", "🦀.🦀.🦀"] {
            assert!(key.verify("iss", bad, 1_500).is_err(), "{bad}");
        }
        assert_eq!(key.jwks()["keys"][0]["alg"], "ES256");
    }
}
