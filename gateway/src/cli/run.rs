//! `tollgate run`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal, raise};

use super::{complain, or_own_failure};
use crate::agent::AgentName;
use crate::run::{Ended, Identity, Request, UserSpec, run};

/// Run a command as an agent: its TCP and DNS go through the gateway, all else is refused by the kernel
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The agent whose rules and credentials apply
    #[arg(long, value_name = "NAME")]
    agent: String,
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = super::CONFIG)]
    config: PathBuf,
    /// Run the command as this user (name or number); default: who called sudo, else the caller
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Print diagnostics of the kernel programs at this level: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL")]
    kernel_log: Option<tracing::Level>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Arguments {
    /// Level of kernel diagnostics.
    pub(super) fn kernel_log(&self) -> Option<tracing::Level> {
        self.kernel_log
    }
}

pub(super) fn main(arguments: Arguments) -> ExitCode {
    match govern(arguments) {
        Ok(Ended::Exited(code)) => ExitCode::from(code),
        Ok(Ended::Signaled(number)) => die_alike(number),
        Err(error) => or_own_failure(Err(error)),
    }
}

fn govern(arguments: Arguments) -> anyhow::Result<Ended> {
    let Arguments { agent, config, user, kernel_log, command } = arguments;
    run(&Request {
        agent: AgentName::parse(&agent)?,
        config,
        command,
        user: user.map_or(UserSpec::Caller, UserSpec::Named),
        kernel_log,
        environment: std::env::vars_os().collect(),
    })
}

/// Ends as the command did: whoever waits for this process sees the same signal.
fn die_alike(number: i32) -> ExitCode {
    if let Ok(signal) = Signal::try_from(number) {
        // A core of this process would hold secrets and help nobody.
        let no_core =
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
        // Rust's runtime handles SIGSEGV and SIGBUS and ignores SIGPIPE.
        let by_default = crate::capture::restore_default_action(signal);
        let unblocked = SigSet::from(signal).thread_unblock();
        if no_core.is_ok() && by_default.is_ok() && unblocked.is_ok() {
            // Returns for signals whose default is to ignore them.
            if let Err(error) = raise(signal) {
                tracing::debug!(%error, "cannot raise the command's signal");
            }
        }
    }
    ExitCode::from(u8::try_from(128 + number).unwrap_or(u8::MAX))
}

/// Becomes the command; returns the exit code for a command that cannot be executed.
pub(super) fn enter(identity: Identity, command: &[OsString]) -> anyhow::Result<ExitCode> {
    let not_started = crate::run::enter(identity, command)?;
    let exit_code = not_started.exit_code;
    complain(&not_started.into());
    Ok(ExitCode::from(exit_code))
}
