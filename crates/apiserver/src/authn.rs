//! Who asks: client certificates, service-account tokens, impersonation.
//!
//! Nothing proven is `system:anonymous`; something wrong (a bad or stale token) is 401, never anonymous.

use std::collections::BTreeMap;

use api::Status;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use ports::{Attributes, Authorizer as _, Identity};

use crate::Server;
use crate::token::{Bound, Grant};

/// What the connection proved.
#[derive(Debug, Clone)]
pub enum Caller {
    /// In process: whoever made the transport said who it is. Or a verified client certificate.
    Proven(Identity),
    Unproven,
}

pub fn anonymous() -> Identity {
    Identity { username: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..Identity::default() }
}

impl Server {
    /// The identity of a request, impersonation included.
    pub(crate) fn authenticate(&self, caller: Caller, headers: &HeaderMap) -> Result<Identity, Status> {
        let who = match (caller, bearer(headers)) {
            (Caller::Proven(who), _) => who,
            (Caller::Unproven, Some(token)) => self.token_identity(token, &[]).map_err(|why| {
                tracing::debug!(why, "a token was refused");
                Status::unauthorized()
            })?,
            (Caller::Unproven, None) if headers.contains_key(AUTHORIZATION) => return Err(Status::unauthorized()),
            (Caller::Unproven, None) => anonymous(),
        };
        self.impersonate(who, headers)
    }

    /// Who a token speaks for; `audiences` empty means the API server itself.
    pub(crate) fn token_identity(&self, token: &str, audiences: &[String]) -> Result<Identity, String> {
        let now_s = self.config.clock.now().as_second();
        let grant = self.config.token_key.verify(&self.config.issuer, token, now_s)?;
        let own = std::slice::from_ref(&self.config.issuer);
        let wanted = if audiences.is_empty() { own } else { audiences };
        if !wanted.iter().any(|a| grant.audiences.contains(a)) {
            return Err("token is for another audience".into());
        }
        self.still_there(&grant)?;
        let mut who = Identity::service_account(&grant.namespace, &grant.account);
        who.uid = grant.account_uid.clone();
        let mut extra = BTreeMap::from([("authentication.kubernetes.io/credential-id".to_string(), vec![format!("JTI={}", grant.id)])]);
        for bound in &grant.bound {
            extra.insert(format!("authentication.kubernetes.io/{}-name", bound.kind), vec![bound.name.clone()]);
            extra.insert(format!("authentication.kubernetes.io/{}-uid", bound.kind), vec![bound.uid.clone()]);
        }
        who.extra = extra;
        Ok(who)
    }

    /// A token ends with its account, and with the pod, secret or node it is bound to.
    fn still_there(&self, grant: &Grant) -> Result<(), String> {
        let account = format!("core/serviceaccounts/{}/{}", grant.namespace, grant.account);
        if self.state.uid_of(&account).as_deref() != Some(grant.account_uid.as_str()) {
            return Err(format!("service account {}/{} is gone", grant.namespace, grant.account));
        }
        for Bound { kind, name, uid } in &grant.bound {
            let key = match *kind {
                "node" => format!("core/nodes//{name}"),
                other => format!("core/{other}s/{}/{name}", grant.namespace),
            };
            // The node of a bound pod is told, not checked, as upstream has it.
            if *kind != "node" && self.state.uid_of(&key).as_deref() != Some(uid.as_str()) {
                return Err(format!("{kind} {name} that the token is bound to is gone"));
            }
        }
        Ok(())
    }

    fn impersonate(&self, who: Identity, headers: &HeaderMap) -> Result<Identity, Status> {
        let text = |v: &http::HeaderValue| v.to_str().unwrap_or_default().to_string();
        let user = headers.get("impersonate-user").map(text).unwrap_or_default();
        let groups: Vec<String> = headers.get_all("impersonate-group").iter().map(text).collect();
        let uid = headers.get("impersonate-uid").map(text).unwrap_or_default();
        let extra: Vec<(String, String)> = headers
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().strip_prefix("impersonate-extra-")?.to_string(), text(value))))
            .collect();
        if user.is_empty() {
            if groups.is_empty() && extra.is_empty() && uid.is_empty() {
                return Ok(who);
            }
            return Err(Status::bad_request("requested impersonation without a user"));
        }
        let allowed = |group: &str, resource: &str, namespace: &str, name: &str, sub: &str| {
            let what = Attributes {
                verb: "impersonate".into(),
                group: group.into(),
                resource: resource.into(),
                subresource: sub.into(),
                namespace: namespace.into(),
                name: name.into(),
                path: String::new(),
            };
            self.rbac.authorize(&who, &what).map_err(|why| Status::forbidden(group, resource, name, &why))
        };
        let mut as_whom = match user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
            Some((namespace, name)) => {
                allowed("", "serviceaccounts", namespace, name, "")?;
                Identity::service_account(namespace, name)
            }
            None => {
                allowed("", "users", "", &user, "")?;
                Identity::new(&*user, &[])
            }
        };
        for group in &groups {
            allowed("", "groups", "", group, "")?;
        }
        if !groups.is_empty() {
            as_whom.groups = groups;
            if user != "system:anonymous" && !as_whom.groups.iter().any(|g| g == "system:authenticated") {
                as_whom.groups.push("system:authenticated".into());
            }
        }
        if user == "system:anonymous" {
            as_whom.groups = vec!["system:unauthenticated".into()];
        }
        for (key, value) in extra {
            let key = percent_encoding::percent_decode_str(&key).decode_utf8_lossy().into_owned();
            allowed("authentication.k8s.io", "userextras", "", &value, &key)?;
            as_whom.extra.entry(key).or_default().push(value);
        }
        if !uid.is_empty() {
            allowed("authentication.k8s.io", "uids", "", &uid, "")?;
            as_whom.uid = uid;
        }
        Ok(as_whom)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let header = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let (scheme, token) = header?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|t| !t.is_empty())
}
