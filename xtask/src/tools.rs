//! What the tests need beyond the toolchain, installed by name from Debian.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{guest, output, which};

/// (program that shows it is there, Debian package)
const DEBIAN: &[(&str, &str)] = &[
    ("skopeo", "skopeo"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("busybox", "busybox-static"),
    ("curl", "curl"),
    ("unshare", "util-linux"),
];

const GUEST: &[(&str, &str)] = &[("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("qemu-system-x86_64", "qemu-system-x86")];

pub fn install() -> Result<()> {
    debian(DEBIAN)
}

/// Also what only the emulated machine needs.
pub fn install_guest() -> Result<()> {
    debian(DEBIAN)?;
    debian(GUEST)?;
    guest::install()
}

fn debian(wanted: &[(&'static str, &'static str)]) -> Result<()> {
    let missing: Vec<&str> = wanted.iter().filter(|(program, _)| which(program).is_none()).map(|(_, package)| *package).collect();
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
    apt(&install)
}
