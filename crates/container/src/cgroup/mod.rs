//! Control groups: one tree per instance, `<instance>/pods/<uid>/<container>-<attempt>` and `<instance>/shims`, on
//! version 1 (each controller mounted by itself, or hybrid) and version 2. Knows paths and numbers, nothing of processes
//! but how to list and kill them. The layout is read from the mount point each time: nothing is remembered.

mod devices;
mod usage;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use driver::Resources;
use rustix::fs::{Mode, OFlags};

use crate::sys::{self, Doing, Failure, Step};

/// The controllers of version 1 that a pod has groups in.
const V1: &[&str] = &["memory", "cpu", "cpuacct", "pids", "blkio", "devices", "freezer"];
/// Those of version 2, switched on for what is below.
const V2: &[&str] = &["cpu", "memory", "pids", "io"];

/// How long a freeze is waited for; the next stroke gets who was missed.
const FREEZE_MS: u32 = 20;

const CGROUP_MAGIC: u64 = 0x0027_e0eb;
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// A mounted hierarchy and the controllers of ours in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    dir: PathBuf,
    controllers: Vec<&'static str>,
}

impl Hierarchy {
    /// Version 1 with `cpuset` in the same mount: an empty set of processors takes no process.
    fn inherit_cpus(&self, path: &Path) {
        if !self.dir.to_string_lossy().contains("cpuset") {
            return;
        }
        let dir = self.dir.join(path);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let parent = dir.parent().map(|p| p.join(file)).and_then(|p| fs::read_to_string(p).ok());
            if let Some(value) = parent {
                let _ = fs::write(dir.join(file), value.trim());
            }
        }
    }
}

#[derive(Debug, Clone)]
pub struct Cgroups {
    unified: bool,
    hierarchies: Vec<Hierarchy>,
    /// Hierarchies where only shims are moved, so that whoever watches the agent's group does not count them in.
    others: Vec<PathBuf>,
    instance: String,
}

fn magic(dir: &Path) -> u64 {
    rustix::fs::statfs(dir).map(|s| s.f_type as u64).unwrap_or_default()
}

impl Cgroups {
    pub fn detect(root: &Path, instance: &str) -> Step<Self> {
        let instance = instance.to_string();
        if magic(root) == CGROUP2_MAGIC {
            let listed = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            let controllers = V2.iter().copied().filter(|c| listed.split_whitespace().any(|l| l == *c)).collect();
            let hierarchies = vec![Hierarchy { dir: root.to_path_buf(), controllers }];
            return Ok(Self { unified: true, hierarchies, others: Vec::new(), instance });
        }
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for name in V1 {
            // `cpu` and `cpuacct` are often links to one mount.
            let Ok(dir) = fs::canonicalize(root.join(name)) else { continue };
            if magic(&dir) != CGROUP_MAGIC {
                continue;
            }
            match hierarchies.iter_mut().find(|h| h.dir == dir) {
                Some(h) => h.controllers.push(name),
                None => hierarchies.push(Hierarchy { dir, controllers: vec![name] }),
            }
        }
        if hierarchies.is_empty() {
            return Err(Failure::failed(format!("no control groups are mounted at {}", root.display())));
        }
        let others = ["systemd", "unified"].map(|n| root.join(n)).into_iter().filter(|d| magic(d) != 0 && d.exists());
        let others = others.filter(|d| [CGROUP_MAGIC, CGROUP2_MAGIC].contains(&magic(d))).collect();
        Ok(Self { unified: false, hierarchies, others, instance })
    }

    /// Controllers that limits need and the kernel does not offer.
    pub fn missing(&self) -> Vec<&'static str> {
        let has = |c: &str| self.hierarchies.iter().any(|h| h.controllers.contains(&c));
        let wanted: &[&str] = if self.unified { &["cpu", "memory", "pids"] } else { &["cpu", "memory", "pids", "devices", "freezer"] };
        wanted.iter().copied().filter(|c| !has(c)).collect()
    }

    fn at(&self, path: &str) -> Group<'_> {
        Group { cgroups: self, path: PathBuf::from(&self.instance).join(path) }
    }

    pub fn pod(&self, uid: &str) -> Group<'_> {
        self.at(&format!("pods/{uid}"))
    }

    pub fn container(&self, uid: &str, name: &str, attempt: u32) -> Group<'_> {
        self.at(&format!("pods/{uid}/{name}-{attempt}"))
    }

    /// Everything of the instance.
    pub fn all(&self) -> Group<'_> {
        self.at("")
    }

    /// Moves the calling process out of its parent's groups into the shims'.
    pub fn enter_shims(&self) -> Step {
        let group = self.at("shims");
        group.create()?;
        group.enter()?;
        for dir in &self.others {
            let dir = dir.join(&group.path);
            // Whoever keeps these may refuse; nothing is limited by them.
            let _ = fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join("cgroup.procs"), "0"));
        }
        Ok(())
    }
}

/// One group, in every hierarchy that it has a place in. It may not exist.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    cgroups: &'a Cgroups,
    path: PathBuf,
}

impl Group<'_> {
    fn dirs(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.cgroups.hierarchies.iter().map(|h| h.dir.join(&self.path))
    }

    /// The directory in the hierarchy of a controller.
    fn dir(&self, controller: &str) -> Option<PathBuf> {
        let hierarchy = self.cgroups.hierarchies.iter().find(|h| h.controllers.contains(&controller))?;
        Some(hierarchy.dir.join(&self.path))
    }

    /// Where processes are counted: the freezer's hierarchy on version 1.
    fn main_dir(&self) -> PathBuf {
        let main = self.dir("freezer").filter(|_| !self.cgroups.unified);
        main.or_else(|| self.dirs().next()).unwrap_or_default()
    }

    /// Names of the groups right below.
    pub fn children(&self) -> Vec<String> {
        let entries = fs::read_dir(self.main_dir()).into_iter().flatten().flatten();
        let dirs = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        let mut names: Vec<String> = dirs.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    pub fn create(&self) -> Step {
        for hierarchy in &self.cgroups.hierarchies {
            // Mostly only the last one is new.
            match fs::create_dir(hierarchy.dir.join(&self.path)) {
                Ok(()) if !self.cgroups.unified => hierarchy.inherit_cpus(&self.path),
                _ => self.create_from(hierarchy)?,
            }
        }
        Ok(())
    }

    fn create_from(&self, hierarchy: &Hierarchy) -> Step {
        let mut path = PathBuf::new();
        for part in self.path.components() {
            if self.cgroups.unified {
                delegate(&hierarchy.dir, &hierarchy.dir.join(&path), &hierarchy.controllers)?;
            }
            path.push(part);
            let dir = hierarchy.dir.join(&path);
            match fs::create_dir(&dir) {
                Ok(()) => hierarchy.inherit_cpus(&path),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).doing(|| format!("control group {}", dir.display())),
            }
        }
        Ok(())
    }

    fn set(&self, controller: &str, file: &str, value: &str) -> Step {
        let Some(dir) = self.dir(controller) else {
            return Err(Failure::failed(format!("this machine has no control group controller {controller:?}: {file} cannot be set")));
        };
        fs::write(dir.join(file), value).doing(|| format!("control group: {file} = {value}"))
    }

    /// Sets a value where the kernel has the file.
    fn set_if_there(&self, controller: &str, file: &str, value: &str) -> Step {
        match self.dir(controller).is_some_and(|d| d.join(file).exists()) {
            true => self.set(controller, file, value),
            false => Ok(()),
        }
    }

    pub fn limit(&self, r: &Resources) -> Step {
        let unified = self.cgroups.unified;
        if r.memory_limit_bytes > 0 {
            let bytes = r.memory_limit_bytes.to_string();
            if unified {
                self.set("memory", "memory.max", &bytes)?;
                self.set_if_there("memory", "memory.swap.max", "0")?;
                self.set_if_there("memory", "memory.oom.group", "1")?;
            } else {
                self.set("memory", "memory.limit_in_bytes", &bytes)?;
                self.set_if_there("memory", "memory.memsw.limit_in_bytes", &bytes)?;
            }
        }
        if r.cpu_limit_millis > 0 {
            // A period of 100 ms, in which a core is 100 000 µs; the kernel takes no quota under 1 ms.
            let quota = (r.cpu_limit_millis * 100).max(1000);
            if unified {
                self.set("cpu", "cpu.max", &format!("{quota} 100000"))?;
            } else {
                self.set("cpu", "cpu.cfs_period_us", "100000")?;
                self.set("cpu", "cpu.cfs_quota_us", &quota.to_string())?;
            }
        }
        let shares = (r.cpu_request_millis * 1024 / 1000).clamp(2, 262_144);
        if unified {
            // 2..=262144 shares on 1..=10000 weights, as everyone maps them.
            self.set_if_there("cpu", "cpu.weight", &(1 + (shares - 2) * 9999 / 262_142).to_string())?;
        } else {
            self.set_if_there("cpu", "cpu.shares", &shares.to_string())?;
        }
        if r.pids_limit > 0 {
            self.set("pids", "pids.max", &r.pids_limit.to_string())?;
        }
        Ok(())
    }

    /// Allows the standard devices only.
    pub fn guard_devices(&self) -> Step {
        if self.cgroups.unified {
            let dir = self.open().doing(|| format!("control group {}", self.path.display()))?;
            return devices::attach(dir.as_fd()).doing(|| "device filter of the control group".to_string());
        }
        self.set("devices", "devices.deny", "a")?;
        devices::rules_v1().try_for_each(|rule| self.set("devices", "devices.allow", &rule))
    }

    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(self.main_dir(), flags, Mode::empty())?)
    }

    /// A descriptor to fork into; version 1 has none, its children `enter`.
    pub fn fork_target(&self) -> Step<Option<OwnedFd>> {
        match self.cgroups.unified {
            true => self.open().map(Some).doing(|| format!("control group {}", self.path.display())),
            false => Ok(None),
        }
    }

    /// Moves the calling process in. It has one thread, and on version 1 moves that: a thread that moves itself spares the
    /// kernel the lock against changes of its process, which costs tens of milliseconds where it has to be taken.
    pub fn enter(&self) -> Step {
        let file = if self.cgroups.unified { "cgroup.procs" } else { "tasks" };
        self.dirs().try_for_each(|dir| fs::write(dir.join(file), "0").doing(|| format!("control group {}", dir.display())))
    }

    /// Directories to show a container as its `/sys/fs/cgroup`: by name, empty on version 2, where there is one.
    pub fn views(&self) -> Vec<(String, PathBuf, &[&'static str])> {
        let name = |h: &Hierarchy| h.dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let unified = self.cgroups.unified;
        let view = |h| (if unified { String::new() } else { name(h) }, h.dir.join(&self.path), h.controllers.as_slice());
        self.cgroups.hierarchies.iter().map(view).collect()
    }

    /// Everyone in it and below.
    pub fn procs(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        walk(&self.main_dir(), &mut |dir| {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
        });
        pids
    }

    fn others(&self) -> Vec<i32> {
        let me = std::process::id() as i32;
        self.procs().into_iter().filter(|p| *p != me).collect()
    }

    /// Kills everyone in it and below, except the caller; true when all are gone. Does not reap.
    pub fn kill(&self, patience: Duration) -> bool {
        let since = Instant::now();
        loop {
            if self.others().is_empty() {
                return true;
            }
            if since.elapsed() > patience {
                return false;
            }
            self.kill_now();
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// One stroke: where the kernel can, what forks meanwhile is hit as well.
    pub fn kill_now(&self) {
        let own = self.procs().contains(&(std::process::id() as i32));
        if own || self.others().is_empty() {
            return self.others().into_iter().for_each(|pid| drop(sys::kill(pid, libc::SIGKILL)));
        }
        let dir = self.main_dir();
        if self.cgroups.unified && fs::write(dir.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        // Frozen, nobody forks away between the listing and the signal; it is delivered when they thaw.
        let state = dir.join("freezer.state");
        let freezes = fs::write(&state, "FROZEN").is_ok();
        let frozen = || fs::read_to_string(&state).is_ok_and(|s| s.trim() == "FROZEN");
        for _ in 0..FREEZE_MS {
            if !freezes || frozen() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.others().into_iter().for_each(|pid| drop(sys::kill(pid, libc::SIGKILL)));
        if freezes {
            let _ = fs::write(&state, "THAWED");
        }
    }

    /// Removes it with what is below. The last process must be gone; the kernel may need a moment to see that.
    pub fn remove(&self, patience: Duration) -> Step {
        let since = Instant::now();
        loop {
            let mut busy = None;
            for dir in self.dirs().chain(self.cgroups.others.iter().map(|d| d.join(&self.path))) {
                walk(&dir, &mut |d| match fs::remove_dir(d) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => busy = Some((d.to_path_buf(), e)),
                    _ => {}
                });
            }
            match busy {
                None => return Ok(()),
                Some((dir, e)) if since.elapsed() > patience => {
                    return Err(e).doing(|| format!("removing control group {}", dir.display()));
                }
                Some(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// All directories of it that exist, deepest first.
    pub fn paths(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for dir in self.dirs().chain(self.cgroups.others.iter().map(|d| d.join(&self.path))) {
            walk(&dir, &mut |d| found.push(d.to_path_buf()));
        }
        found
    }
}

/// Visits a directory tree of control groups, deepest first.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        walk(&entry.path(), visit);
    }
    visit(dir);
}

/// Version 2: lets the groups below have our controllers. A group that holds processes itself cannot do so unless it is
/// the machine's root; inside another container its processes first move to a leaf.
fn delegate(root: &Path, dir: &Path, controllers: &[&str]) -> Step {
    let file = dir.join("cgroup.subtree_control");
    let on = fs::read_to_string(&file).doing(|| format!("{}", file.display()))?;
    for controller in controllers.iter().filter(|c| !on.split_whitespace().any(|o| o == **c)) {
        let enable = || fs::write(&file, format!("+{controller}"));
        match enable() {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && dir == root => {
                let leaf = dir.join("init");
                let _ = fs::create_dir(&leaf);
                for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                    let _ = fs::write(leaf.join("cgroup.procs"), pid);
                }
                enable().doing(|| format!("control group {}: +{controller}", dir.display()))?;
            }
            other => other.doing(|| format!("control group {}: +{controller}", dir.display()))?,
        }
    }
    Ok(())
}
