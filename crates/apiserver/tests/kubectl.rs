//! The real kubectl against the server over TLS: every verb that needs no node.

mod common;

use common::{Cluster, DEPLOYMENT};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tells_what_it_is() {
    let c = Cluster::start().await;
    let out = c.kubectl(&["version"]).await;
    assert!(out.contains("Server Version: v1.33"), "{out}");
    let out = c.kubectl(&["cluster-info"]).await;
    assert!(out.contains("is running at"), "{out}");
    let out = c.kubectl(&["api-resources"]).await;
    assert!(out.contains("deployments") && out.contains("deploy") && out.contains("apps/v1"), "{out}");
    let out = c.kubectl(&["api-versions"]).await;
    assert!(out.contains("rbac.authorization.k8s.io/v1"), "{out}");
    let out = c.kubectl(&["auth", "whoami"]).await;
    assert!(out.contains("system:admin") && out.contains("system:masters"), "{out}");
    assert_eq!(c.kubectl(&["auth", "can-i", "create", "pods"]).await.trim(), "yes");
    let out = c.kubectl(&["auth", "can-i", "--list"]).await;
    assert!(out.contains("*.*"), "{out}");
    let ran = c.run(&["auth", "can-i", "create", "pods", "--as", "nobody"]).await;
    assert_eq!(ran.out.trim(), "no", "{}", ran.err);
    let out = c.kubectl(&["explain", "deployment.spec.strategy"]).await;
    assert!(out.contains("rollingUpdate") && out.contains("KIND:"), "{out}");
    let out = c.kubectl(&["explain", "pods", "--recursive"]).await;
    assert!(out.contains("terminationGracePeriodSeconds"), "{out}");
    assert_eq!(c.kubectl(&["get", "--raw", "/healthz"]).await.trim(), "ok");
    assert!(c.kubectl(&["get", "--raw", "/readyz?verbose"]).await.contains("[+]bootstrap ok"));
    assert!(c.kubectl(&["get", "--raw", "/metrics"]).await.contains("apiserver_request_total"));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applies_client_side() {
    let c = Cluster::start().await;
    assert_eq!(c.apply(DEPLOYMENT, &[]).await.trim(), "deployment.apps/web created");
    assert_eq!(c.apply(DEPLOYMENT, &[]).await.trim(), "deployment.apps/web unchanged");
    let changed = DEPLOYMENT.replace("web:1", "web:2").replace("env: [{name: A, value: \"1\"}]", "env: [{name: B, value: \"2\"}]");
    assert_eq!(c.apply(&changed, &[]).await.trim(), "deployment.apps/web configured");
    let out = c
        .kubectl(&[
            "get",
            "deploy",
            "web",
            "-o",
            "jsonpath={.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].env[*].name} {.metadata.generation}",
        ])
        .await;
    assert_eq!(out, "registry.local/web:2 B 2");
    let ran = c.run_with(&["diff", "-f", "-"], &changed.replace("replicas: 2", "replicas: 3")).await;
    assert!(ran.out.contains("+  replicas: 3"), "{}{}", ran.out, ran.err);
    let out = c.apply(&changed.replace("replicas: 2", "replicas: 5"), &["--dry-run=server"]).await;
    assert!(out.contains("configured (server dry run)"), "{out}");
    assert_eq!(c.kubectl(&["get", "deploy", "web", "-o", "jsonpath={.spec.replicas}"]).await, "2");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applies_server_side() {
    let c = Cluster::start().await;
    assert_eq!(c.apply(DEPLOYMENT, &["--server-side"]).await.trim(), "deployment.apps/web serverside-applied");
    assert_eq!(c.apply(DEPLOYMENT, &["--server-side"]).await.trim(), "deployment.apps/web serverside-applied");
    let other = DEPLOYMENT.replace("web:1", "web:2");
    let ran = c.run_with(&["apply", "--server-side", "--field-manager=other", "-f", "-"], &other).await;
    assert!(!ran.ok && ran.err.contains("conflict with \"kubectl\"") && ran.err.contains(".image"), "{}", ran.err);
    c.apply(&other, &["--server-side", "--field-manager=other", "--force-conflicts"]).await;
    let out = c.kubectl(&["get", "deploy", "web", "-o", "jsonpath={.metadata.managedFields[*].manager}"]).await;
    assert!(out.contains("kubectl") && out.contains("other"), "{out}");
    // From client-side to server-side.
    let second = DEPLOYMENT.replace("name: web\n", "name: api\n");
    c.apply(&second, &[]).await;
    c.apply(&second.replace("replicas: 2", "replicas: 4"), &["--server-side"]).await;
    let out = c.kubectl(&["get", "deploy", "api", "-o", "jsonpath={.spec.replicas} {.metadata.managedFields[*].manager}"]).await;
    assert!(out.starts_with("4 kubectl"), "{out}");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creates_what_it_has_generators_for() {
    let c = Cluster::start().await;
    for (args, expect) in [
        (&["create", "ns", "shop"][..], "namespace/shop created"),
        (&["create", "deployment", "d", "--image=x:1", "--replicas=3", "--port=80"], "deployment.apps/d created"),
        (&["create", "configmap", "cm", "--from-literal=a=1", "--from-literal=b=two"], "configmap/cm created"),
        (&["create", "secret", "generic", "s", "--from-literal=k=v"], "secret/s created"),
        (
            &["create", "secret", "docker-registry", "reg", "--docker-server=h", "--docker-username=u", "--docker-password=p"],
            "secret/reg created",
        ),
        (&["create", "sa", "robot"], "serviceaccount/robot created"),
        (&["create", "service", "clusterip", "svc", "--tcp=80:8080"], "service/svc created"),
        (&["create", "service", "nodeport", "np", "--tcp=80:8080"], "service/np created"),
        (&["create", "service", "externalname", "en", "--external-name=example.com"], "service/en created"),
        (&["create", "role", "r", "--verb=get,list", "--resource=pods"], "role.rbac.authorization.k8s.io/r created"),
        (
            &["create", "rolebinding", "rb", "--role=r", "--serviceaccount=default:robot"],
            "rolebinding.rbac.authorization.k8s.io/rb created",
        ),
        (&["create", "clusterrole", "cr", "--verb=get", "--resource=nodes"], "clusterrole.rbac.authorization.k8s.io/cr created"),
        (
            &["create", "clusterrolebinding", "crb", "--clusterrole=cr", "--user=ann"],
            "clusterrolebinding.rbac.authorization.k8s.io/crb created",
        ),
        (&["create", "ingress", "ing", "--rule=a.example/x*=svc:80"], "ingress.networking.k8s.io/ing created"),
        (&["create", "priorityclass", "high", "--value=1000"], "priorityclass.scheduling.k8s.io/high created"),
        (&["create", "quota", "q", "--hard=pods=3"], "resourcequota/q created"),
        (&["run", "p", "--image=x:1", "--labels=a=b"], "pod/p created"),
    ] {
        assert_eq!(c.kubectl(args).await.trim(), expect, "{args:?}");
    }
    let token = c.kubectl(&["create", "token", "robot"]).await;
    let ran = c
        .run(&[
            "auth",
            "whoami",
            "--token",
            token.trim(),
            "--kubeconfig",
            "/dev/null",
            "--server",
            &format!("https://{}", c.address),
            "--insecure-skip-tls-verify",
        ])
        .await;
    assert!(ran.out.contains("system:serviceaccount:default:robot"), "{}{}", ran.out, ran.err);
    let out = c.kubectl(&["auth", "can-i", "list", "pods", "--as", "system:serviceaccount:default:robot"]).await;
    assert_eq!(out.trim(), "yes");
    let out = c.kubectl(&["get", "ing", "ing", "-o", "jsonpath={.spec.ingressClassName}"]).await;
    assert_eq!(out, "staithe");
    let out = c.kubectl(&["get", "pod", "p", "-o", "jsonpath={.status.phase} {.spec.serviceAccountName} {.spec.volumes[0].projected.sources[*].serviceAccountToken.path} {.status.qosClass}"]).await;
    assert_eq!(out, "Pending default token BestEffort");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gets_in_every_form() {
    let c = Cluster::start().await;
    c.apply(DEPLOYMENT, &[]).await;
    c.kubectl(&["create", "deployment", "other", "--image=x:1"]).await;
    let out = c.kubectl(&["get", "deploy"]).await;
    assert!(out.starts_with("NAME") && out.contains("READY") && out.contains("web") && out.contains("0/2"), "{out}");
    let out = c.kubectl(&["get", "deploy", "-o", "wide"]).await;
    assert!(out.contains("IMAGES") && out.contains("registry.local/web:1"), "{out}");
    let out = c.kubectl(&["get", "deploy", "-l", "app=web", "-o", "name"]).await;
    assert_eq!(out.trim(), "deployment.apps/web");
    let out = c.kubectl(&["get", "deploy", "--field-selector", "metadata.name!=web", "-o", "name"]).await;
    assert_eq!(out.trim(), "deployment.apps/other");
    assert!(c.kubectl(&["get", "deploy", "web", "-o", "yaml"]).await.contains("image: registry.local/web:1"));
    assert!(c.kubectl(&["get", "deploy", "web", "-o", "json"]).await.contains("\"kind\": \"Deployment\""));
    assert!(c.kubectl(&["get", "deploy", "web", "-o", "yaml", "--show-managed-fields"]).await.contains("f:replicas"));
    assert!(c.kubectl(&["get", "all", "-A"]).await.contains("service/kubernetes"));
    assert!(c.kubectl(&["get", "deploy", "--chunk-size=1", "--no-headers"]).await.lines().count() == 2);
    let out = c.kubectl(&["get", "deploy", "--sort-by=.metadata.name", "-o", "custom-columns=N:.metadata.name"]).await;
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["N", "other", "web"]);
    let out = c.kubectl(&["describe", "deploy", "web"]).await;
    assert!(out.contains("Replicas:") && out.contains("registry.local/web:1"), "{out}");
    assert!(c.kubectl(&["describe", "ns", "default"]).await.contains("Active"));
    assert!(c.kubectl(&["describe", "svc", "kubernetes"]).await.contains("10.43.0.1"));
    let ran = c.run(&["get", "deploy", "nope"]).await;
    assert_eq!(ran.err.trim(), r#"Error from server (NotFound): deployments.apps "nope" not found"#);
    let ran = c.run(&["get", "unicorns"]).await;
    assert!(ran.err.contains("the server doesn't have a resource type \"unicorns\""), "{}", ran.err);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_objects() {
    let c = Cluster::start().await;
    c.apply(DEPLOYMENT, &[]).await;
    let get = |path: &'static str| {
        let c = &c;
        async move { c.kubectl(&["get", "deploy", "web", "-o", &format!("jsonpath={{{path}}}")]).await }
    };
    c.kubectl(&["scale", "deploy", "web", "--replicas=5"]).await;
    assert_eq!(get(".spec.replicas").await, "5");
    let ran = c.run(&["scale", "deploy", "web", "--replicas=2", "--current-replicas=3"]).await;
    assert!(!ran.ok && ran.err.contains("Expected replicas to be 3, was 5"), "{}", ran.err);
    c.kubectl(&["label", "deploy", "web", "tier=front"]).await;
    let ran = c.run(&["label", "deploy", "web", "tier=back"]).await;
    assert!(!ran.ok && ran.err.contains("--overwrite is false"), "{}", ran.err);
    c.kubectl(&["label", "deploy", "web", "tier-"]).await;
    c.kubectl(&["annotate", "deploy", "web", "note=hello"]).await;
    assert_eq!(get(".metadata.annotations.note").await, "hello");
    c.kubectl(&["set", "image", "deploy/web", "web=registry.local/web:3"]).await;
    assert_eq!(get(".spec.template.spec.containers[0].image").await, "registry.local/web:3");
    c.kubectl(&["set", "env", "deploy/web", "C=3", "A-"]).await;
    assert_eq!(get(".spec.template.spec.containers[0].env[*].name").await, "C");
    c.kubectl(&["set", "resources", "deploy/web", "--limits=cpu=200m,memory=512Mi"]).await;
    assert_eq!(get(".spec.template.spec.containers[0].resources.limits.cpu").await, "200m");
    c.kubectl(&["rollout", "pause", "deploy/web"]).await;
    assert_eq!(get(".spec.paused").await, "true");
    c.kubectl(&["rollout", "resume", "deploy/web"]).await;
    assert_eq!(get(".spec.paused").await, "");
    c.kubectl(&["rollout", "restart", "deploy/web"]).await;
    assert!(!get(".spec.template.metadata.annotations.kubectl\\.kubernetes\\.io/restartedAt").await.is_empty());
    c.kubectl(&["patch", "deploy", "web", "-p", r#"{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"s:1"}]}}}}"#]).await;
    assert_eq!(get(".spec.template.spec.containers[*].name").await, "side web");
    c.kubectl(&["patch", "deploy", "web", "--type=json", "-p", r#"[{"op":"remove","path":"/spec/template/spec/containers/0"}]"#]).await;
    assert_eq!(get(".spec.template.spec.containers[*].name").await, "web");
    c.kubectl(&["patch", "deploy", "web", "--type=merge", "-p", r#"{"spec":{"minReadySeconds":7}}"#]).await;
    assert_eq!(get(".spec.minReadySeconds").await, "7");
    let out = c.kubectl(&["expose", "deploy", "web", "--port=80", "--target-port=http"]).await;
    assert_eq!(out.trim(), "service/web exposed");
    let editor = c.dir.path().join("editor.sh");
    std::fs::write(&editor, "#!/bin/sh\nsed -i 's/minReadySeconds: 7/minReadySeconds: 9/' \"$1\"\n").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut edit = c.command(&["edit", "deploy", "web"]);
    edit.env("KUBE_EDITOR", &editor);
    Cluster::ok(c.finish(edit, None).await);
    assert_eq!(get(".spec.minReadySeconds").await, "9");
    let yaml = c.kubectl(&["get", "deploy", "web", "-o", "yaml"]).await;
    let out = Cluster::ok(c.run_with(&["replace", "-f", "-"], &yaml.replace("minReadySeconds: 9", "minReadySeconds: 4")).await);
    assert_eq!(out.trim(), "deployment.apps/web replaced");
    let ran = c.run_with(&["replace", "-f", "-"], &yaml).await;
    assert!(!ran.ok && ran.err.contains("the object has been modified"), "{}", ran.err);
    let out = Cluster::ok(c.run_with(&["replace", "--force", "-f", "-"], DEPLOYMENT).await);
    assert!(out.contains("replaced"), "{out}");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_and_waits() {
    let c = Cluster::start().await;
    c.apply(DEPLOYMENT, &[]).await;
    assert_eq!(c.kubectl(&["delete", "deploy", "web"]).await.trim(), "deployment.apps \"web\" deleted");
    for name in ["a", "b", "c"] {
        c.kubectl(&["create", "cm", name]).await;
        c.kubectl(&["label", "cm", name, "batch=1"]).await;
    }
    let out = c.kubectl(&["delete", "cm", "-l", "batch=1"]).await;
    assert_eq!(out.lines().count(), 3, "{out}");
    c.kubectl(&["run", "p", "--image=x:1"]).await;
    c.kubectl(&["delete", "pod", "p", "--now"]).await;
    let ran = c.run(&["delete", "ns", "default"]).await;
    assert!(ran.err.contains("this namespace may not be deleted"), "{}", ran.err);
    c.kubectl(&["create", "ns", "gone"]).await;
    c.kubectl(&["delete", "ns", "gone", "--wait=false"]).await;
    assert_eq!(c.kubectl(&["get", "ns", "gone", "-o", "jsonpath={.status.phase}"]).await, "Terminating");
    let ran = c.run(&["create", "cm", "late", "-n", "gone"]).await;
    assert!(ran.err.contains("because it is being terminated"), "{}", ran.err);
    let finalized = r#"{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"gone"},"spec":{"finalizers":[]}}"#;
    Cluster::ok(c.run_with(&["replace", "--raw", "/api/v1/namespaces/gone/finalize", "-f", "-"], finalized).await);
    c.kubectl(&["wait", "ns/gone", "--for=delete", "--timeout=10s"]).await;
    c.kubectl(&["create", "deployment", "w", "--image=x"]).await;
    let waiting = tokio::spawn({
        let mut command = c.command(&["wait", "deploy/w", "--for=jsonpath={.spec.replicas}=4", "--timeout=30s"]);
        async move { command.output().await.unwrap() }
    });
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    c.kubectl(&["scale", "deploy/w", "--replicas=4"]).await;
    let done = waiting.await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let c = Cluster::start().await;
    c.kubectl(&["create", "cm", "before"]).await;
    let mut child = c.command(&["get", "cm", "-w", "--no-headers"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(std::time::Duration::from_secs(20), lines.next_line()).await.expect("a line").unwrap().unwrap();
        line.split_whitespace().next().unwrap().to_string()
    };
    assert_eq!(next().await, "before");
    c.kubectl(&["create", "cm", "after"]).await;
    assert_eq!(next().await, "after");
    c.kubectl(&["label", "cm", "after", "a=b"]).await;
    assert_eq!(next().await, "after");
    child.kill().await.unwrap();
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tells_what_is_wrong() {
    let c = Cluster::start().await;
    let bad = DEPLOYMENT.replace("replicas: 2", "replicaz: 2");
    let ran = c.run_with(&["apply", "-f", "-"], &bad).await;
    assert!(!ran.ok && ran.err.contains(r#"unknown field "spec.replicaz""#), "{}", ran.err);
    let ran = c.run_with(&["apply", "--validate=warn", "-f", "-"], &bad).await;
    assert!(ran.ok && ran.err.contains(r#"Warning: unknown field "spec.replicaz""#), "{}", ran.err);
    let ran = c.run_with(&["apply", "-f", "-"], &DEPLOYMENT.replace("replicas: 2", "replicas: two")).await;
    assert!(!ran.ok && ran.err.contains("spec.replicas"), "{}", ran.err);
    let ran = c.run_with(&["apply", "-f", "-"], &DEPLOYMENT.replace("matchLabels: {app: web}", "matchLabels: {app: other}")).await;
    assert!(!ran.ok && ran.err.contains("`selector` does not match template `labels`"), "{}", ran.err);
    let ran = c.run_with(&["apply", "-f", "-"], &DEPLOYMENT.replace("name: web\n  labels", "name: Web_1\n  labels")).await;
    assert!(!ran.ok && ran.err.contains("metadata.name: Invalid value"), "{}", ran.err);
    let ran = c.run(&["create", "cm", "x", "-n", "nowhere"]).await;
    assert!(ran.err.contains(r#"namespaces "nowhere" not found"#), "{}", ran.err);
    c.kubectl(&["create", "cm", "x"]).await;
    let ran = c.run(&["create", "cm", "x"]).await;
    assert!(ran.err.contains(r#"configmaps "x" already exists"#), "{}", ran.err);
    let ran = c.run(&["get", "secrets", "--as", "ann"]).await;
    assert_eq!(
        ran.err.trim(),
        r#"Error from server (Forbidden): secrets is forbidden: User "ann" cannot list resource "secrets" in API group "" in the namespace "default""#
    );
    c.stop().await;
}
