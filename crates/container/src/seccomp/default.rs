//! `RuntimeDefault`: every call the table knows is allowed but those listed here, some of them by capability.
//!
//! The set is the one users know from containerd's default profile, written from its other end.

use std::collections::BTreeMap;

use super::{Action, Cond, Op, Policy, Rule, number, table};

/// Calls, and the capabilities of which one is enough to have them.
const RESTRICTED: &[(&str, &[&str])] = &[
    // Not for anyone: keys and io_uring are not namespaced or not contained, the others are obsolete or rule the machine.
    ("add_key keyctl request_key io_uring_setup io_uring_enter io_uring_register userfaultfd kexec_load kexec_file_load", &[]),
    ("pivot_root swapon swapoff migrate_pages move_pages nfsservctl uselib ustat sysfs _sysctl create_module", &[]),
    ("get_kernel_syms query_module getpmsg putpmsg afs_syscall tuxcall security vserver epoll_ctl_old epoll_wait_old", &[]),
    ("open_by_handle_at", &["CAP_DAC_READ_SEARCH"]),
    ("fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount open_tree", &["CAP_SYS_ADMIN"]),
    ("open_tree_attr quotactl quotactl_fd setdomainname sethostname setns umount2 unshare", &["CAP_SYS_ADMIN"]),
    ("bpf", &["CAP_SYS_ADMIN", "CAP_BPF"]),
    ("perf_event_open", &["CAP_SYS_ADMIN", "CAP_PERFMON"]),
    ("syslog", &["CAP_SYS_ADMIN", "CAP_SYSLOG"]),
    ("reboot", &["CAP_SYS_BOOT"]),
    ("chroot", &["CAP_SYS_CHROOT"]),
    ("delete_module init_module finit_module", &["CAP_SYS_MODULE"]),
    ("acct", &["CAP_SYS_PACCT"]),
    ("kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev", &["CAP_SYS_PTRACE"]),
    ("iopl ioperm", &["CAP_SYS_RAWIO"]),
    ("settimeofday clock_settime", &["CAP_SYS_TIME"]),
    ("vhangup", &["CAP_SYS_TTY_CONFIG"]),
    ("get_mempolicy mbind set_mempolicy set_mempolicy_home_node", &["CAP_SYS_NICE"]),
];

/// `CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET`
const NEW_NAMESPACES: u64 = 0x7E02_0000;

/// The personalities that programs ask for: Linux, with or without `UNAME26` and `PER_LINUX32`, and "what is it?".
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff];

pub fn policy(capabilities: &[String]) -> Policy {
    let has = |caps: &[&str]| caps.iter().any(|c| capabilities.iter().any(|have| have == c));
    let always = |action| vec![Rule { when: Vec::new(), action }];
    let when = |op, value| Rule { when: vec![Cond { arg: 0, op, value }], action: Action::Allow };
    let mut calls: BTreeMap<u32, Vec<Rule>> = table::all().map(|(nr, _)| (nr, always(Action::Allow))).collect();
    let mut set = |name: &str, rules: Vec<Rule>| {
        if let Some(nr) = number(name) {
            calls.insert(nr, rules);
        }
    };
    let deny = Action::Errno(libc::EPERM as u16);
    for (names, caps) in RESTRICTED {
        if !has(caps) {
            names.split(' ').for_each(|name| set(name, always(deny)));
        }
    }
    if !has(&["CAP_SYS_ADMIN"]) {
        set("clone", vec![when(Op::Masked { mask: NEW_NAMESPACES }, 0)]);
        // Its flags are behind a pointer: told that it is not there, libraries use `clone`.
        set("clone3", always(Action::Errno(libc::ENOSYS as u16)));
    }
    set("socket", vec![when(Op::Ne, libc::AF_VSOCK as u64)]);
    set("personality", PERSONALITIES.iter().map(|p| when(Op::Eq, *p)).collect());
    Policy { calls, default: deny }
}
