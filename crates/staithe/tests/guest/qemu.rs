//! A virtual machine for one test: the guest that `cargo xtask guest` builds, on a copy of its disk, with a second disk of
//! what the test brings, and an agent in it that executes lines. It has no network card. Dropped, it is killed; after a
//! failure it first tells what it has seen.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// An emulated processor on a busy machine takes half a minute to come up.
const BOOT_WITHIN: Duration = Duration::from_secs(240);
/// A kernel that the processor helps to run is up in seconds, or never.
const BOOT_WITHIN_KVM: Duration = Duration::from_secs(40);
const COMMAND_WITHIN: Duration = Duration::from_secs(120);
/// Who ignores the request to end has 30 s; with systemd's own patience it would be 90.
const OFF_WITHIN: Duration = Duration::from_secs(75);

const COMMAND_LINE: &str = "root=/dev/vda rw console=ttyS0 quiet mitigations=off nokaslr random.trust_cpu=on 8250.nr_uarts=1 panic=-1 systemd.unified_cgroup_hierarchy=1";

/// The character before the word that ends an answer.
const MARK: char = '\u{1}';

/// Files that a test brings; in the guest they are below `/brought`.
pub struct Brought {
    dir: tempfile::TempDir,
}

impl Brought {
    pub fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::create_dir(dir.path().join("brought")).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("brought").join(name)
    }

    pub fn text(self, name: &str, text: &str) -> Self {
        fs::write(self.path(name), text).unwrap();
        self
    }

    /// A program without its debug information, which is ten times its size.
    pub fn program(self, name: &str, built: &Path) -> Self {
        succeeds(Command::new("strip").arg("-o").arg(self.path(name)).arg(built), "binutils");
        self
    }

    fn disk(&self) -> PathBuf {
        let (files, disk) = (self.dir.path().join("brought"), self.dir.path().join("brought.img"));
        let size: u64 = fs::read_dir(&files).unwrap().flatten().map(|e| e.metadata().unwrap().len()).sum();
        let blocks = format!("{}k", size / 1024 * 11 / 10 + 16 * 1024);
        succeeds(
            Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"]).args([&files, &disk]).arg(blocks),
            "e2fsprogs",
        );
        disk
    }
}

#[track_caller]
fn succeeds(command: &mut Command, package: &str) {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command.output().unwrap_or_else(|e| panic!("{program}: {e}; `cargo xtask guest` installs it (Debian: {package})"));
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Where `cargo xtask guest` puts the guest: beside the profile's directory.
fn built() -> PathBuf {
    let guest = Path::new(env!("CARGO_BIN_EXE_staithe")).ancestors().nth(2).unwrap().join("tools/guest");
    assert!(guest.join("recipe").exists(), "there is no guest in {}: `cargo xtask guest` builds it", guest.display());
    guest
}

pub struct Guest {
    brought: Brought,
    brought_disk: PathBuf,
    accelerator: &'static str,
    started: Instant,
    asked: u32,
    running: Running,
}

struct Running {
    qemu: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Guest {
    pub fn boot(brought: Brought) -> Self {
        let started = Instant::now();
        let (from, disk) = (built().join("root.img"), brought.dir.path().join("root.img"));
        succeeds(Command::new("cp").arg("--sparse=always").args([&from, &disk]), "coreutils");
        let brought_disk = brought.disk();
        // Where the device can be opened the processor may still not run a guest: only a boot tells.
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
        if (has("vmx") || has("svm")) && fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() {
            let running = start(brought.dir.path(), &brought_disk, "kvm");
            if until_ready(&running, BOOT_WITHIN_KVM).is_ok() {
                return Self { brought, brought_disk, accelerator: "kvm", started, asked: 0, running }.ready();
            }
        }
        let running = start(brought.dir.path(), &brought_disk, "tcg");
        Self { brought, brought_disk, accelerator: "tcg", started, asked: 0, running }.wait_ready()
    }

    fn wait_ready(self) -> Self {
        if let Err(e) = until_ready(&self.running, BOOT_WITHIN) {
            panic!("the guest did not boot: {e}");
        }
        self.ready()
    }

    fn ready(mut self) -> Self {
        self.say("is up");
        self.ok("mkdir -p /brought && mount -o ro /dev/vdb /brought");
        self
    }

    /// A line of the test's progress, with the seconds since the first boot.
    pub fn say(&self, what: &str) {
        println!("{:6.1} s  {what} ({})", self.started.elapsed().as_secs_f32(), self.accelerator);
    }

    /// What a line of shell prints, errors included; it must succeed.
    #[track_caller]
    pub fn ok(&mut self, line: &str) -> String {
        self.ok_within(line, COMMAND_WITHIN)
    }

    #[track_caller]
    pub fn ok_within(&mut self, line: &str, limit: Duration) -> String {
        match self.answer(line, limit) {
            Ok((0, printed)) => printed,
            Ok((code, printed)) => panic!("in the guest, exit code {code}: {line}\n{printed}"),
            Err((e, printed)) => panic!("in the guest: {line}: {e}\n{printed}"),
        }
    }

    /// Repeats a line until it succeeds.
    #[track_caller]
    pub fn until(&mut self, line: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            match self.answer(line, COMMAND_WITHIN) {
                Ok((0, printed)) => return printed,
                Ok((_, printed)) if Instant::now() > deadline => panic!("in the guest, not within {limit:?}: {line}\n{printed}"),
                Ok(_) => std::thread::sleep(Duration::from_millis(300)),
                Err((e, printed)) => panic!("in the guest: {line}: {e}\n{printed}"),
            }
        }
    }

    fn answer(&mut self, line: &str, limit: Duration) -> Result<(i32, String), (String, String)> {
        assert!(!line.contains('\n'), "one line: {line}");
        self.asked += 1;
        let id = self.asked.to_string();
        let sent = writeln!(self.running.input, "{id} {line}").and_then(|()| self.running.input.flush());
        sent.map_err(|e| (format!("the guest is gone: {e}"), String::new()))?;
        collect(&self.running.lines, &id, limit)
    }

    /// An ordered reboot; the power is off for a moment in between.
    pub fn reboot(mut self) -> Self {
        let _ = writeln!(self.running.input, "reboot systemctl reboot");
        let deadline = Instant::now() + OFF_WITHIN;
        while self.running.qemu.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the guest is not down within {OFF_WITHIN:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.say("is down");
        self.running = start(self.brought.dir.path(), &self.brought_disk, self.accelerator);
        self.wait_ready()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let asked = "journalctl --no-pager -o cat -u staithe -n 60; ps -ef | tail -n 40";
            let seen = self.answer(asked, Duration::from_secs(20)).unwrap_or_else(|(e, printed)| (1, printed + &e)).1;
            let console = fs::read(self.brought.dir.path().join("console")).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            let tail: Vec<&str> = console.lines().rev().take(30).collect();
            println!("the guest's journal and processes:\n{seen}\nthe end of its console:");
            tail.iter().rev().for_each(|l| println!("{l}"));
        }
    }
}

fn start(dir: &Path, brought: &Path, accelerator: &str) -> Running {
    let built = built();
    let drive = |file: &Path, more: &str| format!("file={},format=raw,if=virtio,{more}", file.display());
    // Of what can be emulated, a model without AVX: with the newest features guests fail at random places.
    let cpu = if accelerator == "kvm" { "host" } else { "Westmere" };
    let mut command = Command::new("nice");
    command.args(["qemu-system-x86_64", "-machine", "q35", "-accel", accelerator, "-cpu", cpu, "-smp", "2", "-m", "1024"]);
    command.args(["-nodefaults", "-display", "none", "-nic", "none", "-no-reboot"]);
    command.arg("-kernel").arg(built.join("vmlinuz")).arg("-initrd").arg(built.join("initrd.img")).args(["-append", COMMAND_LINE]);
    command.args(["-drive", &drive(&dir.join("root.img"), "cache=unsafe"), "-drive", &drive(brought, "readonly=on")]);
    command.arg("-serial").arg(format!("file:{}", dir.join("console").display()));
    command.args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=agent,signal=off", "-device", "virtserialport,chardev=agent"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    if !std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|d| d.join("qemu-system-x86_64").is_file()) {
        panic!("there is no qemu-system-x86_64: `cargo xtask guest` installs it (Debian: qemu-system-x86)");
    }
    // SAFETY: one system call, which may be made between fork and exec. Killed itself, the test leaves no machine behind.
    unsafe {
        use std::os::unix::process::CommandExt;
        command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?));
    }
    let mut qemu = command.spawn().expect("nice");
    let (input, output) = (qemu.stdin.take().unwrap(), qemu.stdout.take().unwrap());
    let (send, lines) = channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    Running { qemu, input, lines }
}

fn until_ready(running: &Running, limit: Duration) -> Result<(), String> {
    collect(&running.lines, "ready", limit).map(|_| ()).map_err(|(e, _)| e)
}

/// Lines up to the one that ends the answer named `id`: its exit code, and what came before.
fn collect(lines: &Receiver<String>, id: &str, limit: Duration) -> Result<(i32, String), (String, String)> {
    let deadline = Instant::now() + limit;
    let mut printed = String::new();
    loop {
        let line = match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => return Err((format!("no answer within {limit:?}"), printed)),
            Err(RecvTimeoutError::Disconnected) => return Err(("the guest is gone".into(), printed)),
        };
        if let Some((before, end)) = line.split_once(MARK)
            && let Some((word, code)) = end.trim_end().split_once(' ')
            && word == id
        {
            printed.push_str(before);
            return Ok((code.parse().unwrap_or(-1), printed));
        }
        printed.push_str(&line);
    }
}
