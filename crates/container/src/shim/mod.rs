//! The shim: one small process a pod, without threads, that owns the pod's processes, namespaces, log files and exit
//! codes, and outlives the agent that started it. It calls nobody: all it knows was in `pod.json` and comes by its socket.

mod calls;
mod conn;
mod log;
mod reactor;
mod running;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Instant;

use driver::{Container, ContainerState, State};
use rustix::fs::{Mode, OFlags};

use crate::cgroup::Cgroups;
use crate::proto::{self, PodFile};
use crate::sys::{self, Doing, Failure, Step};
use crate::{identity, limits, rootfs};

/// A container as the shim knows it. Its description is kept as long as something can be run in it.
struct Unit {
    name: String,
    attempt: u32,
    spec: Option<Box<Container>>,
    state: State,
}

impl Unit {
    fn seen(&self) -> ContainerState {
        ContainerState { name: self.name.clone(), attempt: self.attempt, state: self.state.clone() }
    }
}

/// The first process of a shared process namespace.
struct Pause {
    pid: i32,
    namespace: File,
}

struct Shim {
    file: PodFile,
    dir: PathBuf,
    shm: PathBuf,
    cgroups: Cgroups,
    host_mounts: File,
    own_pids: File,
    pause: Option<Pause>,
    units: Vec<Unit>,
    running: BTreeMap<u64, running::Running>,
    conns: BTreeMap<u64, conn::Conn>,
    next_id: u64,
    /// Who asked for the end of the pod.
    stopping: Option<(u64, u64)>,
    /// The machine is going down: when nothing runs any more, neither does the shim. Who runs then is killed.
    leave_by: Option<Instant>,
}

/// The shim's whole life; `args` are what follows the word `shim`. Call it first thing in `main`, before any thread.
///
/// Returns to the caller's parent (exit code 0) when the pod can be used; the pod's own process goes on from there. Errors
/// are one line on stderr, and exit code 1.
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> ! {
    let code = match launch(args.into_iter().collect()) {
        Ok(()) => 0,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{failure}");
            1
        }
    };
    std::process::exit(code)
}

fn launch(args: Vec<OsString>) -> Step {
    let [flag, dir] = args.as_slice() else { return Err(Failure::failed("usage: shim --pod DIRECTORY")) };
    if flag != "--pod" {
        return Err(Failure::failed("usage: shim --pod DIRECTORY"));
    }
    let dir = PathBuf::from(dir);
    let (mut told, tell) = io::pipe().doing(|| "starting the shim".to_string())?;
    // SAFETY: nothing has made a thread yet: that is what `shim_main` asks of its caller.
    match unsafe { sys::fork(0, None) }.doing(|| "starting the shim".to_string())? {
        Some(_) => {
            drop(tell);
            let mut text = String::new();
            told.read_to_string(&mut text).doing(|| "starting the shim".to_string())?;
            match text.strip_prefix("ok") {
                Some("") => Ok(()),
                _ if text.is_empty() => Err(Failure::failed("the shim ended before it began")),
                _ => Err(Failure::failed(text)),
            }
        }
        None => {
            drop(told);
            serve(&dir, tell)
        }
    }
}

fn serve(dir: &Path, mut tell: io::PipeWriter) -> ! {
    let ready = bring_up(dir);
    let (mut shim, listener) = match ready {
        Ok(parts) => parts,
        Err(failure) => {
            let _ = write!(tell, "{failure}");
            std::process::exit(1)
        }
    };
    let signals = sys::signalfd(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT]).and_then(|signals| {
        quiet_streams(dir)?;
        Ok(signals)
    });
    let Ok(signals) = signals else { std::process::exit(1) };
    let _ = tell.write_all(b"ok");
    drop(tell);
    shim.run(&listener, &signals);
    std::process::exit(0)
}

/// Standard streams that hold nobody's pipe; what a panic says goes to a file beside the pod's.
fn quiet_streams(dir: &Path) -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let log = File::options().create(true).append(true).open(dir.join("shim.log"))?;
    sys::put_at(&null, 0)?;
    sys::put_at(&null, 1)?;
    sys::put_at(&log, 2)
}

fn bring_up(dir: &Path) -> Step<(Shim, UnixListener)> {
    let path = dir.join(proto::POD_FILE);
    let text = fs::read(&path).doing(|| format!("reading {}", path.display()))?;
    let file: PodFile = serde_json::from_slice(&text).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
    let what = || "starting the shim".to_string();
    rustix::process::setsid().doing(what)?;
    sys::set_name(c"staithe-shim");
    // Nobody looks into us, whatever namespace our children are in; and their orphans are ours.
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).doing(what)?;
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).doing(what)?;
    let _ = fs::write("/proc/self/oom_score_adj", "-999");
    let cgroups = Cgroups::detect(&file.cgroup_root, &file.instance)?;
    cgroups.enter_shims()?;

    let host_mounts = File::open("/proc/self/ns/mnt").doing(what)?;
    let own_pids = File::open("/proc/self/ns/pid").doing(what)?;
    let pod = &file.pod;
    if let Some(netns) = &pod.netns {
        let fd = File::open(netns).doing(|| format!("network namespace {}", netns.display()))?;
        sys::setns(&fd, libc::CLONE_NEWNET).doing(|| format!("network namespace {}", netns.display()))?;
    }
    let ipc = if pod.host_ipc { 0 } else { libc::CLONE_NEWIPC };
    sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUTS | ipc).doing(|| "making namespaces".to_string())?;
    // Mounts of the machine still arrive here, ours do not arrive there.
    sys::mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_SLAVE, "").doing(what)?;
    if !pod.hostname.is_empty() {
        rustix::system::sethostname(pod.hostname.as_bytes()).doing(|| format!("hostname {:?}", pod.hostname))?;
    }
    sysctls(&file)?;
    let group = cgroups.pod(&pod.uid);
    group.create()?;
    let shm = group.limit(&pod.resources).and_then(|()| rootfs::shm(dir, pod.host_ipc));
    let rest = shm.and_then(|shm| {
        let pause = if pod.share_process_namespace && !pod.host_pid { Some(pause(dir)?) } else { None };
        Ok((shm, pause, listen(dir)?))
    });
    let (shm, pause, listener) = rest.inspect_err(|_| drop(cgroups.pod(&pod.uid).remove(limits::CGROUP_REMOVE)))?;
    let shim = Shim {
        file,
        dir: dir.to_path_buf(),
        shm,
        cgroups,
        host_mounts,
        own_pids,
        pause,
        units: Vec::new(),
        running: BTreeMap::new(),
        conns: BTreeMap::new(),
        next_id: 1,
        stopping: None,
        leave_by: None,
    };
    shim.save();
    Ok((shim, listener))
}

/// By its short name, so that the length of the path does not matter.
fn listen(dir: &Path) -> Step<UnixListener> {
    let what = || format!("listening in {}", dir.display());
    std::env::set_current_dir(dir).doing(what)?;
    let _ = fs::remove_file(proto::SOCKET);
    let listener = UnixListener::bind(proto::SOCKET).doing(what)?;
    std::env::set_current_dir("/").doing(what)?;
    listener.set_nonblocking(true).doing(what)?;
    Ok(listener)
}

/// Kernel settings that belong to a namespace of the pod; any other would be the machine's.
fn sysctls(file: &PodFile) -> Step {
    let pod = &file.pod;
    for (key, value) in &pod.sysctls {
        let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|p| key.starts_with(p));
        let belongs = ipc && !pod.host_ipc || key.starts_with("net.") && pod.netns.is_some();
        if !belongs || key.contains('/') || key.contains("..") {
            return Err(Failure::invalid(format!("sysctl {key:?} is not one of the pod's own namespaces")));
        }
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        fs::write(path, value).doing(|| format!("sysctl {key} = {value}"))?;
    }
    Ok(())
}

/// Forks the process that holds the shared process namespace: it reaps, it has no rights, and sees nothing.
fn pause(dir: &Path) -> Step<Pause> {
    let what = || "making the shared process namespace".to_string();
    // SAFETY: one thread.
    let forked = unsafe { sys::fork(libc::CLONE_NEWPID | libc::CLONE_NEWNS, None) }.doing(what)?;
    let Some(pid) = forked else {
        sys::set_name(c"pause");
        let made = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).doing(what).and_then(|_| rootfs::enter_empty(dir));
        sys::close_from(0);
        if made.and_then(|()| identity::renounce()).is_err() {
            sys::exit_now(1)
        }
        // What becomes orphaned in this namespace is its first process's child.
        let Ok(signals) = wait_set() else { sys::exit_now(1) };
        loop {
            while sys::reap().is_some() {}
            let mut got = 0;
            // SAFETY: both point at values of ours.
            unsafe { libc::sigwait(&signals, &mut got) };
        }
    };
    let namespace = File::open(format!("/proc/{pid}/ns/pid")).doing(what)?;
    Ok(Pause { pid, namespace })
}

fn wait_set() -> io::Result<libc::sigset_t> {
    // SAFETY: the set is initialised before use.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        match libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) {
            0 => Ok(set),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Shim {
    /// `state.json`, whole or not at all: it is on tmpfs, where a rename is enough.
    fn save(&self) {
        let state = proto::StateFile {
            version: proto::VERSION,
            pid: std::process::id() as i32,
            containers: self.units.iter().map(Unit::seen).collect(),
        };
        let path = self.dir.join(proto::STATE_FILE);
        let fresh = path.with_extension("new");
        let text = serde_json::to_vec(&state).unwrap_or_default();
        let _ = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path));
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn shares_pids(&self) -> bool {
        self.pause.is_some() || self.file.pod.host_pid
    }

    fn root_of(&self, name: &str, attempt: u32) -> PathBuf {
        self.file.roots.join(format!("{name}-{attempt}"))
    }
}
