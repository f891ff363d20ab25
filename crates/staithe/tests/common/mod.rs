//! A machine of its own for each test: network and mount namespaces without an uplink, an instance name nobody else has,
//! and the built binary driven as a user drives it. Dropped, it takes everything away, also after a failure.

#![allow(dead_code)] // Each test file uses its part.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const STAITHE: &str = env!("CARGO_BIN_EXE_staithe");

static NEXT: AtomicU32 = AtomicU32::new(0);

pub struct Machine {
    holder: Child,
    dir: tempfile::TempDir,
    pub instance: String,
}

/// What a command printed, and how it ended.
pub struct Ran {
    pub out: String,
    pub err: String,
    pub code: i32,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
        Self { out: text(output.stdout), err: text(output.stderr), code: output.status.code().unwrap_or(-1) }
    }

    /// The output of a command that must succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "it failed:\n{}{}", self.out, self.err);
        self.out
    }

    /// The errors of a command that must fail.
    #[track_caller]
    pub fn fails(self) -> String {
        assert_ne!(self.code, 0, "it succeeded:\n{}{}", self.out, self.err);
        self.err
    }
}

/// Ends with the test, also with one that fails.
pub struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine {
    /// Namespaces without any uplink, only loopback; nothing is started yet.
    pub fn new() -> Self {
        let instance = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c", "ip link set lo up && echo up && exec sleep 3600"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (util-linux) and root");
        let mut machine = Self { holder, dir: tempfile::tempdir().unwrap(), instance };
        let mut line = String::new();
        use std::io::BufRead;
        std::io::BufReader::new(machine.holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n", "namespaces need root and iproute2");
        machine
    }

    /// A machine with `staithe up` ready on it.
    pub fn up() -> Self {
        let machine = Self::new();
        machine.start();
        machine
    }

    #[track_caller]
    pub fn start(&self) {
        self.staithe(&["up", "--detach"]).ok();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.data().join("pki/admin.kubeconfig")
    }

    /// A command inside, with the settings of this machine in its environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let pid = self.holder.id().to_string();
        let here = std::env::current_dir().unwrap();
        command.args(["-t", &pid, "--net", "--mount"]).arg(format!("--wd={}", here.display())).arg("--").arg(program);
        command
            .env("STAITHE_DATA_DIR", self.data())
            .env("STAITHE_RUN_DIR", self.path("run"))
            .env("STAITHE_INSTANCE", &self.instance)
            .env("STAITHE_NODE_NAME", "n1")
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.dir.path())
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, program: &str, args: &[&str]) -> Ran {
        Ran::of(self.command(program).args(args).output().unwrap())
    }

    /// A process that goes on until what is returned is dropped. It holds none of the test's own output open.
    pub fn background(&self, program: &str, args: &[&str]) -> Background {
        Background(self.command(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    pub fn run_with_input(&self, program: &str, args: &[&str], input: &str) -> Ran {
        use std::io::Write;
        let mut child =
            self.command(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Ran::of(child.wait_with_output().unwrap())
    }

    pub fn staithe(&self, args: &[&str]) -> Ran {
        self.run(STAITHE, args)
    }

    /// Words are split at spaces; what needs quoting goes through [`Machine::run`].
    pub fn kubectl(&self, words: &str) -> Ran {
        self.run("kubectl", &words.split_whitespace().collect::<Vec<_>>())
    }

    pub fn apply(&self, manifest: &str) -> Ran {
        self.run_with_input("kubectl", &["apply", "-f", "-"], manifest)
    }

    pub fn sh(&self, script: &str) -> Ran {
        self.run("sh", &["-c", script])
    }

    /// Body of a GET from inside the machine; `host` as the Host header.
    pub fn get(&self, host: &str, url: &str) -> Ran {
        self.run("curl", &["-sS", "--max-time", "5", "--fail-with-body", "-H", &format!("Host: {host}"), url])
    }

    /// Tries until `check` gives something, for `seconds` at most.
    #[track_caller]
    pub fn until<T>(&self, what: &str, seconds: u64, mut check: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(found) = check() {
                return found;
            }
            if Instant::now() > deadline {
                panic!("{what}: not within {seconds} s\n{}", self.state());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What a person would look at when something does not come.
    pub fn state(&self) -> String {
        let log = std::fs::read_to_string(self.data().join("staithe.log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        let pods = self.kubectl("get pods -A -o wide");
        let events = self.kubectl("get events -A --sort-by=.lastTimestamp");
        format!("{}{}\n{}\n--- log\n{}", pods.out, pods.err, events.out, tail.join("\n"))
    }

    /// Pushes the small busybox image that most tests run, and gives its name.
    pub fn busybox(&self) -> &'static str {
        const NAME: &str = "localhost:5000/test/busybox:1";
        let tar = busybox_tar(self.dir.path());
        let file = tar.display().to_string();
        self.staithe(&["image", "push", NAME, "-f", &file]).ok();
        NAME
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let down = self.staithe(&["down", "--purge"]);
        let failed = down.code != 0 && !std::thread::panicking();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if failed {
            panic!("staithe down failed:\n{}{}", down.out, down.err);
        }
    }
}

/// A root filesystem of Debian's static busybox with a name for each of its applets.
pub fn busybox_tar(dir: &Path) -> PathBuf {
    let path = dir.join("busybox.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&path).unwrap());
    let busybox =
        std::fs::read("/bin/busybox").or_else(|_| std::fs::read("/usr/bin/busybox")).expect("Debian: apt-get install busybox-static");
    let header = |kind: tar::EntryType, size: usize, mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header
    };
    for name in ["bin/", "etc/", "tmp/", "root/", "home/"] {
        let mode = if name == "tmp/" { 0o1777 } else { 0o755 };
        builder.append_data(&mut header(tar::EntryType::Directory, 0, mode), name, std::io::empty()).unwrap();
    }
    builder.append_data(&mut header(tar::EntryType::Regular, busybox.len(), 0o755), "bin/busybox", &busybox[..]).unwrap();
    let list = Command::new("busybox").arg("--list").output().expect("Debian: apt-get install busybox-static");
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|a| *a != "busybox") {
        builder.append_link(&mut header(tar::EntryType::Symlink, 0, 0o777), format!("bin/{applet}"), "busybox").unwrap();
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nweb:x:1000:1000:web:/home:/bin/sh\n";
    let group = b"root:x:0:\nweb:x:1000:\nextra:x:2000:web\n";
    for (name, content) in [("etc/passwd", &passwd[..]), ("etc/group", &group[..])] {
        builder.append_data(&mut header(tar::EntryType::Regular, content.len(), 0o644), name, content).unwrap();
    }
    builder.finish().unwrap();
    path
}
