//! The system calls that no crate of ours wraps, and how a failed one is told.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What a user is told when something could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    #[serde(default)]
    pub kind: Kind,
    pub text: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    NotFound,
    Invalid,
    #[default]
    #[serde(other)]
    Failed,
}

impl Failure {
    pub fn failed(text: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, text: text.into() }
    }
    pub fn invalid(text: impl Into<String>) -> Self {
        Self { kind: Kind::Invalid, text: text.into() }
    }
    pub fn not_found(text: impl Into<String>) -> Self {
        Self { kind: Kind::NotFound, text: text.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

pub type Step<T = ()> = Result<T, Failure>;

/// Says what was being done when a call failed.
pub trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Step<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Step<T> {
        self.map_err(|e| Failure::failed(format!("{}: {}", what(), reason(&e.into()))))
    }
}

/// An error in the kernel's words, as a shell would print it: without Rust's `(os error 2)`.
pub fn reason(e: &io::Error) -> String {
    let text = e.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    let mut letters = text[..end].chars();
    letters.next().map(|c| c.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

pub fn cstring(bytes: impl AsRef<[u8]>) -> io::Result<CString> {
    CString::new(bytes.as_ref()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn check(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// `struct clone_args` of `linux/sched.h`.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A fork with namespaces, straight into a control group where the kernel has them unified. `None` in the child.
///
/// # Safety
/// The process must have one thread: the child goes on with a copy of everything.
pub unsafe fn fork(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<i32>> {
    let mut args = CloneArgs { flags: flags as u32 as u64, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if let Some(fd) = cgroup {
        args.flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: the arguments live through the call; one thread is the caller's promise.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<CloneArgs>()) })?;
    Ok((pid != 0).then_some(pid as i32))
}

pub fn setns(fd: impl AsFd, kind: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::setns(fd.as_fd().as_raw_fd(), kind) }.into()).map(drop)
}

pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: namespaces only, no CLONE_FILES: no descriptor table changes under anyone.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

pub const ATTR_RDONLY: u64 = 0x1;
pub const ATTR_NODEV: u64 = 0x4;

/// Adds attributes to a mount (and those below it) and sets its propagation where that is not 0.
pub fn mount_setattr(fd: impl AsFd, recursive: bool, set: u64, propagation: u64) -> io::Result<()> {
    let attr = MountAttr { set, clear: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { 0x8000 } else { 0 }; // AT_RECURSIVE
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: path and attributes live through the call.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &attr, size_of::<MountAttr>()) }).map(drop)
}

pub fn mount(source: &str, target: &Path, fstype: &str, flags: u64, data: &str) -> io::Result<()> {
    let (source, fstype, data) = (cstring(source)?, cstring(fstype)?, cstring(data)?);
    let target = cstring(target.as_os_str().as_bytes())?;
    // SAFETY: all strings live through the call.
    let ret = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fstype.as_ptr(), flags as libc::c_ulong, data.as_ptr().cast()) };
    check(ret.into()).map(drop)
}

pub fn prctl(option: i32, a: u64, b: u64) -> io::Result<i32> {
    // SAFETY: used only with options whose arguments are numbers.
    check(unsafe { libc::prctl(option, a, b, 0, 0) }.into()).map(|v| v as i32)
}

pub fn set_name(name: &std::ffi::CStr) {
    // SAFETY: the name lives through the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// All descriptors from `first` on are closed.
pub fn close_from(first: RawFd) {
    // SAFETY: called in a fresh child that owns nothing above `first` any more and goes on to exec.
    unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, libc::c_uint::MAX, 0) };
}

pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// The next child that ended: its pid and wait status. `None` when there is none now.
pub fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is ours.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// A descriptor that becomes readable with these signals, which are blocked from now on.
pub fn signalfd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use; the descriptor returned is new and ours.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for s in signals {
            libc::sigaddset(&mut set, *s);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()).into())?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// The next signal of a `signalfd`.
pub fn next_signal(fd: impl AsFd) -> Option<i32> {
    let mut info = [0u8; 128];
    let n = rustix::io::read(fd, &mut info).ok()?;
    (n == info.len()).then(|| i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
}

/// Signals as a program expects to find them: none blocked, none ignored.
pub fn reset_signals() {
    // SAFETY: the set is initialised before use; default handlers need no code of ours.
    unsafe {
        for s in 1..32 {
            libc::signal(s, libc::SIG_DFL);
        }
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// The other end of a terminal, without a path. Unlocks it first.
pub fn pty_peer(master: impl AsFd) -> io::Result<OwnedFd> {
    let fd = master.as_fd().as_raw_fd();
    let unlock = 0;
    // SAFETY: `unlock` lives through the call; the descriptor returned is new and ours.
    unsafe {
        check(libc::ioctl(fd, libc::TIOCSPTLCK, &unlock).into())?;
        let peer = check(libc::ioctl(fd, libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC).into())?;
        Ok(OwnedFd::from_raw_fd(peer as RawFd))
    }
}

pub fn pty_number(master: impl AsFd) -> io::Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: the number is ours.
    check(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTN, &mut number) }.into())?;
    Ok(number)
}

pub fn resize(master: impl AsFd, width: u16, height: u16) {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the size lives through the call.
    unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) };
}

/// Makes a terminal the caller's own; the caller leads its session.
pub fn control_terminal(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// `dup2`, for the three standard descriptors of a child.
pub fn put_at(fd: impl AsFd, number: RawFd) -> io::Result<()> {
    // SAFETY: in a fresh child, where nobody owns the standard descriptors.
    check(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) }.into()).map(drop)
}

/// Ends a forked child at once, without running anything of the parent's.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: it does not return.
    unsafe { libc::_exit(code) }
}

/// `bpf(2)`; the result is a descriptor for `BPF_PROG_LOAD`, else 0.
pub fn bpf<T>(command: i32, attr: &T) -> io::Result<i32> {
    // SAFETY: `attr` is a union of the kernel's layout of which the caller fills the part the command reads.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) }).map(|v| v as i32)
}
