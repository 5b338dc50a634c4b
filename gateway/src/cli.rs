//! The command line: one file per verb.

mod ca;
pub mod check;
mod daemon;
mod docker_args;
mod doctor;
pub mod explain;
mod logs;
mod printed;
mod run;
mod runtime;
mod status;
mod trust;

pub use printed::Printed;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// A transparent, fail-closed egress gateway for AI agents.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Arguments),
    Daemon(daemon::Arguments),
    Trust(trust::Arguments),
    Ca(ca::Arguments),
    Doctor(doctor::Arguments),
    /// Check a configuration: every mistake at once, with its place and its remedy
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
    /// Say what would happen to a request, and by which rule; asks nobody and sends nothing
    Explain {
        /// The configuration file
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
        /// The agent that would send it
        #[arg(long, value_name = "NAME")]
        agent: String,
        /// Print one JSON object, in the words of the audit log
        #[arg(long)]
        json: bool,
        /// The time at which it would be sent (RFC 3339), for rules with hours, days or an end; now if absent
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
        /// The request's method
        method: String,
        /// The request's URL
        url: String,
    },
    Logs(logs::Arguments),
    Status(status::Arguments),
    DockerArgs(docker_args::Arguments),
    /// Let the daemon read agents, rules and credentials again; what is wrong with them is said, and changes nothing
    Reload,
    Runtime(runtime::Arguments),
    /// One attempt of the doctor's; not for people.
    #[command(name = "__attempt", hide = true)]
    Attempt {
        #[command(flatten)]
        order: crate::doctor::Order,
    },
    /// First process of a workload; not for people.
    #[command(name = "__init", hide = true)]
    Init {
        directory: PathBuf,
    },
    /// Last step before the command; not for people.
    #[command(name = "__enter", hide = true)]
    Enter {
        #[command(flatten)]
        identity: crate::run::Identity,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Where the configuration is unless somebody says otherwise.
const CONFIG: &str = "/etc/tollgate/tollgate.toml";

/// Exit code of Tollgate's own failures where a command's exit code is passed through (as `env`, `timeout`, `docker`).
const OWN_FAILURE: u8 = 125;
/// Exit code for arguments that make no sense.
const MISUSE: u8 = 2;

/// Parses the arguments of the process and runs the verb.
#[must_use]
pub fn main() -> ExitCode {
    // Under its other name it is what an engine takes for its runtime.
    if let Some(ended) = runtime::main_if_called_so() {
        return ended;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return misuse(&error),
    };
    let kernel_log = match &arguments.verb {
        Verb::Run(arguments) => arguments.kernel_log(),
        Verb::Daemon(arguments) => arguments.kernel_log(),
        _ => None,
    };
    // What `run` has said of it, the steps inside need not repeat.
    let complains =
        !matches!(arguments.verb, Verb::Init { .. } | Verb::Enter { .. } | Verb::Attempt { .. });
    log_to_stderr(kernel_log, complains);
    match arguments.verb {
        Verb::Run(arguments) => run::main(arguments),
        Verb::Daemon(arguments) => daemon::main(arguments),
        Verb::Trust(arguments) => print(&trust::main(&arguments)),
        Verb::Ca(arguments) => print(&ca::main(&arguments)),
        Verb::Doctor(arguments) => doctor::main(&arguments),
        Verb::Attempt { order } => or_own_failure(crate::doctor::attempt(&order)),
        Verb::Check { config } => print(&check::check(&config, &|name| std::env::var_os(name))),
        Verb::Explain { config, agent, json, at, method, url } => {
            print(&explain::explain(&config, &explain::Question { agent, method, url, json, at }))
        }
        Verb::Logs(arguments) => logs::main(&arguments),
        Verb::Status(arguments) => print(&status::main(&arguments)),
        Verb::DockerArgs(arguments) => print(&docker_args::main(&arguments)),
        Verb::Reload => print(&status::reload()),
        Verb::Runtime(arguments) => print(&runtime::main(&arguments)),
        Verb::Init { directory } => or_own_failure(crate::run::init(&directory)),
        Verb::Enter { identity, command } => or_own_failure(run::enter(identity, &command)),
    }
}

/// Prints what is wrong with the arguments, or the help that was asked for. Where a command's exit code is passed
/// through, that of misuse must not be taken for one.
fn misuse(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    if printed.is_ok() && !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    let is_run = std::env::args_os().nth(1).is_some_and(|verb| verb == "run");
    ExitCode::from(if is_run { OWN_FAILURE } else { MISUSE })
}

fn or_own_failure(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::from(OWN_FAILURE)
    })
}

/// Prints what a verb says, to standard error when something is wrong.
#[expect(clippy::print_stderr, clippy::print_stdout, reason = "the command line speaks to people")]
fn print(said: &Printed) -> ExitCode {
    if said.code == 0 {
        print!("{}", said.text);
    } else {
        eprint!("{}", said.text);
    }
    ExitCode::from(said.code)
}

/// Prints an error and its causes on one line.
#[expect(clippy::print_stderr, reason = "the command line speaks to people")]
fn complain(error: &anyhow::Error) {
    eprintln!("tollgate: {error:#}");
}

/// Diagnostics go to standard error, warnings and worse unless `TOLLGATE_LOG` says otherwise; those of the kernel
/// programs at the level that was asked for.
#[expect(clippy::disallowed_methods, reason = "the command line is where the environment is read")]
#[expect(clippy::print_stderr, reason = "the command line speaks to people")]
fn log_to_stderr(kernel_log: Option<tracing::Level>, complains: bool) {
    let asked = std::env::var("TOLLGATE_LOG").unwrap_or_else(|_unset| "warn".to_owned());
    let mut filter = EnvFilter::try_new(asked).unwrap_or_else(|error| {
        if complains {
            eprintln!("tollgate: TOLLGATE_LOG is ignored: {error}");
        }
        EnvFilter::new("warn")
    });
    if let Some(level) = kernel_log {
        // `tollgate_bpf` is the programs' crate; `log` is where its records enter `tracing`.
        for target in ["tollgate_bpf", "log"] {
            if let Ok(directive) = format!("{target}={level}").parse() {
                filter = filter.add_directive(directive);
            }
        }
    }
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .without_time()
        .init();
}
