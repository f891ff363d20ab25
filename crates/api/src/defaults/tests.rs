use serde_json::{Value, json};

use crate::table;

/// The object after its kind's defaulting; a second run must change nothing.
fn defaulted(kind: &str, mut object: Value) -> Value {
    let row = table::find(kind).unwrap();
    (row.hooks.default)(&mut object);
    let mut again = object.clone();
    (row.hooks.default)(&mut again);
    assert_eq!(again, object, "{kind}: defaulting twice");
    object
}

/// One container in a pod, before and after.
fn container(given: Value) -> Value {
    defaulted("pod", json!({"spec": {"containers": [given]}}))["spec"]["containers"][0].clone()
}

#[test]
fn pods_get_what_upstream_gives_them() {
    let pod = defaulted(
        "pod",
        json!({"metadata": {"name": "a"}, "spec": {"serviceAccount": "x", "containers": [{"name": "c", "image": "nginx:1"}]}}),
    );
    assert_eq!(
        pod["spec"],
        json!({"serviceAccount": "x", "serviceAccountName": "x", "dnsPolicy": "ClusterFirst", "restartPolicy": "Always",
            "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30, "securityContext": {}, "enableServiceLinks": true,
            "containers": [{"name": "c", "image": "nginx:1", "imagePullPolicy": "IfNotPresent", "resources": {},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}]})
    );
}

#[test]
fn given_values_stay() {
    let given = json!({"dnsPolicy": "Default", "restartPolicy": "Never", "schedulerName": "s", "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsUser": 1}, "enableServiceLinks": false, "containers": []});
    assert_eq!(defaulted("pod", json!({"spec": given}))["spec"], given);
}

#[test]
fn pull_policies_follow_tags() {
    for (image, expect) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1", "IfNotPresent"),
        ("r:5000/nginx", "Always"),
        ("r:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:00", "IfNotPresent"),
        ("nginx:latest@sha256:00", "Always"),
        ("nginx:1@sha256:00", "IfNotPresent"),
    ] {
        assert_eq!(container(json!({"image": image}))["imagePullPolicy"], expect, "{image}");
    }
}

#[test]
fn containers_probes_and_ports() {
    let c = container(json!({"image": "a:1", "ports": [{"containerPort": 80}],
        "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "livenessProbe": {"httpGet": {"port": 80}}, "readinessProbe": {"grpc": {"port": 1}, "periodSeconds": 3},
        "lifecycle": {"preStop": {"httpGet": {"port": 1}}}}));
    assert_eq!(c["ports"][0]["protocol"], "TCP");
    assert_eq!(c["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    assert_eq!(
        c["livenessProbe"],
        json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
    );
    assert_eq!(c["readinessProbe"]["periodSeconds"], 3);
    assert_eq!(c["readinessProbe"]["grpc"]["service"], "");
    assert_eq!(c["lifecycle"]["preStop"]["httpGet"]["scheme"], "HTTP");
}

#[test]
fn requests_come_from_limits_in_pods_only() {
    let given = json!({"image": "a:1", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}}});
    assert_eq!(container(given.clone())["resources"]["requests"], json!({"cpu": "100m", "memory": "1Gi"}));
    let deployment = defaulted("deployment", json!({"spec": {"template": {"spec": {"containers": [given]}}}}));
    assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "100m"}));
}

#[test]
fn host_network_takes_the_ports() {
    let pod = defaulted(
        "pod",
        json!({"spec": {"hostNetwork": true, "containers": [{"image": "a", "ports": [{"containerPort": 80}, {"containerPort": 1, "hostPort": 2}]}]}}),
    );
    let ports: Vec<&Value> = pod["spec"]["containers"][0]["ports"].as_array().unwrap().iter().map(|p| &p["hostPort"]).collect();
    assert_eq!(ports, [80, 2]);
}

#[test]
fn volumes() {
    for (given, expect) in [
        (json!({"name": "v"}), json!({"name": "v", "emptyDir": {}})),
        (json!({"name": "v", "secret": {"secretName": "s"}}), json!({"name": "v", "secret": {"secretName": "s", "defaultMode": 420}})),
        (json!({"name": "v", "hostPath": {"path": "/x"}}), json!({"name": "v", "hostPath": {"path": "/x", "type": ""}})),
        (
            json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}, {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}}),
            json!({"name": "v", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}]}}]}}),
        ),
    ] {
        assert_eq!(defaulted("pod", json!({"spec": {"volumes": [given]}}))["spec"]["volumes"][0], expect);
    }
}

#[test]
fn workloads() {
    let d = defaulted("deployment", json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "a:1"}]}}}}));
    assert_eq!(d["spec"]["replicas"], 1);
    assert_eq!(d["spec"]["strategy"], json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}));
    assert_eq!((&d["spec"]["revisionHistoryLimit"], &d["spec"]["progressDeadlineSeconds"]), (&json!(10), &json!(600)));
    assert_eq!(d["spec"]["template"]["spec"]["restartPolicy"], "Always");
    assert!(d["spec"]["template"]["spec"].get("enableServiceLinks").is_none());
    let zero = defaulted("deployment", json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}}));
    assert_eq!(zero["spec"]["replicas"], 0);
    assert_eq!(zero["spec"]["strategy"], json!({"type": "Recreate"}));
    assert_eq!(defaulted("replicaset", json!({"spec": {}}))["spec"]["replicas"], 1);
}

#[test]
fn services() {
    let s = defaulted("service", json!({"spec": {"ports": [{"port": 80}, {"port": 81, "targetPort": "web", "protocol": "UDP"}]}}));
    assert_eq!(
        s,
        json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}, {"port": 81, "targetPort": "web", "protocol": "UDP"}]},
            "status": {"loadBalancer": {}}})
    );
    let node = defaulted("service", json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP"}}));
    assert_eq!(node["spec"]["externalTrafficPolicy"], "Cluster");
    assert_eq!(node["spec"]["allocateLoadBalancerNodePorts"], true);
    assert_eq!(node["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
    let name = defaulted("service", json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}));
    assert!(name["spec"].get("internalTrafficPolicy").is_none());
}

#[test]
fn the_rest() {
    let secret = defaulted("secret", json!({"data": {"a": "Yg=="}, "stringData": {"b": "c", "a": "d"}}));
    assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "ZA==", "b": "Yw=="}}));
    let ns = defaulted("namespace", json!({"metadata": {"name": "x"}}));
    assert_eq!(ns["metadata"]["labels"]["kubernetes.io/metadata.name"], "x");
    assert_eq!(ns["status"]["phase"], "Active");
    let binding = defaulted(
        "rolebinding",
        json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]}),
    );
    assert_eq!(binding["roleRef"]["apiGroup"], "rbac.authorization.k8s.io");
    assert_eq!(binding["subjects"][0]["apiGroup"], "rbac.authorization.k8s.io");
    assert!(binding["subjects"][1].get("apiGroup").is_none());
    let limits =
        defaulted("limitrange", json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}}));
    assert_eq!(limits["spec"]["limits"][0]["default"], json!({"cpu": "2"}));
    assert_eq!(limits["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
    let node = defaulted("node", json!({"status": {"capacity": {"cpu": "2"}}}));
    assert_eq!(node["status"]["allocatable"], json!({"cpu": "2"}));
    assert_eq!(defaulted("endpointslice", json!({"ports": [{"port": 1}]}))["ports"][0], json!({"port": 1, "name": "", "protocol": "TCP"}));
    assert_eq!(defaulted("priorityclass", json!({"value": 1}))["preemptionPolicy"], "PreemptLowerPriority");
}
