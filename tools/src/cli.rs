//! The command line: one file a verb.

mod attach;
mod audit;
mod build;
mod capsules;
mod checkpoint;
mod clone;
mod cloud;
mod cluster;
mod completion;
mod cost;
mod create;
mod events;
mod explain;
mod image;
mod inspect;
mod logs;
mod migrate;
mod network;
mod new;
mod node;
mod operation;
mod policy;
mod port;
mod prune;
mod ps;
mod rename;
mod restart;
mod restore;
mod rm;
mod run;
mod sample;
mod save;
mod session;
mod simple;
mod spec;
mod start;
mod stats;
mod stop;
mod stream;
mod top;
mod update;
mod version;
mod wait;

use crate::target::Globals;
use crate::terminal::one_line;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use std::io;

/// Exit code of a program whose output nobody reads any more: 128 + SIGPIPE.
const BROKEN_PIPE: u8 = 141;
/// Exit code after Ctrl-C: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs applications as capsules: each on Xen by itself, handled like a process
#[derive(Debug, Parser)]
#[command(name = "fcap", version, disable_help_subcommand = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Args),
    Create(create::Args),
    Start(start::Args),
    Restart(restart::Args),
    #[command(visible_aliases = ["ls", "list"])]
    Ps(ps::Args),
    #[command(alias = "log")]
    Logs(logs::Args),
    Attach(attach::Args),
    Wait(wait::Args),
    Stop(stop::Args),
    Kill(simple::Kill),
    #[command(visible_alias = "delete")]
    Rm(rm::Args),
    Pause(simple::Pause),
    #[command(alias = "resume")]
    Unpause(simple::Unpause),
    #[command(visible_aliases = ["show", "info"])]
    Inspect(inspect::Args),
    Stats(stats::Args),
    Top(top::Args),
    Events(events::Args),
    Update(update::Args),
    Rename(rename::Args),
    Migrate(migrate::Args),
    Save(save::Args),
    Restore(restore::Args),
    Checkpoint(checkpoint::Args),
    Clone(clone::Args),
    Stream(stream::Args),
    Prune(prune::Args),
    Image(image::Args),
    #[command(hide = true)]
    Images(image::ListArgs),
    Network(network::Args),
    Port(port::Args),
    New(new::Args),
    Build(build::Args),
    Cloud(cloud::Args),
    Node(node::Args),
    #[command(visible_alias = "op")]
    Operation(operation::Args),
    Explain(explain::Args),
    Policy(policy::Args),
    Cost(cost::Args),
    Audit(audit::Args),
    #[command(hide = true)]
    Cluster(cluster::Args),
    Version(version::Args),
    Completion(completion::Args),
    #[command(hide = true)]
    Man(completion::ManArgs),
}

/// How the verbs are shown in `fcap --help`.
const GROUPS: [(&str, &[&str]); 7] = [
    ("Run", &["run", "create", "start", "restart", "stop", "kill", "pause", "unpause", "rm", "prune"]),
    ("Look", &["ps", "logs", "attach", "wait", "inspect", "port", "stats", "top", "events"]),
    ("Change", &["update", "rename", "network"]),
    ("Move", &["migrate", "save", "restore", "checkpoint", "clone", "stream"]),
    ("Clusters", &["node", "policy", "operation", "explain", "cost", "audit"]),
    ("Make applications", &["new", "build", "image"]),
    ("Clouds and this program", &["cloud", "version", "completion"]),
];

/// The whole command line, with its verbs in groups.
fn command() -> clap::Command {
    let command = Cli::command();
    let mut text = String::from("{about}\n\n{usage-heading} fcap [OPTIONS] <COMMAND>\n");
    let style = command.get_styles();
    let (header, literal) = (style.get_header(), style.get_literal());
    for (group, verbs) in GROUPS {
        text += &format!("\n{header}{group}:{header:#}\n");
        for verb in verbs {
            let about = command
                .find_subcommand(verb)
                .and_then(clap::Command::get_about)
                .map(ToString::to_string)
                .unwrap_or_default();
            text += &format!("  {literal}{verb:<12}{literal:#}{about}\n");
        }
    }
    text += &format!("\n{header}Options:{header:#}\n");
    text += "{options}\n\n`fcap COMMAND --help` tells more.\n";
    command.help_template(text)
}

/// Runs the command line of this process and tells its exit code.
pub fn main() -> u8 {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // Help goes to standard output, and nobody may be reading it.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(2);
        }
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return report(&anyhow::Error::new(error).context("the system refuses what fcap needs"));
        }
    };
    runtime.block_on(cli.verb.call(&cli.globals)).unwrap_or_else(|error| report(&error))
}

impl Verb {
    /// Does it. The result is the exit code.
    async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        match self {
            Self::Run(args) => args.call(globals).await,
            Self::Create(args) => args.call(globals).await,
            Self::Start(args) => args.call(globals).await,
            Self::Restart(args) => args.call(globals).await,
            Self::Ps(args) => args.call(globals).await,
            Self::Logs(args) => args.call(globals).await,
            Self::Attach(args) => args.call(globals).await,
            Self::Wait(args) => args.call(globals).await,
            Self::Stop(args) => args.call(globals).await,
            Self::Kill(args) => args.call(globals).await,
            Self::Rm(args) => args.call(globals).await,
            Self::Pause(args) => args.call(globals).await,
            Self::Unpause(args) => args.call(globals).await,
            Self::Inspect(args) => args.call(globals).await,
            Self::Stats(args) => args.call(globals).await,
            Self::Top(args) => args.call(globals).await,
            Self::Events(args) => args.call(globals).await,
            Self::Update(args) => args.call(globals).await,
            Self::Rename(args) => args.call(globals).await,
            Self::Migrate(args) => args.call(globals).await,
            Self::Save(args) => args.call(globals).await,
            Self::Restore(args) => args.call(globals).await,
            Self::Checkpoint(args) => args.call(globals).await,
            Self::Clone(args) => args.call(globals).await,
            Self::Stream(args) => args.call(),
            Self::Prune(args) => args.call(globals).await,
            Self::Image(args) => args.call(globals).await,
            Self::Images(args) => args.call(globals).await,
            Self::Network(args) => args.call(globals).await,
            Self::Port(args) => args.call(globals).await,
            Self::New(args) => args.call(),
            Self::Build(args) => args.call(),
            Self::Cloud(args) => args.call(globals),
            Self::Node(args) => args.call(globals).await,
            Self::Operation(args) => args.call(globals).await,
            Self::Explain(args) => args.call(globals).await,
            Self::Policy(args) => args.call(globals).await,
            Self::Cost(args) => args.call(globals).await,
            Self::Audit(args) => args.call(globals).await,
            Self::Cluster(args) => args.call(globals).await,
            Self::Version(args) => args.call(globals).await,
            Self::Completion(args) => args.call(),
            Self::Man(args) => args.call(),
        }
    }
}

/// Says what went wrong, in one line, and gives the exit code: quietly that of SIGPIPE when it was
/// only that nobody reads any more.
fn report(error: &anyhow::Error) -> u8 {
    let closed = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe);
    if closed {
        return BROKEN_PIPE;
    }
    eprintln!("fcap: {}", one_line(&format!("{error:#}")));
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_that_is_not_hidden_stands_in_one_group() {
        let mut shown: Vec<&str> = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter().copied()).collect();
        shown.sort_unstable();
        let command = Cli::command();
        let mut verbs: Vec<&str> = command
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
            .map(clap::Command::get_name)
            .collect();
        verbs.sort_unstable();
        assert_eq!(shown, verbs);
    }

    #[test]
    fn every_verb_and_flag_has_help() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
