//! `staithe up --detach`: the same process in a session of its own, and the prompt back when it is ready.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::output::Spinner;
use crate::settings::Settings;

const READY_WITHIN: Duration = Duration::from_secs(60);

/// The line that the child writes when all is up; what follows it is for the user.
pub const READY: &str = "staithe is ready";

pub async fn run(settings: &Settings) -> Result<()> {
    if let Some(pid) = store::DataDir::holder(&settings.data_dir) {
        println!("staithe is up already (process {pid}, data in {})", settings.data_dir.display());
        return Ok(());
    }
    std::fs::create_dir_all(&settings.data_dir).with_context(|| format!("create {}", settings.data_dir.display()))?;
    let log = settings.data_dir.join("staithe.log");
    let mut file = OpenOptions::new().create(true).append(true).read(true).open(&log).with_context(|| log.display().to_string())?;
    let from = file.seek(SeekFrom::End(0))?;
    let args = std::env::args_os().skip(1).filter(|a| a != "--detach" && a != "-d");
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.args(args).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file.try_clone()?);
    // SAFETY: setsid is async-signal-safe, which is all that may run between fork and exec.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    let mut child = command.spawn().context("start in the background")?;
    let spinner = Spinner::start("starting staithe");
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let mut text = String::new();
        file.seek(SeekFrom::Start(from))?;
        file.read_to_string(&mut text)?;
        if let Some((_, after)) = text.split_once(READY) {
            spinner.done(&format!("staithe is up (process {}, log in {})", child.id(), log.display()));
            print!("{}", after.split_once('\n').map_or("", |(_, rest)| rest));
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            drop(spinner);
            let last: Vec<&str> = text.lines().rev().take(5).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            bail!("staithe did not start ({status}):\n{}", last.join("\n"));
        }
        if Instant::now() > deadline {
            drop(spinner);
            bail!("staithe is not ready after {} s; its log is {}", READY_WITHIN.as_secs(), log.display());
        }
        if let Some(line) = text.lines().last() {
            spinner.say(&format!("starting staithe: {}", line.chars().take(100).collect::<String>()));
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
