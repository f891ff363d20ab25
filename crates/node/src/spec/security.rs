//! A container's rights: user, groups, capabilities, privilege, seccomp.
//!
//! Source: `SecurityContext` and `PodSecurityContext`; the default capabilities are containerd's. Seccomp is on unless the
//! pod says `Unconfined` or is privileged.

use driver::{CAPABILITIES, Security};
use k8s_openapi::api::core::v1::{Container as Spec, PodSecurityContext, SeccompProfile, SecurityContext};

use super::SpecError;
use super::users::{Accounts, User};
use crate::images::Image;
use crate::pod::PodCx;

const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

pub(super) fn security(cx: &PodCx, spec: &Spec, image: &Image) -> Result<Security, SpecError> {
    let pod = cx.pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let own = spec.security_context.clone().unwrap_or_default();
    let who = format!("(pod: \"{}_{}({})\", container: {})", cx.name(), cx.namespace(), cx.uid, spec.name);
    let accounts = Accounts::read(&image.layers);
    let user = user(&pod, &own, &image.user, &accounts, &who)?;
    let privileged = own.privileged == Some(true);
    let capabilities = capabilities(&own, privileged).map_err(SpecError::Container)?;
    let (seccomp_default, seccomp_profile) = seccomp(cx, own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()), privileged)?;
    let escalates = privileged || capabilities.iter().any(|c| c == "CAP_SYS_ADMIN");
    Ok(Security {
        privileged,
        uid: user.uid,
        gid: user.gid,
        additional_gids: user.additional,
        read_only_root: own.read_only_root_filesystem == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !escalates,
        capabilities,
        seccomp_default,
        seccomp_profile,
        unmasked_proc: privileged || own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

fn id(value: i64, field: &str) -> Result<u32, SpecError> {
    u32::try_from(value).map_err(|_| SpecError::Config(format!("{field} {value} is not an id")))
}

fn user(pod: &PodSecurityContext, own: &SecurityContext, image_user: &str, accounts: &Accounts, who: &str) -> Result<User, SpecError> {
    let given = own.run_as_user.or(pod.run_as_user);
    if own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
        non_root(given, image_user).map_err(|why| SpecError::Config(format!("{why} {who}")))?;
    }
    let mut user = match given {
        // The image's own user only when none is given; its account still says which groups the uid is in.
        Some(uid) => accounts.resolve(&id(uid, "runAsUser")?.to_string()),
        None => accounts.resolve(image_user),
    }
    .map_err(SpecError::Container)?;
    if let Some(gid) = own.run_as_group.or(pod.run_as_group) {
        user.gid = id(gid, "runAsGroup")?;
    }
    if pod.supplemental_groups_policy.as_deref() == Some("Strict") {
        user.additional.clear();
    }
    for gid in pod.supplemental_groups.iter().flatten().chain(&pod.fs_group) {
        let gid = id(*gid, "supplementalGroups")?;
        if gid != user.gid && !user.additional.contains(&gid) {
            user.additional.push(gid);
        }
    }
    Ok(user)
}

fn non_root(given: Option<i64>, image_user: &str) -> Result<(), String> {
    if let Some(uid) = given {
        return if uid == 0 { Err("container's runAsUser breaks non-root policy".into()) } else { Ok(()) };
    }
    let name = image_user.split(':').next().unwrap_or_default();
    match name.parse::<u32>() {
        Ok(0) => Err("container has runAsNonRoot and image will run as root".into()),
        Ok(_) => Ok(()),
        Err(_) if name.is_empty() || name == "root" => Err("container has runAsNonRoot and image will run as root".into()),
        Err(_) => Err(format!("container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root")),
    }
}

/// The default set, less `drop`, plus `add`; `ALL` is understood in both.
fn capabilities(own: &SecurityContext, privileged: bool) -> Result<Vec<String>, String> {
    let all = || CAPABILITIES.iter().map(|c| c.to_string());
    if privileged {
        return Ok(all().collect());
    }
    let lists = own.capabilities.clone().unwrap_or_default();
    let (add, drop) = (lists.add.unwrap_or_default(), lists.drop.unwrap_or_default());
    let name = |text: &String| {
        let upper = text.to_uppercase();
        let full = if upper.starts_with("CAP_") || upper == "ALL" { upper } else { format!("CAP_{upper}") };
        let known = full == "ALL" || CAPABILITIES.contains(&full.as_str());
        if known { Ok(full) } else { Err(format!("unknown capability {text:?} to add or drop")) }
    };
    let add: Vec<String> = add.iter().map(name).collect::<Result<_, _>>()?;
    let drop: Vec<String> = drop.iter().map(name).collect::<Result<_, _>>()?;
    let mut set: Vec<String> =
        if add.iter().any(|c| c == "ALL") { all().collect() } else { DEFAULT_CAPABILITIES.map(String::from).to_vec() };
    if drop.iter().any(|c| c == "ALL") {
        set.clear();
    }
    set.retain(|c| !drop.contains(c));
    for capability in add.into_iter().filter(|c| c != "ALL") {
        if !set.contains(&capability) {
            set.push(capability);
        }
    }
    Ok(set)
}

fn seccomp(cx: &PodCx, profile: Option<&SeccompProfile>, privileged: bool) -> Result<(bool, Option<String>), SpecError> {
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref().unwrap_or_default())) {
        _ if privileged => Ok((false, None)),
        None | Some(("RuntimeDefault", _)) => Ok((true, None)),
        Some(("Unconfined", _)) => Ok((false, None)),
        Some(("Localhost", name)) => {
            let plain = !name.is_empty() && std::path::Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
            let path = cx.shared.config.data_dir.join("seccomp").join(name);
            let failed = |why: String| SpecError::Config(format!("failed to load seccomp profile {}: {why}", path.display()));
            if !plain {
                return Err(failed("not a path below the profile directory".into()));
            }
            let text = std::fs::read_to_string(&path).map_err(|e| failed(e.to_string()))?;
            Ok((false, Some(text)))
        }
        Some((other, _)) => Err(SpecError::Config(format!("unknown seccomp profile type {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Capabilities;

    fn set(add: &[&str], drop: &[&str]) -> Result<Vec<String>, String> {
        let list = |l: &[&str]| Some(l.iter().map(|s| s.to_string()).collect());
        let own = SecurityContext { capabilities: Some(Capabilities { add: list(add), drop: list(drop) }), ..Default::default() };
        capabilities(&own, false)
    }

    #[test]
    fn capabilities_are_default_less_drop_plus_add() {
        assert_eq!(set(&[], &[]).unwrap().len(), 14);
        assert_eq!(set(&["NET_BIND_SERVICE"], &["ALL"]).unwrap(), ["CAP_NET_BIND_SERVICE"]);
        assert!(!set(&[], &["cap_net_raw"]).unwrap().contains(&"CAP_NET_RAW".to_string()));
        assert_eq!(set(&["ALL"], &["SYS_ADMIN"]).unwrap().len(), 40);
        assert!(set(&["FLY"], &[]).unwrap_err().contains("FLY"));
    }

    #[test]
    fn non_root_is_checked_in_upstreams_words() {
        for (given, image, ok) in [(Some(0), "", false), (Some(5), "", true), (None, "", false), (None, "0:0", false), (None, "7", true)] {
            assert_eq!(non_root(given, image).is_ok(), ok, "{given:?} {image}");
        }
        let text = non_root(None, "nginx").unwrap_err();
        assert_eq!(text, "container has runAsNonRoot and image has non-numeric user (nginx), cannot verify user is non-root");
    }
}
