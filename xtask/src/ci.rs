//! `test` and `ci`: one command each, the same on every machine.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{root, run, tidy, tools};

/// The README's test command: everything, or what a filter names.
pub fn test(filter: &[&str]) -> Result<()> {
    tools::install()?;
    // The end-to-end tests drive the built binary and the demonstration's programs.
    run("cargo", &["build", "--workspace"])?;
    let mut command = Command::new("cargo");
    command.args(["test", "--workspace", "--no-fail-fast", "--"]).args(filter);
    let mut child = command.current_dir(root()).stdout(Stdio::piped()).spawn().context("run cargo test")?;
    let (mut passed, mut failed, mut ignored) = (0u64, 0u64, 0u64);
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{line}");
        if let Some(rest) = line.strip_prefix("test result: ") {
            let count = |word: &str| -> u64 {
                let before = rest.split(word).next().unwrap_or_default();
                before.trim_end().rsplit([' ', ';', '.']).next().and_then(|n| n.parse().ok()).unwrap_or(0)
            };
            passed += count(" passed");
            failed += count(" failed");
            ignored += count(" ignored");
        }
    }
    let status = child.wait()?;
    println!("{passed} passed, {failed} failed, {ignored} skipped");
    if !status.success() || failed > 0 {
        bail!("tests failed");
    }
    if passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

pub fn ci() -> Result<()> {
    let start = Instant::now();
    let step = |name: &str| println!("== {name} ({} s)", start.elapsed().as_secs());
    step("format");
    run("cargo", &["fmt", "--all", "--check"])?;
    step("tidy");
    tidy::run()?;
    step("lints");
    run("cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    step("tests");
    test(&[])?;
    Ok(())
}
