//! `delo completions` and `delo man`: what a shell and `man` know of the command line, from its one definition.
use std::ffi::OsStr;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Command, CommandFactory as _};
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};

use super::{Cli, Failure};
use delo_proto::DescribeRequest;
use delo_proto::classifier_client::ClassifierClient;

/// Set, with the name of a shell, when that asks for completions.
const VARIABLE: &str = "DELO_COMPLETE";
/// How long a server may take to tell its tasks: whoever types waits for it.
const PATIENCE: Duration = Duration::from_millis(700);

/// Prints what makes a shell complete the commands, flags, values and task names of delo.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    source <(delo completions bash)      # or in ~/.bashrc\n  \
    delo completions zsh > _delo         # in a folder of fpath\n  \
    delo completions fish > ~/.config/fish/completions/delo.fish")]
pub struct CompletionsArgs {
    /// bash, elvish, fish, powershell or zsh.
    #[arg(value_name = "SHELL", value_parser = ["bash", "elvish", "fish", "powershell", "zsh"])]
    shell: String,
}

/// Prints the manual page of delo, or writes those of all commands into a folder.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  delo man | man -l -\n  delo man --out /usr/local/share/man/man1")]
pub struct ManArgs {
    /// A folder for one page a command: delo.1, delo-serve.1 and so on.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Answers the shell and ends the process, where a shell asks for completions.
pub fn complete() {
    CompleteEnv::with_factory(Cli::command).var(VARIABLE).complete();
}

pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let shells = Shells::builtins();
    let shell = shells.completer(&args.shell).ok_or_else(|| Failure::usage(format!("no completions are known for {}", args.shell)))?;
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "delo", "delo", "delo", &mut script)?;
    super::output::print(String::from_utf8(script)?.trim_end())
}

pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let mut pages = Vec::new();
    pages_of(Cli::command(), "delo", &mut pages)?;
    let Some(folder) = &args.out else {
        let (_, page) = pages.swap_remove(0);
        return super::output::print(String::from_utf8(page)?.trim_end());
    };
    let failed = |path: &std::path::Path, e: std::io::Error| format!("can't write {}: {e}", path.display());
    std::fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
    for (name, page) in pages {
        let path = folder.join(format!("{name}.1"));
        std::fs::File::create(&path).and_then(|mut file| file.write_all(&page)).map_err(|e| failed(&path, e))?;
    }
    Ok(())
}

/// The pages of a command and of those below it, the command's own first.
fn pages_of(command: Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) -> std::io::Result<()> {
    let below: Vec<Command> = command.get_subcommands().filter(|below| !below.is_hide_set()).cloned().collect();
    // The name of a page and that in its synopsis; clap wants names for the whole run.
    let (page_name, called): (&'static str, String) = (name.to_owned().leak(), name.replace('-', " "));
    let command = command.name(page_name).bin_name(called).disable_help_subcommand(true);
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    pages.push((name.to_owned(), page));
    for command in below {
        let name = format!("{name}-{}", command.get_name());
        pages_of(command, &name, pages)?;
    }
    Ok(())
}

/// The tasks that the server of this command line serves; none where it can't be asked in time.
pub fn tasks(given: &OsStr) -> Vec<CompletionCandidate> {
    let Some(given) = given.to_str() else { return Vec::new() };
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let server = words.iter().rev().find_map(|word| word.strip_prefix("--server=").map(str::to_owned));
    let server = server.or_else(|| words.iter().rposition(|word| word == "--server").and_then(|at| words.get(at + 1).cloned()));
    let server = server.unwrap_or_else(|| super::classify::SERVER.to_owned());
    let tasks = asked(&server).unwrap_or_default();
    tasks.into_iter().filter(|task| task.starts_with(given)).map(CompletionCandidate::new).collect()
}

/// The names of a server's tasks. Without a token: where the server wants one there are no completions.
fn asked(server: &str) -> Option<Vec<String>> {
    let address = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
    let endpoint = tonic::transport::Endpoint::from_shared(address).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let described = runtime.block_on(async {
        tokio::time::timeout(PATIENCE, async {
            let mut client = ClassifierClient::new(endpoint.connect().await.ok()?);
            Some(client.describe(DescribeRequest::default()).await.ok()?.into_inner())
        })
        .await
    });
    // A lookup of a name that is still under way is left behind.
    runtime.shutdown_background();
    Some(described.ok()??.tasks.into_iter().map(|task| task.task).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_manual_page_that_names_it_as_it_is_typed() {
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs { out: Some(dir.path().join("man1")) }).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join("man1").join(name)).unwrap();
        assert!(page("delo.1").contains("delo"));
        let load = page("delo-admin-load.1");
        assert!(load.contains(".TH delo-admin-load 1") && load.contains("delo admin load"), "{load}");
        assert!(page("delo-serve.1").contains("http\\-listen"));
    }
}
