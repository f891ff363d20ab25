//! What an ordinary server of today is: a Debian kernel, version 2 of control groups, systemd. The container driver's own
//! tests run there, and an environment that is a systemd service comes through its restart and the machine's reboot.
//!
//! The machines are emulated where the processor does not help, so each test takes minutes; one at a time.

mod qemu;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use qemu::{Brought, Guest};
use serde_json::Value;

fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The container driver's test programs, and the shim that they start: (name, where it was built).
fn container_tests(names: &[&str]) -> Vec<(String, PathBuf)> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--no-run", "--offline", "--message-format=json", "-p", "staithe", "-p", "container"]);
    for name in names {
        cargo.args(["--test", name]);
    }
    let out = cargo.output().expect("cargo");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout);
    let artifacts = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
    let wanted = artifacts.filter_map(|a| {
        let name = a["target"]["name"].as_str()?;
        let kind = a["target"]["kind"][0].as_str()?;
        let is = (kind == "test" && names.contains(&name)) || (kind == "bin" && name == "shim");
        is.then(|| Some((name.to_string(), PathBuf::from(a["executable"].as_str()?))))?
    });
    let found: Vec<_> = wanted.collect();
    assert_eq!(found.len(), names.len() + 1, "{found:?}");
    found
}

#[test]
fn guest_runs_the_container_tests() {
    let _turn = one_at_a_time();
    let tests = ["conformance", "isolation", "life"];
    let programs = container_tests(&tests);
    let brought = programs.iter().fold(Brought::new(), |b, (name, built)| b.program(name, built));
    let mut guest = Guest::boot(brought);
    assert_eq!(guest.ok("stat -fc %T /sys/fs/cgroup"), "cgroup2fs\n");
    // The tests know the shim by where it was built.
    let (_, shim) = programs.iter().find(|(name, _)| name == "shim").unwrap();
    let (dir, shim) = (shim.parent().unwrap().display(), shim.display());
    guest.ok(&format!("mkdir -p {dir} && cp /brought/shim {shim}"));
    for name in tests {
        let printed = guest.ok_within(&format!("cd /tmp && /brought/{name} --test-threads 2"), Duration::from_secs(300));
        let result = printed.lines().rev().find(|l| l.starts_with("test result: ")).unwrap_or_else(|| panic!("{printed}"));
        guest.say(&format!("{name}: {result}"));
        assert!(!result.contains(" 0 passed"), "{printed}");
    }
}

/// Pods that say their names. Their servers, first processes of their namespaces, hear no SIGTERM.
const MANIFEST: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: { name: who }
spec:
  replicas: 2
  selector: { matchLabels: { app: who } }
  template:
    metadata: { labels: { app: who } }
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: who
        image: localhost:5000/who:1
        command: [/bin/sh, -c, 'hostname > /tmp/index.html && exec httpd -f -p 8080 -h /tmp']
        ports: [{ containerPort: 8080 }]
        readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 }
        resources: { requests: { cpu: 10m, memory: 16Mi }, limits: { memory: 64Mi } }
---
apiVersion: v1
kind: Service
metadata: { name: who }
spec:
  clusterIP: 10.43.7.7
  selector: { app: who }
  ports: [{ port: 80, targetPort: 8080 }]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: { name: who }
spec:
  rules:
  - host: who.guest
    http:
      paths: [{ path: /, pathType: Prefix, backend: { service: { name: who, port: { number: 80 } } } }]
";

/// Asks by the Service and by the router, again and again, and notes each answer.
const ASK: &str = r#"#!/bin/sh
while [ ! -e /run/asked-enough ]; do
    for url in http://10.43.7.7/ http://127.0.0.1/; do
        curl -sS --max-time 10 -H 'Host: who.guest' -w "%{http_code} $url\n" $url 2>&1 | tr '\n' ' '
        echo
    done
done > /run/answers
"#;

fn image(brought: &Brought) -> &'static str {
    let root = tempfile::tempdir().unwrap();
    let busybox = Path::new("/bin/busybox");
    assert!(busybox.exists(), "there is no {}: `cargo xtask guest` installs it (Debian: busybox-static)", busybox.display());
    for dir in ["bin", "tmp"] {
        std::fs::create_dir(root.path().join(dir)).unwrap();
    }
    std::fs::copy(busybox, root.path().join("bin/busybox")).unwrap();
    for applet in ["sh", "hostname", "httpd"] {
        std::os::unix::fs::symlink("busybox", root.path().join("bin").join(applet)).unwrap();
    }
    let status = Command::new("tar").arg("-cf").arg(brought.path("who.tar")).arg("-C").arg(root.path()).arg(".").status();
    assert!(status.unwrap().success());
    "/brought/who.tar"
}

/// The pods of the deployment by uid: how often each was started again.
fn pods(guest: &mut Guest) -> Vec<(String, i64)> {
    let list: Value = serde_json::from_str(&guest.ok("staithe get pods -l app=who -o json")).unwrap();
    let pod = |p: &Value| {
        let status = &p["status"]["containerStatuses"][0];
        assert_eq!((&status["ready"], &p["status"]["phase"]), (&true.into(), &"Running".into()), "{p:#}");
        (p["metadata"]["uid"].as_str().unwrap().to_string(), status["restartCount"].as_i64().unwrap())
    };
    let mut pods: Vec<_> = list["items"].as_array().unwrap().iter().map(pod).collect();
    pods.sort();
    pods
}

/// Process ids of the pods' servers with their start times in ticks since boot.
const SERVERS: &str = "for p in $(pgrep -x httpd); do echo $p $(cut -d' ' -f22 /proc/$p/stat); done | sort";

/// Answers by the Service and by the router; the first that fails ends it.
const ANSWERS: &str = "for url in http://10.43.7.7/ http://127.0.0.1/; do for i in 1 2 3 4 5 6 7 8; do \
    curl -sSf --max-time 5 -H 'Host: who.guest' $url || exit 1; done; done";

/// Both pods have answered.
fn tell_answers(guest: &Guest, answers: &str) {
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    answers.lines().for_each(|l| *count.entry(l).or_default() += 1);
    assert_eq!((count.len(), answers.lines().count()), (2, 16), "{answers}");
    guest.say(&format!("the pods answer: {count:?}"));
}

#[test]
fn guest_services_come_through_a_restart_and_a_reboot() {
    let _turn = one_at_a_time();
    let brought = Brought::new().program("staithe", Path::new(env!("CARGO_BIN_EXE_staithe"))).text("who.yaml", MANIFEST).text("ask", ASK);
    let tar = image(&brought);
    let mut guest = Guest::boot(brought);
    assert_eq!(guest.ok("stat -fc %T /sys/fs/cgroup"), "cgroup2fs\n");

    guest.ok("cp /brought/staithe /usr/local/bin/ && staithe install");
    guest.say("staithe is a service");
    guest.ok(&format!("staithe image push localhost:5000/who:1 -f {tar}"));
    guest.ok("staithe apply -f /brought/who.yaml --wait");
    let answers = guest.until(ANSWERS, Duration::from_secs(60));
    tell_answers(&guest, &answers);
    let (before, servers) = (pods(&mut guest), guest.ok(SERVERS));
    assert_eq!((before.len(), servers.lines().count()), (2, 2), "{before:?}\n{servers}");

    // What belongs to the services is not in the control plane's group.
    assert_eq!(guest.ok("wc -l < /sys/fs/cgroup/system.slice/staithe.service/cgroup.procs"), "1\n");
    guest.ok("systemd-run --quiet --unit=ask sh /brought/ask");
    guest.ok("systemctl restart staithe");
    guest.say("staithe was restarted");
    guest.until("staithe rollout status deployment/who --timeout 5", Duration::from_secs(60));
    // Changes are heard again, too.
    guest.ok("staithe scale deployment/who --replicas 3 && staithe rollout status deployment/who --timeout 60");
    guest.ok("staithe scale deployment/who --replicas 2");
    guest.until("test $(pgrep -cx httpd) = 2", Duration::from_secs(60));
    guest.ok("touch /run/asked-enough && while systemctl is-active --quiet ask; do sleep 0.2; done");
    let answers = guest.ok("cat /run/answers");
    let failed: Vec<&str> = answers.lines().filter(|l| !l.contains(" 200 http")).collect();
    assert!(failed.is_empty() && answers.lines().count() > 20, "{} answers, of which failed: {failed:#?}", answers.lines().count());
    guest.say(&format!("all {} requests meanwhile were answered", answers.lines().count()));
    assert_eq!((pods(&mut guest), guest.ok(SERVERS)), (before.clone(), servers), "the pods live on as they were");

    let mut guest = guest.reboot();
    guest.until("systemctl is-active --quiet staithe", Duration::from_secs(120));
    guest.say("staithe is up again");
    guest.ok("staithe rollout status deployment/who --timeout 60");
    let answers = guest.until(ANSWERS, Duration::from_secs(60));
    tell_answers(&guest, &answers);
    let after = pods(&mut guest);
    let uids = |pods: &[(String, i64)]| pods.iter().map(|(uid, _)| uid.clone()).collect::<Vec<_>>();
    assert_eq!(uids(&after), uids(&before), "the same pods");
    assert!(after.iter().all(|(_, restarts)| *restarts == 1), "each started again once: {after:?}");
    assert_eq!(guest.ok("systemctl --failed --no-legend"), "");

    guest.ok("systemctl stop staithe && staithe down");
    assert_eq!(guest.ok("ls -d /sys/fs/cgroup/staithe /run/staithe 2>/dev/null; nft list tables; pgrep -l 'staithe|httpd'; true"), "");
    guest.say("nothing is left");
}
