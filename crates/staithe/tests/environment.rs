//! The environment over time: it stays healthy by itself, and what runs outlives the control plane.

mod common;

use std::time::Duration;

use common::Machine;

#[test]
fn a_quiet_node_stays_ready_and_pods_outlive_a_killed_server() {
    let m = Machine::up();
    let image = m.busybox();
    let manifest = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: 2\n  selector: {{matchLabels: {{app: web}}}}\n  template:\n    \
         metadata: {{labels: {{app: web}}}}\n    spec:\n      containers:\n      - name: web\n        image: {image}\n        \
         command: [httpd, -f, -p, '8080', -h, /etc]\n        readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  clusterIP: 10.43.7.7\n  selector: {{app: web}}\n  ports: [{{port: 80, targetPort: 8080}}]\n"
    );
    m.apply(&manifest).ok();
    m.kubectl("rollout status deployment/web --timeout=60s").ok();
    let asked = || m.get("web", "http://10.43.7.7/passwd");
    m.until("the Service answers", 10, || (asked().code == 0).then_some(()));

    // Longer than the grace after which a silent node counts as lost.
    std::thread::sleep(Duration::from_secs(14));
    let changes = m.kubectl("get node n1 -o jsonpath={.spec.taints}").out;
    assert_eq!(changes, "", "the node was taken for lost");
    let ready = m.kubectl("get node n1 -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}").ok();
    assert_eq!(ready, "True");

    let started = || m.kubectl("get pods -l app=web -o jsonpath={.items[*].status.containerStatuses[0].state.running.startedAt}").out;
    let before = started();
    let pid = std::fs::read_to_string(m.data().join("lock")).unwrap();
    m.sh(&format!("kill -9 {}", pid.trim()));
    assert!(asked().ok().contains("root"), "the Service answers without its control plane");
    m.start();
    m.until("the API tells of the pods again", 20, || (started() == before).then_some(()));
    assert!(asked().ok().contains("root"));

    let pod = m.kubectl("get pods -l app=web -o jsonpath={.items[0].metadata.name}").ok();
    assert_eq!(m.kubectl(&format!("exec {pod} -- cat /etc/hostname")).ok().trim(), pod);
    let failed = m.run("kubectl", &["exec", &pod, "--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.code, 7, "{}", failed.err);
}
