//! Chores of the project, so that every machine does them the same way: `cargo xtask <chore>`.

mod ci;
mod demo;
mod guest;
mod tidy;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

const HELP: &str = "cargo xtask <chore>

  test [FILTER]   install what the tests need, build, run all of them (root)
  ci              what must pass before a change lands: format, lints, tidy, the README's test command
  demo            build, start the environment, deploy the example shop, show its URL (root)
  demo build      only its build stage
  demo run        only its run stage, with what is built
  guest           the container tests, a restart and a reboot in an emulated machine (minutes)
  tidy            the floors of the house and other rules that no lint knows
  tools           install what the tests need and say where
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["test", filter @ ..] => ci::test(filter),
        ["ci"] => ci::ci(),
        ["demo"] => demo::build().and_then(|()| demo::run()),
        ["demo", "build"] => demo::build(),
        ["demo", "run"] => demo::run(),
        ["guest"] => guest_test(),
        ["tidy"] => tidy::run(),
        ["tools"] => tools::install(),
        _ => {
            print!("{HELP}");
            return if words.is_empty() || words == ["--help"] { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Its own chore: an emulated machine takes minutes.
fn guest_test() -> Result<()> {
    tools::install_guest()?;
    run("cargo", &["build", "--workspace"])?;
    run("cargo", &["test", "-p", "staithe", "--test", "guest"])
}

/// The workspace's directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Where the build puts things: `CARGO_TARGET_DIR` or `target`.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).unwrap_or_else(|| root().join("target"))
}

/// Runs a command in the workspace's directory; its output is the user's.
pub fn run(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program).args(args).current_dir(root()).status().with_context(|| format!("run {program}"))?;
    if status.success() { Ok(()) } else { bail!("{program} {} failed: {status}", args.join(" ")) }
}

/// As [`run`], and gives what it printed.
pub fn output(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program).args(args).current_dir(root()).output().with_context(|| format!("run {program}"))?;
    if !out.status.success() {
        bail!("{program} {} failed: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Finds a program in PATH.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file())
}
