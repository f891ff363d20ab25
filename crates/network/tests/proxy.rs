//! The whole way from API objects to connections: informers, planner, writer, kernel.

mod common;

use std::io::ErrorKind;
use std::net::SocketAddrV4;
use std::time::Duration;

use client::fake::FakeServer;
use client::{CancellationToken, Patch};
use common::*;
use network::{ServiceProxy, Sources};
use serde_json::{Value, json};

const VIP: &str = "10.43.0.7:80";

fn slice(endpoints: &[(&Pod, bool)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(pod, ready)| json!({"addresses": [pod.address.to_string()], "conditions": {"ready": ready, "serving": true, "terminating": !ready}}))
        .collect();
    json!({"metadata": {"name": "web-1", "namespace": "d", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[test]
fn objects_become_connections_and_the_published_number_can_be_relied_on() {
    on_own_machine(|run| async move {
        let net = start(&run).await;
        let (a, b, c) = (pod(&net, "a").await, pod(&net, "b").await, pod(&net, "c").await);
        a.serve_tcp(8080, "a");
        b.serve_tcp(8080, "b");
        let server = FakeServer::new();
        let client = server.client();
        let service = json!({"metadata": {"name": "web", "namespace": "d"}, "spec": {"type": "NodePort", "clusterIP": "10.43.0.7",
            "clusterIPs": ["10.43.0.7"], "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080}]}});
        let _: Value = client.post("/api/v1/namespaces/d/services", &service).await.unwrap();
        let slices = "/apis/discovery.k8s.io/v1/namespaces/d/endpointslices";
        let made: Value = client.post(slices, &slice(&[(&a, true)])).await.unwrap();
        let pods: Value = client
            .post(
                "/api/v1/namespaces/d/pods",
                &json!({"metadata": {"name": "b", "namespace": "d"},
                "spec": {"nodeName": "n1", "containers": [{"name": "b", "ports": [{"containerPort": 8080, "hostPort": 8088}]}]},
                "status": {"phase": "Running", "podIP": b.address.to_string()}}),
            )
            .await
            .unwrap();

        let proxy = ServiceProxy::new(config(&run), Sources::start(&client, "n1"));
        let (mut applied, stop) = (proxy.applied(), CancellationToken::new());
        let task = tokio::spawn(proxy.run(stop.clone()));
        let vip: SocketAddrV4 = VIP.parse().unwrap();
        let reached = |revision: u64| {
            let mut applied = applied.clone();
            async move {
                tokio::time::timeout(Duration::from_secs(5), applied.wait_for(|r| *r >= revision)).await.unwrap().unwrap();
            }
        };
        reached(revision(&made)).await;
        assert_eq!(c.ask(vip).unwrap(), format!("a {}", c.address));
        assert_eq!(ask("10.42.0.1:30080".parse().unwrap()).unwrap(), "a 10.42.0.1");
        assert_eq!(ask("10.42.0.1:8088".parse().unwrap()).unwrap(), "b 10.42.0.1", "a host port");
        drop(pods);

        for round in 0..10 {
            let (leaving, staying, name) = if round % 2 == 0 { (&a, &b, "b") } else { (&b, &a, "a") };
            let mut old = c.inside(move || connect(vip).unwrap());
            let patch = Patch::Merge(slice(&[(leaving, false), (staying, true)]));
            let changed = client.patch_path(&format!("{slices}/web-1"), &patch).await.unwrap();
            reached(revision(&changed)).await;
            for _ in 0..5 {
                assert_eq!(c.ask(vip).unwrap(), format!("{name} {}", c.address), "round {round}");
            }
            assert!(say(&mut old, "still").is_ok(), "an established connection lives");
        }
        // Somebody sweeps all rules: the next change brings fence and Services back.
        sh("nft flush ruleset");
        let patch = Patch::Merge(slice(&[]));
        let changed = client.patch_path(&format!("{slices}/web-1"), &patch).await.unwrap();
        reached(revision(&changed)).await;
        assert_eq!(c.ask(vip), Err(ErrorKind::ConnectionRefused));
        // The control plane stops: what is in the kernel stays.
        let patch = Patch::Merge(slice(&[(&a, true)]));
        let changed = client.patch_path(&format!("{slices}/web-1"), &patch).await.unwrap();
        reached(revision(&changed)).await;
        stop.cancel();
        task.await.unwrap();
        assert_eq!(c.ask(vip).unwrap(), format!("a {}", c.address));
        let _ = applied.borrow_and_update();
        let swept = network::sweep("t1", &run, false);
        assert!(swept.contains(&"nftables table ip t1-services".to_string()), "{swept:?}");
    });
}
