use base::Ids;
use serde_json::{Value, json};

use super::*;
use crate::Action;
use crate::invariants;

fn cx() -> Cx {
    Cx { now: base::Timestamp::UNIX_EPOCH, ids: Ids::seeded(1) }
}

fn service(edit: impl Fn(&mut Value)) -> Service {
    let mut s = json!({"metadata": {"name": "web", "namespace": "default", "uid": "s", "labels": {"team": "a"}},
        "spec": {"clusterIP": "10.43.0.9", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}});
    edit(&mut s);
    serde_json::from_value(s).unwrap()
}

fn pod(n: usize, ready: bool, edit: impl Fn(&mut Value)) -> Pod {
    let mut p = json!({"metadata": {"name": format!("p{n}"), "namespace": "default", "uid": format!("u{n}"), "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": format!("10.42.{}.{}", n / 250, n % 250 + 1), "conditions": [
            {"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
    edit(&mut p);
    serde_json::from_value(p).unwrap()
}

/// Plans, and applies the plan to the slices and Endpoints.
struct World {
    service: Service,
    pods: Vec<Pod>,
    slices: BTreeMap<String, EndpointSlice>,
    endpoints: Option<Endpoints>,
    cx: Cx,
}

impl World {
    fn new(service: Service, pods: Vec<Pod>) -> Self {
        Self { service, pods, slices: BTreeMap::new(), endpoints: None, cx: cx() }
    }

    /// The number of writes.
    fn step(&mut self) -> usize {
        let pods: Vec<&Pod> = self.pods.iter().collect();
        let slices: Vec<EndpointSlice> = self.slices.values().cloned().collect();
        let refs: Vec<&EndpointSlice> = slices.iter().collect();
        let endpoints = self.endpoints.clone();
        let zones = [("n1".to_string(), "z1".to_string())].into();
        let s = Snapshot { service: &self.service, pods: &pods, slices: &refs, endpoints: endpoints.as_ref(), zones: &zones };
        let (plan, _) = plan(&s, &self.cx);
        let count = plan.actions().count();
        for action in plan.actions() {
            self.apply(action);
        }
        count
    }

    fn apply(&mut self, action: &Action) {
        match action {
            Action::Create { .. } => {
                if let Some(slice) = action.created::<EndpointSlice>() {
                    self.slices.insert(objects::name(&slice).into(), slice);
                } else {
                    self.endpoints = action.created();
                }
            }
            Action::Patch { target, patch, .. } if target.kind.kind == "Endpoints" => {
                self.endpoints = Some(crate::action::patched(self.endpoints.as_ref().unwrap(), patch).unwrap());
            }
            Action::Patch { target, patch, .. } => {
                let old = self.slices[&target.name].clone();
                self.slices.insert(target.name.clone(), crate::action::patched(&old, patch).unwrap());
            }
            Action::Delete { target, .. } => {
                self.slices.remove(&target.name);
            }
            other => panic!("{other:?}"),
        }
    }

    fn settle(&mut self) {
        self.step();
        assert_eq!(self.step(), 0, "a settled Service is not written again");
        let all: Vec<&EndpointSlice> = self.slices.values().collect();
        let pods: Vec<&Pod> = self.pods.iter().collect();
        invariants::endpoints_are_ready(&self.service, &pods, &all, self.endpoints.as_ref()).unwrap();
    }
}

#[test]
fn ready_serving_and_terminating_as_upstream_has_them() {
    let mut w = World::new(
        service(|_| {}),
        vec![
            pod(0, true, |_| {}),
            pod(1, false, |_| {}),
            pod(2, true, |p| p["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")),
            pod(3, true, |p| p["status"]["phase"] = json!("Succeeded")),
            pod(4, true, |p| p["status"]["podIP"] = json!(null)),
            pod(5, true, |p| p["metadata"]["labels"] = json!({"app": "db"})),
        ],
    );
    w.settle();
    let slice = w.slices.values().next().unwrap();
    let seen: Vec<_> = slice
        .endpoints
        .iter()
        .map(|e| {
            let c = e.conditions.as_ref().unwrap();
            (e.target_ref.as_ref().unwrap().name.clone().unwrap(), c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
        })
        .collect();
    assert_eq!(seen, [("p0".into(), true, true, false), ("p1".into(), false, false, false), ("p2".into(), false, true, true)]);
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    assert_eq!(slice.endpoints[0].zone.as_deref(), Some("z1"));
    let labels = slice.metadata.labels.as_ref().unwrap();
    assert_eq!((labels[SERVICE_NAME].as_str(), labels["team"].as_str(), labels[MANAGED_BY].as_str()), ("web", "a", MANAGER));
    let subset = &w.endpoints.as_ref().unwrap().subsets.as_ref().unwrap()[0];
    assert_eq!(subset.addresses.as_ref().unwrap().len(), 1);
    assert_eq!(subset.not_ready_addresses.as_ref().unwrap().len(), 1);
}

#[test]
fn one_change_rewrites_one_slice() {
    let mut w = World::new(service(|_| {}), (0..250).map(|n| pod(n, true, |_| {})).collect());
    w.settle();
    assert_eq!(w.slices.values().map(|s| s.endpoints.len()).sum::<usize>(), 250);
    assert_eq!(w.slices.len(), 3);
    w.pods[7] = pod(7, false, |_| {});
    assert_eq!(w.step(), 2, "its slice and the Endpoints");
    w.pods.remove(120);
    w.pods.push(pod(300, true, |_| {}));
    w.settle();
    assert_eq!(w.slices.len(), 3);
    w.pods.truncate(1);
    w.settle();
    assert_eq!(w.slices.len(), 1);
    w.pods.clear();
    w.settle();
    assert_eq!(w.slices.len(), 1, "an empty slice stays");
    assert!(w.endpoints.as_ref().unwrap().subsets.is_none());
}

#[test]
fn ports_per_pod_publish_not_ready_and_headless_names() {
    let other = pod(1, true, |p| p["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090));
    let none = pod(2, true, |p| p["spec"]["containers"][0]["ports"] = json!([]));
    let mut w = World::new(service(|_| {}), vec![pod(0, true, |_| {}), other, none]);
    w.settle();
    assert_eq!(w.slices.len(), 3);
    assert_eq!(w.endpoints.as_ref().unwrap().subsets.as_ref().unwrap().len(), 2);

    let lenient = service(|s| {
        s["spec"]["publishNotReadyAddresses"] = json!(true);
        s["spec"]["clusterIP"] = json!("None");
        s["spec"]["ports"] = json!([]);
    });
    let named = pod(0, false, |p| {
        p["spec"]["hostname"] = json!("db-0");
        p["spec"]["subdomain"] = json!("web");
    });
    let mut w = World::new(lenient, vec![named]);
    w.settle();
    let slice = w.slices.values().next().unwrap();
    assert_eq!(slice.endpoints[0].hostname.as_deref(), Some("db-0"));
    assert_eq!(slice.endpoints[0].conditions.as_ref().unwrap().ready, Some(true));
    assert!(slice.ports.is_none() && slice.metadata.labels.as_ref().unwrap().contains_key(HEADLESS));
    assert_eq!(w.endpoints.as_ref().unwrap().subsets.as_ref().unwrap()[0].addresses.as_ref().unwrap().len(), 1);
}

#[test]
fn without_a_selector_the_users_endpoints_are_mirrored_and_external_names_left_alone() {
    let bare = service(|s| s["spec"]["selector"] = json!({}));
    let mut w = World::new(bare, vec![pod(0, true, |_| {})]);
    assert_eq!(w.step(), 0);
    w.endpoints = Some(
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"},
            "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 5432}]}]}))
        .unwrap(),
    );
    w.step();
    assert_eq!(w.step(), 0);
    let slice = w.slices.values().next().unwrap();
    assert_eq!(slice.metadata.labels.as_ref().unwrap()[MANAGED_BY], MIRROR);
    assert_eq!(slice.endpoints.iter().map(|e| e.conditions.as_ref().unwrap().ready.unwrap()).collect::<Vec<_>>(), [true, false]);
    w.endpoints = None;
    w.step();
    assert!(w.slices.is_empty(), "a mirror goes with what it mirrored");

    let mut w = World::new(service(|s| s["spec"]["type"] = json!("ExternalName")), vec![pod(0, true, |_| {})]);
    assert_eq!(w.step(), 0);
}
