//! What is in a configMap, secret, projected or downwardAPI volume.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use base::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use super::atomic::{File, Files};
use crate::limits::{PROJECTED_BYTES_MAX, TOKEN_AGE_MAX, TOKEN_REFRESH_PERCENT};
use crate::lookup::LookupError;
use crate::pod::PodCx;
use crate::spec::{Fields, field};

const DEFAULT_MODE: i32 = 0o644;

/// `None` for volumes that are not made of files of ours.
pub(super) async fn of(cx: &PodCx, volume: &Volume) -> Result<Option<Files>, String> {
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        config_map(cx, &source.name, source.items.as_deref(), mode, source.optional, &mut files).await?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.clone().unwrap_or_default();
        secret(cx, &name, source.items.as_deref(), mode, source.optional, &mut files).await?;
    } else if let Some(source) = &volume.downward_api {
        downward(cx, source.items.as_deref().unwrap_or_default(), source.default_mode.unwrap_or(DEFAULT_MODE), &mut files)?;
    } else if let Some(source) = &volume.projected {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for part in source.sources.iter().flatten() {
            projection(cx, part, mode, &mut files).await?;
        }
    } else {
        return Ok(None);
    }
    let size: usize = files.values().map(|f| f.data.len()).sum();
    if size > PROJECTED_BYTES_MAX {
        return Err(format!("its content has {size} bytes, more than {PROJECTED_BYTES_MAX}"));
    }
    Ok(Some(files))
}

async fn projection(cx: &PodCx, part: &VolumeProjection, mode: i32, files: &mut Files) -> Result<(), String> {
    if let Some(map) = &part.config_map {
        config_map(cx, &map.name, map.items.as_deref(), mode, map.optional, files).await?;
    }
    if let Some(s) = &part.secret {
        secret(cx, &s.name, s.items.as_deref(), mode, s.optional, files).await?;
    }
    if let Some(api) = &part.downward_api {
        downward(cx, api.items.as_deref().unwrap_or_default(), mode, files)?;
    }
    if let Some(wanted) = &part.service_account_token {
        let (uid, mode) = token_owner(cx);
        let token = token(cx, wanted).await?;
        files.insert(wanted.path.clone(), File { data: token.into_bytes(), mode, uid });
    }
    if part.cluster_trust_bundle.is_some() {
        return Err("clusterTrustBundle projections are not supported".into());
    }
    Ok(())
}

async fn config_map(
    cx: &PodCx,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: Option<bool>,
    files: &mut Files,
) -> Result<(), String> {
    let found = cx.shared.lookup.config_map(cx.namespace(), name).await;
    let Some(ConfigMap { data, binary_data, .. }) = may_miss(found, optional)? else { return Ok(()) };
    let mut all: BTreeMap<String, Vec<u8>> = data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes())).collect();
    all.extend(binary_data.into_iter().flatten().map(|(k, v)| (k, v.0)));
    select(all, items, mode, optional, "config", files)
}

async fn secret(
    cx: &PodCx,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: Option<bool>,
    files: &mut Files,
) -> Result<(), String> {
    let found = cx.shared.lookup.secret(cx.namespace(), name).await;
    let Some(Secret { data, .. }) = may_miss(found, optional)? else { return Ok(()) };
    let all = data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect();
    select(all, items, mode, optional, "secret", files)
}

fn may_miss<T>(found: Result<T, LookupError>, optional: Option<bool>) -> Result<Option<T>, String> {
    match found {
        Ok(object) => Ok(Some(object)),
        Err(LookupError::NotFound { .. }) if optional == Some(true) => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

/// All keys under their own names, or the items with their paths and modes.
fn select(
    mut all: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: Option<bool>,
    what: &str,
    files: &mut Files,
) -> Result<(), String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        files.extend(all.into_iter().map(|(key, data)| (key, file(data, mode))));
        return Ok(());
    };
    for item in items {
        // A key may be asked for twice, under two paths.
        match all.get_mut(&item.key) {
            Some(data) => {
                files.insert(item.path.clone(), file(data.clone(), item.mode.unwrap_or(mode)));
            }
            None if optional == Some(true) => {}
            None => return Err(format!("references non-existent {what} key: {}", item.key)),
        }
    }
    Ok(())
}

fn file(data: Vec<u8>, mode: i32) -> File {
    File { data, mode: u32::try_from(mode).unwrap_or(0o644) & 0o777, uid: None }
}

fn downward(cx: &PodCx, items: &[DownwardAPIVolumeFile], mode: i32, files: &mut Files) -> Result<(), String> {
    let fields = Fields::of(cx);
    for item in items {
        let text = if let Some(selector) = &item.field_ref {
            field(&cx.pod, &selector.field_path, &fields)?
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let container = cx.spec(name).ok_or_else(|| format!("container {name:?} not found"))?;
            crate::spec::resource_field(container, selector, &fields)?
        } else {
            return Err(format!("{}: neither fieldRef nor resourceFieldRef", item.path));
        };
        files.insert(item.path.clone(), file(text.into_bytes(), item.mode.unwrap_or(mode)));
    }
    Ok(())
}

// ---- tokens --------------------------------------------------------------------------------------------------------

/// Whoever runs in the pod must read the token, and nobody else: its one user, its group, or else everybody in the pod.
fn token_owner(cx: &PodCx) -> (Option<u32>, u32) {
    let spec = cx.pod.spec.clone().unwrap_or_default();
    let pod = spec.security_context.clone().unwrap_or_default();
    if pod.fs_group.is_some() {
        return (None, 0o600);
    }
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let users: BTreeSet<Option<i64>> = all.map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(pod.run_as_user)).collect();
    match users.first() {
        Some(Some(uid)) if users.len() == 1 => (u32::try_from(*uid).ok(), 0o600),
        _ => (None, 0o644),
    }
}

struct Token {
    text: String,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

/// Pod uid, audience, expiration.
type Wanted = (String, String, i64);

/// Service-account tokens in use, so that a refresh of volumes asks for none before its time.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<BTreeMap<Wanted, Token>>);

impl Tokens {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Wanted, Token>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn forget(&self, uid: &str) {
        self.lock().retain(|(pod, _, _), _| pod != uid);
    }
}

async fn token(cx: &PodCx, wanted: &ServiceAccountTokenProjection) -> Result<String, String> {
    let seconds = wanted.expiration_seconds.unwrap_or(3600);
    let key: Wanted = (cx.uid.clone(), wanted.audience.clone().unwrap_or_default(), seconds);
    let now = cx.shared.config.clock.now();
    let held = cx.shared.tokens.lock().get(&key).map(|t| (t.text.clone(), t.renew_at, t.expires_at));
    if let Some((text, renew_at, _)) = &held
        && now < *renew_at
    {
        return Ok(text.clone());
    }
    match request(cx, &key, now).await {
        Ok(token) => {
            let text = token.text.clone();
            cx.shared.tokens.lock().insert(key, token);
            Ok(text)
        }
        // An API server that is away for a moment takes no token away.
        Err(why) => match held {
            Some((text, _, expires_at)) if now < expires_at => {
                tracing::warn!(pod = cx.uid, "token not renewed: {why}");
                Ok(text)
            }
            _ => Err(format!("failed to fetch token: {why}")),
        },
    }
}

async fn request(cx: &PodCx, (uid, audience, seconds): &Wanted, now: Timestamp) -> Result<Token, String> {
    let account = cx.pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).filter(|n| !n.is_empty());
    let account = account.unwrap_or_else(|| "default".into());
    let bound = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some(cx.name().to_string()),
        uid: Some(uid.clone()),
    };
    let audiences = if audience.is_empty() { Vec::new() } else { vec![audience.clone()] };
    let body = TokenRequest {
        spec: TokenRequestSpec { audiences, bound_object_ref: Some(bound), expiration_seconds: Some(*seconds) },
        ..TokenRequest::default()
    };
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", cx.namespace());
    let answer: TokenRequest = cx.shared.config.client.post(&path, &body).await.map_err(|e| e.to_string())?;
    let status = answer.status.ok_or("the answer holds no token")?;
    let expires_at = status.expiration_timestamp.0;
    let life = expires_at.duration_since(now);
    let age = jiff::SignedDuration::from_secs(life.as_secs() * TOKEN_REFRESH_PERCENT / 100);
    let age = age.min(jiff::SignedDuration::try_from(TOKEN_AGE_MAX).unwrap_or(age));
    Ok(Token { text: status.token, renew_at: now.checked_add(age).unwrap_or(expires_at), expires_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_choose_name_and_move_keys() {
        let all: BTreeMap<String, Vec<u8>> = [("a".to_string(), b"1".to_vec()), ("b".to_string(), b"2".to_vec())].into();
        let item = |key: &str, path: &str, mode| KeyToPath { key: key.into(), path: path.into(), mode };
        let mut files = Files::new();
        select(all.clone(), None, 0o640, None, "config", &mut files).unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(files["a"].mode, 0o640);
        let mut files = Files::new();
        select(all.clone(), Some(&[item("a", "x/y", Some(0o400)), item("a", "z", None)]), 0o644, None, "config", &mut files).unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["x/y", "z"]);
        assert_eq!(files["x/y"].mode, 0o400);
        let missing = [item("no", "x", None)];
        let why = select(all.clone(), Some(&missing), 0o644, None, "secret", &mut files).unwrap_err();
        assert_eq!(why, "references non-existent secret key: no");
        assert!(select(all, Some(&missing), 0o644, Some(true), "secret", &mut files).is_ok());
    }
}
