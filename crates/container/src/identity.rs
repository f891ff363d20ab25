//! Who a program is when it begins: groups, user, capabilities, no-new-privileges, system call filter, in the only order
//! in which each step is still allowed and none can be undone.

use std::io;
use std::os::fd::AsFd;

use driver::{CAPABILITIES, Security};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::seccomp::{self, Filter};
use crate::sys::{self, Doing, Failure, Step};

/// Everything decided before the fork, so that nothing can be wrong after it.
pub struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    capabilities: u64,
    no_new_privileges: bool,
    filter: Option<Filter>,
}

fn mask(names: &[String]) -> Step<u64> {
    let bit = |name: &String| {
        let found = CAPABILITIES.iter().position(|c| c == name);
        found.map(|i| 1u64 << i).ok_or_else(|| Failure::invalid(format!("capability {name:?} is not known")))
    };
    names.iter().try_fold(0, |all, name| Ok(all | bit(name)?))
}

impl Identity {
    pub fn of(security: &Security) -> Step<Self> {
        let asked = if security.privileged { u64::MAX } else { mask(&security.capabilities)? };
        let own = rustix::thread::capabilities(None).doing(|| "reading capabilities".to_string())?;
        let names = if security.privileged { CAPABILITIES.iter().map(|c| c.to_string()).collect() } else { security.capabilities.clone() };
        let policy = match &security.seccomp_profile {
            Some(json) => Some(seccomp::parse_oci(json, &names).map_err(|e| Failure::invalid(e.to_string()))?),
            None if security.seccomp_default && !security.privileged => Some(seccomp::default_policy(&names)),
            None => None,
        };
        Ok(Self {
            uid: security.uid,
            gid: security.gid,
            groups: security.additional_gids.clone(),
            // What this machine does not give us we cannot give on.
            capabilities: asked & own.permitted.bits(),
            no_new_privileges: security.no_new_privileges,
            filter: policy.map(|p| p.compile()),
        })
    }

    /// Pipes and terminals of ours become the user's, so that it can open `/dev/stdout` by name.
    pub fn own_streams(&self) {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
            if crate::rootfs::is_stream(fd) {
                let user = rustix::fs::Uid::from_raw(self.uid);
                let group = rustix::fs::Gid::from_raw(self.gid);
                let _ = rustix::fs::fchown(fd, Some(user), Some(group));
            }
        }
    }

    /// The point of no return. Without no-new-privileges a filter can only be installed with `CAP_SYS_ADMIN`, so before
    /// capabilities go; with it, as late as can be.
    pub fn assume(&self) -> Step {
        let filter = |wanted: bool| match &self.filter {
            Some(f) if wanted => f.install().doing(|| "installing the system call filter".to_string()),
            _ => Ok(()),
        };
        filter(!self.no_new_privileges)?;
        for bit in 0..64 {
            // The kernel says where its list ends.
            let Ok(held) = sys::prctl(libc::PR_CAPBSET_READ, bit, 0) else { break };
            if self.capabilities & (1 << bit) == 0 && held == 1 {
                sys::prctl(libc::PR_CAPBSET_DROP, bit, 0).doing(|| "dropping capabilities".to_string())?;
            }
        }
        self.change_user().doing(|| format!("becoming user {} and group {}", self.uid, self.gid))?;
        if self.uid == 0 {
            let sets = CapabilitySets {
                effective: CapabilitySet::from_bits_retain(self.capabilities),
                permitted: CapabilitySet::from_bits_retain(self.capabilities),
                inheritable: CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, sets).doing(|| "setting capabilities".to_string())?;
        }
        if self.no_new_privileges {
            sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).doing(|| "no-new-privileges".to_string())?;
        }
        filter(self.no_new_privileges)
    }

    fn change_user(&self) -> io::Result<()> {
        let check = |ret: i32| if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        // SAFETY: the list lives through the call; the others take numbers. One thread: nobody else's identity changes.
        unsafe {
            check(libc::setgroups(self.groups.len(), self.groups.as_ptr()))?;
            check(libc::setresgid(self.gid, self.gid, self.gid))?;
            check(libc::setresuid(self.uid, self.uid, self.uid))
        }
    }
}

/// Nothing left to misuse: for the process that holds a shared process namespace.
pub fn renounce() -> Step {
    let nobody = Identity { uid: 65534, gid: 65534, groups: Vec::new(), capabilities: 0, no_new_privileges: true, filter: None };
    nobody.assume()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbers() {
        assert_eq!(CAPABILITIES[21], "CAP_SYS_ADMIN");
        assert_eq!(CAPABILITIES.len(), 41);
        assert_eq!(mask(&["CAP_CHOWN".into(), "CAP_KILL".into()]).unwrap(), 0b10_0001);
        assert_eq!(mask(&["CAP_SAIL".into()]).unwrap_err().text, "capability \"CAP_SAIL\" is not known");
    }
}
