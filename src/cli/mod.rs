//! The command line: parses, calls one function of the rooms below, prints.
mod admin;
mod backbone;
mod bench;
mod benchmark;
mod choice;
mod classify;
mod client;
mod compute;
mod connect;
mod data;
mod eval;
mod failure;
mod features;
mod health;
mod output;
mod partition;
mod registry;
mod replay;
mod report;
mod serve;
mod settings;
mod shell;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use failure::Failure;

use crate::logging;
use crate::serve::try_to_start;
use delo_process::file_size;

/// Classifies images and texts of many tasks over one frozen ViLT, without being told which task a sample
/// belongs to.
#[derive(Debug, Parser)]
#[command(name = "delo", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Train(Box<train::TrainArgs>),
    Eval(eval::EvalArgs),
    Report(report::ReportArgs),
    Health(health::HealthArgs),
    Classify(classify::ClassifyArgs),
    Replay(Box<replay::ReplayArgs>),
    Admin(admin::AdminArgs),
    Partition(partition::PartitionArgs),
    Registry(registry::RegistryArgs),
    Features(features::FeaturesArgs),
    Bench(bench::BenchArgs),
    Benchmark(benchmark::BenchmarkArgs),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

/// Parses the command line, runs one command and returns its exit code: 0 done, 2 wrong usage, 1 anything
/// else, 128 and the signal's number for a server that a second signal ended. A failure is one line on
/// stderr, where that takes one.
pub fn main() -> ExitCode {
    shell::complete();
    file_size::fail_beyond_limit();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let done = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Train(args) => train::run(*args),
        Command::Eval(args) => eval::run(args),
        Command::Report(args) => report::run(args),
        Command::Health(args) => health::run(args),
        Command::Classify(args) => classify::run(args),
        Command::Replay(args) => replay::run(*args),
        Command::Admin(args) => admin::run(args),
        Command::Partition(args) => partition::run(args),
        Command::Registry(args) => registry::run(args),
        Command::Features(args) => features::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Benchmark(args) => benchmark::run(args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            logging::say(&format!("delo: {}", failure.line()));
            failure.exit_code()
        }
    }
}

/// The runtime of a command that speaks to others: on this thread, and on another one that looks up names.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    try_to_start(1)?;
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Help and version as they are; an error on one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Nothing is left to do if the terminal is gone.
        let _ = error.print();
        return ExitCode::from(u8::from(error.use_stderr()) * 2);
    }
    let text = error.to_string();
    let message: Vec<_> = text.lines().take_while(|line| !line.is_empty()).flat_map(str::split_whitespace).collect();
    let hint = if names_a_dashed_value(error) { "; give a value that begins with - as --flag=VALUE, or a name after --" } else { "" };
    logging::say(&format!("delo: {}{hint}; see `delo --help`", message.join(" ").trim_start_matches("error: ")));
    ExitCode::from(2)
}

/// Whether what was taken for a flag is rather a value: only -h and -V have one dash.
fn names_a_dashed_value(error: &clap::Error) -> bool {
    let argument = error.get(clap::error::ContextKind::InvalidArg);
    let argument = argument.filter(|_| error.kind() == clap::error::ErrorKind::UnknownArgument);
    matches!(argument, Some(clap::error::ContextValue::String(text)) if text.starts_with('-') && !text.starts_with("--"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn leaves<'a>(command: &'a clap::Command, out: &mut Vec<&'a clap::Command>) {
        if command.has_subcommands() {
            command.get_subcommands().for_each(|c| leaves(c, out));
        } else {
            out.push(command);
        }
    }

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example_in_its_help() {
        let cli = Cli::command();
        let mut commands = Vec::new();
        leaves(&cli, &mut commands);
        assert!(commands.len() >= 9);
        for command in commands {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Example"), "{} shows no example", command.get_name());
        }
    }
}
