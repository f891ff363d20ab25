//! The guest of the tests: a small Debian with systemd and version 2 of control groups, as a kernel, an initrd and a root
//! disk in `target/tools/guest`. It knows nothing of what will run in it: its agent executes the lines that come over a
//! virtio port and answers with what they print.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{run, target};

/// What the guest has beyond Debian's minimal set: a kernel, systemd, and what tests look at the machine with. Busybox is
/// what the tests' containers are made of.
const PACKAGES: &[&str] = &["systemd-sysv", "udev", "dbus", "iproute2", "nftables", "curl", "procps", "busybox-static"];

/// The kernel's package, by the distribution's name in `/etc/os-release`.
const KERNELS: &[(&str, &str)] = &[("debian", "linux-image-cloud-amd64"), ("ubuntu", "linux-image-virtual")];

/// All that the initrd needs to find its disk, and the agent's port early: it boots in half the time of the general one.
const MODULES: &str = "virtio_pci\nvirtio_blk\nvirtio_console\next4\n";

/// Its own small shell, not busybox: a static busybox of glibc aborts where there is no `/proc` yet.
const INITRD: &str = "MODULES=list\nBUSYBOX=n\nRESUME=none\n";

/// Units that only cost time in a guest that lives for a minute.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
];

/// A line is a word that names the answer, and a command; the answer's last line is that word after a control character,
/// and the exit code.
const AGENT: &str = r#"#!/bin/sh
exec 3<>"$(echo /dev/vport*p1)" <&3 >&3 2>&3 3>&-
printf '\001ready 0\n'
while read -r id command; do
    sh -c "$command" </dev/null
    printf '\001%s %s\n' "$id" "$?"
done
"#;

const UNIT: &str = "[Service]\nExecStart=/usr/local/lib/agent\nDelegate=yes\n\n[Install]\nWantedBy=multi-user.target\n";

/// Room for what the tests write; the file has holes.
const DISK_BYTES: u64 = 4 << 30;

/// Builds the guest, unless it is there and was built as we would build it now.
pub fn install() -> Result<()> {
    let guest = target().join("tools/guest");
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let field = |name: &str| release.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=')).map(|v| v.trim_matches('"').to_string());
    let distribution = field("ID").unwrap_or_default();
    let suite = field("VERSION_CODENAME").unwrap_or_default();
    let Some((_, kernel)) = KERNELS.iter().find(|(id, _)| *id == distribution) else {
        bail!("the guest of the tests is made from Debian or Ubuntu, of which this machine ({distribution}) must be one");
    };
    let packages = [&[*kernel][..], PACKAGES].concat().join(",");
    let recipe = [&suite, &packages, MODULES, &MASKED.join(" "), AGENT, UNIT, INITRD].join("\n");
    if fs::read_to_string(guest.join("recipe")).is_ok_and(|r| r == recipe) {
        return Ok(());
    }
    println!("building the guest of the tests ({distribution} {suite}; a minute or two)");
    let work = target().join("tools/guest.new");
    remove(&work)?;
    remove(&guest)?;
    fs::create_dir_all(&work)?;
    let root = work.join("root");
    bootstrap(&root, &suite, &packages)?;
    furnish(&root)?;
    for boot in ["vmlinuz", "initrd.img"] {
        fs::copy(root.join(boot), work.join(boot)).with_context(|| format!("the guest has no {boot}"))?;
    }
    let disk = work.join("root.img");
    fs::File::create(&disk)?.set_len(DISK_BYTES)?;
    run("mke2fs", &["-q", "-t", "ext4", "-d", &root.display().to_string(), &disk.display().to_string()])?;
    remove(&root)?;
    fs::write(work.join("recipe"), recipe)?;
    fs::rename(&work, &guest).context("put the guest in its place")
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).with_context(|| format!("remove {}", dir.display())),
        _ => Ok(()),
    }
}

/// Where this machine gets its own packages from, the guest's come from too.
fn sources() -> Result<PathBuf> {
    let known = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list.d/ubuntu.sources", "/etc/apt/sources.list"];
    let found = known.iter().map(PathBuf::from).find(|p| fs::metadata(p).is_ok_and(|m| m.len() > 0));
    found.with_context(|| format!("no package sources of this machine: none of {}", known.join(", ")))
}

fn bootstrap(root: &Path, suite: &str, packages: &str) -> Result<()> {
    let (settings, modules) = (INITRD.replace('\n', "\\n"), MODULES.replace('\n', "\\n"));
    let initrd = format!(
        "--essential-hook=mkdir -p \"$1/etc/initramfs-tools/conf.d\" && \
         printf '{settings}' > \"$1/etc/initramfs-tools/conf.d/guest\" && printf '{modules}' > \"$1/etc/initramfs-tools/modules\""
    );
    let (include, sources) = (format!("--include={packages}"), sources()?);
    let (root, sources) = (root.display().to_string(), sources.display().to_string());
    let without = "--dpkgopt=path-exclude=/usr/share/doc/*";
    run("mmdebstrap", &["--quiet", "--variant=minbase", &include, &initrd, without, suite, &root, &sources])
}

fn furnish(root: &Path) -> Result<()> {
    let agent = root.join("usr/local/lib/agent");
    fs::write(&agent, AGENT)?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
    let units = root.join("etc/systemd/system");
    fs::create_dir_all(units.join("multi-user.target.wants"))?;
    fs::write(units.join("agent.service"), UNIT)?;
    symlink("../agent.service", units.join("multi-user.target.wants/agent.service"))?;
    for unit in MASKED {
        symlink("/dev/null", units.join(unit)).with_context(|| format!("mask {unit}"))?;
    }
    fs::write(root.join("etc/hostname"), "guest\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost guest\n")?;
    Ok(())
}
