//! The registry with real clients: skopeo, and our own pull and push.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use artifacts::images::{Images, Options};
use artifacts::import::{ImportOptions, import};
use artifacts::{Credentials, Remote};
use registry::{Access, Action, Peer, Registry};

/// Everything wants `staithe:secret`, as from another machine.
struct Password;

#[async_trait::async_trait]
impl Access for Password {
    async fn allow(&self, _: Peer, basic: Option<(&str, &str)>, _: Action, _: &str) -> Result<(), String> {
        if basic == Some(("staithe", "secret")) { Ok(()) } else { Err("a password is needed".into()) }
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    host: String,
    images: Images,
}

/// A registry on a loopback port, and a second machine's image store beside it.
async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let open =
        |name: &str| Images::open(Options { root: dir.path().join(name), remote: Remote::new(vec![], vec![]), embedded: vec![] }).unwrap();
    let (server, images) = (open("server"), open("client"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let registry = Registry::new(server.blobs.clone(), server.registry.clone(), Arc::new(Password), base::Ids::seeded(1));
    tokio::spawn(registry::serve(registry, listener, std::future::pending()));
    Fixture { dir, host, images }
}

/// A root filesystem tar with one file in it.
fn rootfs(path: &Path) {
    let mut builder = tar::Builder::new(std::fs::File::create(path).unwrap());
    let content = b"hello from a layer";
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append_data(&mut header, "etc/greeting", &content[..]).unwrap();
    builder.finish().unwrap();
}

fn password() -> Option<Credentials> {
    Some(Credentials { username: "staithe".into(), password: "secret".into() })
}

fn passwords() -> Vec<Credentials> {
    let wrong = Credentials { username: "staithe".into(), password: "old".into() };
    [Some(wrong), password()].into_iter().flatten().collect()
}

async fn skopeo(args: &[&str]) -> Result<String, String> {
    let args: Vec<String> = args.iter().map(|a| a.to_string()).collect();
    let run = move || Command::new("skopeo").args(&args).output().expect("skopeo is installed (Debian: apt-get install skopeo)");
    let out = tokio::task::spawn_blocking(run).await.unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn imported_pushed_and_pulled_by_another_machine() {
    let f = fixture().await;
    let tar = f.dir.path().join("root.tar");
    rootfs(&tar);
    let name = format!("{}/shop/orders:1", f.host);
    let options = ImportOptions { name: Some(name.clone()), cmd: vec!["/bin/true".into()], ..Default::default() };
    let (reference, digest) = import(&f.images, &tar, &options).unwrap().remove(0);

    let refused = f.images.push(&digest, &reference, None, &|_| {}).await.unwrap_err();
    assert!(refused.to_string().contains("asks for a user name and a password"), "{refused}");
    f.images.push(&digest, &reference, password(), &|_| {}).await.unwrap();

    let other = Images::open(Options { root: f.dir.path().join("other"), remote: Remote::new(vec![], vec![]), embedded: vec![] }).unwrap();
    let image = other.ensure(&name, false, false, &passwords(), &|_| {}).await.unwrap();
    assert_eq!(image.config.cmd, ["/bin/true"]);
    assert_eq!(image.digest, digest);
    assert_eq!(std::fs::read_to_string(image.layers[0].join("etc/greeting")).unwrap(), "hello from a layer");
    let wrong = other.ensure(&format!("{}/shop/none:1", f.host), false, false, &passwords()[..1], &|_| {}).await.unwrap_err();
    assert!(wrong.to_string().contains("access denied: UNAUTHORIZED: a password is needed"), "{wrong}");
    let missing = other.ensure(&format!("{}/shop/none:1", f.host), false, false, &passwords(), &|_| {}).await.unwrap_err();
    assert!(matches!(missing, artifacts::Error::NotFound(_)), "{missing}");

    // Nothing in use, nothing named: the collection takes all of it.
    other.remove(&name).unwrap();
    assert!(other.collect(&Default::default(), u64::MAX, std::time::Duration::ZERO).unwrap() > 0);
    assert!(other.blobs.list().unwrap().is_empty() && other.layers.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pushes_copies_lists_and_deletes() {
    let f = fixture().await;
    let tar = f.dir.path().join("root.tar");
    rootfs(&tar);
    let options = ImportOptions { name: Some(format!("{}/a/b:1", f.host)), ..Default::default() };
    let (reference, digest) = import(&f.images, &tar, &options).unwrap().remove(0);
    f.images.push(&digest, &reference, password(), &|_| {}).await.unwrap();

    let url = |name: &str| format!("docker://{}/{name}", f.host);
    let layout = format!("oci:{}:x", f.dir.path().join("layout").display());
    skopeo(&["copy", "--src-tls-verify=false", "--src-creds=staithe:secret", &url("a/b:1"), &layout]).await.unwrap();
    let denied = skopeo(&["copy", "--dest-tls-verify=false", &layout, &url("c/d:2")]).await.unwrap_err();
    assert!(denied.contains("unauthorized") || denied.contains("authentication required"), "{denied}");
    skopeo(&["copy", "--dest-tls-verify=false", "--dest-creds=staithe:secret", &layout, &url("c/d:2")]).await.unwrap();
    let archive = format!("docker-archive:{}:c/d:2", f.dir.path().join("saved.tar").display());
    skopeo(&["copy", "--src-tls-verify=false", "--src-creds=staithe:secret", &url("c/d:2"), &archive]).await.unwrap();
    let tags = skopeo(&["list-tags", "--tls-verify=false", "--creds=staithe:secret", &url("c/d")]).await.unwrap();
    assert!(tags.contains("\"2\""), "{tags}");

    // Both file forms that skopeo wrote can be imported.
    for (path, name) in [("layout", Some("localhost/again:1".to_string())), ("saved.tar", None)] {
        let (reference, _) = import(&f.images, &f.dir.path().join(path), &ImportOptions { name, ..Default::default() }).unwrap().remove(0);
        let image = f.images.ensure(&reference.to_string(), false, true, &[], &|_| {}).await.unwrap();
        assert_eq!(std::fs::read_to_string(image.layers[0].join("etc/greeting")).unwrap(), "hello from a layer");
    }
    skopeo(&["delete", "--tls-verify=false", "--creds=staithe:secret", &url("c/d:2")]).await.unwrap();
    let gone = skopeo(&["inspect", "--tls-verify=false", "--creds=staithe:secret", &url("c/d:2")]).await.unwrap_err();
    assert!(gone.contains("unknown") || gone.contains("not found") || gone.contains("not in this"), "{gone}");
}

/// Raw HTTP, to hold the parts of distribution-spec that no client of ours uses.
async fn raw(host: &str, request: String) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_come_in_order_and_ranges_are_served() {
    let f = fixture().await;
    let auth = "authorization: Basic c3RhaXRoZTpzZWNyZXQ=\r\nconnection: close\r\nhost: x\r\n";
    let start = raw(&f.host, format!("POST /v2/a/blobs/uploads/ HTTP/1.1\r\n{auth}content-length: 0\r\n\r\n")).await;
    assert!(start.starts_with("HTTP/1.1 202"), "{start}");
    let location = start.lines().find_map(|l| l.strip_prefix("location: ")).unwrap().trim().to_string();

    let chunk = |from: usize, text: &str| {
        let range = format!("{from}-{}", from + text.len() - 1);
        format!("PATCH {location} HTTP/1.1\r\n{auth}content-range: {range}\r\ncontent-length: {}\r\n\r\n{text}", text.len())
    };
    assert!(raw(&f.host, chunk(0, "hello ")).await.starts_with("HTTP/1.1 202"));
    let early = raw(&f.host, chunk(9, "x")).await;
    assert!(early.starts_with("HTTP/1.1 416") && early.contains("range: 0-5"), "{early}");
    assert!(raw(&f.host, chunk(6, "world")).await.starts_with("HTTP/1.1 202"));

    let digest = artifacts::Digest::of(b"hello world");
    let wrong = artifacts::Digest::of(b"other");
    let put = |d: &artifacts::Digest| format!("PUT {location}?digest={d} HTTP/1.1\r\n{auth}content-length: 0\r\n\r\n");
    assert!(raw(&f.host, put(&digest)).await.starts_with("HTTP/1.1 201"));
    assert!(raw(&f.host, put(&wrong)).await.starts_with("HTTP/1.1 404"));

    let part = raw(&f.host, format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\n{auth}range: bytes=6-\r\n\r\n")).await;
    assert!(part.starts_with("HTTP/1.1 206") && part.ends_with("world"), "{part}");
    let lying = format!(r#"{{"schemaVersion":2,"config":{{"digest":"{wrong}","size":1}},"layers":[]}}"#);
    let put = raw(&f.host, format!("PUT /v2/a/manifests/1 HTTP/1.1\r\n{auth}content-length: {}\r\n\r\n{lying}", lying.len())).await;
    assert!(put.starts_with("HTTP/1.1 404") && put.contains("MANIFEST_BLOB_UNKNOWN"), "{put}");
    for path in ["/v2/../etc/manifests/x", "/v2/A/manifests/x", "/v2/a/blobs/sha256:zz", "/v2/a/manifests/..%2f"] {
        let answer = raw(&f.host, format!("GET {path} HTTP/1.1\r\n{auth}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
    }
}
