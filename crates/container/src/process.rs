//! A program in a container, from the shim's fork to its exec: the container's first process or an exec'd one.
//!
//! The child tells its parent by one socket how far it came: `T` with a terminal, `E` with a failure, `X` right before
//! the exec that closes the socket. The parent never waits for it: a hung mount must not stop a pod.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use driver::Container;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage};
use rustix::net::{SendFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

use crate::cgroup::Group;
use crate::identity::Identity;
use crate::rootfs::{self, Place};
use crate::sys::{self, Doing, Failure, Step};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEVPTS_MAGIC: u64 = 0x1cd1;
const SYNC_FD: i32 = 3;

/// What runs, fully known before the fork.
pub struct Program<'a> {
    pub container: &'a Container,
    pub args: &'a [String],
    pub hostname: &'a str,
    pub identity: Identity,
    pub tty: bool,
    pub stdin: bool,
}

/// The shim's ends of a child.
pub struct Child {
    pub pid: i32,
    pub sync: OwnedFd,
    /// Absent with a terminal: that comes by `sync`.
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// One step that a child reports.
pub enum Report {
    Terminal(OwnedFd),
    Failed(Failure),
    /// It is about to exec: an end of the stream after this is success.
    Ready,
    /// Nothing more will come.
    End,
    /// Nothing for now.
    Later,
}

/// The namespaces that an exec'd process joins.
pub struct Joined {
    pub pid: Option<File>,
    pub mnt: File,
    pub cgroup: File,
}

impl Joined {
    /// Those of a living process; `pid` only where it differs from the shim's own.
    pub fn of(pid: i32, shares_pid: bool) -> Step<Self> {
        let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}")).doing(|| format!("{kind} namespace of the container"));
        Ok(Self { pid: if shares_pid { None } else { Some(open("pid")?) }, mnt: open("mnt")?, cgroup: open("cgroup")? })
    }
}

/// Where the child is put and what it makes there.
pub enum Scene<'a> {
    /// A new container; `pid_namespace` is the pod's shared one.
    Start {
        place: Place<'a>,
        own_pids: bool,
        pid_namespace: Option<BorrowedFd<'a>>,
    },
    Exec {
        group: &'a Group<'a>,
        joined: &'a Joined,
    },
}

struct ChildEnds {
    sync: OwnedFd,
    stdio: Option<[OwnedFd; 3]>,
}

fn pipes(program: &Program<'_>) -> io::Result<(Child, ChildEnds)> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let mut child = Child { pid: 0, sync: ours, stdin: None, stdout: None, stderr: None };
    if program.tty {
        return Ok((child, ChildEnds { sync: theirs, stdio: None }));
    }
    let (out_r, out_w) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (err_r, err_w) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let input = match program.stdin {
        true => {
            let (r, w) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            nonblocking(&w)?;
            child.stdin = Some(w);
            r
        }
        false => rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?,
    };
    // Only our ends: the program's must block, as programs expect.
    nonblocking(&out_r)?;
    nonblocking(&err_r)?;
    (child.stdout, child.stderr) = (Some(out_r), Some(err_r));
    Ok((child, ChildEnds { sync: theirs, stdio: Some([input, out_w, err_w]) }))
}

pub fn nonblocking(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(&fd, rustix::fs::fcntl_getfl(&fd)? | OFlags::NONBLOCK)?)
}

/// Forks the program into its scene. `own_pid_ns` is the shim's own process namespace, to come back to.
pub fn spawn(program: &Program<'_>, scene: &Scene<'_>, own_pid_ns: BorrowedFd<'_>) -> Step<Child> {
    let what = || "starting a process".to_string();
    let (mut child, ends) = pipes(program).doing(what)?;
    let (group, flags, pid_ns) = match scene {
        Scene::Start { place, own_pids, pid_namespace } => {
            (place.group, libc::CLONE_NEWNS | if *own_pids { libc::CLONE_NEWPID } else { 0 }, *pid_namespace)
        }
        Scene::Exec { group, joined } => (*group, 0, joined.pid.as_ref().map(|f| f.as_fd())),
    };
    let target = group.fork_target()?;
    if let Some(ns) = pid_ns {
        sys::setns(ns, libc::CLONE_NEWPID).doing(|| "joining the process namespace".to_string())?;
    }
    // SAFETY: the shim has one thread.
    let forked = unsafe { sys::fork(flags, target.as_ref().map(|f| f.as_fd())) };
    if let Ok(None) = forked {
        run(program, scene, target.is_none(), ends);
    }
    if pid_ns.is_some() {
        sys::setns(own_pid_ns, libc::CLONE_NEWPID).doing(|| "leaving the process namespace".to_string())?;
    }
    child.pid = forked.doing(what)?.unwrap_or_default();
    nonblocking(&child.sync).doing(what)?;
    Ok(child)
}

/// The child's whole life before exec.
fn run(program: &Program<'_>, scene: &Scene<'_>, enter_group: bool, ends: ChildEnds) -> ! {
    let sync = ends.sync.as_raw_fd();
    match set_up(program, scene, enter_group, &ends) {
        Ok(()) => {}
        Err(failure) => fail(&ends.sync, &failure),
    }
    // From here on descriptors are closed by number; `ends` must not be dropped, and nothing returns.
    let ends = std::mem::ManuallyDrop::new(ends);
    // SAFETY: dup3 onto a number that nothing after this uses as anything else; `ends` is leaked on purpose.
    let moved = sync == SYNC_FD || unsafe { libc::dup3(sync, SYNC_FD, libc::O_CLOEXEC) } == SYNC_FD;
    if !moved {
        fail(&ends.sync, &Failure::failed("starting a process: no descriptor"));
    }
    sys::close_from(SYNC_FD + 1);
    // SAFETY: SYNC_FD is open, as was just seen to, and lives until exec.
    let sync = unsafe { BorrowedFd::borrow_raw(SYNC_FD) };
    let failure = match become_program(program, matches!(scene, Scene::Start { .. }), sync) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    fail(sync, &failure)
}

fn fail(sync: impl AsFd, failure: &Failure) -> ! {
    let mut message = vec![b'E'];
    message.extend(serde_json::to_vec(failure).unwrap_or_default());
    let _ = rustix::net::send(sync, &message, SendFlags::NOSIGNAL);
    sys::exit_now(127)
}

/// Namespaces, groups, file system, terminal.
fn set_up(program: &Program<'_>, scene: &Scene<'_>, enter_group: bool, ends: &ChildEnds) -> Step {
    sys::reset_signals();
    rustix::process::umask(Mode::empty());
    rustix::process::setsid().doing(|| "starting a session".to_string())?;
    let master = match scene {
        Scene::Start { place, .. } => {
            if enter_group {
                place.group.enter()?;
            }
            sys::unshare(libc::CLONE_NEWCGROUP).doing(|| "making a control group namespace".to_string())?;
            rootfs::enter(program.container, place)?
        }
        Scene::Exec { group, joined } => {
            if enter_group {
                group.enter()?;
            }
            let what = || "joining the container".to_string();
            sys::setns(&joined.cgroup, libc::CLONE_NEWCGROUP).doing(what)?;
            sys::setns(&joined.mnt, libc::CLONE_NEWNS).doing(what)?;
            if program.tty { Some(exec_terminal().doing(|| "opening a terminal".to_string())?) } else { None }
        }
    };
    let what = || "connecting standard streams".to_string();
    if let Some(master) = master {
        let peer = sys::pty_peer(&master).doing(what)?;
        sys::control_terminal(&peer).doing(what)?;
        (0..3).try_for_each(|n| sys::put_at(&peer, n)).doing(what)?;
        return send_terminal(&ends.sync, &master).doing(what);
    }
    let stdio = ends.stdio.as_ref().ok_or_else(|| Failure::failed("a process without streams"))?;
    stdio.iter().enumerate().try_for_each(|(n, fd)| sys::put_at(fd, n as i32)).doing(what)
}

fn exec_terminal() -> io::Result<OwnedFd> {
    let pts = rustix::fs::open("/dev/pts", OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstatfs(&pts)?.f_type as u64 != DEVPTS_MAGIC {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    rootfs::open_ptmx(&pts)
}

fn send_terminal(sync: &OwnedFd, master: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(sync, &[IoSlice::new(b"T")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

impl Child {
    /// The next step that the child reports.
    pub fn report(sync: &OwnedFd) -> Report {
        let mut bytes = vec![0u8; 64 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = match rustix::net::recvmsg(sync, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(m) => m.bytes,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Report::Later,
            Err(_) => return Report::End,
        };
        let fd = control.drain().find_map(|m| match m {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        match (bytes[..received].first(), fd) {
            (Some(b'T'), Some(fd)) => Report::Terminal(fd),
            (Some(b'X'), _) => Report::Ready,
            (Some(b'E'), _) => {
                let failure = serde_json::from_slice(&bytes[1..received]);
                Report::Failed(failure.unwrap_or_else(|_| Failure::failed("the process could not be started")))
            }
            _ => Report::End,
        }
    }
}

enum Never {}

/// Working directory, identity, exec. Returns only to say why not.
fn become_program(program: &Program<'_>, first: bool, sync: BorrowedFd<'_>) -> Step<Never> {
    let container = program.container;
    let _ = set_oom_score(container.resources.oom_score_adj);
    if first {
        // A keyring of its own: keys of whoever started us are none of its business. Not every kernel has them.
        // SAFETY: numbers and a null name.
        unsafe { libc::syscall(libc::SYS_keyctl, 1, 0) };
    }
    let args = program.args.iter().map(sys::cstring).collect::<io::Result<Vec<_>>>().doing(|| "arguments".to_string())?;
    let env = environment(program).iter().map(sys::cstring).collect::<io::Result<Vec<_>>>().doing(|| "environment".to_string())?;
    let cwd = if container.cwd.as_os_str().is_empty() { Path::new("/") } else { &container.cwd };
    if first {
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let _ = fs::create_dir_all(cwd);
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let entered = enter_dir(cwd);
    program.identity.own_streams();
    program.identity.assume()?;
    if entered.is_err() {
        enter_dir(cwd).doing(|| format!("working directory {}", cwd.display()))?;
    }
    let _ = rustix::net::send(sync, b"X", SendFlags::NOSIGNAL);
    Err(exec(&args, &env))
}

/// A directory reached through a stray descriptor has no path from the root: that one is refused.
fn enter_dir(path: &Path) -> io::Result<()> {
    std::env::set_current_dir(path)?;
    match std::env::current_dir()?.is_absolute() {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::ENOENT)),
    }
}

fn set_oom_score(score: i32) -> io::Result<()> {
    let path = "/proc/self/oom_score_adj";
    if fs::read_to_string(path)?.trim().parse() == Ok(score) {
        return Ok(());
    }
    fs::write(path, score.to_string())
}

fn environment(program: &Program<'_>) -> Vec<String> {
    let given = &program.container.env;
    let mut env: Vec<String> = given.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mut default = |key: &str, value: &dyn Fn() -> String| {
        if !given.iter().any(|(k, _)| k == key) {
            env.push(format!("{key}={}", value()));
        }
    };
    default("PATH", &|| DEFAULT_PATH.to_string());
    default("HOSTNAME", &|| program.hostname.to_string());
    default("HOME", &|| rootfs::home(program.container.security.uid));
    if program.tty {
        default("TERM", &|| "xterm".to_string());
    }
    env
}

/// Tries each directory of PATH as execvp does, and says what went wrong as users of runtimes know it.
fn exec(args: &[CString], env: &[CString]) -> Failure {
    let Some(name) = args.first() else { return Failure::invalid("no command specified") };
    let shown = name.to_string_lossy();
    let run = |path: &Path| {
        let Ok(path) = sys::cstring(path.as_os_str().as_bytes()) else { return libc::EINVAL };
        let list = |v: &[CString]| v.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
        // SAFETY: both lists end in null and outlive the call, as do the strings they point at.
        unsafe { libc::execve(path.as_ptr(), list(args).as_ptr(), list(env).as_ptr()) };
        io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
    };
    let say = |code: i32, path: &Path| {
        let text = sys::reason(&io::Error::from_raw_os_error(code));
        let there = fs::symlink_metadata(path).is_ok();
        Failure::failed(match code {
            libc::EACCES => format!("exec: \"{shown}\": permission denied"),
            libc::ENOENT if !there => format!("exec: \"{shown}\": stat {}: {text}", path.display()),
            // It is there: what is missing is its interpreter or loader.
            _ => format!("exec {}: {text}", path.display()),
        })
    };
    if name.to_bytes().contains(&b'/') {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()));
        return say(run(&path), &path);
    }
    let path = env.iter().find_map(|e| e.to_bytes().strip_prefix(b"PATH=")).unwrap_or_default();
    let mut refused = false;
    for dir in path.split(|b| *b == b':') {
        let dir = if dir.is_empty() { Path::new(".") } else { Path::new(std::ffi::OsStr::from_bytes(dir)) };
        let file = dir.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        match run(&file) {
            libc::ENOENT if fs::symlink_metadata(&file).is_err() => {}
            libc::ENOTDIR => {}
            libc::EACCES => refused = true,
            code => return say(code, &file),
        }
    }
    match refused {
        true => Failure::failed(format!("exec: \"{shown}\": permission denied")),
        false => Failure::failed(format!("exec: \"{shown}\": executable file not found in $PATH")),
    }
}
