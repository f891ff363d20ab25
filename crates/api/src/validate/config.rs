//! ConfigMaps and Secrets.

use serde_json::Value;

use super::{At, Out, meta};
use crate::limits::DATA_BYTES_MAX;
use crate::{Cause, names};

const FIXED: &str = "field is immutable when `immutable` is set";

pub fn config_map(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let root = At::root(new);
    let mut size = 0;
    for (field, binary) in [("data", false), ("binaryData", true)] {
        for (key, value) in root.get(field).entries() {
            size += if binary { decoded_len(value.text()) } else { value.text().len() };
            names::config_key(key).iter().for_each(|why| out.invalid_value(&value, key, why));
            if !binary && new["binaryData"].get(key).is_some() {
                out.invalid_value(&value, key, "duplicate of key present in binaryData");
            }
        }
    }
    if size > DATA_BYTES_MAX {
        out.too_long(&root, DATA_BYTES_MAX);
    }
    frozen(&root, old, &["data", "binaryData"], &mut out);
    out.0
}

/// The length of what base64 text stands for.
fn decoded_len(text: &str) -> usize {
    text.len() / 4 * 3 - text.bytes().rev().take_while(|b| *b == b'=').count().min(text.len() / 4 * 3)
}

fn frozen(root: &At, old: Option<&Value>, fields: &[&str], out: &mut Out) {
    let Some(old) = old.filter(|o| o["immutable"] == true) else { return };
    if root.v["immutable"] != true {
        out.forbidden(&root.get("immutable"), FIXED);
    }
    let empty = |v: &Value| v.is_null() || v.as_object().is_some_and(serde_json::Map::is_empty);
    for field in fields {
        if root.v[*field] != old[*field] && !(empty(&root.v[*field]) && empty(&old[*field])) {
            out.forbidden(&root.get(field), FIXED);
        }
    }
}

pub fn secret(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Out::default();
    meta(new, old, names::dns1123_subdomain, &mut out);
    let root = At::root(new);
    let data = root.get("data");
    let mut size = 0;
    for (key, value) in data.entries() {
        size += decoded_len(value.text());
        names::config_key(key).iter().for_each(|why| out.invalid_value(&value, key, why));
    }
    if size > DATA_BYTES_MAX {
        out.too_long(&data, DATA_BYTES_MAX);
    }
    if let Some(old) = old {
        out.immutable(&root.get("type"), old);
        frozen(&root, Some(old), &["data"], &mut out);
    }
    typed(&root, &data, &mut out);
    out.0
}

/// What a Secret of a known type must hold.
fn typed(root: &At, data: &At, out: &mut Out) {
    let key = |name: &str| At { v: &data.v[name], path: format!("data[{name}]") };
    let mut need = |name: &str| {
        if data.v.get(name).is_none() {
            out.required(&key(name), "");
        }
    };
    match root.get("type").text() {
        "kubernetes.io/dockercfg" => need(".dockercfg"),
        "kubernetes.io/dockerconfigjson" => need(".dockerconfigjson"),
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/tls" => {
            need("tls.crt");
            need("tls.key");
        }
        "kubernetes.io/basic-auth" if data.v.get("username").is_none() && data.v.get("password").is_none() => {
            need("username");
            need("password");
        }
        "kubernetes.io/service-account-token" => {
            const ACCOUNT: &str = "kubernetes.io/service-account.name";
            let annotation = At { v: &root.v["metadata"]["annotations"][ACCOUNT], path: format!("metadata.annotations[{ACCOUNT}]") };
            if !annotation.given() {
                out.required(&annotation, "");
            }
        }
        _ => {}
    }
    for name in [".dockercfg", ".dockerconfigjson"] {
        if let Some(why) = data.v.get(name).and_then(not_json) {
            out.invalid_value(&key(name), "<secret contents redacted>", &why);
        }
    }
}

fn not_json(encoded: &Value) -> Option<String> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.as_str()?).ok()?;
    serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes).err().map(|e| e.to_string())
}
