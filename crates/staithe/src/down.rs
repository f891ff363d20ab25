//! `staithe down`: stops the control plane and everything it runs on this machine, and leaves nothing behind.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::cli::Down;
use crate::output::Spinner;
use crate::settings::{Given, Settings};

/// How long the server may take to end by itself.
const SERVER_END: Duration = Duration::from_secs(20);

pub fn settings(given: &Given, config: Option<&Path>) -> Result<Settings> {
    let file = match config {
        Some(path) => Given::from_file(path)?,
        None => Given::default(),
    };
    given.clone().or(file).decide()
}

pub async fn run(args: &Down) -> Result<()> {
    let s = settings(&args.given, args.config.as_deref())?;
    if !rustix::process::geteuid().is_root() {
        bail!("staithe down removes namespaces and control groups: run it as root");
    }
    let server = store::DataDir::holder(&s.data_dir);
    if args.dry_run {
        if let Some(pid) = server {
            println!("server, process {pid}");
        }
        for line in sweep(&s, true) {
            println!("{line}");
        }
        if args.purge && s.data_dir.exists() {
            println!("data directory {}", s.data_dir.display());
        }
        return Ok(());
    }
    let spinner = Spinner::start("stopping the control plane");
    if let Some(pid) = server {
        end_server(pid).await?;
    }
    spinner.say("stopping what runs and taking it away");
    let removed = tokio::task::spawn_blocking({
        let s = s.clone();
        move || sweep(&s, false)
    })
    .await?;
    drop(spinner);
    let failed: Vec<&String> = removed.iter().filter(|l| l.starts_with("cannot")).collect();
    for line in &removed {
        println!("{}{line}", if line.starts_with("cannot") { "" } else { "removed " });
    }
    if !failed.is_empty() {
        bail!("{} things could not be removed", failed.len());
    }
    if s.run_dir.exists() {
        std::fs::remove_dir_all(&s.run_dir).with_context(|| format!("remove {}", s.run_dir.display()))?;
    }
    if args.purge && s.data_dir.exists() {
        std::fs::remove_dir_all(&s.data_dir).with_context(|| format!("remove {}", s.data_dir.display()))?;
        println!("removed data directory {}", s.data_dir.display());
    }
    Ok(())
}

async fn end_server(pid: u32) -> Result<()> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let _ = kill_process(pid, Signal::TERM);
    let deadline = Instant::now() + SERVER_END;
    while test_kill_process(pid).is_ok() {
        if Instant::now() > deadline {
            kill_process(pid, Signal::KILL).context("kill the server")?;
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Every organ takes away what it made. The order matters: processes before the namespaces that they are in.
fn sweep(s: &Settings, dry_run: bool) -> Vec<String> {
    let mut lines = router::edge::sweep(&s.run_dir, dry_run);
    lines.extend(container::sweep(&s.instance, &s.run_dir, dry_run));
    lines.extend(network::sweep(&s.instance, &s.run_dir, dry_run));
    lines.extend(mounts(&s.run_dir, &s.data_dir, dry_run));
    lines
}

/// Mounts below our directories: memory volumes and what a crash may have left.
fn mounts(run: &Path, data: &Path, dry_run: bool) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|l| l.split_whitespace().nth(4)).map(|p| p.replace("\\040", " "));
    let mut ours: Vec<String> = points.filter(|p| Path::new(p).starts_with(run) || Path::new(p).starts_with(data)).collect();
    ours.reverse();
    let mut lines = Vec::new();
    for point in ours {
        let result = if dry_run { Ok(()) } else { rustix::mount::unmount(point.as_str(), rustix::mount::UnmountFlags::DETACH) };
        lines.push(match result {
            Ok(()) => format!("mount {point}"),
            Err(e) => format!("cannot unmount {point}: {e}"),
        });
    }
    lines
}
