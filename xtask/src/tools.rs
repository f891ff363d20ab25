//! What the tests need beyond the toolchain, installed by name from Debian, PyPI and the Go module proxy.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{guest, output, run, target, which};

/// (program that shows it is there, Debian package)
const DEBIAN: &[(&str, &str)] = &[
    ("skopeo", "skopeo"),
    ("buildah", "buildah"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("mmdebstrap", "mmdebstrap"),
    ("busybox", "busybox-static"),
    ("etcd", "etcd-server"),
    ("redis-cli", "redis-tools"),
    ("psql", "postgresql-client"),
    ("dig", "bind9-dnsutils"),
    ("curl", "curl"),
    ("unshare", "util-linux"),
    ("mke2fs", "e2fsprogs"),
    ("qemu-system-x86_64", "qemu-system-x86"),
];

const HELM: &str = "helm.sh/helm/v3/cmd/helm@v3.18.6";
const KUBERNETES_CLIENT: &str = "kubernetes==32.0.1";

pub fn install() -> Result<()> {
    debian()?;
    let bin = target().join("tools/bin");
    std::fs::create_dir_all(&bin)?;
    if which("helm").is_none() && !bin.join("helm").exists() {
        println!("installing helm by `go install {HELM}`");
        let status = Command::new("go").args(["install", HELM]).env("GOBIN", &bin).env("GOFLAGS", "-mod=mod").status();
        if !status.context("run go")?.success() {
            bail!("go install {HELM} failed");
        }
    }
    let venv = target().join("tools/python");
    if !venv.join("bin/python").exists() {
        println!("installing the Python client {KUBERNETES_CLIENT}");
        let venv = venv.display().to_string();
        run("python3", &["-m", "venv", &venv])?;
        run(&format!("{venv}/bin/pip"), &["install", "--quiet", KUBERNETES_CLIENT])?;
    }
    guest::install()
}

fn debian() -> Result<()> {
    let missing: Vec<&str> = DEBIAN.iter().filter(|(program, _)| which(program).is_none()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing from Debian: {}", missing.join(" "));
    if output("id", &["-u"])?.trim() != "0" {
        bail!("the tests need root, and these packages: apt-get install {}", missing.join(" "));
    }
    let apt = |args: &[&str]| -> Result<()> {
        let status =
            Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(std::process::Stdio::null()).status();
        if status.context("run apt-get")?.success() { Ok(()) } else { bail!("apt-get {} failed", args.join(" ")) }
    };
    apt(&["update", "-qq"])?;
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(missing);
    apt(&install)?;
    // Packages of servers start them; the tests start their own.
    Ok(())
}
