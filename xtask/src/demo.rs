//! The demonstration: build, start the environment, package and deploy the example shop, ask it, say what to try.
//!
//! Everything it does it does with the binary's own verbs; a reader can type the same.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{output, root, run as cargo, target};

const SERVICES: [&str; 3] = ["catalogue", "orders", "front"];

/// `release`, unless `STAITHE_PROFILE` says `debug`: the tests have that one built already.
fn profile() -> String {
    std::env::var("STAITHE_PROFILE").unwrap_or_else(|_| "release".into())
}

fn built(name: &str) -> PathBuf {
    target().join(profile()).join(name)
}

pub fn build() -> Result<()> {
    let mut args = vec!["build", "-p", "staithe", "-p", "shop"];
    if profile() == "release" {
        println!("building staithe and the shop (a first build takes some minutes)");
        args.push("--release");
    }
    cargo("cargo", &args)
}

/// One verb of the binary; what it prints is shown. Settings are inherited as `STAITHE_*`.
fn staithe(args: &[&str]) -> Result<()> {
    let program = built("staithe");
    println!("\n$ staithe {}", args.join(" "));
    let status = Command::new(&program).args(args).status().with_context(|| format!("run {}", program.display()))?;
    if status.success() { Ok(()) } else { bail!("staithe {} failed: {status}", args.join(" ")) }
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).ok().filter(|v| !v.is_empty()).unwrap_or_else(|| default.into())
}

pub fn run() -> Result<()> {
    if output("id", &["-u"])?.trim() != "0" {
        bail!("namespaces and control groups need root: run this with sudo");
    }
    let (http, registry) = (setting("STAITHE_HTTP_PORT", "80"), setting("STAITHE_REGISTRY_PORT", "5000"));
    let data = setting("STAITHE_DATA_DIR", "/var/lib/staithe");
    staithe(&["up", "--detach"])?;

    let work = target().join("demo");
    std::fs::create_dir_all(&work)?;
    for service in SERVICES {
        let tar = work.join(format!("{service}.tar"));
        pack(&built(service), &tar)?;
        let tar = tar.display().to_string();
        let entry = format!("/{service}");
        for version in ["1", "2"] {
            let name = format!("localhost:{registry}/shop/{service}:{version}");
            staithe(&["image", "push", &name, "-f", &tar, "--entrypoint", &entry, "--env", &format!("VERSION={version}")])?;
        }
    }
    let manifest = root().join("examples/shop/manifests/shop.yaml");
    let manifest = with_registry(&manifest, &registry, &work)?;
    staithe(&["apply", "-f", &manifest.display().to_string(), "--wait"])?;

    let url = if http == "80" { "http://shop.localhost/".to_string() } else { format!("http://shop.localhost:{http}/") };
    let page = until_answered(&http, "GET", "/")?;
    if !page.contains("Storm lamp") {
        bail!("the shop answers, but not with its catalogue:\n{page}");
    }
    let order = until_answered(&http, "POST", "/order/tea")?;
    println!("\nThe shop is open at {url}");
    println!("  its first order: {}", order.lines().last().unwrap_or_default());
    println!(
        "
What to try next (as root):
  curl {url}                                                    ask it, again and again: two instances answer
  staithe get pods -n shop -o wide                              what runs, and where
  staithe scale deployment/front --replicas 4 -n shop           more instances
  curl {url}crash; staithe get pods -n shop -w                  break one and watch it come back
  kubectl -n shop set image deployment/front front=localhost:{registry}/shop/front:2
  staithe rollout status deployment/front -n shop               a new version, instance by instance
  staithe rollout undo deployment/front -n shop                 and back
  staithe logs -n shop -l app=orders -f                         what the orders say
  staithe down                                                  stop everything (--purge removes the data)

kubectl works as it is:  export KUBECONFIG={data}/pki/admin.kubeconfig"
    );
    Ok(())
}

/// A root filesystem of one program and the shared libraries it names, as an uncompressed tar.
fn pack(program: &Path, tar: &Path) -> Result<()> {
    let name = program.file_name().and_then(|n| n.to_str()).context("a program has a name")?;
    let mut files: Vec<(PathBuf, String)> = vec![(program.to_path_buf(), format!("/{name}"))];
    for line in output("ldd", &[&program.display().to_string()])?.lines() {
        // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`
        let path = line.split("=>").last().unwrap_or_default().split_whitespace().next().unwrap_or_default();
        if path.starts_with('/') {
            files.push((PathBuf::from(path), path.to_string()));
        }
    }
    let mut builder = tar::Builder::new(std::fs::File::create(tar)?);
    let header = |path: &str, mode: u32, size: u64, kind: tar::EntryType| -> Result<tar::Header> {
        let mut header = tar::Header::new_gnu();
        header.set_path(path.trim_start_matches('/')).with_context(|| path.to_string())?;
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_entry_type(kind);
        header.set_cksum();
        Ok(header)
    };
    let mut append = |path: &str, mode: u32, bytes: &[u8]| -> Result<()> {
        Ok(builder.append(&header(path, mode, bytes.len() as u64, tar::EntryType::Regular)?, bytes)?)
    };
    for (from, to) in &files {
        append(to, 0o755, &std::fs::read(from).with_context(|| from.display().to_string())?)?;
    }
    append("/etc/nsswitch.conf", 0o644, b"hosts: files dns\n")?;
    append("/etc/passwd", 0o644, b"root:x:0:0:root:/:/sbin/nologin\n")?;
    builder.finish()?;
    Ok(())
}

/// The manifest with another registry port, where there is one.
fn with_registry(manifest: &Path, port: &str, work: &Path) -> Result<PathBuf> {
    if port == "5000" {
        return Ok(manifest.to_path_buf());
    }
    let text = std::fs::read_to_string(manifest)?.replace("localhost:5000/", &format!("localhost:{port}/"));
    let changed = work.join("shop.yaml");
    std::fs::write(&changed, text)?;
    Ok(changed)
}

/// One request through the router; tried again while the route is on its way there.
fn until_answered(port: &str, method: &str, path: &str) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match ask(port, method, path) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => return Ok(answer),
            Ok(answer) if Instant::now() > deadline => bail!("the shop does not answer well:\n{answer}"),
            Err(e) if Instant::now() > deadline => return Err(e),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn ask(port: &str, method: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).context("connect to the router")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: shop.localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
