//! Pods through their lives: sharing, failing to start, losing the shim, being swept away.

mod machine;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::Bytes;
use driver::conformance::Fixture;
use driver::{Container, Driver, Error, Event, Frame, Mount, Pod, Root, State};
use machine::Machine;
use tokio::time::sleep;

async fn settled(what: &str, test: impl AsyncFn() -> bool) {
    for _ in 0..200 {
        if test().await {
            return;
        }
        sleep(Duration::from_millis(25)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn containers_of_a_pod_share_what_they_are_to_share() {
    let m = Machine::new();
    let pod = m.up_with(Pod { share_process_namespace: true, ..m.pod() }).await;
    pod.start(&m.shell("one", "echo from one > /dev/shm/x; sleep 1000; true")).await.unwrap();
    pod.start(&m.shell("two", "sleep 2000; true")).await.unwrap();
    settled("two sees what one wrote", async || pod.exec("two", "cat /dev/shm/x").await.1 == "from one\n").await;
    let (_, seen) = pod.exec("two", "ps").await;
    assert!(seen.contains("sleep 1000") && seen.contains("sleep 2000"), "{seen}");
    // The first process is ours: it has no rights, shows nothing, and buries orphans.
    let (_, first) = pod.exec("two", "grep -E '^(Name|CapPrm|Uid)' /proc/1/status; ls /proc/1/root/ 2>&1").await;
    assert!(first.contains("pause") && first.contains("CapPrm:\t0000000000000000") && first.contains("denied"), "{first}");
    pod.exec("two", "(sleep 0.1 & sleep 0.1 &) ; true").await;
    sleep(Duration::from_millis(400)).await;
    let (_, zombies) = pod.exec("two", "grep -l '^State:.Z' /proc/[0-9]*/status").await;
    assert_eq!(zombies, "");
    // One ends with all its processes, the other stays.
    pod.driver.signal(&pod.pod.uid, "one", 9).await.unwrap();
    assert_eq!(pod.exit("one").await.code, 137);
    let (_, seen) = pod.exec("two", "ps").await;
    assert!(!seen.contains("sleep 1000") && seen.contains("sleep 2000"), "{seen}");
    pod.down(&m).await;
}

#[tokio::test]
async fn orphans_are_buried_and_children_die_with_their_container() {
    let m = Machine::new();
    let pod = m.up_with(Pod { host_pid: true, ..m.pod() }).await;
    pod.start(&m.shell("main", "(sleep 0.2 &); (sleep 3210 &); sleep 0.6; exit 4")).await.unwrap();
    let (_, seen) = pod.exec("main", "ps").await;
    assert!(seen.lines().count() > 5, "{seen}");
    assert_eq!(pod.exit("main").await.code, 4);
    pod.down(&m).await;
}

#[tokio::test]
async fn when_the_machine_goes_down_containers_are_asked_to_end() {
    let m = Machine::new();
    let pod = m.up().await;
    pod.start(&m.shell("main", "trap 'echo bye; exit 0' TERM; echo up; sleep 1000 & wait")).await.unwrap();
    settled("it is up", async || m.log_text(&pod.pod, "main", 0) == "up\n").await;
    let shim = pod.shim(&m);
    // SAFETY: a signal to a process that this test has started.
    assert_eq!(unsafe { libc::kill(shim, libc::SIGTERM) }, 0);
    assert_eq!(pod.exit("main").await.code, 0);
    assert_eq!(m.log_text(&pod.pod, "main", 0), "up\nbye\n");
    settled("the shim has gone", async || !std::path::Path::new(&format!("/proc/{shim}")).exists()).await;
    pod.down(&m).await;
}

#[tokio::test]
async fn a_failed_exec_leaves_no_zombie() {
    let m = Machine::new();
    let pod = m.up().await;
    pod.start(&m.shell("main", "sleep 1000")).await.unwrap();
    for script in ["", "exit 3"] {
        let args = if script.is_empty() { vec!["no-such".to_string()] } else { ["sh", "-c", script].map(str::to_string).to_vec() };
        for _ in 0..5 {
            let exec = driver::Exec { args: args.clone(), ..Default::default() };
            let mut session = pod.driver.exec(&pod.pod.uid, "main", &exec).await.unwrap();
            while session.output.recv().await.is_some_and(|f| !matches!(f, Frame::Exit(_))) {}
        }
    }
    let shim = pod.shim(&m);
    let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
    assert_eq!(children.split_whitespace().count(), 1, "{children}");
    let descriptors = fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    assert!(descriptors < 20, "{descriptors} descriptors");
    assert_eq!(fs::read_dir(format!("/proc/{shim}/task")).unwrap().count(), 1);
    pod.down(&m).await;
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_leaves_nothing() {
    let m = Machine::new();
    let pod = m.up().await;
    let text = m.dir.path().join("text");
    fs::create_dir_all(text.join("bin")).unwrap();
    for (name, content, mode) in [("plain", "hello", 0o644), ("garbage", "\x01\x02\x03", 0o755), ("script", "#!/none\n", 0o755)] {
        use std::os::unix::fs::PermissionsExt;
        fs::write(text.join("bin").join(name), content).unwrap();
        fs::set_permissions(text.join("bin").join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let of = |args: &[&str]| {
        let mut c = m.container("main", args);
        if let Root::Layers(layers) = &mut c.root {
            layers.push(text.clone());
        }
        c
    };
    let cwd = Container { cwd: "/etc/passwd/x".into(), ..of(&["true"]) };
    let source =
        Container { mounts: vec![Mount { source: "/none/such".into(), target: "/x".into(), ..Mount::default() }], ..of(&["true"]) };
    let cases: Vec<(Container, &str)> = vec![
        (of(&["nginxx"]), "exec: \"nginxx\": executable file not found in $PATH"),
        (of(&["/bin/nginxx"]), "exec: \"/bin/nginxx\": stat /bin/nginxx: no such file or directory"),
        (of(&["plain"]), "exec: \"plain\": permission denied"),
        (of(&["/bin/plain"]), "exec: \"/bin/plain\": permission denied"),
        (of(&["garbage"]), "exec /bin/garbage: exec format error"),
        (of(&["/bin/script"]), "exec /bin/script: no such file or directory"),
        (cwd, "working directory /etc/passwd/x: not a directory"),
        (source, "mounting /none/such at /x: no such file or directory"),
    ];
    for (attempt, (mut c, expected)) in cases.into_iter().enumerate() {
        c.attempt = attempt as u32;
        let error = pod.start(&c).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        let exit = pod.exit("main").await;
        assert_eq!((exit.code, exit.error.as_str()), (128, error.as_str()));
    }
    // What can be known to be wrong is said at creation.
    let invalid: Vec<(Container, &str)> = vec![
        (of(&[]), "no command specified"),
        (Container { root: Root::Layers(vec![]), ..of(&["true"]) }, "no layers"),
        (Container { root: Root::Layers(vec!["/none".into()]), ..of(&["true"]) }, "/none is not there"),
        (Container { name: "../x".into(), ..of(&["true"]) }, "is no name for a container"),
        (Container { mounts: vec![Mount { target: "rel".into(), ..Mount::default() }], ..of(&["true"]) }, "not an absolute path"),
    ];
    for (c, expected) in invalid {
        let c = Container { attempt: 77, ..c };
        let error = pod.driver.create(&pod.pod.uid, &c).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let shim = pod.shim(&m);
    let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
    assert_eq!(children.trim(), "");
    let stats = pod.driver.stats(&pod.pod.uid).await.unwrap();
    assert!(stats.containers.is_empty() && stats.pod.pids == 0, "{stats:?}");
    pod.down(&m).await;
}

#[tokio::test]
async fn a_pod_that_cannot_be_made_leaves_nothing() {
    let m = Machine::new();
    let driver = Machine::driver(&m);
    let bad = [
        Pod { sysctls: [("kernel.panic".to_string(), "1".to_string())].into(), ..m.pod() },
        Pod { sysctls: [("net/../kernel.panic".to_string(), "1".to_string())].into(), ..m.pod() },
        Pod { netns: Some("/none/such".into()), ..m.pod() },
    ];
    for (pod, expected) in bad.iter().zip(["kernel.panic", "kernel.panic", "/none/such"]) {
        let error = driver.create_pod(pod).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(m.leftovers(&pod.uid), Vec::<String>::new());
    }
    for uid in ["", "../x", ".."] {
        assert!(matches!(driver.create_pod(&Pod { uid: uid.into(), ..m.pod() }).await, Err(Error::Invalid(_))));
    }
}

#[tokio::test]
async fn a_lost_shim_takes_its_containers_along() {
    let m = Machine::new();
    let pod = m.up().await;
    pod.start(&m.shell("main", "trap '' TERM; sleep 1000; sleep 1000")).await.unwrap();
    pod.start(&m.shell("done", "exit 6")).await.unwrap();
    assert_eq!(pod.exit("done").await.code, 6);
    let State::Running { pid, .. } = pod.driver.recover().await.unwrap()[0].containers[0].state else { panic!("it runs") };
    assert_eq!(unsafe { libc::kill(pod.shim(&m), libc::SIGKILL) }, 0);
    pod.event(|e| matches!(e, Event::PodLost { uid } if *uid == pod.pod.uid)).await;
    assert!(!fs::exists(format!("/proc/{pid}/ns")).unwrap() || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z"));
    assert!(matches!(pod.driver.start(&pod.pod.uid, "main", 0).await, Err(Error::NotFound(_))));
    // A new agent hears of it too, with the exits that were known.
    let next = Machine::driver(&m);
    let mut events = next.events();
    let known = next.recover().await.unwrap();
    let exits: Vec<i32> = known[0].containers.iter().map(|c| if let State::Exited(e) = &c.state { e.code } else { -1 }).collect();
    assert_eq!(exits, [137, 6]);
    assert_eq!(events.recv().await, Some(Event::PodLost { uid: pod.pod.uid.clone() }));
    // The same pod can be made again.
    next.create_pod(&pod.pod).await.unwrap();
    next.create(&pod.pod.uid, &m.shell("main", "true")).await.unwrap();
    next.start(&pod.pod.uid, "main", 0).await.unwrap();
    next.remove_pod(&pod.pod.uid).await.unwrap();
    assert_eq!(m.leftovers(&pod.pod.uid), Vec::<String>::new());
}

#[tokio::test]
async fn a_terminal_is_a_terminal() {
    let m = Machine::new();
    let pod = m.up().await;
    let script = "while read -r l; do test -t 1 && echo \"<$l>\" $(stty size) $TERM; [ -c /dev/console ] && tty; done";
    let c = Container { tty: true, stdin: true, ..m.shell("main", script) };
    pod.start(&c).await.unwrap();
    let mut session = pod.driver.attach(&pod.pod.uid, "main").await.unwrap();
    session.input.send(Frame::Resize { width: 90, height: 30 }).await.unwrap();
    session.input.send(Frame::Stdin(Bytes::from_static(b"ahoy\n"))).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("/dev/pts/0") && !seen.contains("/dev/console") {
        match session.output.recv().await {
            Some(Frame::Stdout(b)) => seen.push_str(&String::from_utf8_lossy(&b)),
            other => panic!("{other:?} after {seen}"),
        }
    }
    assert!(seen.contains("<ahoy> 30 90 xterm"), "{seen}");
    // A second reader sees the same; hanging up ends nothing.
    drop(session);
    let mut session = pod.driver.attach(&pod.pod.uid, "main").await.unwrap();
    session.input.send(Frame::Stdin(Bytes::from_static(b"again\n\x04"))).await.unwrap();
    assert_eq!(pod.exit("main").await.code, 0);
    let mut last = None;
    while let Some(frame) = session.output.recv().await {
        last = Some(frame);
    }
    assert_eq!(last, Some(Frame::Exit(Ok(0))));
    assert!(m.log_text(&pod.pod, "main", 0).contains("<again> 30 90 xterm"));
    pod.down(&m).await;
}

#[tokio::test]
async fn a_reader_that_sleeps_does_not_stop_others() {
    let m = Machine::new();
    let pod = m.up().await;
    pod.start(&m.shell("main", "sleep 1000")).await.unwrap();
    let args = ["sh", "-c", "head -c 3000000 /dev/zero; echo end >&2"].map(str::to_string).to_vec();
    let exec = driver::Exec { args, ..Default::default() };
    let mut slow = pod.driver.exec(&pod.pod.uid, "main", &exec).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(pod.exec("main", "echo quick").await, (0, "quick\n".into()));
    let mut bytes = 0;
    loop {
        match slow.output.recv().await {
            Some(Frame::Stdout(b)) => bytes += b.len(),
            Some(Frame::Stderr(_)) => {}
            end => {
                assert_eq!(end, Some(Frame::Exit(Ok(0))));
                break;
            }
        }
    }
    assert_eq!(bytes, 3_000_000);
    pod.down(&m).await;
}

#[tokio::test]
async fn ports_are_dialled_inside_the_pod() {
    let m = Machine::new();
    let pod = m.up().await;
    let mut c = m.shell("main", "ip link set lo up; while :; do echo pong | nc -l -p 8080; done");
    c.security.capabilities.push("CAP_NET_ADMIN".into());
    pod.start(&c).await.unwrap();
    let mut text = String::new();
    settled("an answer from port 8080", async || pod.driver.dial(&pod.pod.uid, 8080).await.is_ok()).await;
    settled("a second one", async || pod.exec("main", "netstat -ltn | grep -q :8080").await.0 == 0).await;
    let mut stream = pod.driver.dial(&pod.pod.uid, 8080).await.unwrap();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut text).await.unwrap();
    assert_eq!(text, "pong\n");
    let error = pod.driver.dial(&pod.pod.uid, 9).await.unwrap_err().to_string();
    assert_eq!(error, "connecting to port 9 inside the pod: connection refused");
    pod.down(&m).await;
}

#[tokio::test]
async fn usage_is_counted() {
    let m = Machine::new();
    let pod = m.up().await;
    pod.start(
        &m.shell(
            "main",
            "dd if=/dev/zero of=/big bs=1M count=5; x=; while [ ${#x} -lt 200000 ]; do x=x$x$x; done; touch /done; sleep 1000",
        ),
    )
    .await
    .unwrap();
    settled("it has done its work", async || pod.exec("main", "ls /done").await.0 == 0).await;
    let stats = pod.driver.stats(&pod.pod.uid).await.unwrap();
    let main = &stats.containers["main"];
    assert!(main.writable_layer_bytes >= 5 << 20 && main.writable_layer_bytes < 8 << 20, "{main:?}");
    assert!(main.cpu_usec > 0 && main.memory_bytes > 0 && main.memory_rss_bytes > 0 && main.pids >= 1, "{main:?}");
    assert!(stats.pod.memory_bytes >= main.memory_bytes && stats.pod.cpu_usec >= main.cpu_usec, "{stats:?}");
    pod.down(&m).await;
}

#[tokio::test]
async fn the_pods_limit_holds_over_its_containers() {
    let m = Machine::new();
    let mut spec = m.pod();
    spec.resources.memory_limit_bytes = 48 << 20;
    let pod = m.up_with(spec).await;
    let mut c = m.shell("main", "dd if=/dev/zero of=/dev/shm/x bs=1M count=60");
    c.resources.memory_limit_bytes = 1 << 30;
    pod.start(&c).await.unwrap();
    let exit = pod.exit("main").await;
    assert!(exit.oom_killed && exit.code != 0, "{exit:?}");
    pod.down(&m).await;
}

#[tokio::test]
async fn a_newer_agent_is_understood() {
    let m = Machine::new();
    let pod = m.up().await;
    let mut stream = UnixStream::connect(m.run_dir().join("pods").join(&pod.pod.uid).join("shim.sock")).unwrap();
    let mut ask = |json: &str| {
        let mut frame = (json.len() as u32 + 1).to_be_bytes().to_vec();
        frame.push(0);
        frame.extend_from_slice(json.as_bytes());
        stream.write_all(&frame).unwrap();
        let mut head = [0; 5];
        stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize - 1];
        stream.read_exact(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    };
    assert!(ask(r#"{"id": 1, "call": "hello", "args": {"version": 99}, "new": true}"#).contains("\"version\":1"));
    let answer = ask(r#"{"id": 2, "call": "levitate", "args": {"height": 3}}"#);
    assert!(answer.contains("\"id\":2") && answer.contains("does not know"), "{answer}");
    assert!(ask(r#"{"id": 3, "call": "hello"}"#).contains("\"id\":3"));
    pod.down(&m).await;
}

#[tokio::test]
async fn nonsense_on_the_socket_ends_only_its_connection() {
    let m = Machine::new();
    let pod = m.up().await;
    pod.start(&m.shell("main", "sleep 1000")).await.unwrap();
    let path = m.run_dir().join("pods").join(&pod.pod.uid).join("shim.sock");
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0, 0, 3, 0, b'{', b'x'], &[0xff; 64], &[0; 64], &[0, 0, 0, 9, 1, 1, 2, 3]] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(bytes).unwrap();
        drop(stream);
    }
    assert_eq!(pod.exec("main", "echo fine").await, (0, "fine\n".into()));
    pod.down(&m).await;
}

#[tokio::test]
async fn a_sweep_finds_everything_without_any_state() {
    let m = Machine::new();
    let pod = m.up_with(Pod { share_process_namespace: true, ..m.pod() }).await;
    pod.start(&m.shell("main", "trap '' TERM; sleep 1000; sleep 1000")).await.unwrap();
    let other = m.up().await;
    other.start(&m.shell("main", "sleep 1000")).await.unwrap();
    fs::remove_dir_all(m.run_dir().join("pods").join(&pod.pod.uid)).unwrap();
    let listed = container::sweep(&m.instance, &m.run_dir(), true);
    let has = |what: &str| listed.iter().any(|l| l.contains(what));
    assert!(has("(staithe-shim)") && has("(pause)") && has("(sleep)") && has("control group") && has("directory"), "{listed:#?}");
    assert_eq!(container::sweep(&m.instance, &m.run_dir(), true).len(), listed.len(), "a dry run changes nothing");
    container::sweep(&m.instance, &m.run_dir(), false);
    assert_eq!(container::sweep(&m.instance, &m.run_dir(), true), Vec::<String>::new());
    for uid in [&pod.pod.uid, &other.pod.uid] {
        assert!(m.leftovers(uid).iter().all(|l| l.contains("/data/pods/")), "{:?}", m.leftovers(uid));
    }
}

#[test]
fn this_machine_can_run_containers() {
    assert_eq!(container::supported(), Vec::<String>::new());
}
