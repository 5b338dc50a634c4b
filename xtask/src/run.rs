//! Child processes that are steps: prepared, run to the end, and named when they fail.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::paths;

/// How often a step that writes to a log says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How much of a log a failure shows.
const LOG_TAIL_LINES: usize = 30;

/// Set by cargo and rustup for *this* program; a child must not take them for its own.
const INHERITED_FROM_CARGO: &[&str] = &[
    "CARGO",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_TARGET_DIR",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_BOOTSTRAP",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTUP_TOOLCHAIN",
];

/// A command that runs in the root of the checkout and inherits nothing of cargo's own environment.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(paths::root());
    for name in INHERITED_FROM_CARGO {
        command.env_remove(name);
    }
    command
}

/// The workspace's own cargo. `rust-toolchain.toml` chooses the version, because the folder is the checkout.
pub(crate) fn cargo<I: IntoIterator<Item = &'static str>>(arguments: I) -> Command {
    let mut cargo = command("cargo");
    cargo.env("CARGO_TARGET_DIR", paths::target()).args(arguments);
    cargo
}

/// Says what comes next. Goes to standard error, as all progress does.
pub(crate) fn announce(step: &str) {
    eprintln!("==> {step}");
}

/// Runs to the end, with the user's own terminal.
pub(crate) fn inherit(step: &str, command: &mut Command) -> Result<()> {
    announce(step);
    let status = command.status().with_context(|| format!("cannot start {}", line(command)))?;
    check(command, status)
}

/// Runs to the end and returns what it wrote to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", line(command)))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("{} ended with {}: {message}", line(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs to the end with all output in a log file; a failure shows the log's end and the remedy.
pub(crate) fn logged(step: &str, command: &mut Command, log: &str, remedy: &str) -> Result<()> {
    announce(step);
    fs::create_dir_all(paths::logs())?;
    let log = paths::logs().join(log);
    let file = File::options().create(true).append(true).open(&log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let status = wait_with_heartbeat(command)?;
    check(command, status).with_context(|| {
        format!(
            "{step}: failed\n{}\nwhole log: {}\nremedy: {remedy}\ncause",
            tail(&log),
            log.display()
        )
    })
}

/// The command as a person would type it, for messages.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{} ended with {status}", line(command));
    }
    Ok(())
}

fn wait_with_heartbeat(command: &mut Command) -> Result<ExitStatus> {
    let mut child = command.spawn().with_context(|| format!("cannot start {}", line(command)))?;
    let started = Instant::now();
    let (ended, end) = mpsc::channel();
    let waiter = thread::spawn(move || ended.send(child.wait()).is_ok());
    let status = loop {
        match end.recv_timeout(HEARTBEAT) {
            Ok(status) => break status?,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                eprintln!("    ... {} s", started.elapsed().as_secs())
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("lost sight of {}", line(command)),
        }
    };
    drop(waiter);
    Ok(status)
}

fn tail(log: &Path) -> String {
    let text =
        fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(LOG_TAIL_LINES);
    lines
        .into_iter()
        .skip(skipped)
        .map(|line| format!("    | {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
