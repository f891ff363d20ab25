//! The holder: a tiny single-threaded process that owns the edge's listening sockets and keeps an edge running on them.
//!
//! It outlives the agent (a session of its own) and the edges it starts: while none runs, new connections wait in its
//! sockets. It does nothing else, so that nothing else can end it. Signals: TERM lets the edge drain and ends both; HUP
//! starts a new edge (after an upgrade) and lets the old one drain.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base::Backoff;
use serde::{Deserialize, Serialize};

use super::sockets::{Sockets, VARIABLE};
use super::{directory, private_directory};
use crate::limits::{DRAIN_WITHIN, HEALTHY_AFTER, HOLDER_STARTS_WITHIN, RESTART_MAX, RESTART_MIN};

const LOCK: &str = "holder.lock";
const STATE: &str = "holder.json";
const LOG: &str = "edge.log";
const LOG_BYTES_MAX: u64 = 8 << 20;
const READY: &str = "ready";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderOptions {
    pub run_dir: PathBuf,
    pub http: SocketAddr,
    pub https: SocketAddr,
    /// UDP and TCP.
    pub dns: SocketAddr,
    /// Program and arguments of the edge.
    pub edge: Vec<String>,
    /// Which build the edge is of: another one is started when this changes.
    pub build: String,
}

impl HolderOptions {
    /// The sockets must be others: the holder has to go and come back.
    fn moves(&self, other: &Self) -> bool {
        (self.http, self.https, self.dns, &self.run_dir) != (other.http, other.https, other.dns, &other.run_dir)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    pid: i32,
    options: HolderOptions,
}

// ---- the agent's side ----------------------------------------------------------------------------------------------

/// Makes sure that a holder with these options runs; `command` is program and arguments that end in [`holder_main`],
/// which gets one more argument. Blocks until its sockets are bound. Errors are for the operator.
pub fn ensure_holder(command: &[String], options: &HolderOptions) -> io::Result<()> {
    let directory = directory(&options.run_dir);
    private_directory(&directory)?;
    if is_held(&directory)? {
        let running = read_state(&directory)?;
        if running.options == *options {
            return Ok(());
        }
        if !running.options.moves(options) {
            write_state(&directory, &State { pid: running.pid, options: options.clone() })?;
            return signal(running.pid, libc::SIGHUP);
        }
        stop_holder(&options.run_dir)?;
    }
    spawn(command, options, &directory)
}

fn spawn(command: &[String], options: &HolderOptions, directory: &Path) -> io::Result<()> {
    let [program, arguments @ ..] = command else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut process = Command::new(program);
    process.args(arguments).arg(serde_json::to_string(options)?);
    process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log(directory)?).current_dir("/");
    // SAFETY: setsid is async-signal-safe and touches only the new process.
    unsafe {
        process.pre_exec(|| if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
    }
    let mut child = process.spawn()?;
    let Some(output) = child.stdout.take() else { return Err(io::ErrorKind::BrokenPipe.into()) };
    let (said, saying) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(output.take(4096)).read_line(&mut line);
        let _ = said.send(read.map(|_| line.trim().to_string()));
    });
    let line = saying.recv_timeout(HOLDER_STARTS_WITHIN).map_err(|_| io::Error::other("the edge's holder does not start"))??;
    // It is not ours to wait for: when it ends, an agent of its own time reaps or init does.
    std::thread::spawn(move || child.wait());
    match line.as_str() {
        READY => Ok(()),
        "" => Err(io::Error::other(format!("the edge's holder ended at once; see {}", directory.join(LOG).display()))),
        error => Err(io::Error::other(error.to_string())),
    }
}

/// Ends holder and edge; requests in flight may end first. Fine if none runs.
pub fn stop_holder(run_dir: &Path) -> io::Result<()> {
    let directory = directory(run_dir);
    if !is_held(&directory)? {
        return Ok(());
    }
    let pid = read_state(&directory)?.pid;
    signal(pid, libc::SIGTERM)?;
    let deadline = Instant::now() + DRAIN_WITHIN + Duration::from_secs(3);
    while is_held(&directory)? {
        if Instant::now() > deadline {
            signal(pid, libc::SIGKILL)?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// `staithe down`: ends holder and edge and removes `<run>/edge`; with `dry_run` only lists.
pub fn sweep(run_dir: &Path, dry_run: bool) -> Vec<String> {
    let directory = directory(run_dir);
    let mut lines = Vec::new();
    if is_held(&directory).unwrap_or(false) {
        match read_state(&directory).and_then(|s| if dry_run { Ok(s) } else { stop_holder(run_dir).map(|()| s) }) {
            Ok(state) => lines.push(format!("edge (holder pid {})", state.pid)),
            Err(e) => lines.push(format!("cannot stop the edge: {e}")),
        }
    }
    if directory.exists() {
        match if dry_run { Ok(()) } else { fs::remove_dir_all(&directory) } {
            Ok(()) => lines.push(format!("directory {}", directory.display())),
            Err(e) => lines.push(format!("cannot remove {}: {e}", directory.display())),
        }
    }
    lines
}

fn open_lock(directory: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(directory.join(LOCK))
}

fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: a plain call on a descriptor that we own.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(false) } else { Err(error) }
}

/// Whether a holder lives: it holds the lock as long as it does.
fn is_held(directory: &Path) -> io::Result<bool> {
    if !directory.exists() {
        return Ok(false);
    }
    Ok(!try_lock(&open_lock(directory)?)?)
}

fn read_state(directory: &Path) -> io::Result<State> {
    Ok(serde_json::from_slice(&fs::read(directory.join(STATE))?)?)
}

fn write_state(directory: &Path, state: &State) -> io::Result<()> {
    let new = directory.join(format!("{STATE}.{}.new", std::process::id()));
    fs::write(&new, serde_json::to_vec(state)?)?;
    fs::rename(&new, directory.join(STATE))
}

fn signal(pid: i32, number: i32) -> io::Result<()> {
    // SAFETY: a plain call; the pid is of a process that holds our lock.
    if unsafe { libc::kill(pid, number) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn log(directory: &Path) -> io::Result<File> {
    let path = directory.join(LOG);
    let grown = fs::metadata(&path).is_ok_and(|m| m.len() > LOG_BYTES_MAX);
    if grown {
        fs::rename(&path, directory.join(format!("{LOG}.1")))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

// ---- the holder's side ---------------------------------------------------------------------------------------------

/// The process itself; `arguments` is what [`ensure_holder`] appended. Returns the exit code.
pub fn holder_main(arguments: &[String]) -> i32 {
    let started = arguments.first().ok_or(io::ErrorKind::InvalidInput.into()).and_then(|json| Ok(serde_json::from_str(json)?));
    match started.and_then(Holder::start) {
        Ok(holder) => {
            tell(READY);
            holder.run();
            0
        }
        Err(error) => {
            tell(&error.to_string().replace('\n', " "));
            1
        }
    }
}

/// One line to whoever started us, then standard output becomes the log.
fn tell(line: &str) {
    println!("{line}");
    let _ = io::stdout().flush();
    // SAFETY: both descriptors are the process's own standard ones.
    unsafe { libc::dup2(2, 1) };
}

struct Holder {
    options: HolderOptions,
    directory: PathBuf,
    sockets: Sockets,
    edge: Option<(Child, Instant)>,
    /// Those that were told to end.
    draining: Vec<Child>,
    failures: u32,
    start_at: Instant,
    _lock: File,
}

impl Holder {
    fn start(options: HolderOptions) -> io::Result<Self> {
        let directory = directory(&options.run_dir);
        private_directory(&directory)?;
        let lock = open_lock(&directory)?;
        if !try_lock(&lock)? {
            return Err(io::Error::other(format!("another edge runs in {}", directory.display())));
        }
        block_signals()?;
        let sockets = bind_patiently(&options)?;
        write_state(&directory, &State { pid: std::process::id() as i32, options: options.clone() })?;
        let (edge, draining, failures, start_at) = (None, Vec::new(), 0, Instant::now());
        Ok(Self { options, directory, sockets, edge, draining, failures, start_at, _lock: lock })
    }

    fn run(mut self) {
        loop {
            if self.edge.is_none() && Instant::now() >= self.start_at {
                self.start_edge();
            }
            match wait_signal(self.pause()) {
                Some(libc::SIGTERM | libc::SIGINT) => return self.end(),
                Some(libc::SIGHUP) => self.renew(),
                _ => self.reap(),
            }
        }
    }

    fn pause(&self) -> Duration {
        match self.edge {
            None => self.start_at.saturating_duration_since(Instant::now()),
            Some(_) => Duration::from_secs(60),
        }
    }

    fn start_edge(&mut self) {
        match self.spawn_edge() {
            Ok(child) => self.edge = Some((child, Instant::now())),
            Err(error) => {
                eprintln!("the edge cannot be started: {error}");
                self.failed();
            }
        }
    }

    fn failed(&mut self) {
        self.failures += 1;
        self.start_at = Instant::now() + Backoff::new(RESTART_MIN, RESTART_MAX).after(self.failures);
    }

    fn spawn_edge(&self) -> io::Result<Child> {
        let [program, arguments @ ..] = self.options.edge.as_slice() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let output = log(&self.directory)?;
        let mut process = Command::new(program);
        process.args(arguments).env(VARIABLE, self.sockets.variable()).stdin(Stdio::null());
        process.stdout(output.try_clone()?).stderr(output);
        let descriptors = self.sockets.descriptors();
        let parent = std::process::id();
        // SAFETY: only async-signal-safe calls, on descriptors and signals of the new process.
        unsafe {
            process.pre_exec(move || {
                for fd in &descriptors {
                    libc::fcntl(*fd, libc::F_SETFD, 0);
                }
                let none: libc::sigset_t = std::mem::zeroed();
                libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
                // Without us nobody would start it again: the agent then starts both anew.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                if libc::getppid() as u32 != parent { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
            });
        }
        process.spawn()
    }

    fn reap(&mut self) {
        self.draining.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let Some((child, since)) = &mut self.edge else { return };
        let Ok(Some(status)) = child.try_wait() else { return };
        eprintln!("the edge (pid {}) has ended: {status}", child.id());
        if since.elapsed() >= HEALTHY_AFTER {
            self.failures = 0;
        }
        self.edge = None;
        self.failed();
    }

    /// A new edge by the side of the old one, which then drains: no moment without an edge.
    fn renew(&mut self) {
        if let Ok(state) = read_state(&self.directory)
            && !state.options.moves(&self.options)
        {
            self.options = state.options;
        }
        let old = self.edge.take();
        self.start_edge();
        if let Some((child, since)) = old {
            if self.edge.is_none() {
                self.edge = Some((child, since));
                return;
            }
            // It has a moment to take the feed's name before the old one lets go of it.
            std::thread::sleep(Duration::from_millis(300));
            let _ = signal(child.id() as i32, libc::SIGTERM);
            self.draining.push(child);
        }
    }

    fn end(mut self) {
        self.draining.extend(self.edge.take().map(|(child, _)| child));
        for child in &self.draining {
            let _ = signal(child.id() as i32, libc::SIGTERM);
        }
        // New connections are refused from here on instead of waiting for nobody.
        self.sockets = Sockets::default();
        let deadline = Instant::now() + DRAIN_WITHIN + Duration::from_secs(2);
        while !self.draining.is_empty() {
            if Instant::now() > deadline {
                self.draining.iter_mut().for_each(|child| drop(child.kill()));
            }
            wait_signal(Duration::from_millis(50));
            self.draining.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        }
    }
}

/// An edge whose holder was killed lets go of the ports within moments.
fn bind_patiently(options: &HolderOptions) -> io::Result<Sockets> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match Sockets::bind(options) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
            other => return other,
        }
    }
}

fn watched() -> libc::sigset_t {
    // SAFETY: the set is initialized by sigemptyset before it is read.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD] {
            libc::sigaddset(&mut set, number);
        }
        set
    }
}

fn block_signals() -> io::Result<()> {
    // SAFETY: a valid set, and nowhere to put the old one.
    let failed = unsafe { libc::sigprocmask(libc::SIG_BLOCK, &watched(), std::ptr::null_mut()) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The next signal, or `None` when the time is over.
fn wait_signal(within: Duration) -> Option<i32> {
    let within = libc::timespec { tv_sec: within.as_secs() as libc::time_t, tv_nsec: within.subsec_nanos() as libc::c_long };
    // SAFETY: valid pointers for the duration of the call.
    let number = unsafe { libc::sigtimedwait(&watched(), std::ptr::null_mut(), &within) };
    (number > 0).then_some(number)
}
