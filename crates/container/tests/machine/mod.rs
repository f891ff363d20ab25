//! A corner of this machine for one test: an instance of its own, a root file system of static busybox, a network
//! namespace without links. Everything is taken away when it is dropped, also when the test fails.

#![allow(dead_code)]

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use container::{Config, ContainerDriver};
use driver::conformance::{Fixture, Task};
use driver::{Container, Driver, Exec, Pod, Resources, Root, Security};

/// containerd's default set.
pub const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

static NEXT: AtomicU32 = AtomicU32::new(0);

pub struct Machine {
    pub instance: String,
    pub dir: tempfile::TempDir,
    pub cgroup_root: PathBuf,
    netns: Mutex<Vec<File>>,
    next: AtomicU32,
}

/// Two layers, shared by all tests of a run: a base, and one on top that changes a file of it.
fn layers() -> &'static [PathBuf; 2] {
    static LAYERS: OnceLock<(tempfile::TempDir, [PathBuf; 2])> = OnceLock::new();
    let (_, layers) = LAYERS.get_or_init(|| {
        let busybox = Path::new("/bin/busybox");
        if !busybox.exists() {
            let installed = Command::new("apt-get").args(["install", "-y", "busybox-static"]).output();
            assert!(installed.is_ok_and(|o| o.status.success()), "busybox-static is needed and could not be installed");
        }
        let dir = tempfile::tempdir().unwrap();
        // A directory made by mkdtemp is its owner's only; a container's root is everybody's to pass through.
        let (base, top) = (dir.path().join("base"), dir.path().join("top"));
        for d in ["bin", "etc", "tmp", "root", "home/tess", "proc", "sys", "dev"] {
            fs::create_dir_all(base.join(d)).unwrap();
        }
        fs::create_dir_all(top.join("etc")).unwrap();
        fs::copy(busybox, base.join("bin/busybox")).unwrap();
        let applets = Command::new(busybox).arg("--list").output().unwrap();
        for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|a| *a != "busybox") {
            std::os::unix::fs::symlink("busybox", base.join("bin").join(applet)).unwrap();
        }
        fs::write(base.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\ntess:x:1000:1000::/home/tess:/bin/sh\n").unwrap();
        fs::write(base.join("etc/layer"), "base\n").unwrap();
        fs::write(top.join("etc/layer"), "top\n").unwrap();
        (dir, [base, top])
    });
    layers
}

impl Machine {
    pub fn new() -> Self {
        Self::at("/sys/fs/cgroup")
    }

    pub fn at(cgroup_root: &str) -> Self {
        let instance = format!("staithe-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().unwrap();
        Self { instance, dir, cgroup_root: cgroup_root.into(), netns: Mutex::default(), next: AtomicU32::new(0) }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn driver(&self) -> Arc<ContainerDriver> {
        let shim = vec![env!("CARGO_BIN_EXE_shim").into()];
        let config = Config::new(&self.instance, &self.run_dir(), &self.dir.path().join("data"), shim);
        ContainerDriver::new(Config { cgroup_root: self.cgroup_root.clone(), ..config })
    }

    /// A network namespace that lives as long as the machine.
    pub fn netns(&self) -> PathBuf {
        let make = || {
            // SAFETY: a thread of its own, which ends here: no one else finds itself in another network.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let file = std::thread::scope(|s| s.spawn(make).join().unwrap());
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        self.netns.lock().unwrap().push(file);
        path
    }

    pub fn pod(&self) -> Pod {
        let uid = format!("{}-pod{}", self.instance, self.next.fetch_add(1, Ordering::Relaxed));
        Pod {
            log_dir: self.dir.path().join("logs").join(&uid),
            netns: Some(self.netns()),
            hostname: "harbour".into(),
            name: "pod".into(),
            namespace: "default".into(),
            uid,
            ..Pod::default()
        }
    }

    pub fn container(&self, name: &str, args: &[&str]) -> Container {
        Container {
            name: name.into(),
            root: Root::Layers(layers().to_vec()),
            args: args.iter().map(|a| a.to_string()).collect(),
            env: vec![("PATH".into(), "/bin".into())],
            security: Security {
                capabilities: CAPABILITIES.iter().map(|c| c.to_string()).collect(),
                seccomp_default: true,
                ..Security::default()
            },
            resources: Resources::default(),
            ..Container::default()
        }
    }

    pub fn shell(&self, name: &str, script: &str) -> Container {
        self.container(name, &["sh", "-c", script])
    }

    pub fn log_text(&self, pod: &Pod, container: &str, attempt: u32) -> String {
        let text = fs::read_to_string(pod.log_dir.join(container).join(format!("{attempt}.log"))).unwrap_or_default();
        text.lines().filter_map(|l| l.splitn(4, ' ').nth(3)).map(|l| format!("{l}\n")).collect()
    }

    fn cgroup_dirs(&self, uid: &str) -> Vec<String> {
        let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path());
        let dirs = roots.chain([self.cgroup_root.clone()]).map(|r| r.join(&self.instance).join("pods").join(uid));
        dirs.filter(|d| d.exists()).map(|d| format!("control group {}", d.display())).collect()
    }
}

pub fn words(task: &Task) -> Vec<String> {
    let script = match task {
        Task::Exit { code, after_ms } => format!("sleep {}; exit {code}", *after_ms as f64 / 1000.0),
        Task::Serve => "trap 'exit 143' TERM; sleep 1000 & wait".into(),
        Task::Stubborn => "trap '' TERM; sleep 1000; sleep 1000".into(),
        Task::Print(lines) => {
            let head = ["sh", "-c", r#"for l in "$@"; do echo "$l"; done"#, "sh"].map(str::to_string);
            return head.into_iter().chain(lines.clone()).collect();
        }
        Task::Hog => "exec dd if=/dev/zero of=/dev/shm/x bs=1M count=60".into(),
        Task::ForkBomb => "(while :; do sleep 100 & done); exec sleep 100".into(),
        Task::Burn => "while :; do :; done".into(),
        Task::Echo => "exec cat".into(),
        Task::Size => "while read -r _; do stty size; done".into(),
        Task::Missing(name) => return vec![name.clone()],
    };
    vec!["sh".into(), "-c".into(), script]
}

#[async_trait]
impl Fixture for Machine {
    fn driver(&self) -> Arc<dyn Driver> {
        Machine::driver(self)
    }

    fn pod(&self) -> Pod {
        Machine::pod(self)
    }

    fn container(&self, name: &str, task: &Task) -> Container {
        let words = words(task);
        Machine::container(self, name, &words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn exec(&self, task: &Task) -> Exec {
        Exec { args: words(task), ..Exec::default() }
    }

    fn enforces(&self) -> bool {
        true
    }

    fn leftovers(&self, uid: &str) -> Vec<String> {
        let mut left = self.cgroup_dirs(uid);
        for pid in fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().into_string().ok()?.parse::<u32>().ok()) {
            let read = |f: &str| fs::read_to_string(format!("/proc/{pid}/{f}")).unwrap_or_default();
            if read("cgroup").contains(uid) || read("cmdline").contains(uid) {
                left.push(format!("process {pid} {}", read("comm").trim()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|l| l.contains(uid)).map(|l| format!("mount {l}")));
        let dirs = [self.run_dir().join("pods").join(uid), self.dir.path().join("data/pods").join(uid)];
        left.extend(dirs.iter().filter(|d| d.exists()).map(|d| d.display().to_string()));
        left
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        container::sweep(&self.instance, &self.run_dir(), false);
        // With another root than the machine's, the sweep has not seen its groups.
        let mut dirs = vec![self.cgroup_root.join(&self.instance)];
        while let Some(dir) = dirs.last().cloned() {
            let below = fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path()).find(|p| p.is_dir());
            match below {
                Some(inner) if dirs.len() < 8 => dirs.push(inner),
                _ => {
                    let _ = fs::write(dir.join("cgroup.kill"), "1");
                    if fs::remove_dir(&dir).is_err() {
                        return;
                    }
                    dirs.pop();
                }
            }
        }
    }
}

/// A pod that exists, and what tests do with it.
pub struct Running {
    pub driver: Arc<ContainerDriver>,
    pub pod: Pod,
    events: tokio::sync::Mutex<tokio::sync::mpsc::Receiver<driver::Event>>,
}

impl Machine {
    pub async fn up(&self) -> Running {
        self.up_with(self.pod()).await
    }

    pub async fn up_with(&self, pod: Pod) -> Running {
        let driver = Machine::driver(self);
        let events = tokio::sync::Mutex::new(driver.events());
        driver.create_pod(&pod).await.unwrap();
        Running { driver, pod, events }
    }
}

impl Running {
    pub async fn start(&self, container: &Container) -> driver::Result<()> {
        self.driver.create(&self.pod.uid, container).await?;
        self.driver.start(&self.pod.uid, &container.name, container.attempt).await
    }

    pub async fn event(&self, wanted: impl Fn(&driver::Event) -> bool) -> driver::Event {
        let mut events = self.events.lock().await;
        let next = async {
            loop {
                let event = events.recv().await.unwrap();
                if wanted(&event) {
                    return event;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), next).await.expect("an event in time")
    }

    pub async fn exit(&self, name: &str) -> driver::Exit {
        let is = |e: &driver::Event| matches!(e, driver::Event::Container { container: c, .. } if c.name == name && matches!(c.state, driver::State::Exited(_)));
        match self.event(is).await {
            driver::Event::Container { container: driver::ContainerState { state: driver::State::Exited(exit), .. }, .. } => exit,
            other => panic!("{other:?}"),
        }
    }

    /// Runs it to its end: exit code and log.
    pub async fn run(&self, machine: &Machine, container: &Container) -> (i32, String) {
        self.start(container).await.unwrap();
        let exit = self.exit(&container.name).await;
        (exit.code, machine.log_text(&self.pod, &container.name, container.attempt))
    }

    /// Runs a shell script beside a container: exit code and output.
    pub async fn exec(&self, container: &str, script: &str) -> (i32, String) {
        let args = ["sh", "-c", script].map(str::to_string).to_vec();
        let mut session = self.driver.exec(&self.pod.uid, container, &Exec { args, ..Exec::default() }).await.unwrap();
        let mut out = String::new();
        while let Some(frame) = session.output.recv().await {
            match frame {
                driver::Frame::Stdout(b) | driver::Frame::Stderr(b) => out.push_str(&String::from_utf8_lossy(&b)),
                driver::Frame::Exit(result) => return (result.unwrap(), out),
                _ => {}
            }
        }
        panic!("no exit of {script}")
    }

    pub async fn down(self, machine: &Machine) {
        self.driver.remove_pod(&self.pod.uid).await.unwrap();
        assert_eq!(machine.leftovers(&self.pod.uid), Vec::<String>::new());
    }

    /// The pid of the pod's shim.
    pub fn shim(&self, machine: &Machine) -> i32 {
        let state = fs::read(machine.run_dir().join("pods").join(&self.pod.uid).join("state.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&state).unwrap()["pid"].as_i64().unwrap() as i32
    }
}
