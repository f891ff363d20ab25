//! What a container must not reach, and what it must find: judged from inside, by real processes on the real kernel.

mod machine;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use driver::{Container, Driver, Mount, Root};
use machine::Machine;

fn mount(source: &Path, target: &str) -> Mount {
    Mount { source: source.into(), target: target.into(), ..Mount::default() }
}

/// Adds a layer on top.
fn with_layer(mut container: Container, layer: &Path) -> Container {
    if let Root::Layers(layers) = &mut container.root {
        layers.push(layer.into());
    }
    container
}

#[tokio::test]
async fn links_of_an_image_lead_no_mount_out_of_it() {
    let m = Machine::new();
    let (layer, outside, volume) = (m.dir.path().join("layer"), m.dir.path().join("outside"), m.dir.path().join("volume"));
    for d in [&layer, &outside, &volume] {
        fs::create_dir(d).unwrap();
    }
    fs::write(volume.join("file"), "from the volume\n").unwrap();
    symlink(&outside, layer.join("absolute")).unwrap();
    symlink("../../../../../../../../etc", layer.join("relative")).unwrap();
    symlink("/proc/self/attr", layer.join("kernel")).unwrap();
    let pod = m.up().await;
    let mut c = with_layer(m.shell("main", "cat /absolute/x/file /relative/y/file"), &layer);
    c.mounts = vec![mount(&volume, "/absolute/x"), mount(&volume, "/relative/y")];
    assert_eq!(pod.run(&m, &c).await, (0, "from the volume\nfrom the volume\n".into()));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!Path::new("/etc/y").exists());
    for target in ["/kernel/exec", "/proc/sys/kernel", "/proc"] {
        let c = Container { mounts: vec![mount(&volume, target)], name: "bad".into(), attempt: 7, ..c.clone() };
        let error = pod.start(&c).await.unwrap_err().to_string();
        assert!(error.contains("/proc") || error.contains("mount target"), "{target}: {error}");
        pod.driver.remove(&pod.pod.uid, "bad", 7).await.unwrap();
    }
    pod.down(&m).await;
}

#[tokio::test]
async fn the_kernels_files_are_guarded() {
    let m = Machine::new();
    let pod = m.up().await;
    let script = r#"
        (echo 1 > /proc/sys/kernel/printk) 2>/dev/null && echo wrote a sysctl
        (echo h > /proc/sysrq-trigger) 2>/dev/null && echo wrote sysrq
        (mkdir /sys/fs/cgroup/x || mkdir /sys/fs/cgroup/memory/x) 2>/dev/null && echo made a group
        (echo 0 > /sys/kernel/profiling) 2>/dev/null && echo wrote sysfs
        [ -z "$(head -c 1 /proc/kcore 2>/dev/null)" ] || echo read kcore
        [ -z "$(head -c 1 /proc/keys 2>/dev/null)" ] || echo read keys
        [ -z "$(ls /sys/firmware 2>/dev/null)" ] || echo read firmware
        mount -t tmpfs none /tmp 2>/dev/null && echo mounted
        mount -o remount,rw /proc/sys 2>/dev/null && echo remounted
        true"#;
    assert_eq!(pod.run(&m, &m.shell("main", script)).await, (0, String::new()));
    let mut open = m.shell("open", "touch /proc/sys/kernel/printk && head -c 1 /proc/interrupts | wc -c");
    open.security.unmasked_proc = true;
    assert_eq!(pod.run(&m, &open).await, (0, "1\n".into()));
    pod.down(&m).await;
}

/// A block device of this machine that can be read: a loop device over a file.
struct Disk(String);

impl Disk {
    fn new(m: &Machine) -> Self {
        let file = m.dir.path().join("disk");
        fs::write(&file, vec![b'x'; 1 << 20]).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self(String::from_utf8(made.stdout).unwrap().trim().to_string())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

async fn disks_stay_closed_on(m: &Machine) {
    let disk = Disk::new(m);
    assert_eq!(fs::read(&disk.0).unwrap().len(), 1 << 20);
    let rdev = rustix::fs::stat(&disk.0).unwrap().st_rdev;
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let volume = m.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let pod = m.up().await;
    let script = format!(
        "for d in /dev /volume /tmp; do mknod $d/disk b {major} {minor} || echo no node; head -c 1 $d/disk >/dev/null 2>&1 && echo $d can be read; done;
         echo > /dev/null && head -c 2 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c"
    );
    let mut c = m.shell("main", &script);
    c.mounts = vec![mount(&volume, "/volume")];
    assert_eq!(pod.run(m, &c).await, (0, "2\n3\n".into()));
    let mut c = m.shell("mighty", &format!("head -c 1 {} | wc -c", disk.0));
    c.security.privileged = true;
    assert_eq!(pod.run(m, &c).await, (0, "1\n".into()));
    pod.driver.remove_pod(&pod.pod.uid).await.unwrap();
}

#[tokio::test]
async fn a_disk_of_the_machine_stays_closed() {
    disks_stay_closed_on(&Machine::new()).await;
}

/// The same by a BPF program on the unified hierarchy.
#[tokio::test]
async fn a_disk_of_the_machine_stays_closed_on_version_2() {
    if Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
        disks_stay_closed_on(&Machine::at("/sys/fs/cgroup/unified")).await;
    }
}

/// Perl of this machine inside a container: it can make any system call.
fn perl(m: &Machine, name: &str, script: &str) -> Container {
    let mut c = m.container(name, &["perl", "-e", script]);
    c.env = vec![("PATH".into(), "/bin:/usr/bin".into())];
    c.mounts = ["/usr", "/lib", "/lib64"].iter().filter(|d| Path::new(d).exists()).map(|d| mount(Path::new(d), d)).collect();
    c.mounts.iter_mut().for_each(|m| m.read_only = true);
    c
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn system_calls_are_filtered() {
    let m = Machine::new();
    let pod = m.up().await;
    // unshare(CLONE_NEWUSER), keyctl, bpf, clone(CLONE_NEWNET), io_uring_setup, mount, clone3, one that no kernel has.
    let script = "for my $c ([272, 0x10000000], [250, 0], [321, 0], [56, 0x40000000], [425, 1], [165, 0], [435, 0], [1000, 0]) {
        $! = 0; syscall($c->[0], $c->[1], 0, 0, 0, 0); print $!+0, ' '; }";
    assert_eq!(pod.run(&m, &perl(&m, "main", &format!("$|=1; {script}"))).await.1.trim(), "1 1 1 1 1 1 38 38");
    // A profile of one's own.
    let mut c = m.shell("own", "mkdir /tmp/x 2>/dev/null || echo refused; rm -f /none && echo fine");
    c.security.seccomp_profile =
        Some(r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#.into());
    for (attempt, no_new_privileges) in [false, true].into_iter().enumerate() {
        c.attempt = attempt as u32;
        c.security.no_new_privileges = no_new_privileges;
        assert_eq!(pod.run(&m, &c).await, (0, "refused\nfine\n".into()));
    }
    c.security.seccomp_profile = Some(r#"{"defaultAction": "SCMP_ACT_SHRUG"}"#.into());
    c.attempt = 9;
    let error = pod.start(&c).await.unwrap_err();
    assert!(matches!(&error, driver::Error::Invalid(text) if text.contains("SCMP_ACT_SHRUG")), "{error}");
    pod.down(&m).await;
}

const STATUS: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status";

fn field(status: &str, key: &str) -> String {
    let line = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{key} in {status}")).trim().to_string()
}

#[tokio::test]
async fn an_execd_process_is_no_mightier_than_the_first() {
    let m = Machine::new();
    let pod = m.up().await;
    let script = format!("{STATUS}; trap 'exit 0' TERM; sleep 1000 & wait");
    let mut user = m.shell("user", &script);
    user.security.uid = 1000;
    user.security.gid = 1000;
    user.security.additional_gids = vec![2000, 3000];
    let mut tight = m.shell("tight", &script);
    tight.security.no_new_privileges = true;
    tight.security.capabilities.clear();
    let mut mighty = m.shell("mighty", &script);
    mighty.security.privileged = true;
    for c in [&m.shell("plain", &script), &user, &tight, &mighty] {
        pod.start(c).await.unwrap();
        let (code, execd) = pod.exec(&c.name, STATUS).await;
        assert_eq!(code, 0, "{execd}");
        let mut first = String::new();
        for _ in 0..100 {
            first = m.log_text(&pod.pod, &c.name, 0);
            if first.contains("Seccomp") {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(first, execd, "{}", c.name);
        let get = |key| field(&execd, key);
        assert_eq!((get("CapInh"), get("CapAmb")), ("0".repeat(16), "0".repeat(16)));
        match c.name.as_str() {
            "plain" => {
                assert_eq!((get("CapEff"), get("CapBnd")), ("00000000a80425fb".into(), "00000000a80425fb".into()));
                assert_eq!((get("Seccomp"), get("NoNewPrivs")), ("2".into(), "0".into()));
            }
            "user" => {
                assert_eq!((get("CapEff"), get("CapPrm"), get("CapBnd")), ("0".repeat(16), "0".repeat(16), "00000000a80425fb".into()));
                assert_eq!(
                    (get("Uid"), get("Gid"), get("Groups")),
                    ("1000\t1000\t1000\t1000".into(), "1000\t1000\t1000\t1000".into(), "2000 3000".into())
                );
                assert_eq!(get("Seccomp"), "2");
            }
            "tight" => {
                assert_eq!((get("CapEff"), get("CapBnd")), ("0".repeat(16), "0".repeat(16)));
                assert_eq!((get("Seccomp"), get("NoNewPrivs")), ("2".into(), "1".into()));
            }
            _ => {
                let own = fs::read_to_string("/proc/self/status").unwrap();
                assert_eq!((get("CapEff"), get("Seccomp")), (field(&own, "CapEff"), "0".into()));
            }
        }
    }
    pod.down(&m).await;
}

#[tokio::test]
async fn nobody_outside_is_seen() {
    let m = Machine::new();
    let pod = m.up().await;
    let script = r#"
        [ $$ = 1 ] || echo not the first
        [ "$(ls -d /proc/[0-9]* | wc -l)" -le 5 ] || echo sees others
        grep -v ':/$' /proc/self/cgroup
        [ "$(wc -l < /proc/self/mountinfo)" -lt 60 ] || echo sees mounts
        grep -E 'staithe|/tmp/' /proc/self/mountinfo | grep -v ' / / '
        ls /proc/self/fd/ | grep -vE '^[0123]$'
        kill -9 2000000 2>/dev/null && echo killed
        true"#;
    assert_eq!(pod.run(&m, &m.shell("main", script)).await, (0, String::new()));
    // And nobody outside sees a mount of ours.
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&pod.pod.uid));
    pod.down(&m).await;
}

#[tokio::test]
async fn a_root_is_as_writable_as_it_is_asked_to_be() {
    let m = Machine::new();
    let (rw, ro, file) = (m.dir.path().join("rw"), m.dir.path().join("ro"), m.dir.path().join("file"));
    fs::create_dir(&rw).unwrap();
    fs::create_dir(&ro).unwrap();
    fs::write(&file, "a file\n").unwrap();
    let pod = m.up().await;
    let script = "cat /etc/layer /etc/one; for d in / /rw /ro /etc /dev/shm; do touch $d/x 2>/dev/null && echo $d; done; umask";
    let mut c = m.shell("main", script);
    c.mounts = vec![mount(&rw, "/rw"), Mount { read_only: true, ..mount(&ro, "/ro") }, mount(&file, "/etc/one")];
    assert_eq!(pod.run(&m, &c).await, (0, "top\na file\n/\n/rw\n/etc\n/dev/shm\n0022\n".into()));
    c.attempt = 1;
    c.security.read_only_root = true;
    assert_eq!(pod.run(&m, &c).await, (0, "top\na file\n/rw\n/dev/shm\n0022\n".into()));
    // A fresh attempt has a fresh writable layer, and the layers below are never written.
    c.attempt = 2;
    c.args = ["sh", "-c", "ls /x 2>/dev/null || echo fresh"].map(str::to_string).to_vec();
    assert_eq!(pod.run(&m, &c).await.1.lines().last(), Some("fresh"));
    pod.down(&m).await;
}

#[tokio::test]
async fn any_number_of_layers_is_stacked() {
    let m = Machine::new();
    let pod = m.up().await;
    let mut c = m.shell("main", "ls /many | wc -l; cat /top");
    for i in 0..150 {
        let layer = m.dir.path().join(format!("a layer, with: odd \\ names {i}"));
        fs::create_dir_all(layer.join("many")).unwrap();
        fs::write(layer.join(format!("many/{i}")), "").unwrap();
        fs::write(layer.join("top"), format!("{i}\n")).unwrap();
        c = with_layer(c, &layer);
    }
    // The same directory twice is one layer.
    let twice = m.dir.path().join("a layer, with: odd \\ names 3");
    c = with_layer(c, &twice);
    assert_eq!(pod.run(&m, &c).await, (0, "150\n3\n".into()));
    pod.down(&m).await;
}

#[tokio::test]
async fn mounts_propagate_as_asked() {
    let m = Machine::new();
    let host = m.dir.path().join("host");
    for d in ["slave", "shared", "private"] {
        fs::create_dir_all(host.join(d).join("inner")).unwrap();
    }
    let sh = |script: String| assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success(), "{script}");
    let h = host.display().to_string();
    sh(format!("mount --bind {h} {h} && mount --make-rshared {h}"));
    struct Unmount(String);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = Command::new("umount").args(["-R", "-l", &self.0]).status();
        }
    }
    let _unmount = Unmount(h.clone());
    let pod = m.up().await;
    let mut c = m.shell("main", "sleep 1000");
    c.security.privileged = true;
    c.mounts = ["slave", "shared", "private"]
        .map(|d| Mount { propagation: Some(format!("r{d}")), ..mount(&host.join(d), &format!("/{d}")) })
        .to_vec();
    pod.start(&c).await.unwrap();
    for d in ["slave", "private"] {
        sh(format!("mount -t tmpfs none {h}/{d}/inner && touch {h}/{d}/inner/seen"));
    }
    assert_eq!(pod.exec("main", "ls /slave/inner /private/inner").await.1, "/private/inner:\n\n/slave/inner:\nseen\n");
    assert_eq!(pod.exec("main", "mount -t tmpfs none /shared/inner && touch /shared/inner/back").await.0, 0);
    assert!(host.join("shared/inner/back").exists());
    pod.down(&m).await;
}

#[tokio::test]
async fn a_user_finds_what_programs_expect() {
    let m = Machine::new();
    let mut spec = m.pod();
    spec.sysctls = [("net.ipv4.ip_unprivileged_port_start".to_string(), "0".to_string())].into();
    let pod = m.up_with(spec).await;
    let script = r#"
        pwd; hostname; echo $HOME $HOSTNAME $GREETING $0 $1
        echo named > /dev/stdout; exec 2>&1; echo error > /dev/stderr
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start
        ls -l /dev/ptmx /dev/fd | awk '{print $9, $10, $11}'
        df -m /dev/shm | tail -1 | awk '{print $2}'
        cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max
        [ -e /dev/console ] && echo console"#;
    let mut c = m.container("main", &["sh", "-c", script, "zero", "one"]);
    c.env.push(("GREETING".into(), "ahoy matey".into()));
    c.cwd = "/srv/new".into();
    c.security.uid = 1000;
    c.security.gid = 1000;
    c.resources.memory_limit_bytes = 64 << 20;
    let expected = "/srv/new\nharbour\n/home/tess harbour ahoy matey zero one\nnamed\nerror\n0\n/dev/fd -> /proc/self/fd\n/dev/ptmx -> pts/ptmx\n64\n67108864\n";
    assert_eq!(pod.run(&m, &c).await, (1, expected.into()));
    pod.down(&m).await;
}
