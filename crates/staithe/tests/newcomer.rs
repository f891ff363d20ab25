//! What a newcomer does wrong, and what the program says to it.

mod common;

use common::{Machine, STAITHE};

#[test]
fn without_root_it_says_so() {
    let m = Machine::new();
    // The built binary may lie where only root can read.
    let copy = std::path::PathBuf::from(format!("/tmp/staithe-{}", m.instance));
    std::fs::copy(STAITHE, &copy).unwrap();
    let ran = m.run("setpriv", &["--reuid=65534", "--clear-groups", copy.to_str().unwrap(), "up"]);
    std::fs::remove_file(&copy).unwrap();
    let text = ran.fails();
    assert!(text.contains("run it as root"), "{text}");
}

#[test]
fn a_port_in_use_is_named_with_the_flag_that_moves_it() {
    let m = Machine::new();
    let _taken = m.background("busybox", &["nc", "-l", "-p", "6443"]);
    let text = m.until("the port is taken", 5, || {
        let listening = m.sh("cat /proc/net/tcp /proc/net/tcp6 | grep -c ':192B'").out;
        (listening.trim() != "0").then(|| m.staithe(&["up"]).fails())
    });
    assert!(text.contains("6443") && text.contains("--api-port"), "{text}");
    assert!(m.sh("ip route").out.is_empty(), "something was changed before the refusal");
}

#[test]
fn one_directory_one_server() {
    let m = Machine::up();
    let text = m.staithe(&["up", "--api-port", "7443", "--registry-port", "7000"]).fails();
    assert!(text.contains("in use by process"), "{text}");
    let again = m.staithe(&["up", "--detach"]).ok();
    assert!(again.contains("up already"), "{again}");
}

#[test]
fn a_directory_of_another_version_is_not_touched() {
    let m = Machine::new();
    std::fs::create_dir_all(m.data()).unwrap();
    std::fs::write(m.data().join("version"), "staithe 9.9.9\nformat 99\n").unwrap();
    let text = m.staithe(&["up"]).fails();
    assert!(text.contains("9.9.9") && text.contains("99"), "{text}");
    assert_eq!(std::fs::read_to_string(m.data().join("version")).unwrap(), "staithe 9.9.9\nformat 99\n");
    std::fs::remove_dir_all(m.data()).unwrap();
}

#[test]
fn settings_that_cannot_be_are_named() {
    let m = Machine::new();
    for (args, words) in [
        (&["up", "--pod-cidr", "10.0.0.0/8", "--service-cidr", "10.1.0.0/16"][..], &["--pod-cidr", "--service-cidr", "overlap"][..]),
        (&["up", "--service-cidr", "nonsense"], &["--service-cidr", "nonsense"]),
        (&["up", "--node-name", "Not_A_Name"], &["--node-name"]),
        (&["up", "--config", "/nonexistent.yaml"], &["/nonexistent.yaml"]),
    ] {
        let text = m.staithe(args).fails();
        assert!(words.iter().all(|w| text.contains(w)), "{args:?}: {text}");
    }
}

#[test]
fn a_wrong_word_gets_advice() {
    let m = Machine::up();
    let text = m.staithe(&["get", "podz"]).fails();
    assert!(text.contains("podz") && text.contains("pods"), "{text}");
    let text = m.staithe(&["get", "pod", "nope"]).fails();
    assert!(text.contains(r#"pods "nope" not found"#), "{text}");
    let text =
        m.run_with_input(STAITHE, &["apply", "-f", "-"], "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndatta: {x: y}\n").fails();
    assert!(text.contains("datta"), "{text}");
    let text = m.run_with_input(STAITHE, &["apply", "-f", "-"], "apiVersion: v1\nkind: Konfig\nmetadata: {name: a}\n").fails();
    assert!(text.contains("Konfig"), "{text}");
    let text = m.staithe(&["scale", "deployment/none", "--replicas", "2"]).fails();
    assert!(text.contains("not found"), "{text}");
}
