//! `tollgate daemon`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::complain;
use crate::daemon::{Request, daemon};

/// Govern the workloads that agents match, for as long as they live; what is governed stays closed when this ends
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = super::CONFIG)]
    config: PathBuf,
    /// Print diagnostics of the kernel programs at this level: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL")]
    kernel_log: Option<tracing::Level>,
    /// Go on with a kernel on which something is open, after saying what; see `tollgate doctor`
    #[arg(long)]
    accept_weak: bool,
}

impl Arguments {
    /// Level of kernel diagnostics.
    pub(super) fn kernel_log(&self) -> Option<tracing::Level> {
        self.kernel_log
    }
}

pub(super) fn main(arguments: Arguments) -> ExitCode {
    let Arguments { config, kernel_log, accept_weak } = arguments;
    match daemon(&Request { config, kernel_log, accept_weak }, &|name| std::env::var_os(name)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}
