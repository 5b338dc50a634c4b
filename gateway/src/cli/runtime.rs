//! `tollgate runtime`, and the binary under its other name.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Subcommand, ValueEnum};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Printed, complain};
use crate::runtime::install::{self, Done, Places, RUNTIME};
use crate::runtime::{self, NAME};

/// Make container engines know the runtime that governs a container from its first instruction
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Enter the runtime into the engine's configuration; containers get it with `--runtime tollgate`
    Install {
        #[command(flatten)]
        common: Common,
        /// The runtime that does the work [default: runc, where it usually is]
        #[arg(long, value_name = "FILE")]
        real: Option<PathBuf>,
        /// Have the engine read its configuration again (SIGHUP); containers that run stay as they are
        #[arg(long)]
        reload: bool,
        /// Where the engine says which process it is
        #[arg(long, value_name = "FILE", default_value = "/run/docker.pid")]
        engine_pid: PathBuf,
    },
    /// Undo what `install` did; containers that have the runtime do not start again
    Uninstall {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    /// The engine
    #[arg(long, value_enum, default_value_t = Engine::Docker)]
    engine: Engine,
    /// The engine's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/docker/daemon.json")]
    engine_config: PathBuf,
    /// The folder that the engine finds the runtime in
    #[arg(long, value_name = "FOLDER", default_value = "/usr/local/lib/tollgate")]
    folder: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Engine {
    /// Docker Engine
    Docker,
}

pub(super) fn main(arguments: &Arguments) -> Printed {
    match arguments.verb.run() {
        Ok(text) => Printed::success(text),
        Err(error) => Printed::failure(format!("tollgate: {error:#}\n")),
    }
}

impl Verb {
    fn run(&self) -> anyhow::Result<String> {
        let (Self::Install { common, .. } | Self::Uninstall { common }) = self;
        let Engine::Docker = common.engine;
        let places = Places {
            configuration: common.engine_config.clone(),
            folder: std::path::absolute(&common.folder)?,
        };
        let (file, folder) = (places.configuration.display(), places.folder.display());
        let (done, said, next) = match self {
            Self::Install { real, reload, engine_pid, .. } => {
                let done = install::install(&places, real.as_deref())?;
                let next = match done {
                    Done::Changed if *reload => {
                        format!("the engine (process {}) reads it again", tell(engine_pid)?)
                    }
                    _ => format!(
                        "the engine has to read it again: kill -HUP $(cat {}), or this command with --reload",
                        engine_pid.display()
                    ),
                };
                (done, format!("has the runtime `{RUNTIME}` ({folder}/{NAME})"), next)
            }
            Self::Uninstall { .. } => (
                install::uninstall(&places)?,
                format!("has no runtime `{RUNTIME}`"),
                // It reads runtimes again only where some are named.
                "the engine forgets it when it is restarted; until then containers with it do not start".to_owned(),
            ),
        };
        Ok(match done {
            Done::Nothing => format!("{file}: {said}, as before\n"),
            Done::Changed => format!("{file}: {said}\n{next}\n"),
        })
    }
}

/// Tells the engine, and returns which process it is.
fn tell(file: &Path) -> anyhow::Result<Pid> {
    let told = || -> anyhow::Result<Pid> {
        let pid = Pid::from_raw(std::fs::read_to_string(file)?.trim().parse()?);
        // A file that a dead engine has left may name anybody, or whole groups of processes.
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"))?;
        if name.trim_end() != ENGINE_PROGRAM {
            bail!("process {pid} is `{}`, and no engine", name.trim_end());
        }
        kill(pid, Signal::SIGHUP)?;
        Ok(pid)
    };
    told().with_context(|| {
        format!(
            "the configuration is changed, but the engine that {} names was not told",
            file.display()
        )
    })
}

const ENGINE_PROGRAM: &str = "dockerd";

/// What an engine has called, if one has.
pub(super) fn main_if_called_so() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let program = arguments.next()?;
    if Path::new(&program).file_name()? != NAME {
        return None;
    }
    let arguments: Vec<OsString> = arguments.collect();
    // Its output is the real runtime's: nothing is logged.
    Some(match runtime::main(&program, &arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    })
}
