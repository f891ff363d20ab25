//! `staithe install`: the environment as a systemd service.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cli::Install;

const UNIT: &str = "/etc/systemd/system/staithe.service";

/// What the unit runs: this binary with the settings that were given.
fn unit(binary: &Path, flags: &[String]) -> String {
    let quoted: Vec<String> = flags.iter().map(|f| if f.contains(' ') { format!("\"{f}\"") } else { f.clone() }).collect();
    let sep = if quoted.is_empty() { "" } else { " " };
    format!(
        "# Services outlive the control plane: only the server itself is stopped with the unit (KillMode=process), and the
# control groups of what it runs are its own to manage (Delegate=yes).
[Unit]
Description=Staithe, a production environment for microservices
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
ExecStart={} up{sep}{}
Restart=always
RestartSec=1
KillMode=process
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
LimitNPROC=infinity
OOMScoreAdjust=-900
TimeoutStopSec=30

[Install]
WantedBy=multi-user.target
",
        binary.display(),
        quoted.join(" ")
    )
}

pub fn run(args: &Install) -> Result<()> {
    let flags: Vec<String> = std::env::args().skip(2).filter(|a| !matches!(a.as_str(), "--print" | "--uninstall")).collect();
    let binary = std::env::current_exe().context("find this program")?;
    if args.print {
        print!("{}", unit(&binary, &flags));
        return Ok(());
    }
    args.given.clone().decide()?;
    if !Path::new("/run/systemd/system").exists() {
        bail!("this machine does not run systemd; `staithe up --detach` starts the environment without it");
    }
    if args.uninstall {
        systemctl(&["disable", "--now", "staithe"])?;
        std::fs::remove_file(UNIT).with_context(|| UNIT.to_string())?;
        systemctl(&["daemon-reload"])?;
        println!("the service is gone; what it ran goes on until `staithe down`");
        return Ok(());
    }
    std::fs::write(UNIT, unit(&binary, &flags)).with_context(|| format!("write {UNIT} (root?)"))?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--now", "staithe"])?;
    println!("staithe runs as a service and starts at boot ({UNIT})");
    Ok(())
}

fn systemctl(args: &[&str]) -> Result<()> {
    let status = Command::new("systemctl").args(args).status().context("run systemctl")?;
    if status.success() { Ok(()) } else { bail!("systemctl {} failed: see `journalctl -u staithe`", args.join(" ")) }
}

/// Tells systemd that start-up is through (`sd_notify(3)`); without systemd it does nothing.
pub fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let path = path.to_string_lossy().into_owned();
    let Ok(socket) = std::os::unix::net::UnixDatagram::unbound() else { return };
    let sent = match path.strip_prefix('@') {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            std::os::unix::net::SocketAddr::from_abstract_name(name).and_then(|a| socket.send_to_addr(b"READY=1", &a))
        }
        None => socket.send_to(b"READY=1", &path),
    };
    if let Err(e) = sent {
        tracing::warn!("tell systemd: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_keeps_services_alive() {
        let text = unit(Path::new("/usr/local/bin/staithe"), &["--http-port".into(), "8080".into()]);
        assert!(text.contains("ExecStart=/usr/local/bin/staithe up --http-port 8080\n"));
        for line in ["Type=notify", "KillMode=process", "Delegate=yes"] {
            assert!(text.contains(line), "{line}");
        }
    }
}
