//! `Localhost` profiles: the JSON that OCI runtimes and Docker read (runtime-spec `config-linux.md`, "Seccomp").
//!
//! Names this architecture does not have are skipped, as elsewhere: profiles list calls of all of them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Action, Cond, Op, Policy, Rule, number};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Arg>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Deserialize, Default)]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("seccomp profile: {0}")]
    Json(#[from] serde_json::Error),
    #[error("seccomp profile: action {0:?} is not supported")]
    Action(String),
    #[error("seccomp profile: operator {0:?} is not known")]
    Op(String),
    #[error("seccomp profile: argument index {0} is not one of 0 to 5")]
    Index(u8),
    #[error("seccomp profile: a rule has more than six conditions")]
    Conditions,
}

fn action(name: &str, errno: Option<u16>) -> Result<Action, Error> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(libc::EPERM as u16)),
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_TRACE" => Action::Trace(errno.unwrap_or(libc::EPERM as u16)),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        other => return Err(Error::Action(other.to_string())),
    })
}

fn condition(a: &Arg) -> Result<Cond, Error> {
    if a.index > 5 {
        return Err(Error::Index(a.index));
    }
    let (op, value) = match a.op.as_str() {
        "SCMP_CMP_EQ" => (Op::Eq, a.value),
        "SCMP_CMP_NE" => (Op::Ne, a.value),
        "SCMP_CMP_LT" => (Op::Lt, a.value),
        "SCMP_CMP_LE" => (Op::Le, a.value),
        "SCMP_CMP_GT" => (Op::Gt, a.value),
        "SCMP_CMP_GE" => (Op::Ge, a.value),
        "SCMP_CMP_MASKED_EQ" => (Op::Masked { mask: a.value }, a.value_two),
        other => return Err(Error::Op(other.to_string())),
    };
    Ok(Cond { arg: a.index, op, value })
}

/// Docker's extension of the format: an entry for some capabilities or architectures only.
fn applies(entry: &Entry, capabilities: &[String]) -> bool {
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let matches = |f: &Filter, caps_of: fn(&[String], &[String]) -> bool| {
        f.caps.as_ref().is_some_and(|c| !c.is_empty() && caps_of(c, capabilities))
            || f.arches.as_ref().is_some_and(|a| a.iter().any(|a| a == arch))
    };
    let included = entry.includes.as_ref().is_none_or(|f| {
        f.caps.as_ref().is_none_or(|c| c.iter().all(|c| capabilities.contains(c)))
            && f.arches.as_ref().is_none_or(|a| a.is_empty() || a.iter().any(|a| a == arch))
    });
    let excluded = entry.excludes.as_ref().is_some_and(|f| matches(f, |c, have| c.iter().any(|c| have.contains(c))));
    included && !excluded
}

pub fn parse(json: &str, capabilities: &[String]) -> Result<Policy, Error> {
    let profile: Profile = serde_json::from_str(json)?;
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut calls: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for entry in profile.syscalls.iter().filter(|e| applies(e, capabilities)) {
        let when = entry.args.iter().flatten().map(condition).collect::<Result<Vec<_>, _>>()?;
        if when.len() > 6 {
            return Err(Error::Conditions);
        }
        let rule = Rule { when, action: action(&entry.action, entry.errno_ret)? };
        for name in entry.names.iter().chain(&entry.name) {
            if let Some(nr) = number(name) {
                calls.entry(nr).or_default().push(rule.clone());
            }
        }
    }
    Ok(Policy { calls, default })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_profiles_as_runtimes_write_them() {
        let json = r#"{
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [
                {"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW", "args": null},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]},
                 "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}
            ]}"#;
        let policy = parse(json, &["CAP_CHOWN".to_string()]).unwrap();
        assert_eq!(policy.default, Action::Errno(38));
        assert_eq!(policy.calls.len(), 4);
        assert_eq!(policy.calls[&number("read").unwrap()][0].action, Action::Allow);
        assert!(!policy.calls.contains_key(&number("mount").unwrap()));
        assert_eq!(policy.calls[&number("clone").unwrap()][0].when[0].op, Op::Masked { mask: 2114060288 });
        assert!(parse(json, &["CAP_SYS_ADMIN".to_string()]).unwrap().calls.contains_key(&number("mount").unwrap()));
    }

    #[test]
    fn says_what_it_cannot_read() {
        let error = |json: &str| parse(json, &[]).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error("{").starts_with("seccomp profile: "));
        let notify = r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#;
        assert_eq!(error(notify), "seccomp profile: action \"SCMP_ACT_NOTIFY\" is not supported");
    }
}
