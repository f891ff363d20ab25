//! The README's first command: its run stage, on a machine without uplink, as a stranger sees it.

mod common;

use common::Machine;

/// Everything that `down` must take away, as the machine itself tells it.
fn traces(m: &Machine) -> String {
    let script = format!(
        "ip -o link; ip route; ip -o addr; nft list ruleset; ls /run/netns 2>/dev/null; grep -F {i} /proc/self/mountinfo; \
         find /sys/fs/cgroup -maxdepth 3 -name '*{i}*'; ps -eo args | grep -F '{i}' | grep -v grep; cat /proc/sys/net/ipv4/ip_forward",
        i = m.instance
    );
    m.sh(&script).out
}

#[test]
fn the_first_command_opens_the_shop_and_down_leaves_nothing() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().parent().unwrap().to_path_buf();
    let m = Machine::new();
    let before = traces(&m);
    let ran = m.command(root.join("demo.sh").to_str().unwrap()).arg("run").env("STAITHE_PROFILE", "debug").output().unwrap();
    let out = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{out}{}\n{}", String::from_utf8_lossy(&ran.stderr), m.state());
    assert!(out.contains("What to try next"), "{out}");
    let url = out.lines().find_map(|l| l.strip_prefix("The shop is open at ")).expect("the URL is printed");
    assert_eq!(url, "http://shop.localhost/");
    let page = m.get("shop.localhost", "http://127.0.0.1/").ok();
    assert!(page.contains("Storm lamp") && page.contains("front version 1"), "{page}");

    // What the last lines suggest works as printed: break one and watch it come back …
    m.sh("curl -sS --max-time 5 -H 'Host: shop.localhost' http://127.0.0.1/crash");
    m.until("a restart is counted", 20, || {
        m.kubectl("get pods -n shop -l app=front -o jsonpath={.items[*].status.containerStatuses[0].restartCount}")
            .out
            .contains('1')
            .then_some(())
    });
    m.until("both are ready again", 20, || {
        (m.kubectl("get deploy front -n shop -o jsonpath={.status.readyReplicas}").out == "2").then_some(())
    });
    // … scale, roll out, undo.
    m.staithe(&["scale", "deployment/front", "--replicas", "3", "-n", "shop"]).ok();
    m.staithe(&["rollout", "status", "deployment/front", "-n", "shop", "--timeout", "30"]).ok();
    m.kubectl("-n shop set image deployment/front front=localhost:5000/shop/front:2").ok();
    m.staithe(&["rollout", "status", "deployment/front", "-n", "shop", "--timeout", "60"]).ok();
    assert!(m.get("shop.localhost", "http://127.0.0.1/").ok().contains("front version 2"));
    m.staithe(&["rollout", "undo", "deployment/front", "-n", "shop"]).ok();
    m.staithe(&["rollout", "status", "deployment/front", "-n", "shop", "--timeout", "60"]).ok();
    assert!(m.get("shop.localhost", "http://127.0.0.1/").ok().contains("front version 1"));
    let logs = m.staithe(&["logs", "-n", "shop", "-l", "app=orders"]).ok();
    assert!(logs.contains("order 1 for"), "{logs}");

    m.staithe(&["down", "--purge"]).ok();
    assert_eq!(traces(&m), before, "down left something behind");
}
