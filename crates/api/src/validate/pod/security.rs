//! `securityContext` of pods and containers.

use super::super::{At, Out};

const ID_MAX: i64 = i32::MAX as i64;

pub(super) fn pod(spec: &At, out: &mut Out) {
    let at = spec.get("securityContext");
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        out.within(&at.get(field), 0, ID_MAX);
    }
    at.get("supplementalGroups").items().iter().for_each(|g| out.within(g, 0, ID_MAX));
    out.one_of(&at.get("fsGroupChangePolicy"), &["Always", "OnRootMismatch"]);
    out.one_of(&at.get("supplementalGroupsPolicy"), &["Merge", "Strict"]);
    profile(&at.get("seccompProfile"), out);
    profile(&at.get("appArmorProfile"), out);
    for sysctl in at.get("sysctls").items() {
        let name = sysctl.get("name");
        let good = |s: &str| {
            let part = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b));
            s.len() <= 253 && s.split(['.', '/']).all(part)
        };
        if !name.given() {
            out.required(&name, "");
        } else if !good(name.text()) {
            out.invalid(
                &name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        }
    }
    if spec.v["shareProcessNamespace"] == true && spec.v["hostPID"] == true {
        out.invalid(&spec.get("shareProcessNamespace"), "ShareProcessNamespace and HostPID cannot both be enabled");
    }
    if spec.v["hostUsers"] == false {
        for field in ["hostNetwork", "hostPID", "hostIPC"].iter().filter(|f| spec.v[**f] == true) {
            out.forbidden(&spec.get(field), "when `pod.Spec.HostUsers` is false");
        }
    }
}

pub(super) fn container(at: &At, out: &mut Out) {
    for field in ["runAsUser", "runAsGroup"] {
        out.within(&at.get(field), 0, ID_MAX);
    }
    profile(&at.get("seccompProfile"), out);
    profile(&at.get("appArmorProfile"), out);
    out.one_of(&at.get("procMount"), &["Default", "Unmasked"]);
    if at.v["allowPrivilegeEscalation"] != false {
        return;
    }
    if at.v["privileged"] == true {
        out.invalid(at, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
    }
    let added = at.get("capabilities.add");
    if added.items().iter().any(|c| matches!(c.text(), "CAP_SYS_ADMIN" | "SYS_ADMIN")) {
        out.invalid(at, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
    }
}

fn profile(at: &At, out: &mut Out) {
    if !at.is_set() {
        return;
    }
    let (kind, file) = (at.get("type"), at.get("localhostProfile"));
    if !kind.given() {
        return out.required(&kind, "type is required when seccompProfile is set");
    }
    out.one_of(&kind, &["Localhost", "RuntimeDefault", "Unconfined"]);
    match kind.text() {
        "Localhost" if !file.given() => out.required(&file, "must be set when seccomp type is Localhost"),
        "Localhost" => super::container::inner_path(&file, out),
        _ if file.given() => out.invalid(&file, "can only be set when seccomp type is Localhost"),
        _ => {}
    }
}
