//! What every driver promises, as tests: one async function a promise, run over a `Fixture`.
//!
//! `conformance_suite!(fixture())` in a test file makes one test of each. A function panics with what it saw. The suite
//! knows nothing of a packaging: the fixture turns a `Task` into whatever the packaging runs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::{Container, ContainerState, Driver, Error, Event, Exec, Exit, Frame, Pod, Session, State};

const PATIENCE: Duration = Duration::from_secs(20);

/// What a container or an exec'd command is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Exits with this code, at once or after a while.
    Exit { code: i32, after_ms: u64 },
    /// Runs until `TERM`, then exits (with 143 or by its own handler with 0).
    Serve,
    /// Ignores `TERM`.
    Stubborn,
    /// Writes these lines to stdout and exits with 0.
    Print(Vec<String>),
    /// Takes memory until it is stopped.
    Hog,
    /// Starts processes until it is stopped, then exits with a code that is not 0.
    ForkBomb,
    /// Uses a whole core for as long as it runs.
    Burn,
    /// Copies stdin to stdout; ends at end of file.
    Echo,
    /// Prints `ROWS COLUMNS` of its terminal at every line it reads.
    Size,
    /// A program that does not exist, by this name.
    Missing(String),
}

#[async_trait]
pub trait Fixture: Send + Sync {
    /// A driver object over the same machine each time: a second one is the agent after its restart.
    fn driver(&self) -> Arc<dyn Driver>;
    /// The agent's process is gone: nothing more is heard from this driver.
    fn abandon(&self, driver: Arc<dyn Driver>) {
        drop(driver);
    }
    /// A pod of its own; each call another uid.
    fn pod(&self) -> Pod;
    fn container(&self, name: &str, task: &Task) -> Container;
    fn exec(&self, task: &Task) -> Exec;
    /// Whether limits are enforced by a kernel.
    fn enforces(&self) -> bool;
    /// Processes, control groups, mounts and files that are still there of a pod.
    fn leftovers(&self, uid: &str) -> Vec<String>;
}

/// One `#[tokio::test]` for each promise.
#[macro_export]
macro_rules! conformance_suite {
    ($fixture:expr) => {
        $crate::conformance_suite!(
            $fixture,
            exits_with_code,
            reports_why_it_never_started,
            creating_again_changes_nothing,
            is_killed_with_grace,
            logs_line_by_line,
            obeys_the_memory_limit,
            obeys_the_pids_limit,
            obeys_the_cpu_limit,
            survives_the_agent,
            exits_meanwhile_are_recovered,
            runs_attempt_after_attempt,
            execs_with_exit_code,
            execs_with_input,
            a_dropped_exec_is_killed,
            execs_on_a_terminal_that_resizes,
            attaches_to_a_running_container,
            what_is_unknown_is_named,
            leaves_nothing_behind
        );
    };
    ($fixture:expr, $($name:ident),+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let fixture = $fixture;
            $crate::conformance::$name(&fixture).await;
        })+
    };
}

/// A pod under test and the driver's events about it.
struct Rig<'a> {
    fixture: &'a dyn Fixture,
    driver: Arc<dyn Driver>,
    events: mpsc::Receiver<Event>,
    pod: Pod,
}

impl<'a> Rig<'a> {
    async fn new(fixture: &'a dyn Fixture) -> Self {
        let driver = fixture.driver();
        let events = driver.events();
        let pod = fixture.pod();
        driver.create_pod(&pod).await.expect("create_pod");
        Self { fixture, driver, events, pod }
    }

    async fn run(&self, container: &Container) -> crate::Result<()> {
        self.driver.create(&self.pod.uid, container).await?;
        self.driver.start(&self.pod.uid, &container.name, container.attempt).await
    }

    async fn event(&mut self, what: &str, wanted: impl Fn(&ContainerState) -> bool) -> ContainerState {
        let wait = async {
            loop {
                match self.events.recv().await.expect("events go on") {
                    Event::Container { uid, container } if uid == self.pod.uid && wanted(&container) => return container,
                    Event::PodLost { uid } if uid == self.pod.uid => panic!("the pod was lost while waiting for {what}"),
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no event within {PATIENCE:?}: {what}"))
    }

    async fn exit_of(&mut self, name: &str, attempt: u32) -> Exit {
        let is = |c: &ContainerState| c.name == name && c.attempt == attempt && matches!(c.state, State::Exited(_));
        match self.event(&format!("exit of {name}"), is).await.state {
            State::Exited(exit) => exit,
            other => panic!("{other:?}"),
        }
    }

    async fn run_to_exit(&mut self, container: &Container) -> Exit {
        self.run(container).await.expect("start");
        self.exit_of(&container.name, container.attempt).await
    }

    async fn log(&self, container: &str, attempt: u32) -> Vec<String> {
        let path = self.pod.log_dir.join(container).join(format!("{attempt}.log"));
        let text = tokio::fs::read_to_string(&path).await.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.lines().map(str::to_string).collect()
    }

    async fn done(self) {
        self.driver.remove_pod(&self.pod.uid).await.expect("remove_pod");
        assert_eq!(self.fixture.leftovers(&self.pod.uid), Vec::<String>::new(), "left behind");
    }
}

async fn collect(session: &mut Session) -> (Vec<u8>, Result<i32, String>) {
    let mut out = Vec::new();
    let read = async {
        while let Some(frame) = session.output.recv().await {
            match frame {
                Frame::Stdout(b) | Frame::Stderr(b) => out.extend_from_slice(&b),
                Frame::Exit(result) => return result,
                _ => {}
            }
        }
        panic!("the session ended without an exit");
    };
    let result = timeout(PATIENCE, read).await.expect("an exit in time");
    (out, result)
}

/// Reads output until it holds `text`.
async fn expect(session: &mut Session, text: &str) {
    let mut seen = String::new();
    let read = async {
        while !seen.contains(text) {
            match session.output.recv().await {
                Some(Frame::Stdout(b) | Frame::Stderr(b)) => seen.push_str(&String::from_utf8_lossy(&b)),
                other => panic!("{other:?} before {text:?}"),
            }
        }
    };
    if timeout(PATIENCE, read).await.is_err() {
        panic!("never saw {text:?}, only {seen:?}");
    }
}

pub async fn exits_with_code(f: &dyn Fixture) {
    let mut rig = Rig::new(f).await;
    for (attempt, code) in [0, 1, 42, 255].into_iter().enumerate() {
        let container = Container { attempt: attempt as u32, ..f.container("main", &Task::Exit { code, after_ms: 0 }) };
        let exit = rig.run_to_exit(&container).await;
        assert_eq!((exit.code, exit.signal, exit.oom_killed, exit.error.as_str()), (code, None, false, ""));
        assert!(exit.started_at_ms > 0 && exit.finished_at_ms >= exit.started_at_ms, "{exit:?}");
    }
    rig.done().await;
}

pub async fn reports_why_it_never_started(f: &dyn Fixture) {
    let mut rig = Rig::new(f).await;
    let container = f.container("main", &Task::Missing("nginxx".into()));
    let error = rig.run(&container).await.expect_err("a missing program does not start");
    let text = "exec: \"nginxx\": executable file not found in $PATH";
    assert!(error.to_string().contains(text), "{error}");
    let exit = rig.exit_of("main", 0).await;
    assert_eq!((exit.code, exit.error.contains(text)), (128, true), "{exit:?}");
    rig.done().await;
}

pub async fn creating_again_changes_nothing(f: &dyn Fixture) {
    let mut rig = Rig::new(f).await;
    let container = f.container("main", &Task::Serve);
    rig.run(&container).await.expect("start");
    rig.driver.create_pod(&rig.pod).await.expect("create_pod again");
    rig.driver.create(&rig.pod.uid, &container).await.expect("create again");
    rig.driver.start(&rig.pod.uid, "main", 0).await.expect("start again");
    let running = rig.event("running", |c| matches!(c.state, State::Running { .. })).await;
    let known = rig.driver.recover().await.expect("recover");
    let mine = known.into_iter().find(|p| p.pod.uid == rig.pod.uid).expect("the pod is known");
    assert_eq!(mine.containers, vec![running]);
    rig.done().await;
}

pub async fn is_killed_with_grace(f: &dyn Fixture) {
    let mut rig = Rig::new(f).await;
    rig.run(&f.container("polite", &Task::Serve)).await.expect("start");
    rig.run(&f.container("stubborn", &Task::Stubborn)).await.expect("start");
    // A shell needs a moment to set its traps.
    sleep(Duration::from_millis(300)).await;
    for name in ["polite", "stubborn"] {
        rig.driver.signal(&rig.pod.uid, name, 15).await.expect("signal");
    }
    let exit = rig.exit_of("polite", 0).await;
    assert!(exit.code == 143 || exit.code == 0, "{exit:?}");
    rig.driver.signal(&rig.pod.uid, "polite", 15).await.expect("a signal to one that has exited");
    sleep(Duration::from_millis(200)).await;
    rig.driver.signal(&rig.pod.uid, "stubborn", 9).await.expect("signal");
    let exit = rig.exit_of("stubborn", 0).await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    rig.done().await;
}

pub async fn logs_line_by_line(f: &dyn Fixture) {
    let mut rig = Rig::new(f).await;
    let lines: Vec<String> = (0..200).map(|i| format!("line {i} of a log")).collect();
    let exit = rig.run_to_exit(&f.container("main", &Task::Print(lines.clone()))).await;
    assert_eq!(exit.code, 0, "{exit:?}");
    let log = rig.log("main", 0).await;
    assert_eq!(log.len(), lines.len());
    for (entry, line) in log.iter().zip(&lines) {
        let parts: Vec<&str> = entry.splitn(4, ' ').collect();
        assert_eq!(parts[1..], ["stdout", "F", line.as_str()], "{entry}");
        assert!(parts[0].len() == "2026-11-24T03:40:06.123456789Z".len() && parts[0].ends_with('Z'), "{entry}");
    }
    rig.done().await;
}

pub async fn obeys_the_memory_limit(f: &dyn Fixture) {
    let mut rig = Rig::new(f).await;
    let mut container = f.container("main", &Task::Hog);
    container.resources.memory_limit_bytes = 32 << 20;
    let exit = rig.run_to_exit(&container).await;
    assert!(exit.oom_killed && exit.code != 0, "{exit:?}");
    rig.done().await;
}

pub async fn obeys_the_pids_limit(f: &dyn Fixture) {
    if !f.enforces() {
        return;
    }
    let mut rig = Rig::new(f).await;
    let mut container = f.container("main", &Task::ForkBomb);
    container.resources.pids_limit = 16;
    rig.run(&container).await.expect("start");
    let mut most = 0;
    for _ in 0..20 {
        sleep(Duration::from_millis(50)).await;
        let stats = rig.driver.stats(&rig.pod.uid).await.expect("stats");
        most = most.max(stats.containers.get("main").map_or(0, |u| u.pids));
    }
    assert!((1..=16).contains(&most), "{most} processes");
    rig.driver.signal(&rig.pod.uid, "main", 9).await.expect("signal");
    rig.exit_of("main", 0).await;
    rig.done().await;
}

pub async fn obeys_the_cpu_limit(f: &dyn Fixture) {
    if !f.enforces() {
        return;
    }
    let rig = Rig::new(f).await;
    let mut container = f.container("main", &Task::Burn);
    container.resources.cpu_limit_millis = 200;
    rig.run(&container).await.expect("start");
    let usage = async || rig.driver.stats(&rig.pod.uid).await.expect("stats").containers.get("main").map_or(0, |u| u.cpu_usec);
    let (before, since) = (usage().await, Instant::now());
    sleep(Duration::from_millis(1500)).await;
    let used = (usage().await - before) as f64 / since.elapsed().as_micros() as f64;
    assert!(used < 0.4, "{used} of a core with a limit of 0.2");
    assert!(used > 0.01, "it does not run at all: {used}");
    rig.done().await;
}

pub async fn survives_the_agent(f: &dyn Fixture) {
    let mut rig = Rig::new(f).await;
    rig.run(&f.container("main", &Task::Serve)).await.expect("start");
    let before = rig.event("running", |c| matches!(c.state, State::Running { .. })).await;
    f.abandon(std::mem::replace(&mut rig.driver, f.driver()));
    rig.events = rig.driver.events();
    let known = rig.driver.recover().await.expect("recover");
    let mine = known.into_iter().find(|p| p.pod.uid == rig.pod.uid).expect("the pod is still there");
    assert_eq!((&mine.pod, &mine.containers), (&rig.pod, &vec![before]));
    rig.driver.signal(&rig.pod.uid, "main", 9).await.expect("signal");
    assert_eq!(rig.exit_of("main", 0).await.code, 137);
    rig.done().await;
}

pub async fn exits_meanwhile_are_recovered(f: &dyn Fixture) {
    let mut rig = Rig::new(f).await;
    rig.run(&f.container("main", &Task::Exit { code: 7, after_ms: 400 })).await.expect("start");
    let next = f.driver();
    f.abandon(std::mem::replace(&mut rig.driver, next));
    sleep(Duration::from_millis(1200)).await;
    let known = rig.driver.recover().await.expect("recover");
    let mine = known.into_iter().find(|p| p.pod.uid == rig.pod.uid).expect("the pod is still there");
    let State::Exited(exit) = &mine.containers[0].state else { panic!("{mine:?}") };
    assert_eq!(exit.code, 7);
    rig.done().await;
}

pub async fn runs_attempt_after_attempt(f: &dyn Fixture) {
    let mut rig = Rig::new(f).await;
    for attempt in 0..3 {
        let container = Container { attempt, ..f.container("main", &Task::Print(vec![format!("attempt {attempt}")])) };
        assert_eq!(rig.run_to_exit(&container).await.code, 0);
    }
    rig.driver.remove(&rig.pod.uid, "main", 0).await.expect("remove");
    rig.driver.remove(&rig.pod.uid, "main", 0).await.expect("remove again");
    let known = rig.driver.recover().await.expect("recover");
    let mine = known.into_iter().find(|p| p.pod.uid == rig.pod.uid).expect("the pod is known");
    assert_eq!(mine.containers.iter().map(|c| c.attempt).collect::<Vec<_>>(), [1, 2]);
    for attempt in 0..3 {
        let log = rig.log("main", attempt).await;
        assert!(log.len() == 1 && log[0].ends_with(&format!("attempt {attempt}")), "{log:?}");
    }
    rig.done().await;
}

pub async fn execs_with_exit_code(f: &dyn Fixture) {
    let rig = Rig::new(f).await;
    rig.run(&f.container("main", &Task::Serve)).await.expect("start");
    for code in [0, 3, 200] {
        let mut session = rig.driver.exec(&rig.pod.uid, "main", &f.exec(&Task::Exit { code, after_ms: 0 })).await.expect("exec");
        assert_eq!(collect(&mut session).await.1, Ok(code));
    }
    let lines: Vec<String> = (0..50).map(|i| format!("row {i}")).collect();
    let mut session = rig.driver.exec(&rig.pod.uid, "main", &f.exec(&Task::Print(lines.clone()))).await.expect("exec");
    let (out, result) = collect(&mut session).await;
    assert_eq!((String::from_utf8_lossy(&out).into_owned(), result), (lines.join("\n") + "\n", Ok(0)));
    for _ in 0..3 {
        let missing = f.exec(&Task::Missing("nope".into()));
        let mut session = rig.driver.exec(&rig.pod.uid, "main", &missing).await.expect("exec");
        let error = collect(&mut session).await.1.expect_err("a missing program");
        assert!(error.contains("exec: \"nope\": executable file not found in $PATH"), "{error}");
    }
    rig.done().await;
}

pub async fn execs_with_input(f: &dyn Fixture) {
    let rig = Rig::new(f).await;
    rig.run(&f.container("main", &Task::Serve)).await.expect("start");
    let exec = Exec { stdin: true, ..f.exec(&Task::Echo) };
    let mut session = rig.driver.exec(&rig.pod.uid, "main", &exec).await.expect("exec");
    let block = Bytes::from(vec![b'x'; 8 << 10]);
    let input = session.input.clone();
    let feed = tokio::spawn(async move {
        for _ in 0..64 {
            input.send(Frame::Stdin(block.clone())).await.expect("stdin is taken");
        }
        input.send(Frame::CloseStdin).await.expect("stdin is taken");
    });
    let (out, result) = collect(&mut session).await;
    feed.await.expect("fed");
    assert_eq!((out.len(), result), (64 * (8 << 10), Ok(0)));
    rig.done().await;
}

pub async fn a_dropped_exec_is_killed(f: &dyn Fixture) {
    let rig = Rig::new(f).await;
    rig.run(&f.container("main", &Task::Serve)).await.expect("start");
    let pids = async || rig.driver.stats(&rig.pod.uid).await.expect("stats").containers["main"].pids;
    let settled = async |wanted: &str, test: &dyn Fn(u64) -> bool| {
        let since = Instant::now();
        while !test(pids().await) {
            assert!(since.elapsed() < PATIENCE, "{wanted}: {} processes", pids().await);
            sleep(Duration::from_millis(50)).await;
        }
    };
    sleep(Duration::from_millis(300)).await;
    let before = pids().await;
    let session = rig.driver.exec(&rig.pod.uid, "main", &f.exec(&Task::Stubborn)).await.expect("exec");
    if f.enforces() {
        settled("the command runs", &|n| n > before).await;
    }
    drop(session);
    settled("the command is killed", &|n| n <= before).await;
    rig.done().await;
}

pub async fn execs_on_a_terminal_that_resizes(f: &dyn Fixture) {
    if !f.enforces() {
        return;
    }
    let rig = Rig::new(f).await;
    rig.run(&f.container("main", &Task::Serve)).await.expect("start");
    let exec = Exec { tty: true, stdin: true, ..f.exec(&Task::Size) };
    let mut session = rig.driver.exec(&rig.pod.uid, "main", &exec).await.expect("exec");
    for (width, height) in [(80, 24), (132, 43)] {
        session.input.send(Frame::Resize { width, height }).await.expect("resize");
        session.input.send(Frame::Stdin(Bytes::from_static(b"\n"))).await.expect("stdin");
        expect(&mut session, &format!("{height} {width}")).await;
    }
    session.input.send(Frame::Stdin(Bytes::from_static(b"\x04"))).await.expect("stdin");
    assert_eq!(collect(&mut session).await.1, Ok(0));
    rig.done().await;
}

pub async fn attaches_to_a_running_container(f: &dyn Fixture) {
    let mut rig = Rig::new(f).await;
    let container = Container { stdin: true, stdin_once: true, ..f.container("main", &Task::Echo) };
    rig.run(&container).await.expect("start");
    let mut session = rig.driver.attach(&rig.pod.uid, "main").await.expect("attach");
    session.input.send(Frame::Stdin(Bytes::from_static(b"ahoy\n"))).await.expect("stdin");
    expect(&mut session, "ahoy").await;
    if f.enforces() {
        session.input.send(Frame::CloseStdin).await.expect("stdin");
        assert_eq!(rig.exit_of("main", 0).await.code, 0);
    }
    rig.done().await;
}

pub async fn what_is_unknown_is_named(f: &dyn Fixture) {
    let rig = Rig::new(f).await;
    let d = &rig.driver;
    let names = |e: Error, what: &str| assert!(e.to_string().contains(what), "{e}");
    names(d.create("no-such-uid", &f.container("main", &Task::Serve)).await.expect_err("create"), "no-such-uid");
    names(d.start(&rig.pod.uid, "ghost", 0).await.expect_err("start"), "ghost");
    names(d.exec(&rig.pod.uid, "ghost", &f.exec(&Task::Serve)).await.err().expect("exec"), "ghost");
    names(d.signal(&rig.pod.uid, "ghost", 15).await.expect_err("signal"), "ghost");
    d.remove(&rig.pod.uid, "ghost", 0).await.expect("removing what is not there");
    d.remove_pod("no-such-uid").await.expect("removing what is not there");
    rig.done().await;
}

pub async fn leaves_nothing_behind(f: &dyn Fixture) {
    let rig = Rig::new(f).await;
    for name in ["a", "b"] {
        rig.run(&f.container(name, &Task::Stubborn)).await.expect("start");
    }
    assert!(rig.run(&f.container("c", &Task::Missing("nope".into()))).await.is_err());
    let _session = rig.driver.exec(&rig.pod.uid, "a", &f.exec(&Task::Stubborn)).await.expect("exec");
    rig.driver.create(&rig.pod.uid, &f.container("d", &Task::Serve)).await.expect("create");
    let uid = rig.pod.uid.clone();
    let driver = rig.driver.clone();
    rig.done().await;
    assert!(driver.recover().await.expect("recover").iter().all(|p| p.pod.uid != uid));
}
