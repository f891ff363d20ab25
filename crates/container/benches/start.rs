//! From "start this container" to "it has ended", for `/bin/true`: our driver (a pod's shim that lives on), crun and runc
//! on the same root file system, interleaved, in CPU time of all processes involved and in wall time.
//!
//! `cargo bench -p container`; needs root. crun runs with its control groups disabled, where it refuses hybrid ones.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use container::{Config, ContainerDriver};
use driver::{Container, Driver, Event, Pod, Root, Security, State};

const ROUNDS: usize = 100;

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    // As in a real installation: state on tmpfs, layers and logs on disk.
    let run = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let layer = root_file_system(dir.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let instance = format!("staithe-bench-{}", std::process::id());
    let config = Config::new(&instance, run.path(), &dir.path().join("data"), vec![env!("CARGO_BIN_EXE_shim").into()]);
    let driver = ContainerDriver::new(config);
    let mut ours = Ours { driver: driver.clone(), layer: layer.clone(), pod: pod(dir.path()), attempt: 0 };
    let pod_start = runtime.block_on(ours.up());
    let bundle = bundle(dir.path(), &layer);
    let mut samples: Vec<(&str, Vec<(f64, f64)>)> = vec![("staithe", vec![]), ("crun", vec![]), ("runc", vec![])];
    for round in 0..ROUNDS {
        for i in 0..samples.len() {
            // A B C, then C B A.
            let at = if round % 2 == 0 { i } else { samples.len() - 1 - i };
            let sample = match samples[at].0 {
                "staithe" => Some(runtime.block_on(ours.once())),
                name => peer(name, &bundle),
            };
            samples[at].1.extend(sample);
        }
    }
    println!("pod (shim, namespaces, control group): {pod_start:.2} ms wall, once");
    println!("shim while it waits: {} kB PSS", ours.shim_pss());
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("start to exit of /bin/true, {ROUNDS} rounds, CPU mean, wall median; load {}", load.split(' ').next().unwrap_or_default());
    for (name, mut s) in samples {
        if s.is_empty() {
            println!("{name:8} not installed, or it does not run here");
            continue;
        }
        s.sort_by(|a, b| a.1.total_cmp(&b.1));
        let cpu = s.iter().map(|s| s.0).sum::<f64>() / s.len() as f64;
        println!("{name:8} cpu {cpu:6.2} ms   wall {:6.2} ms", s[s.len() / 2].1);
    }
    runtime.block_on(ours.down());
    container::sweep(&instance, run.path(), false);
}

fn root_file_system(dir: &Path) -> PathBuf {
    let root = dir.join("layer");
    for d in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
        fs::create_dir_all(root.join(d)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    std::os::unix::fs::symlink("busybox", root.join("bin/true")).expect("a link");
    root
}

fn pod(dir: &Path) -> Pod {
    Pod { uid: "bench".into(), hostname: "bench".into(), log_dir: dir.join("logs"), ..Pod::default() }
}

struct Ours {
    driver: Arc<ContainerDriver>,
    layer: PathBuf,
    pod: Pod,
    attempt: u32,
}

impl Ours {
    async fn up(&self) -> f64 {
        let since = Instant::now();
        self.driver.create_pod(&self.pod).await.expect("a pod");
        since.elapsed().as_secs_f64() * 1e3
    }

    async fn down(&self) {
        self.driver.remove_pod(&self.pod.uid).await.expect("the pod goes");
    }

    fn shim(&self) -> Option<i32> {
        let children = fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        children.into_iter().find(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.ends_with(b"pods/bench\0")
        })
    }

    fn shim_pss(&self) -> u64 {
        let text = self.shim().and_then(|p| fs::read_to_string(format!("/proc/{p}/smaps_rollup")).ok()).unwrap_or_default();
        text.lines().find_map(|l| l.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok()).unwrap_or_default()
    }

    /// Create, start, exit, remove. CPU: the shim, its children and this process.
    async fn once(&mut self) -> (f64, f64) {
        let shim = self.shim();
        self.attempt += 1;
        let container = Container {
            name: "true".into(),
            attempt: self.attempt,
            root: Root::Layers(vec![self.layer.clone()]),
            args: vec!["/bin/true".into()],
            security: Security { seccomp_default: true, capabilities: vec!["CAP_CHOWN".into(), "CAP_KILL".into()], ..Security::default() },
            ..Container::default()
        };
        let mut events = self.driver.events();
        let (cpu, since) = (cpu_of(shim), Instant::now());
        self.driver.create("bench", &container).await.expect("create");
        self.driver.start("bench", "true", self.attempt).await.expect("start");
        loop {
            match events.recv().await {
                Some(Event::Container { container, .. }) if matches!(container.state, State::Exited(_)) => break,
                Some(_) => {}
                None => panic!("no events"),
            }
        }
        self.driver.remove("bench", "true", self.attempt).await.expect("remove");
        let wall = since.elapsed().as_secs_f64() * 1e3;
        ((cpu_of(shim) - cpu).as_secs_f64() * 1e3, wall)
    }
}

/// User and system time of this process, of its children that have ended, and of the shim with its children.
fn cpu_of(shim: Option<i32>) -> Duration {
    let usage = |who| {
        // SAFETY: zero is a value of every field, and the structure is ours.
        let mut u: libc::rusage = unsafe { std::mem::zeroed() };
        unsafe { libc::getrusage(who, &mut u) };
        let of = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
        of(u.ru_utime) + of(u.ru_stime)
    };
    usage(libc::RUSAGE_SELF) + usage(libc::RUSAGE_CHILDREN) + shim.map_or(Duration::ZERO, tree_cpu)
}

/// utime, stime, cutime, cstime of `/proc/<pid>/stat`, in ticks of 10 ms: exact enough over all rounds, not for one.
fn tree_cpu(pid: i32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<u64> = text.rsplit(')').next().unwrap_or_default().split_whitespace().filter_map(|f| f.parse().ok()).collect();
    Duration::from_millis(10 * fields.get(10..14).unwrap_or_default().iter().sum::<u64>())
}

fn bundle(dir: &Path, layer: &Path) -> PathBuf {
    let bundle = dir.join("bundle");
    fs::create_dir_all(&bundle).expect("a directory");
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN", "CAP_KILL"]}
        },
        "root": {"path": layer, "readonly": false},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["keyctl", "bpf", "unshare"], "action": "SCMP_ACT_ERRNO"}]}
        }
    });
    fs::write(bundle.join("config.json"), config.to_string()).expect("a file");
    bundle
}

fn out_of_hybrid() -> std::io::Result<()> {
    // SAFETY: the paths live through the calls.
    unsafe {
        libc::unshare(libc::CLONE_NEWNS);
        libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE, std::ptr::null());
        libc::umount2(c"/sys/fs/cgroup/unified".as_ptr(), libc::MNT_DETACH);
    }
    Ok(())
}

fn peer(name: &str, bundle: &Path) -> Option<(f64, f64)> {
    let mut command = Command::new(name);
    if name == "crun" {
        command.arg("--cgroup-manager=disabled");
        // Even so it refuses to start where version 2 is mounted beside version 1: it shall not see that.
        // SAFETY: two system calls between fork and exec.
        unsafe { command.pre_exec(out_of_hybrid) };
    }
    command.args(["run", "--bundle"]).arg(bundle).arg(format!("bench-{}", std::process::id()));
    let (cpu, since) = (cpu_of(None), Instant::now());
    let done = command.output().ok()?;
    let wall = since.elapsed().as_secs_f64() * 1e3;
    done.status.success().then(|| ((cpu_of(None) - cpu).as_secs_f64() * 1e3, wall))
}
