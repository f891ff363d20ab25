//! kill -9 at any instant: everything acknowledged is there, nothing half.
//!
//! The test runs itself as the victim: a child that writes as fast as it can and reports each acknowledgement over a
//! pipe. The parent kills it, opens the directory and compares.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base::Ids;
use store::{DataDir, Embedded, Error, Event, Expect, Options, Revision, Store, Write};

const VICTIM: &str = "STAITHE_TEST_CRASH_VICTIM";
const WRITERS: u64 = 16;
const ROUNDS: u64 = 25;

fn pair(writer: u64, n: u64) -> Vec<Write> {
    // Values of many sizes, some larger than a page.
    let value = format!("{n} {}", "x".repeat((n * 397 % 9000) as usize));
    let write = |side| Write { key: format!("k/{side}/{writer}"), expect: Expect::Any, value: Some(value.clone().into()) };
    vec![write("left"), write("right")]
}

fn number(value: &[u8]) -> u64 {
    String::from_utf8_lossy(value).split(' ').next().unwrap().parse().unwrap()
}

/// Not a test of its own: what the child runs.
#[test]
fn victim() {
    let Ok(dir) = std::env::var(VICTIM) else { return };
    let _held = DataDir::open(Path::new(&dir)).unwrap();
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&Path::new(&dir).join("store"), Options::default()).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let store = store.clone();
            writers.spawn(async move {
                let mut n = store.get(&format!("k/left/{writer}")).await.unwrap().map_or(0, |e| number(&e.value));
                loop {
                    n += 1;
                    let revision = store.txn(pair(writer, n)).await.unwrap();
                    // One write call a line: no line is torn.
                    std::io::stdout().write_all(format!("\nack {writer} {n} {revision}\n").as_bytes()).unwrap();
                }
            });
        }
        writers.join_next().await;
    });
}

fn spawn(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture"])
        .env(VICTIM, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

type Acks = BTreeMap<u64, (u64, Revision)>;

/// Lets a child write for a while, kills it, and tells what it acknowledged.
fn crash(dir: &Path, after: Duration) -> Acks {
    let mut child = spawn(dir);
    let acks: Arc<Mutex<Acks>> = Arc::default();
    let (output, seen) = (child.stdout.take().unwrap(), acks.clone());
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some(rest) = line.strip_prefix("ack ") {
                let parts: Vec<u64> = rest.split(' ').map(|p| p.parse().unwrap()).collect();
                seen.lock().unwrap().insert(parts[0], (parts[1], parts[2]));
            }
        }
    });
    while acks.lock().unwrap().is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "the victim ended by itself");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(after);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    // What was in the pipe when it died was acknowledged too.
    reader.join().unwrap();
    Arc::try_unwrap(acks).unwrap().into_inner().unwrap()
}

async fn verify(dir: &Path, before: Revision, acks: &Acks, round: u64) -> Revision {
    let store = Embedded::open(&dir.join("store"), Options::default()).unwrap();
    let (entries, revision) = store.range("k/").await.unwrap();
    let at: BTreeMap<&str, (u64, Revision)> = entries.iter().map(|e| (e.key.as_str(), (number(&e.value), e.revision))).collect();
    for (writer, (n, acknowledged)) in acks {
        let (left, right) = (at[&*format!("k/left/{writer}")], at[&*format!("k/right/{writer}")]);
        assert_eq!(left, right, "round {round}: writer {writer}'s pair is torn");
        assert!(left.0 == *n && left.1 == *acknowledged || left.0 == n + 1, "round {round}: acknowledged {n}, found {}", left.0);
        assert!(revision >= *acknowledged);
    }
    for entry in &entries {
        let n = number(&entry.value);
        assert_eq!(entry.value, pair(0, n)[0].value.clone().unwrap(), "round {round}: {} is damaged", entry.key);
    }
    // History is whole as well: each revision since then once, in pairs.
    let history = store.history().await;
    let from = before.max(history.start);
    let mut watch = store.watch(from).await.unwrap();
    let mut next = from;
    while next < revision {
        let batch = tokio::time::timeout(Duration::from_secs(10), watch.recv()).await.unwrap().unwrap();
        for events in batch.chunks(2) {
            next += 1;
            assert!(events.len() == 2 && events.iter().all(|e| matches!(e, Event::Put { .. }) && e.revision() == next), "round {round}");
        }
    }
    revision
}

#[tokio::test]
async fn everything_acknowledged_survives_kill_and_nothing_is_half() {
    let dir = tempfile::tempdir().unwrap();
    let ids = Ids::seeded(7);
    let mut revision = 0;
    for round in 0..ROUNDS {
        let acks = crash(dir.path(), Duration::from_micros(ids.next_u64() % 150_000));
        revision = verify(dir.path(), revision, &acks, round).await;
    }
    assert!(revision > ROUNDS * WRITERS, "only {revision} writes in {ROUNDS} rounds");
}

#[test]
fn two_processes_at_once_are_refused_by_pid() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn(dir.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("ack ")));
    let refused = DataDir::open(dir.path()).unwrap_err().to_string();
    let behind = Embedded::open(&dir.path().join("store"), Options::default()).err();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(refused.contains(&format!("in use by process {}", child.id())), "{refused}");
    assert!(matches!(behind, Some(Error::Open(why)) if why.contains("another process has it open")), "the engine itself refuses too");
    DataDir::open(dir.path()).unwrap();
}
