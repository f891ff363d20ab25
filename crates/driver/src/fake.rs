//! A driver without processes: for tests of the agent, and for a simulated machine.
//!
//! It interprets a few words instead of running programs (`Fake::parse`), so that the conformance suite runs on it, and
//! lets a test force what the world does: an exit, an OOM kill, a lost pod, a start that fails. A second `Fake` over the
//! same `World` is the agent after its restart. It knows no cgroup, no file but logs, and no time but the clock's.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use base::SharedClock;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{Capabilities, Container, ContainerState, Driver, Error, Event, Exec, Exit, Frame, Pod, PodState, Result, Session, State};
use crate::{Stats, Usage};

const EVENTS_MAX: usize = 4096;
const FRAMES_MAX: usize = 64;

/// What a fake container does once it has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Runs until a signal comes; `TERM` ends it with 143.
    Serve,
    /// Runs until `KILL` comes.
    Stubborn,
    Exit {
        after: Duration,
        code: i32,
    },
    /// Writes lines to its log, then exits with 0.
    Print(Vec<String>),
    /// Exceeds its memory limit and is killed.
    Hog,
    /// Copies its input to its output (attach).
    Echo,
    /// The program is not there.
    Missing(String),
}

/// One call that the agent made, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    CreatePod(String),
    Create(String, String, u32),
    Start(String, String, u32),
    Signal(String, String, i32),
    Remove(String, String, u32),
    RemovePod(String),
}

type ExecFn = dyn Fn(&Container, &Exec) -> Result<(String, i32), String> + Send + Sync;

struct Entry {
    container: Container,
    state: State,
    taps: Vec<mpsc::Sender<Frame>>,
}

struct PodEntry {
    pod: Pod,
    containers: Vec<Entry>,
}

#[derive(Default)]
struct Inner {
    pods: BTreeMap<String, PodEntry>,
    calls: Vec<Call>,
    /// Errors for the next starts, by container name.
    failures: BTreeMap<String, VecDeque<String>>,
    usage: BTreeMap<String, Usage>,
    exec: Option<Arc<ExecFn>>,
    consumers: Vec<mpsc::Sender<Event>>,
    next_pid: i32,
}

/// What exists on the fake machine; outlives every `Fake` over it.
#[derive(Clone)]
pub struct World {
    clock: SharedClock,
    inner: Arc<Mutex<Inner>>,
}

impl World {
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, inner: Arc::default() }
    }

    /// A driver as an agent holds it. Its event consumers end with it (`Fake::close`); the pods stay.
    pub fn driver(&self) -> Arc<Fake> {
        Arc::new(Fake { world: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn now_ms(&self) -> i64 {
        self.clock.now().as_millisecond()
    }

    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// The next start of a container of this name fails with this text.
    pub fn fail_start(&self, container: &str, error: &str) {
        self.lock().failures.entry(container.to_string()).or_default().push_back(error.to_string());
    }

    /// What `stats` says of a container of this name.
    pub fn set_usage(&self, container: &str, usage: Usage) {
        self.lock().usage.insert(container.to_string(), usage);
    }

    /// Answers every exec: output and exit code, or why it cannot run.
    pub fn on_exec(&self, f: impl Fn(&Container, &Exec) -> Result<(String, i32), String> + Send + Sync + 'static) {
        self.lock().exec = Some(Arc::new(f));
    }

    /// The newest attempt of a container ends now. False if none runs.
    pub fn exit(&self, uid: &str, container: &str, code: i32) -> bool {
        self.end(uid, container, Exit { code, ..Exit::default() })
    }

    pub fn oom(&self, uid: &str, container: &str) -> bool {
        self.end(uid, container, Exit { code: 137, signal: Some(9), oom_killed: true, ..Exit::default() })
    }

    /// The shim dies and takes its containers with it.
    pub fn lose(&self, uid: &str) {
        let mut inner = self.lock();
        if inner.pods.remove(uid).is_some() {
            tell(&mut inner, Event::PodLost { uid: uid.to_string() });
        }
    }

    pub fn pods(&self) -> Vec<PodState> {
        self.lock().pods.values().map(pod_state).collect()
    }

    fn end(&self, uid: &str, container: &str, exit: Exit) -> bool {
        let now = self.now_ms();
        let mut inner = self.lock();
        let Some(entry) = newest(&mut inner, uid, container) else { return false };
        let State::Running { started_at_ms, .. } = entry.state else { return false };
        entry.state = State::Exited(Exit { started_at_ms, finished_at_ms: now, ..exit });
        entry.taps.clear();
        let event = changed(uid, entry);
        tell(&mut inner, event);
        true
    }
}

fn pod_state(p: &PodEntry) -> PodState {
    PodState { pod: p.pod.clone(), containers: p.containers.iter().map(container_state).collect() }
}

fn container_state(e: &Entry) -> ContainerState {
    ContainerState { name: e.container.name.clone(), attempt: e.container.attempt, state: e.state.clone() }
}

fn changed(uid: &str, e: &Entry) -> Event {
    Event::Container { uid: uid.to_string(), container: container_state(e) }
}

fn newest<'a>(inner: &'a mut Inner, uid: &str, container: &str) -> Option<&'a mut Entry> {
    inner.pods.get_mut(uid)?.containers.iter_mut().rev().find(|e| e.container.name == container)
}

/// A consumer that does not keep up sees its channel end.
fn tell(inner: &mut Inner, event: Event) {
    inner.consumers.retain(|c| c.try_send(event.clone()).is_ok());
}

pub struct Fake {
    world: World,
}

impl Fake {
    pub fn new(clock: SharedClock) -> Arc<Self> {
        World::new(clock).driver()
    }

    pub fn world(&self) -> &World {
        &self.world
    }

    /// Ends the event streams, as a stopped agent does.
    pub fn close(&self) {
        self.world.lock().consumers.clear();
    }

    /// The words understood as `args`: `serve`, `stubborn`, `exit CODE [AFTER_MS]`, `print LINE…`, `hog`, `echo`,
    /// `missing NAME`; anything else serves.
    pub fn parse(args: &[String]) -> Task {
        let word = |i: usize| args.get(i).map(String::as_str).unwrap_or_default();
        match word(0) {
            "stubborn" => Task::Stubborn,
            "exit" => {
                Task::Exit { code: word(1).parse().unwrap_or_default(), after: Duration::from_millis(word(2).parse().unwrap_or_default()) }
            }
            "print" => Task::Print(args[1..].to_vec()),
            "hog" => Task::Hog,
            "echo" => Task::Echo,
            "missing" => Task::Missing(word(1).to_string()),
            _ => Task::Serve,
        }
    }

    fn perform(&self, uid: &str, container: &Container, task: Task) {
        let (world, uid, name) = (self.world.clone(), uid.to_string(), container.name.clone());
        match task {
            Task::Exit { after, code } if after.is_zero() => drop(world.exit(&uid, &name, code)),
            Task::Exit { after, code } => drop(tokio::spawn(async move {
                tokio::time::sleep(after).await;
                world.exit(&uid, &name, code);
            })),
            Task::Print(lines) => {
                let _ = self.log(&uid, container, &lines);
                world.exit(&uid, &name, 0);
            }
            Task::Hog => drop(world.oom(&uid, &name)),
            Task::Serve | Task::Stubborn | Task::Echo | Task::Missing(_) => {}
        }
    }

    fn log(&self, uid: &str, container: &Container, lines: &[String]) -> std::io::Result<()> {
        let Some(dir) = self.world.lock().pods.get(uid).map(|p| p.pod.log_dir.clone()) else { return Ok(()) };
        if dir.as_os_str().is_empty() {
            return Ok(());
        }
        let dir = dir.join(&container.name);
        std::fs::create_dir_all(&dir)?;
        let mut file = std::fs::File::options().create(true).append(true).open(dir.join(format!("{}.log", container.attempt)))?;
        let now = self.world.clock.now();
        lines.iter().try_for_each(|line| writeln!(file, "{now:.9} stdout F {line}"))
    }
}

#[async_trait]
impl Driver for Fake {
    fn name(&self) -> &'static str {
        "container"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { exec: true, attach: true, port_forward: false, share_process_namespace: true, host_network: true }
    }

    async fn create_pod(&self, pod: &Pod) -> Result<()> {
        let mut inner = self.world.lock();
        inner.calls.push(Call::CreatePod(pod.uid.clone()));
        inner.pods.entry(pod.uid.clone()).or_insert_with(|| PodEntry { pod: pod.clone(), containers: Vec::new() });
        Ok(())
    }

    async fn create(&self, uid: &str, container: &Container) -> Result<()> {
        let mut inner = self.world.lock();
        inner.calls.push(Call::Create(uid.into(), container.name.clone(), container.attempt));
        let pod = inner.pods.get_mut(uid).ok_or_else(|| Error::NotFound(format!("pod {uid}")))?;
        if container.args.is_empty() {
            return Err(Error::Invalid("no command specified".into()));
        }
        if pod.containers.iter().any(|e| e.container.name == container.name && e.container.attempt == container.attempt) {
            return Ok(());
        }
        let entry = Entry { container: container.clone(), state: State::Created, taps: Vec::new() };
        let event = changed(uid, &entry);
        pod.containers.push(entry);
        tell(&mut inner, event);
        Ok(())
    }

    async fn start(&self, uid: &str, container: &str, attempt: u32) -> Result<()> {
        let now = self.world.now_ms();
        let (spec, task) = {
            let mut inner = self.world.lock();
            inner.calls.push(Call::Start(uid.into(), container.into(), attempt));
            inner.next_pid += 1;
            let pid = 1000 + inner.next_pid;
            let failure = inner.failures.get_mut(container).and_then(VecDeque::pop_front);
            let pod = inner.pods.get_mut(uid).ok_or_else(|| Error::NotFound(format!("pod {uid}")))?;
            let found = pod.containers.iter_mut().find(|e| e.container.name == container && e.container.attempt == attempt);
            let entry = found.ok_or_else(|| Error::NotFound(format!("container {container}")))?;
            if entry.state != State::Created {
                return Ok(());
            }
            let task = Fake::parse(&entry.container.args);
            let error = match (&failure, &task) {
                (Some(text), _) => Some(text.clone()),
                (None, Task::Missing(name)) => Some(format!("exec: {name:?}: executable file not found in $PATH")),
                _ => None,
            };
            entry.state = match &error {
                Some(text) => State::Exited(Exit { code: 128, finished_at_ms: now, error: text.clone(), ..Exit::default() }),
                None => State::Running { pid, started_at_ms: now },
            };
            let (event, spec) = (changed(uid, entry), entry.container.clone());
            tell(&mut inner, event);
            if let Some(text) = error {
                return Err(Error::Failed(text));
            }
            (spec, task)
        };
        self.perform(uid, &spec, task);
        Ok(())
    }

    async fn signal(&self, uid: &str, container: &str, signal: i32) -> Result<()> {
        let task = {
            let mut inner = self.world.lock();
            inner.calls.push(Call::Signal(uid.into(), container.into(), signal));
            let entry = newest(&mut inner, uid, container).ok_or_else(|| Error::NotFound(format!("container {container}")))?;
            Fake::parse(&entry.container.args)
        };
        if signal == 9 || task != Task::Stubborn {
            self.world.end(uid, container, Exit { code: 128 + signal, signal: Some(signal), ..Exit::default() });
        }
        Ok(())
    }

    async fn remove(&self, uid: &str, container: &str, attempt: u32) -> Result<()> {
        let mut inner = self.world.lock();
        inner.calls.push(Call::Remove(uid.into(), container.into(), attempt));
        let Some(pod) = inner.pods.get_mut(uid) else { return Ok(()) };
        let is = |e: &Entry| e.container.name == container && e.container.attempt == attempt;
        if pod.containers.iter().any(|e| is(e) && matches!(e.state, State::Running { .. })) {
            return Err(Error::Failed(format!("container {container} is running")));
        }
        pod.containers.retain(|e| !is(e));
        Ok(())
    }

    async fn remove_pod(&self, uid: &str) -> Result<()> {
        let running: Vec<String> = {
            let mut inner = self.world.lock();
            inner.calls.push(Call::RemovePod(uid.into()));
            let Some(pod) = inner.pods.get(uid) else { return Ok(()) };
            let runs = |e: &&Entry| matches!(e.state, State::Running { .. });
            pod.containers.iter().filter(runs).map(|e| e.container.name.clone()).collect()
        };
        for name in running {
            self.world.end(uid, &name, Exit { code: 137, signal: Some(9), ..Exit::default() });
        }
        self.world.lock().pods.remove(uid);
        Ok(())
    }

    async fn recover(&self) -> Result<Vec<PodState>> {
        Ok(self.world.pods())
    }

    fn events(&self) -> mpsc::Receiver<Event> {
        let (tx, rx) = mpsc::channel(EVENTS_MAX);
        self.world.lock().consumers.push(tx);
        rx
    }

    async fn stats(&self, uid: &str) -> Result<Stats> {
        let inner = self.world.lock();
        let pod = inner.pods.get(uid).ok_or_else(|| Error::NotFound(format!("pod {uid}")))?;
        let running = pod.containers.iter().filter(|e| matches!(e.state, State::Running { .. }));
        let mut stats = Stats::default();
        for entry in running {
            let usage = inner.usage.get(&entry.container.name).cloned().unwrap_or_default();
            stats.pod.cpu_usec += usage.cpu_usec;
            stats.pod.memory_bytes += usage.memory_bytes;
            stats.containers.insert(entry.container.name.clone(), usage);
        }
        Ok(stats)
    }

    async fn exec(&self, uid: &str, container: &str, exec: &Exec) -> Result<Session> {
        let (spec, answer) = {
            let mut inner = self.world.lock();
            let answer = inner.exec.clone();
            let entry = newest(&mut inner, uid, container).ok_or_else(|| Error::NotFound(format!("container {container}")))?;
            if !matches!(entry.state, State::Running { .. }) {
                return Err(Error::Failed(format!("container {container} is not running")));
            }
            (entry.container.clone(), answer)
        };
        let (input, mut stdin) = mpsc::channel(FRAMES_MAX);
        let (tx, output) = mpsc::channel(FRAMES_MAX);
        let task = Fake::parse(&exec.args);
        let args = exec.args.clone();
        let scripted = answer.map(|f| f(&spec, exec));
        tokio::spawn(async move {
            let result = match (scripted, task) {
                (Some(Ok((text, code))), _) => {
                    let _ = tx.send(Frame::Stdout(Bytes::from(text))).await;
                    Ok(code)
                }
                (Some(Err(text)), _) => Err(text),
                (None, Task::Exit { after, code }) => {
                    tokio::time::sleep(after).await;
                    Ok(code)
                }
                (None, Task::Print(lines)) => {
                    for line in lines {
                        let _ = tx.send(Frame::Stdout(Bytes::from(line + "\n"))).await;
                    }
                    Ok(0)
                }
                (None, Task::Echo) => {
                    while let Some(Frame::Stdin(bytes)) = stdin.recv().await {
                        let _ = tx.send(Frame::Stdout(bytes)).await;
                    }
                    Ok(0)
                }
                (None, Task::Missing(name)) => Err(format!("exec: {name:?}: executable file not found in $PATH")),
                (None, _) if args.is_empty() => Err("no command specified".to_string()),
                (None, _) => {
                    while stdin.recv().await.is_some() {}
                    Ok(137)
                }
            };
            let _ = tx.send(Frame::Exit(result)).await;
        });
        Ok(Session { input, output })
    }

    async fn attach(&self, uid: &str, container: &str) -> Result<Session> {
        let mut inner = self.world.lock();
        let entry = newest(&mut inner, uid, container).ok_or_else(|| Error::NotFound(format!("container {container}")))?;
        let (input, mut stdin) = mpsc::channel(FRAMES_MAX);
        let (tx, output) = mpsc::channel(FRAMES_MAX);
        entry.taps.push(tx.clone());
        let tap = tx.downgrade();
        tokio::spawn(async move {
            while let Some(frame) = stdin.recv().await {
                let (Frame::Stdin(bytes), Some(tx)) = (frame, tap.upgrade()) else { continue };
                if tx.send(Frame::Stdout(bytes)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Session { input, output })
    }
}
