//! The agent against a fake driver, an API server in memory and a clock that jumps: whole lives of pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use base::{Clock, Ids, Timestamp};
use client::fake::FakeServer;
use driver::fake::{Call, World};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use ports::{Attachment, Frame, LogOptions, NetworkError, NodeHandler, NodeRequest, PodNetwork};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::images::{Auth, Image, ImageError, Images, Listed, Progress, PullPolicy};
use crate::{Agent, Config};

/// Wall time that follows tokio's, which the tests let jump.
struct Jumping(Timestamp, tokio::time::Instant);

impl Clock for Jumping {
    fn now(&self) -> Timestamp {
        self.0 + jiff::SignedDuration::try_from(self.1.elapsed()).unwrap()
    }
}

#[derive(Default)]
struct Net(Mutex<BTreeMap<String, Attachment>>);

#[async_trait]
impl PodNetwork for Net {
    async fn attach(&self, uid: &str) -> Result<Attachment, NetworkError> {
        let mut all = self.0.lock().unwrap();
        let next = IpAddr::from([10, 0, 0, all.len() as u8 + 2]);
        Ok(all.entry(uid.into()).or_insert(Attachment { netns: "/proc/self/ns/net".into(), addresses: vec![next] }).clone())
    }
    async fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        self.0.lock().unwrap().remove(uid);
        Ok(())
    }
    async fn list(&self) -> Result<BTreeMap<String, Attachment>, NetworkError> {
        Ok(self.0.lock().unwrap().clone())
    }
    fn node_address(&self) -> IpAddr {
        IpAddr::from([192, 168, 0, 1])
    }
    fn dns_address(&self) -> IpAddr {
        IpAddr::from([10, 43, 0, 10])
    }
}

struct Store;

#[async_trait]
impl Images for Store {
    async fn present(&self, reference: &str) -> bool {
        reference.starts_with("here")
    }
    async fn ensure(
        &self,
        reference: &str,
        _policy: PullPolicy,
        _auths: &[Auth],
        _progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image, ImageError> {
        if reference.starts_with("slow") {
            std::future::pending::<()>().await;
        }
        if reference.starts_with("none") {
            return Err(ImageError::NotFound(reference.into(), "not found".into()));
        }
        Ok(Image { id: format!("{reference}@sha256:00"), digest: "sha256:00".into(), env: vec!["FROM=image".into()], ..Image::default() })
    }
    async fn list(&self) -> Vec<Listed> {
        Vec::new()
    }
    async fn collect_garbage(&self, _in_use: &BTreeSet<String>, _budget: u64) -> Result<u64, String> {
        Ok(0)
    }
}

struct Rig {
    server: FakeServer,
    world: World,
    net: Arc<Net>,
    clock: Arc<Jumping>,
    dir: tempfile::TempDir,
    agent: Agent,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Rig {
    async fn start() -> Self {
        let clock = Arc::new(Jumping("2026-01-01T00:00:00Z".parse().unwrap(), tokio::time::Instant::now()));
        let (server, world, net) = (FakeServer::new(), World::new(clock.clone()), Arc::new(Net::default()));
        let dir = tempfile::tempdir().unwrap();
        let (agent, stop, running) = Self::agent(&server, &world, &net, &clock, dir.path());
        Self { server, world, net, clock, dir, agent, stop, running }
    }

    fn agent(
        server: &FakeServer,
        world: &World,
        net: &Arc<Net>,
        clock: &Arc<Jumping>,
        dir: &std::path::Path,
    ) -> (Agent, CancellationToken, tokio::task::JoinHandle<()>) {
        let drivers = BTreeMap::from([("container".to_string(), world.driver() as Arc<dyn driver::Driver>)]);
        let config = Config::new(
            "n1",
            server.client(),
            drivers,
            net.clone(),
            Arc::new(Store),
            clock.clone(),
            Ids::seeded(7),
            dir.join("data"),
            dir.join("run"),
        );
        let agent = Agent::new(config);
        let stop = CancellationToken::new();
        let (task, token) = (agent.clone(), stop.clone());
        (agent, stop, tokio::spawn(async move { task.run(token).await }))
    }

    /// Another agent on the same machine, after this one has stopped and `meanwhile` has happened.
    async fn restart(mut self, meanwhile: impl FnOnce(&World)) -> Self {
        self.stop.cancel();
        self.running.await.unwrap();
        meanwhile(&self.world);
        (self.agent, self.stop, self.running) = Self::agent(&self.server, &self.world, &self.net, &self.clock, self.dir.path());
        self
    }

    async fn create(&self, name: &str, spec: Value) -> String {
        let mut spec = spec;
        spec["nodeName"] = "n1".into();
        let pod = json!({
            "metadata": { "name": name, "namespace": "default", "finalizers": ["test/hold"], "labels": { "app": "web" } },
            "spec": spec,
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.server.client().create(&pod).await.unwrap().metadata.uid.unwrap()
    }

    fn pod(&self, name: &str) -> Value {
        self.server.objects("/api/v1/pods").into_iter().find(|p| p["metadata"]["name"] == name).unwrap_or_default()
    }

    /// Waits (in jumping time) until the pod is as wanted.
    async fn until(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..6000 {
            let pod = self.pod(name);
            if holds(&pod) {
                return pod;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{name} never came to {what}: {:#}\n{:?}", self.pod(name), self.events());
    }

    async fn ready(&self, name: &str) -> Value {
        self.until(name, "ready", |p| condition(p, "Ready") == "True").await
    }

    fn events(&self) -> Vec<String> {
        let text = |e: &Value, field: &str| e[field].as_str().unwrap_or_default().to_string();
        let all = self.server.objects("/api/v1/events");
        all.iter().map(|e| format!("{} {}: {}", text(e, "type"), text(e, "reason"), text(e, "message"))).collect()
    }

    fn has_event(&self, event: &str) -> bool {
        self.events().iter().any(|e| e == event)
    }

    fn starts(&self) -> usize {
        self.world.calls().iter().filter(|c| matches!(c, Call::Start(..))).count()
    }

    fn deletions(&self) -> usize {
        self.server.requests().iter().filter(|r| r.starts_with("DELETE /api/v1/namespaces/default/pods/")).count()
    }

    async fn delete(&self, name: &str) {
        self.server.client().delete::<Pod>("default", name, &client::DeleteOptions::default()).await.unwrap();
    }

    /// What a command run in the container sees of its specification.
    async fn spec_of(&self, uid: &str, container: &str) -> driver::Container {
        let seen: Arc<Mutex<Option<driver::Container>>> = Arc::default();
        let keep = seen.clone();
        self.world.on_exec(move |c, _| {
            *keep.lock().unwrap() = Some(c.clone());
            Ok((String::new(), 0))
        });
        let request = NodeRequest::Exec {
            namespace: "default".into(),
            pod: "web".into(),
            uid: uid.into(),
            container: container.into(),
            command: vec!["x".into()],
            tty: false,
            stdin: false,
        };
        let mut session = self.agent.open(request).await.unwrap();
        let mut last = None;
        while let Some(frame) = session.output.recv().await {
            last = Some(frame);
        }
        assert_eq!(last.unwrap().channel, Frame::ERROR);
        let spec = seen.lock().unwrap().take();
        spec.unwrap()
    }
}

fn condition(pod: &Value, kind: &str) -> String {
    let list = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    list.iter().find(|c| c["type"] == kind).map_or(String::new(), |c| c["status"].as_str().unwrap_or_default().into())
}

fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let all = ["initContainerStatuses", "containerStatuses"].into_iter().flat_map(|l| pod["status"][l].as_array().into_iter().flatten());
    all.into_iter().find(|c| c["name"] == name).unwrap_or(&Value::Null)
}

fn serve() -> Value {
    json!({ "containers": [{ "name": "web", "image": "here:1", "command": ["serve"] }] })
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_is_ready_and_goes_without_a_trace() {
    let rig = Rig::start().await;
    let uid = rig.create("web", serve()).await;
    let pod = rig.ready("web").await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "10.0.0.2");
    assert_eq!(pod["status"]["hostIP"], "192.168.0.1");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    let status = container(&pod, "web");
    assert_eq!((&status["ready"], &status["started"], &status["restartCount"]), (&json!(true), &json!(true), &json!(0)));
    assert_eq!(status["containerID"], format!("container://{uid}.web.0"));
    assert_eq!(status["imageID"], "here:1@sha256:00");
    tokio::time::sleep(Duration::from_secs(1)).await;
    for event in [
        "Normal Pulled: Container image \"here:1\" already present on machine",
        "Normal Created: Created container: web",
        "Normal Started: Started container web",
    ] {
        assert!(rig.has_event(event), "{event}: {:?}", rig.events());
    }
    rig.delete("web").await;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if rig.deletions() >= 2 {
            break;
        }
    }
    assert_eq!(rig.deletions(), 2, "the test's and the agent's");
    assert!(rig.world.calls().contains(&Call::Signal(uid.clone(), "web".into(), 15)));
    assert!(rig.world.pods().is_empty() && rig.net.0.lock().unwrap().is_empty());
    assert_eq!(rig.pod("web")["status"]["phase"], "Failed", "143 is not 0");
    assert!(rig.has_event("Normal Killing: Stopping container web"));
    assert!(!rig.dir.path().join("data/pods").join(&uid).exists());
    // Whoever holds the finalizer may take its time: the agent asks no second time.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.deletions(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_node_registers_and_keeps_its_lease() {
    let rig = Rig::start().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let nodes = rig.server.objects("/api/v1/nodes");
    assert_eq!(nodes[0]["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    let status = &nodes[0]["status"];
    assert_eq!(status["addresses"][0], json!({ "type": "InternalIP", "address": "192.168.0.1" }));
    let ready = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap().clone();
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("True"), &json!("KubeletReady")));
    assert_eq!(status["capacity"]["pods"], "110");
    let lease = |rig: &Rig| rig.server.objects("/apis/coordination.k8s.io/v1/leases")[0]["spec"]["renewTime"].clone();
    let first = lease(&rig);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_ne!(first, lease(&rig));
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_is_told_and_counted() {
    let rig = Rig::start().await;
    rig.create("web", json!({ "containers": [{ "name": "web", "image": "new:1", "command": ["exit", "3"] }] })).await;
    let pod = rig.until("web", "its second restart", |p| container(p, "web")["restartCount"] == 2).await;
    let status = container(&pod, "web");
    assert_eq!(status["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert!(
        status["state"]["waiting"]["message"]
            .as_str()
            .unwrap()
            .starts_with("back-off 20s restarting failed container=web pod=web_default(")
    );
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(pod["status"]["phase"], "Running");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(rig.events().iter().any(|e| e.starts_with("Warning BackOff: Back-off restarting failed container web in pod web_default(")));
    assert!(rig.events().iter().any(|e| e.starts_with("Normal Pulling: Pulling image \"new:1\"")));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_start_says_why() {
    let rig = Rig::start().await;
    rig.create("web", json!({ "containers": [{ "name": "web", "image": "here:1", "command": ["missing", "nginxx"] }] })).await;
    let pod = rig
        .until("web", "a crash loop", |p| {
            container(p, "web")["state"]["waiting"]["reason"] == "CrashLoopBackOff" && container(p, "web")["restartCount"] == 1
        })
        .await;
    let last = &container(&pod, "web")["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(128), &json!("StartError")));
    assert_eq!(container(&pod, "web")["restartCount"], 1, "the first retry is at once");
    assert_eq!(last["message"], "exec: \"nginxx\": executable file not found in $PATH");
    rig.create("pull", json!({ "containers": [{ "name": "web", "image": "none:1" }] })).await;
    let pod = rig.until("pull", "a pull error", |p| container(p, "web")["state"]["waiting"]["reason"] == "ImagePullBackOff").await;
    assert_eq!(pod["status"]["phase"], "Pending");
    rig.create("empty", json!({ "containers": [{ "name": "web", "image": "here:1" }] })).await;
    let pod = rig.until("empty", "an error", |p| container(p, "web")["state"]["waiting"]["reason"] == "CreateContainerError").await;
    assert!(container(&pod, "web")["state"]["waiting"]["message"].as_str().unwrap().starts_with("no command specified"));
}

#[tokio::test(start_paused = true)]
async fn the_next_agent_takes_over_what_runs() {
    let rig = Rig::start().await;
    let uid = rig.create("web", serve()).await;
    let exits = json!({ "containers": [{ "name": "web", "image": "here:1", "command": ["serve"] }] });
    let gone = rig.create("gone", exits).await;
    rig.ready("web").await;
    rig.ready("gone").await;
    let orphan = rig.create("orphan", serve()).await;
    rig.ready("orphan").await;
    assert!(rig.world.exit(&uid, "web", 1));
    rig.until("web", "a restart", |p| container(p, "web")["restartCount"] == 1 && condition(p, "Ready") == "True").await;
    let starts = rig.starts();
    let ready_since = |rig: &Rig| {
        let conditions = rig.server.objects("/api/v1/nodes")[0]["status"]["conditions"].as_array().unwrap().clone();
        let ready = conditions.into_iter().find(|c| c["type"] == "Ready" && c["status"] == "True");
        ready.unwrap()["lastTransitionTime"].clone()
    };
    let since = ready_since(&rig);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let server = rig.server.clone();
    let rig = rig.restart(|world| assert!(world.exit(&gone, "web", 7))).await;
    // One pod went from the API while no agent was there.
    drop(server);
    let pod = rig.until("gone", "a restart", |p| container(p, "web")["restartCount"] == 1 && condition(p, "Ready") == "True").await;
    assert_eq!(container(&pod, "web")["lastState"]["terminated"]["exitCode"], 7);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(rig.starts(), starts + 1, "only what had exited was started");
    assert_eq!(ready_since(&rig), since, "the node was ready all along");
    let pod = rig.pod("web");
    assert_eq!((&container(&pod, "web")["restartCount"], condition(&pod, "Ready").as_str()), (&json!(1), "True"));
    assert_eq!(rig.world.pods().len(), 3);
    let rig = {
        rig.stop.cancel();
        let client = rig.server.client();
        let patch = client::Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        client.patch::<Pod>("default", "orphan", &patch, "").await.unwrap();
        client.delete::<Pod>("default", "orphan", &client::DeleteOptions::default()).await.unwrap();
        rig.restart(|_| {}).await
    };
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!rig.world.pods().iter().any(|p| p.pod.uid == orphan));
    assert_eq!(rig.world.pods().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn probes_decide_readiness_and_life() {
    let rig = Rig::start().await;
    let healthy = Arc::new(Mutex::new((0, 0)));
    let answer = healthy.clone();
    rig.world.on_exec(move |_, exec| {
        let (ready, alive) = *answer.lock().unwrap();
        Ok(("sick".into(), if exec.args[0] == "ready" { ready } else { alive }))
    });
    let probe = |word: &str, failures: u32| json!({ "exec": { "command": [word] }, "periodSeconds": 5, "failureThreshold": failures });
    let spec = json!({ "terminationGracePeriodSeconds": 5, "containers": [{
        "name": "web", "image": "here:1", "command": ["serve"], "readinessProbe": probe("ready", 2), "livenessProbe": probe("alive", 3),
    }] });
    let uid = rig.create("web", spec).await;
    rig.ready("web").await;
    healthy.lock().unwrap().0 = 1;
    let pod = rig.until("web", "unready", |p| condition(p, "Ready") == "False").await;
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!((&ready["reason"], &ready["message"]), (&json!("ContainersNotReady"), &json!("containers with unready status: [web]")));
    assert!(rig.has_event("Warning Unhealthy: Readiness probe failed: sick"), "{:?}", rig.events());
    *healthy.lock().unwrap() = (0, 1);
    rig.until("web", "a restart", |p| container(p, "web")["restartCount"] == 1).await;
    assert!(rig.has_event("Normal Killing: Container web failed liveness probe, will be restarted"), "{:?}", rig.events());
    assert!(rig.world.calls().contains(&Call::Signal(uid, "web".into(), 15)));
}

#[tokio::test(start_paused = true)]
async fn volumes_wait_for_their_sources_and_follow_them() {
    let rig = Rig::start().await;
    let spec = json!({
        "containers": [{
            "name": "web", "image": "here:1", "command": ["serve", "$(GREETING)", "$(POD)"],
            "env": [
                { "name": "GREETING", "valueFrom": { "configMapKeyRef": { "name": "conf", "key": "greeting" } } },
                { "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
            ],
            "envFrom": [{ "prefix": "S_", "secretRef": { "name": "sec" } }],
            "volumeMounts": [{ "name": "conf", "mountPath": "/conf" }, { "name": "sec", "mountPath": "/sec", "readOnly": true }, { "name": "tmp", "mountPath": "/tmp" }],
        }],
        "volumes": [
            { "name": "conf", "configMap": { "name": "conf" } },
            { "name": "sec", "secret": { "secretName": "sec", "defaultMode": 256 } },
            { "name": "tmp", "emptyDir": {} },
        ],
    });
    let uid = rig.create("web", spec).await;
    rig.until("web", "waiting", |p| container(p, "web")["state"]["waiting"]["reason"] == "ContainerCreating").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(
        rig.has_event("Warning FailedMount: MountVolume.SetUp failed for volume \"conf\" : configmap \"conf\" not found"),
        "{:?}",
        rig.events()
    );
    let client = rig.server.client();
    let map = |text: &str| -> ConfigMap {
        serde_json::from_value(json!({ "metadata": { "name": "conf", "namespace": "default" }, "data": { "greeting": text } })).unwrap()
    };
    client.create(&map("hello")).await.unwrap();
    let secret: Secret =
        serde_json::from_value(json!({ "metadata": { "name": "sec", "namespace": "default" }, "data": { "key": "dmFsdWU=" } })).unwrap();
    client.create(&secret).await.unwrap();
    rig.ready("web").await;
    let made = rig.spec_of(&uid, "web").await;
    assert_eq!(made.args, ["serve", "hello", "web"]);
    let env: BTreeMap<String, String> = made.env.iter().cloned().collect();
    for (name, value) in
        [("FROM", "image"), ("S_key", "value"), ("IP", "10.0.0.2"), ("KUBERNETES_SERVICE_HOST", "10.43.0.1"), ("HOSTNAME", "web")]
    {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
    }
    let source =
        |target: &str| -> PathBuf { made.mounts.iter().find(|m| m.target == std::path::Path::new(target)).unwrap().source.clone() };
    assert_eq!(std::fs::read_to_string(source("/sec").join("key")).unwrap(), "value");
    assert!(source("/sec").starts_with(rig.dir.path().join("run")), "secrets stay in memory");
    assert!(std::fs::read_to_string(source("/etc/hosts")).unwrap().contains("10.0.0.2\tweb\n"));
    assert!(std::fs::read_to_string(source("/etc/resolv.conf")).unwrap().contains("search default.svc.cluster.local"));
    let file = source("/conf").join("greeting");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "hello");
    client.update(&map("changed")).await.unwrap();
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if std::fs::read_to_string(&file).unwrap() == "changed" {
            return;
        }
    }
    panic!("the change did not arrive in the running pod");
}

#[tokio::test(start_paused = true)]
async fn hooks_run_around_the_life_of_a_container() {
    let rig = Rig::start().await;
    let ran: Arc<Mutex<Vec<String>>> = Arc::default();
    let note = ran.clone();
    rig.world.on_exec(move |_, exec| {
        note.lock().unwrap().push(exec.args.join(" "));
        Ok(("no".into(), i32::from(exec.args[0] == "bad")))
    });
    let hook = |word: &str| json!({ "exec": { "command": [word] } });
    let spec = |post: &str| {
        json!({ "restartPolicy": "Never", "containers": [{
        "name": "web", "image": "here:1", "command": ["serve"], "lifecycle": { "postStart": hook(post), "preStop": hook("pre") },
    }] })
    };
    let uid = rig.create("web", spec("post")).await;
    rig.ready("web").await;
    rig.delete("web").await;
    rig.until("web", "its end", |p| p["status"]["phase"] == "Failed").await;
    assert_eq!(*ran.lock().unwrap(), ["post", "pre"]);
    assert!(rig.world.calls().contains(&Call::Signal(uid, "web".into(), 15)));
    rig.create("bad", spec("bad")).await;
    rig.until("bad", "its end", |p| p["status"]["phase"] == "Failed").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        rig.events()
            .iter()
            .any(|e| e.starts_with("Warning FailedPostStartHook: PostStartHook failed: command [\"bad\"] exited with 1: no")),
        "{:?}",
        rig.events()
    );
}

#[tokio::test(start_paused = true)]
async fn logs_are_read_followed_and_end() {
    let rig = Rig::start().await;
    let spec = json!({ "restartPolicy": "OnFailure", "containers": [{ "name": "web", "image": "here:1", "command": ["print", "one", "two", "three"] }] });
    let uid = rig.create("web", spec).await;
    rig.until("web", "its end", |p| p["status"]["phase"] == "Succeeded").await;
    let read = async |options: LogOptions| {
        let request =
            NodeRequest::Logs { namespace: "default".into(), pod: "web".into(), uid: uid.clone(), container: "web".into(), options };
        let mut session = rig.agent.open(request).await.map_err(|s| s.message)?;
        let mut text = Vec::new();
        while let Some(frame) = session.output.recv().await {
            text.extend_from_slice(&frame.data);
        }
        Ok::<_, String>(String::from_utf8(text).unwrap())
    };
    assert_eq!(read(LogOptions::default()).await.unwrap(), "one\ntwo\nthree\n");
    assert_eq!(read(LogOptions { tail_lines: Some(1), follow: true, ..LogOptions::default() }).await.unwrap(), "three\n");
    assert_eq!(read(LogOptions { limit_bytes: Some(5), ..LogOptions::default() }).await.unwrap(), "one\nt");
    let why = read(LogOptions { previous: true, ..LogOptions::default() }).await.unwrap_err();
    assert_eq!(why, "previous terminated container \"web\" in pod \"web\" not found");
}

#[tokio::test(start_paused = true)]
async fn local_storage_over_its_limit_evicts() {
    let rig = Rig::start().await;
    let spec = json!({ "containers": [{
        "name": "web", "image": "here:1", "command": ["serve"], "resources": { "limits": { "ephemeral-storage": "1Mi" } },
    }] });
    rig.create("web", spec).await;
    rig.ready("web").await;
    rig.world.set_usage("web", driver::Usage { writable_layer_bytes: 2 << 20, ..driver::Usage::default() });
    let pod = rig.until("web", "evicted", |p| p["status"]["phase"] == "Failed").await;
    assert_eq!(pod["status"]["reason"], "Evicted");
    assert_eq!(pod["status"]["message"], "Container web exceeded its local ephemeral storage limit \"1Mi\". ");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(rig.world.pods().is_empty());
    assert_eq!(rig.pod("web")["status"]["reason"], "Evicted");
}

#[tokio::test(start_paused = true)]
async fn a_lost_pod_is_made_again() {
    let rig = Rig::start().await;
    let uid = rig.create("web", serve()).await;
    rig.ready("web").await;
    rig.world.lose(&uid);
    let pod = rig.until("web", "back", |p| container(p, "web")["restartCount"] == 1 && condition(p, "Ready") == "True").await;
    let last = &container(&pod, "web")["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(137), &json!("ContainerStatusUnknown")));
    assert!(rig.has_event("Normal SandboxChanged: Pod sandbox changed, it will be killed and re-created."));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_fails_is_asked_again() {
    let rig = Rig::start().await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    rig.create("web", serve()).await;
    for _ in 0..6 {
        rig.server.fail_next(api::Status::new(api::Reason::ServiceUnavailable, "away"));
    }
    rig.ready("web").await;
    // An object that is simply gone takes what ran with it.
    let client = rig.server.client();
    let patch = client::Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    client.patch::<Pod>("default", "web", &patch, "").await.unwrap();
    rig.delete("web").await;
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!(rig.world.pods().is_empty() && rig.net.0.lock().unwrap().is_empty());
    assert_eq!(rig.deletions(), 1, "nothing is left to delete");
}

#[tokio::test(start_paused = true)]
async fn a_pod_can_be_deleted_whatever_it_waits_for() {
    let rig = Rig::start().await;
    rig.create("pull", json!({ "containers": [{ "name": "web", "image": "slow:1" }] })).await;
    rig.create(
        "volume",
        json!({
            "containers": [{ "name": "web", "image": "here:1", "command": ["serve"] }],
            "volumes": [{ "name": "v", "configMap": { "name": "never" } }],
        }),
    )
    .await;
    rig.create("class", json!({ "runtimeClassName": "never", "containers": [{ "name": "web", "image": "here:1" }] })).await;
    rig.create("backoff", json!({ "containers": [{ "name": "web", "image": "none:1" }] })).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let why =
        "Warning FailedCreatePodSandBox: Failed to create pod sandbox: failed to get sandbox runtime: RuntimeClass \"never\" not found";
    assert!(rig.has_event(why), "{:?}", rig.events());
    for name in ["pull", "volume", "class", "backoff"] {
        let before = rig.deletions();
        rig.delete(name).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(rig.deletions(), before + 2, "{name}");
    }
    assert!(rig.world.pods().is_empty() && rig.net.0.lock().unwrap().is_empty());
    let left = |d: &str| std::fs::read_dir(rig.dir.path().join(d)).map_or(0, Iterator::count);
    assert_eq!((left("data/pods"), left("run/pods")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stubborn_container_gets_its_grace_and_no_more() {
    let rig = Rig::start().await;
    let spec = json!({ "terminationGracePeriodSeconds": 7, "containers": [{ "name": "web", "image": "here:1", "command": ["stubborn"] }] });
    let uid = rig.create("web", spec).await;
    rig.ready("web").await;
    rig.delete("web").await;
    let began = tokio::time::Instant::now();
    rig.until("web", "its end", |p| p["status"]["phase"] == "Failed").await;
    let took = began.elapsed().as_millis();
    assert!((6_900..7_400).contains(&took), "{took} ms");
    let signals: Vec<Call> = rig.world.calls().into_iter().filter(|c| matches!(c, Call::Signal(..))).collect();
    assert_eq!(signals, [Call::Signal(uid.clone(), "web".into(), 15), Call::Signal(uid, "web".into(), 9)]);
}

#[tokio::test(start_paused = true)]
async fn init_containers_and_sidecars_come_first() {
    let rig = Rig::start().await;
    let spec = json!({ "restartPolicy": "Never",
        "initContainers": [
            { "name": "first", "image": "here:1", "command": ["exit", "0", "500"] },
            { "name": "side", "image": "here:1", "command": ["serve"], "restartPolicy": "Always" },
        ],
        "containers": [{ "name": "web", "image": "here:1", "command": ["exit", "0", "3000"] }],
    });
    let uid = rig.create("web", spec).await;
    let pod = rig.until("web", "its first init container", |p| condition(p, "PodReadyToStartContainers") == "True").await;
    assert_eq!(condition(&pod, "Initialized"), "False");
    assert_eq!(container(&pod, "web")["state"]["waiting"]["reason"], "PodInitializing");
    let pod = rig.ready("web").await;
    assert_eq!(container(&pod, "first")["state"]["terminated"]["reason"], "Completed");
    assert_eq!(container(&pod, "side")["started"], true);
    let pod = rig.until("web", "its end", |p| p["status"]["phase"] == "Succeeded").await;
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.iter().find(|c| c["type"] == "Ready").unwrap()["reason"], "PodCompleted");
    let starts: Vec<String> =
        rig.world.calls().into_iter().filter_map(|c| if let Call::Start(_, name, _) = c { Some(name) } else { None }).collect();
    assert_eq!(starts, ["first", "side", "web"]);
    assert!(rig.world.calls().contains(&Call::Signal(uid, "side".into(), 15)));
}
