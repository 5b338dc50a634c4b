//! `tollgate doctor`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::json;

use super::complain;
use crate::doctor::{
    AsInProduction, Form, Host, OWN_PROGRAM, Problem, Report, Request, Severity, conformance,
};

/// Try every way out of a scratch workload on this kernel, and say what is open; nothing leaves the machine
///
/// Exit code: 0 everything that was tried is closed, 1 something is open, 2 misuse, 3 it could not be tried.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Try one way for each layer, as the daemon does when it starts
    #[arg(long)]
    quick: bool,
}

/// Exit code when something is open, or wrong with the host.
const OPEN: u8 = 1;
/// Exit code when nothing could be tried.
const NOT_TRIED: u8 = 3;

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    if !nix::unistd::geteuid().is_root() {
        complain(&anyhow::anyhow!("`tollgate doctor` loads kernel programs: run it as root"));
        return ExitCode::from(NOT_TRIED);
    }
    let host = Host::inspect();
    match examine(arguments) {
        Ok(report) => {
            let problems = host.problems(Some(&report));
            let is_fatal = problems.iter().any(|problem| problem.severity == Severity::Fatal);
            print(&if arguments.json {
                in_json(&host, &problems, Some(&report))
            } else {
                format!("{}{}", report.table(), about(&host, &problems))
            });
            ExitCode::from(if report.passes() && !is_fatal { 0 } else { OPEN })
        }
        Err(error) => {
            let problems = host.problems(None);
            print(&if arguments.json {
                in_json(&host, &problems, None)
            } else {
                about(&host, &problems)
            });
            complain(&error.context("it could not be tried"));
            ExitCode::from(NOT_TRIED)
        }
    }
}

/// Until SIGINT, SIGTERM or SIGHUP, which are looked at between attempts, so that nothing is left behind.
fn examine(arguments: &Arguments) -> anyhow::Result<Report> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let arrived = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    conformance(&Request {
        program: Path::new(OWN_PROGRAM),
        arming: &AsInProduction,
        form: if arguments.quick { Form::Quick } else { Form::Full },
        is_interrupted: &|| arrived.read_signal().is_ok_and(|signal| signal.is_some()),
    })
}

/// What is wrong with the host, and which fallbacks are in use.
fn about(host: &Host, problems: &[Problem]) -> String {
    let mut text = String::new();
    let mut line = |line: std::fmt::Arguments<'_>| {
        if text.write_fmt(line).is_err() {
            tracing::error!("a line is lost");
        }
    };
    for Problem { name, severity, found, remedy } in problems {
        line(format_args!("\n{}: {found} [{name}]\n  help: {remedy}\n", severity.word()));
    }
    for feature in host.features().iter().filter(|feature| !feature.is_there) {
        line(format_args!("\nthis kernel has no {}: {}\n", feature.name, feature.without));
    }
    text
}

fn in_json(host: &Host, problems: &[Problem], report: Option<&Report>) -> String {
    let problems: Vec<_> = problems
        .iter()
        .map(|problem| {
            json!({
                "name": problem.name,
                "severity": problem.severity.word(),
                "found": problem.found,
                "remedy": problem.remedy,
            })
        })
        .collect();
    let features: Vec<_> = host
        .features()
        .iter()
        .map(|feature| {
            json!({
                "name": feature.name,
                "is_there": feature.is_there,
                "without": feature.without,
            })
        })
        .collect();
    let conformance = report.map(Report::json);
    let all = json!({ "conformance": conformance, "problems": problems, "features": features });
    format!("{all:#}\n")
}

#[expect(clippy::print_stdout, reason = "the command line speaks to people")]
fn print(text: &str) {
    print!("{text}");
}
