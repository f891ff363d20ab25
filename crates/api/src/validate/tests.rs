use serde_json::{Value, json};

use super::*;
use crate::table;

/// An object of a kind, defaulted, with a name.
fn object(kind: &str, mut rest: Value) -> Value {
    let row = table::find(kind).unwrap();
    if rest["metadata"]["name"].is_null() {
        rest["metadata"]["name"] = json!("x");
    }
    (row.hooks.default)(&mut rest);
    rest
}

/// `field: message` of every cause.
fn causes(kind: &str, new: &Value, old: Option<&Value>) -> Vec<String> {
    let row = table::find(kind).unwrap();
    (row.hooks.validate)(new, old).iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
}

fn expect(kind: &str, rest: Value, wanted: &[&str]) {
    assert_eq!(causes(kind, &object(kind, rest.clone()), None), wanted, "{kind} {rest}");
}

/// Laid over the first, field by field; lists are replaced.
fn with(base: &Value, patch: Value) -> Value {
    crate::patch::merge(base, &patch).unwrap()
}

fn expect_update(kind: &str, base: &Value, patch: Value, wanted: &[&str]) {
    let old = object(kind, base.clone());
    let new = with(&old, patch.clone());
    assert_eq!(causes(kind, &new, Some(&old)), wanted, "{kind} {patch}");
}

fn pod_with(container: Value, spec: Value) -> Value {
    let mut one = json!({"name": "c", "image": "i:1"});
    one.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    one.as_object_mut().unwrap().retain(|_, v| !v.is_null());
    let mut pod = json!({"spec": {"containers": [one]}});
    pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    pod
}

/// What is wrong with a container, below `spec.containers[0].`.
fn container(given: Value, wanted: &[&str]) {
    let wanted: Vec<String> = wanted.iter().map(|w| format!("spec.containers[0].{w}")).collect();
    expect("pod", pod_with(given, json!({})), &wanted.iter().map(String::as_str).collect::<Vec<_>>());
}

/// What is wrong with a pod spec around one good container, below `spec.`.
fn pod_spec(given: Value, wanted: &[&str]) {
    let wanted: Vec<String> = wanted.iter().map(|w| format!("spec.{w}")).collect();
    expect("pod", pod_with(json!({}), given), &wanted.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn metadata() {
    let meta = |m: Value, wanted: &[&str]| expect("configmap", json!({"metadata": m}), wanted);
    meta(json!({"name": "a.b-c", "labels": {"a.b/c": "D_e"}, "annotations": {"A/B": "any thing"}, "finalizers": ["a/b"]}), &[]);
    let bad = causes("configmap", &json!({"metadata": {"name": "A_b", "labels": {"a b": "c d"}}}), None);
    assert_eq!(bad.len(), 3, "{bad:?}");
    assert!(bad[0].starts_with("metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must consist of"), "{}", bad[0]);
    assert!(bad[1].starts_with("metadata.labels: Invalid value: \"a b\": name part must consist of"), "{}", bad[1]);
    assert!(bad[2].starts_with("metadata.labels: Invalid value: \"c d\": a valid label must be an empty string or"), "{}", bad[2]);
    assert_eq!(
        causes("configmap", &json!({"metadata": {"generateName": "web-"}}), None),
        ["metadata.name: Required value: name or generateName is required"]
    );
    meta(
        json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p"}]}),
        &["metadata.ownerReferences.uid: Invalid value: \"\": uid must not be empty"],
    );
    let owner = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": "u", "controller": true});
    let two = causes("configmap", &json!({"metadata": {"name": "x", "ownerReferences": [owner("a"), owner("b")]}}), None);
    assert!(
        two[0].ends_with("Only one reference can have Controller set to true. Found \"true\" in references for Pod/a and Pod/b"),
        "{two:?}"
    );
    meta(json!({"annotations": {"a": "x".repeat(262_144)}}), &["metadata.annotations: Too long: may not be more than 262144 bytes"]);
    let kinds = causes("service", &object("service", json!({"metadata": {"name": "1a"}, "spec": {"ports": [{"port": 80}]}})), None);
    assert!(kinds[0].starts_with("metadata.name: Invalid value: \"1a\": a DNS-1035 label must consist of"), "{kinds:?}");
}

#[test]
fn good_pods_pass() {
    let probe = json!({"httpGet": {"port": "http"}, "successThreshold": 1});
    let pod = pod_with(
        json!({"ports": [{"containerPort": 80, "name": "http"}], "env": [{"name": "A", "value": "1"},
            {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            "envFrom": [{"configMapRef": {"name": "c"}}], "livenessProbe": probe, "lifecycle": {"preStop": {"exec": {"command": ["x"]}}},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}], "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1", "memory": "1Gi"}},
            "securityContext": {"runAsUser": 1000, "allowPrivilegeEscalation": false, "seccompProfile": {"type": "RuntimeDefault"}}}),
        json!({"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "w", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}]}}],
            "initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always", "startupProbe": probe}],
            "tolerations": [{"operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoExecute", "tolerationSeconds": 3}],
            "nodeSelector": {"disk": "ssd"}, "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a.b"]}],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]}),
    );
    expect("pod", pod, &[]);
}

#[test]
fn containers() {
    container(json!({"image": null}), &["image: Required value"]);
    container(json!({"image": " i"}), &["image: Invalid value: \" i\": must not have leading or trailing whitespace"]);
    container(json!({"name": ""}), &["name: Required value"]);
    container(
        json!({"imagePullPolicy": "Sometimes"}),
        &["imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\""],
    );
    container(json!({"restartPolicy": "Always"}), &["restartPolicy: Forbidden: may not be set for non-init containers"]);
    container(
        json!({"ports": [{"containerPort": 70000}]}),
        &["ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"],
    );
    container(json!({"ports": [{}]}), &["ports[0].containerPort: Required value"]);
    container(
        json!({"ports": [{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}]}),
        &["ports[1].name: Duplicate value: \"a\""],
    );
    container(
        json!({"ports": [{"containerPort": 1, "protocol": "tcp"}]}),
        &["ports[0].protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\""],
    );
    container(
        json!({"ports": [{"containerPort": 1, "hostPort": 5}, {"containerPort": 2, "hostPort": 5}]}),
        &["ports[1].hostPort: Duplicate value: \"TCP//5\""],
    );
    container(json!({"env": [{"value": "x"}]}), &["env[0].name: Required value"]);
    container(
        json!({"env": [{"name": "A", "valueFrom": {}}]}),
        &[
            "env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        ],
    );
    container(
        json!({"env": [{"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
        &["env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"],
    );
    container(
        json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}]}),
        &["env[0].valueFrom.secretKeyRef.key: Required value"],
    );
    container(
        json!({"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "cpu"}}}]}),
        &[
            "env[0].valueFrom.resourceFieldRef.resource: Unsupported value: \"cpu\": supported values: \"limits.cpu\", \"limits.ephemeral-storage\", \"limits.memory\", \"requests.cpu\", \"requests.ephemeral-storage\", \"requests.memory\"",
        ],
    );
    container(json!({"envFrom": [{}]}), &["envFrom[0]: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`"]);
    container(json!({"volumeMounts": [{"name": "v", "mountPath": "/a"}]}), &["volumeMounts[0].name: Not found: \"v\""]);
}

#[test]
fn probes_and_hooks() {
    container(json!({"livenessProbe": {}}), &["livenessProbe: Required value: must specify a handler type"]);
    container(
        json!({"readinessProbe": {"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}}}),
        &["readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type"],
    );
    container(
        json!({"livenessProbe": {"exec": {"command": ["a"]}, "successThreshold": 2}}),
        &["livenessProbe.successThreshold: Invalid value: 2: must be 1"],
    );
    container(
        json!({"livenessProbe": {"httpGet": {"port": 0}}}),
        &["livenessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive"],
    );
    container(
        json!({"livenessProbe": {"exec": {}, "initialDelaySeconds": -1}}),
        &[
            "livenessProbe.exec.command: Required value",
            "livenessProbe.initialDelaySeconds: Invalid value: -1: must be greater than or equal to 0",
        ],
    );
    container(
        json!({"readinessProbe": {"grpc": {"port": 1}, "terminationGracePeriodSeconds": 5}}),
        &["readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes"],
    );
    container(json!({"lifecycle": {"preStop": {}}}), &["lifecycle.preStop: Required value: must specify a handler type"]);
    pod_spec(
        json!({"initContainers": [{"name": "i", "image": "i", "livenessProbe": {"exec": {"command": ["a"]}}}]}),
        &["initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always"],
    );
}

#[test]
fn resources() {
    container(
        json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
        &["resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"],
    );
    container(
        json!({"resources": {"limits": {"memory": "-1Mi"}}}),
        &[
            "resources.limits[memory]: Invalid value: \"-1Mi\": must be greater than or equal to 0",
            "resources.requests[memory]: Invalid value: \"-1Mi\": must be greater than or equal to 0",
        ],
    );
    container(
        json!({"resources": {"requests": {"memry": "1"}}}),
        &["resources.requests[memry]: Invalid value: \"memry\": must be a standard resource for containers"],
    );
    container(
        json!({"resources": {"requests": {"x.io/gpu": "1"}, "limits": {"x.io/gpu": "2"}}}),
        &["resources.requests: Invalid value: \"1\": must be equal to x.io/gpu limit of 2"],
    );
}

#[test]
fn pod_specs() {
    expect("pod", json!({"spec": {}}), &["spec.containers: Required value"]);
    pod_spec(json!({"initContainers": [{"name": "c", "image": "i"}]}), &["containers[0].name: Duplicate value: \"c\""]);
    pod_spec(
        json!({"restartPolicy": "Maybe"}),
        &["restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"Never\", \"OnFailure\""],
    );
    pod_spec(json!({"dnsPolicy": "None"}), &["dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"]);
    pod_spec(
        json!({"activeDeadlineSeconds": 0}),
        &["activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"],
    );
    pod_spec(
        json!({"terminationGracePeriodSeconds": -1}),
        &["terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0"],
    );
    pod_spec(
        json!({"hostAliases": [{"ip": "x"}]}),
        &["hostAliases[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"],
    );
    pod_spec(json!({"imagePullSecrets": [{}]}), &["imagePullSecrets[0].name: Required value"]);
    pod_spec(json!({"ephemeralContainers": [{"name": "e", "image": "i"}]}), &["ephemeralContainers: Forbidden: cannot be set on create"]);
    pod_spec(
        json!({"securityContext": {"runAsUser": -1}}),
        &["securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive"],
    );
    pod_spec(
        json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}}),
        &["securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost"],
    );
    let privileged = pod_with(json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}), json!({}));
    let found = causes("pod", &object("pod", privileged), None);
    assert!(found[0].ends_with("cannot set `allowPrivilegeEscalation` to false and `privileged` to true"), "{found:?}");
    pod_spec(
        json!({"tolerations": [{"key": "a", "operator": "Like"}]}),
        &["tolerations[0].operator: Unsupported value: \"Like\": supported values: \"Equal\", \"Exists\""],
    );
    pod_spec(
        json!({"tolerations": [{"value": "a"}]}),
        &[
            "tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        ],
    );
    pod_spec(
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}}),
        &["affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty"],
    );
    pod_spec(
        json!({"hostNetwork": true, "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 1, "hostPort": 2}]}]}),
        &["containers[0].ports[0].containerPort: Invalid value: 1: must match `hostPort` when `hostNetwork` is true"],
    );
}

#[test]
fn volumes() {
    let volume = |v: Value, wanted: &[&str]| pod_spec(json!({"volumes": [v]}), wanted);
    volume(json!({}), &["volumes[0].name: Required value"]);
    volume(json!({"name": "v", "secret": {}}), &["volumes[0].secret.secretName: Required value"]);
    volume(
        json!({"name": "v", "emptyDir": {}, "configMap": {"name": "c"}}),
        &["volumes[0].emptyDir: Forbidden: may not specify more than 1 volume type"],
    );
    volume(
        json!({"name": "v", "hostPath": {"path": "/a/../b"}}),
        &["volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"],
    );
    volume(
        json!({"name": "v", "configMap": {"name": "c", "defaultMode": 512}}),
        &["volumes[0].configMap.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive"],
    );
    volume(
        json!({"name": "v", "configMap": {"name": "c", "items": [{"key": "k", "path": "../x"}]}}),
        &["volumes[0].configMap.items[0].path: Invalid value: \"../x\": must not contain '..'"],
    );
    volume(
        json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 10}}]}}),
        &[
            "volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 10: may not specify a duration less than 10 minutes",
        ],
    );
    pod_spec(json!({"volumes": [{"name": "v"}, {"name": "v"}]}), &["volumes[1].name: Duplicate value: \"v\""]);
}

#[test]
fn pods_change_little() {
    let base = pod_with(json!({}), json!({"activeDeadlineSeconds": 100, "tolerations": [{"key": "a", "operator": "Exists"}]}));
    let old = object("pod", base);
    let update = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        causes("pod", &new, Some(&old))
    };
    assert!(update(&|p| p["spec"]["containers"][0]["image"] = json!("i:2")).is_empty());
    assert!(update(&|p| p["spec"]["activeDeadlineSeconds"] = json!(50)).is_empty());
    assert!(update(&|p| p["spec"]["tolerations"].as_array_mut().unwrap().push(json!({"key": "b", "operator": "Exists"}))).is_empty());
    assert!(update(&|p| p["status"]["phase"] = json!("Running")).is_empty());
    assert!(update(&|p| p["metadata"]["labels"] = json!({"a": "b"})).is_empty());
    let env = update(&|p| p["spec"]["containers"][0]["env"] = json!([{"name": "A"}]));
    assert!(
        env[0].starts_with(
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
        ),
        "{env:?}"
    );
    assert!(env[0].ends_with("\nchanged: spec.containers[0].env"), "{env:?}");
    assert_eq!(
        update(&|p| p["spec"]["activeDeadlineSeconds"] = json!(101)),
        ["spec.activeDeadlineSeconds: Invalid value: 101: must be less than or equal to previous value"]
    );
    assert_eq!(
        update(&|p| p["spec"]["tolerations"] = json!([])),
        ["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"]
    );
    assert_eq!(
        update(&|p| p["spec"]["containers"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "d", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}))),
        ["spec.containers: Forbidden: pod updates may not add or remove containers"]
    );
    assert_eq!(update(&|p| p["spec"]["containers"][0]["image"] = json!("")), ["spec.containers[0].image: Required value"]);
    let added = with(
        &old,
        json!({"spec": {"ephemeralContainers": [{"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]}}),
    );
    let found: Vec<String> = pod::ephemeral_containers(&added, &old).iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
    assert_eq!(found, ["spec.ephemeralContainers[0].name: Duplicate value: \"c\""]);
}

#[test]
fn workloads() {
    let good = json!({"spec": {"selector": {"matchLabels": {"app": "a"}}, "template": {"metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    for kind in ["deployment", "replicaset"] {
        expect(kind, good.clone(), &[]);
        expect(
            kind,
            with(&good, json!({"spec": {"replicas": -1}})),
            &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
        );
        expect(kind, with(&good, json!({"spec": {"selector": null}})), &["spec.selector: Required value"]);
        expect(
            kind,
            with(&good, json!({"spec": {"template": {"metadata": {"labels": {"app": "b"}}}}})),
            &["spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template `labels`"],
        );
        expect(
            kind,
            with(&good, json!({"spec": {"template": {"spec": {"restartPolicy": "Never"}}}})),
            &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
        );
        expect(
            kind,
            with(&good, json!({"spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}})),
            &["spec.template.spec.containers[0].image: Required value"],
        );
        let other = json!({"spec": {"selector": {"matchLabels": {"app": "b"}}, "template": {"metadata": {"labels": {"app": "b"}}}}});
        expect_update(kind, &good, other, &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"b\"}}: field is immutable"]);
    }
    let strategy = |s: Value, wanted: &[&str]| expect("deployment", with(&good, json!({"spec": {"strategy": s}})), wanted);
    strategy(
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}),
        &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"],
    );
    strategy(
        json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}),
        &["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
    );
    strategy(
        json!({"type": "Yolo"}),
        &["spec.strategy.type: Unsupported value: \"Yolo\": supported values: \"Recreate\", \"RollingUpdate\""],
    );
    strategy(
        json!({"rollingUpdate": {"maxUnavailable": "101%"}}),
        &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%"],
    );
    expect(
        "deployment",
        with(&good, json!({"spec": {"progressDeadlineSeconds": 5, "minReadySeconds": 5}})),
        &["spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds"],
    );
}

#[test]
fn services() {
    let service = |s: Value, wanted: &[&str]| expect("service", json!({"spec": s}), wanted);
    service(json!({"ports": [{"port": 80}]}), &[]);
    service(json!({}), &["spec.ports: Required value"]);
    service(json!({"clusterIP": "None"}), &[]);
    service(json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}), &["spec.ports[0].name: Required value"]);
    service(
        json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
        &["spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}"],
    );
    service(json!({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}), &["spec.ports[1].name: Duplicate value: \"a\""]);
    service(
        json!({"ports": [{"port": 0, "targetPort": 1}]}),
        &["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"],
    );
    service(
        json!({"ports": [{"port": 80, "nodePort": 30080}]}),
        &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
    );
    service(
        json!({"type": "Magic", "ports": [{"port": 80}]}),
        &["spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\""],
    );
    service(json!({"type": "ExternalName"}), &["spec.externalName: Required value"]);
    service(
        json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]}),
        &["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"],
    );
    service(
        json!({"ports": [{"port": 80}], "externalTrafficPolicy": "Local"}),
        &["spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services"],
    );
    let base = json!({"spec": {"ports": [{"port": 80}], "clusterIP": "10.43.0.5", "clusterIPs": ["10.43.0.5"]}});
    expect_update(
        "service",
        &base,
        json!({"spec": {"clusterIP": "10.43.0.6", "clusterIPs": ["10.43.0.6"]}}),
        &["spec.clusterIPs[0]: Invalid value: [\"10.43.0.6\"]: may not change once set"],
    );
    expect_update("service", &base, json!({"spec": {"ports": [{"port": 81, "targetPort": 81, "protocol": "TCP"}]}}), &[]);
}

#[test]
fn ingresses() {
    let path = |p: Value| json!({"spec": {"rules": [{"host": "a.b", "http": {"paths": [p]}}]}});
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    let at = |rest: &str| format!("spec.rules[0].http.paths[0].{rest}");
    expect("ingress", path(json!({"path": "/", "pathType": "Prefix", "backend": backend})), &[]);
    expect("ingress", path(json!({"path": "/", "backend": backend})), &[&at("pathType: Required value: pathType must be specified")]);
    expect(
        "ingress",
        path(json!({"path": "x", "pathType": "Exact", "backend": backend})),
        &[&at("path: Invalid value: \"x\": must be an absolute path")],
    );
    expect(
        "ingress",
        path(json!({"path": "/a//b", "pathType": "Prefix", "backend": backend})),
        &[&at("path: Invalid value: \"/a//b\": must not contain '//'")],
    );
    expect(
        "ingress",
        path(json!({"path": "/", "pathType": "Prefix", "backend": {}})),
        &[&at("backend: Invalid value: \"\": resource or service backend is required")],
    );
    expect(
        "ingress",
        path(json!({"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s"}}})),
        &[&at("backend: Required value: port name or number is required")],
    );
    expect(
        "ingress",
        json!({"spec": {"rules": [{"host": "1.2.3.4"}]}}),
        &["spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address"],
    );
    expect("ingress", json!({"spec": {"rules": [{"host": "*.a.b"}]}}), &[]);
    expect("ingress", json!({"spec": {}}), &["spec: Invalid value: {}: either `defaultBackend` or `rules` must be specified"]);
    expect(
        "ingressclass",
        json!({"spec": {"controller": "x"}}),
        &["spec.controller: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")"],
    );
}

#[test]
fn configuration() {
    expect("configmap", json!({"data": {"a.b": "c"}, "binaryData": {"d": "AA=="}}), &[]);
    expect(
        "configmap",
        json!({"data": {"a": "c"}, "binaryData": {"a": "AA=="}}),
        &["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"],
    );
    expect("configmap", json!({"data": {"..": "c"}}), &["data[..]: Invalid value: \"..\": must not be '..'"]);
    expect("configmap", json!({"data": {"a": "x".repeat(1_048_577)}}), &[": Too long: may not be more than 1048576 bytes"]);
    let fixed = "Forbidden: field is immutable when `immutable` is set";
    expect_update("configmap", &json!({"immutable": true, "data": {"a": "1"}}), json!({"data": {"a": "2"}}), &[&format!("data: {fixed}")]);
    expect_update("configmap", &json!({"immutable": true}), json!({"immutable": null}), &[&format!("immutable: {fixed}")]);
    expect_update("secret", &json!({"type": "Opaque"}), json!({"type": "x/y"}), &["type: Invalid value: \"x/y\": field is immutable"]);
    expect("secret", json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}), &["data[tls.key]: Required value"]);
    expect("secret", json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}), &[]);
    let broken = causes(
        "secret",
        &object("secret", json!({"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "{secret"}})),
        None,
    );
    assert!(broken[0].starts_with("data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": "), "{broken:?}");
}

#[test]
fn roles_and_bindings() {
    expect("role", json!({"metadata": {"name": "a:b"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}), &[]);
    expect(
        "role",
        json!({"rules": [{"apiGroups": [""], "resources": ["pods"]}]}),
        &["rules[0].verbs: Required value: verbs must contain at least one value"],
    );
    expect(
        "role",
        json!({"rules": [{"verbs": ["get"]}]}),
        &[
            "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
            "rules[0].resources: Required value: resource rules must supply at least one resource",
        ],
    );
    expect(
        "role",
        json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}),
        &["rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs"],
    );
    expect("clusterrole", json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}), &[]);
    let base = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]});
    expect("rolebinding", base.clone(), &[]);
    expect("clusterrolebinding", base.clone(), &["roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\""]);
    expect(
        "rolebinding",
        with(&base, json!({"subjects": [{"kind": "Robot", "name": "u"}]})),
        &["subjects[0].kind: Unsupported value: \"Robot\": supported values: \"Group\", \"ServiceAccount\", \"User\""],
    );
    let found =
        causes("rolebinding", &object("rolebinding", with(&base, json!({"roleRef": {"name": "s"}}))), Some(&object("rolebinding", base)));
    assert!(found[0].starts_with("roleRef: Invalid value: ") && found[0].ends_with(": cannot change roleRef"), "{found:?}");
}

#[test]
fn the_rest() {
    expect_update(
        "runtimeclass",
        &json!({"handler": "a"}),
        json!({"handler": "b"}),
        &["handler: Invalid value: \"b\": field is immutable"],
    );
    expect(
        "node",
        json!({"spec": {"taints": [{"key": "a", "effect": "Nope"}]}}),
        &["spec.taints[0].effect: Unsupported value: \"Nope\": supported values: \"NoExecute\", \"NoSchedule\", \"PreferNoSchedule\""],
    );
    expect_update(
        "node",
        &json!({"spec": {"podCIDR": "10.0.0.0/24"}}),
        json!({"spec": {"podCIDR": "10.0.1.0/24"}}),
        &["spec.podCIDR: Forbidden: node updates may not change podCIDR except from \"\" to valid"],
    );
    expect(
        "priorityclass",
        json!({"value": 2_000_000_000}),
        &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
    );
    expect_update("priorityclass", &json!({"value": 1}), json!({"value": 2}), &["value: Forbidden: may not be changed in an update."]);
    expect("lease", json!({"spec": {"leaseDurationSeconds": 0}}), &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"]);
    expect(
        "limitrange",
        json!({"spec": {"limits": [{"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}}]}}),
        &[
            "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            "spec.limits[0].default[cpu]: Invalid value: \"1\": min value 2 is greater than default value 1",
            "spec.limits[0].defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request value 1",
        ],
    );
    expect("endpointslice", json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}), &[]);
    expect(
        "endpointslice",
        json!({"addressType": "IPv4", "endpoints": [{"addresses": ["::1"]}]}),
        &["endpoints[0].addresses[0]: Invalid value: \"::1\": must be a valid IPv4 address"],
    );
    expect(
        "endpoints",
        json!({"subsets": [{"ports": [{"port": 80}]}]}),
        &["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"],
    );
    let event = json!({"metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"namespace": "b"}});
    expect("events", event, &["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"]);
    let node_event = json!({"metadata": {"name": "e", "namespace": "default"}, "involvedObject": {"kind": "Node", "name": "n"}});
    expect("events", node_event, &[]);
}

/// Whatever a client sends, validation answers and does not fall over.
#[test]
fn odd_values_are_no_accident() {
    let odd = [json!(null), json!(1), json!("x"), json!([]), json!([1, "a", null, {}]), json!({}), json!({"a": []})];
    for row in table::all() {
        let Some(schema) = crate::schema::for_kind(row.group, row.version, row.kind) else { continue };
        for field in schema.fields.keys() {
            for v in &odd {
                let inner = json!({"metadata": {"name": "x"}, *field: v});
                (row.hooks.validate)(&inner, None);
                (row.hooks.validate)(&inner, Some(&json!({})));
                (row.hooks.default)(&mut inner.clone());
                (row.hooks.cells)(&inner, jiff::Timestamp::UNIX_EPOCH);
                (row.hooks.fields)(&inner);
                let below =
                    crate::schema::for_kind(row.group, row.version, row.kind).and_then(|s| s.at(&[field])).and_then(|f| f.ty.object());
                for name in below.into_iter().flat_map(|s| s.fields.keys()) {
                    let nested = json!({"metadata": {"name": "x"}, *field: {*name: v}});
                    (row.hooks.validate)(&nested, None);
                    (row.hooks.default)(&mut nested.clone());
                    (row.hooks.cells)(&nested, jiff::Timestamp::UNIX_EPOCH);
                }
            }
        }
    }
}
