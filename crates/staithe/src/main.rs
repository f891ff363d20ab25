//! The binary: what was typed, the one place where organs are put together, and exit codes.

mod cli;
mod context;
mod down;
mod install;
mod output;
mod settings;
mod up;
mod verbs;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    // These live without a runtime and without threads, so they come before anything else.
    match words.next().as_ref().and_then(|w| w.to_str()) {
        Some("shim") => container::shim_main(words),
        Some("edge-holder") => {
            let words: Vec<String> = words.map(|w| w.to_string_lossy().into_owned()).collect();
            let [instance, words @ ..] = words.as_slice() else { return ExitCode::FAILURE };
            if let Err(e) = container::leave_starter(instance) {
                eprintln!("the edge stays in its starter's control group: {e}");
            }
            return ExitCode::from(u8::try_from(router::edge::holder_main(words)).unwrap_or(1));
        }
        Some("edge") => {
            let words: Vec<String> = words.map(|w| w.to_string_lossy().into_owned()).collect();
            return up::edge::main(&words);
        }
        _ => {}
    }
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: no runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(cli.command));
    // Standard input may hold a blocked reader: it must not hold the exit.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            let (red, reset) = if output::colours() { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
            eprintln!("{red}error:{reset} {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<i32> {
    match command {
        Command::Up(args) => up::run(&args).await?,
        Command::Down(args) => down::run(&args).await?,
        Command::Install(args) => install::run(&args)?,
        Command::Status(args) => verbs::status::run(&args).await?,
        Command::Get(args) => verbs::get::run(&args).await?,
        Command::Describe(args) => verbs::describe::run(&args).await?,
        Command::Apply(args) => verbs::apply::run(&args).await?,
        Command::Delete(args) => verbs::delete::run(&args).await?,
        Command::Scale(args) => verbs::rollout::scale(&args).await?,
        Command::Rollout(args) => verbs::rollout::run(&args).await?,
        Command::Logs(args) => verbs::logs::run(&args).await?,
        Command::Exec(args) => return verbs::exec::run(&args).await,
        Command::PortForward(args) => verbs::port_forward::run(&args).await?,
        Command::Events(args) => verbs::events::run(&args).await?,
        Command::Image(command) => verbs::image::run(command).await?,
        Command::Completion { shell } => clap_complete::generate(shell, &mut Cli::command(), "staithe", &mut std::io::stdout()),
    }
    Ok(0)
}
