//! The fake keeps the promises of a driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use driver::conformance::{Fixture, Task};
use driver::fake::World;
use driver::{Container, Driver, Exec, Pod};

struct FakeFixture {
    world: World,
    logs: tempfile::TempDir,
    next: AtomicU32,
}

fn fixture() -> FakeFixture {
    let logs = tempfile::tempdir().expect("a directory");
    FakeFixture { world: World::new(Arc::new(base::SystemClock)), logs, next: AtomicU32::new(0) }
}

fn words(task: &Task) -> Vec<String> {
    let text = match task {
        Task::Exit { code, after_ms } => format!("exit {code} {after_ms}"),
        Task::Serve | Task::Burn | Task::ForkBomb | Task::Size => "serve".into(),
        Task::Stubborn => "stubborn".into(),
        Task::Print(lines) => return std::iter::once("print".to_string()).chain(lines.clone()).collect(),
        Task::Hog => "hog".into(),
        Task::Echo => "echo".into(),
        Task::Missing(name) => format!("missing {name}"),
    };
    text.split(' ').map(str::to_string).collect()
}

#[async_trait]
impl Fixture for FakeFixture {
    fn driver(&self) -> Arc<dyn Driver> {
        self.world.driver()
    }
    fn pod(&self) -> Pod {
        let uid = format!("pod-{}", self.next.fetch_add(1, Ordering::Relaxed));
        Pod { log_dir: self.logs.path().join(&uid), uid, ..Pod::default() }
    }
    fn container(&self, name: &str, task: &Task) -> Container {
        Container { name: name.into(), args: words(task), ..Container::default() }
    }
    fn exec(&self, task: &Task) -> Exec {
        Exec { args: words(task), ..Exec::default() }
    }
    fn enforces(&self) -> bool {
        false
    }
    fn leftovers(&self, uid: &str) -> Vec<String> {
        self.world.pods().into_iter().filter(|p| p.pod.uid == uid).map(|p| p.pod.uid).collect()
    }
}

driver::conformance_suite!(fixture());
