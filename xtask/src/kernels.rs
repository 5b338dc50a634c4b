//! `cargo xtask kernels`: the privileged tests and `tollgate doctor` on other kernels, each in a virtual machine.
//!
//! The machines are emulated, so this needs no KVM. They have no network card; their root is this machine's root, read
//! only, below a file system in memory that takes what is written. The kernels are Debian's own packages.

mod image;
mod machine;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Group};
use crate::{ebpf, paths, run};
use image::Image;

/// What `cargo xtask kernels` is asked for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kernel series to run on; without any, all of them.
    #[arg(long = "kernel", value_name = "SERIES")]
    kernels: Vec<String>,
    /// How long one kernel may take, in seconds.
    #[arg(long, default_value_t = 1800)]
    patience: u64,
    /// Tests to run there; without any, those that need the kernel.
    tests: Vec<String>,
}

/// A kernel series, and the Debian package that depends on its newest image.
struct Series {
    name: &'static str,
    package: &'static str,
}

/// The series that Debian 12 has: its own, and the one of the next release.
const SERIES: [Series; 2] = [
    Series { name: "6.1", package: "linux-image-amd64" },
    Series { name: "6.12", package: "linux-image-6.12-amd64" },
];

/// The tests of the kernel programs and of what is built on them.
const TESTS: [&str; 5] = ["redirect", "escapes", "wire", "lifecycle", "security_events"];

/// How one test binary or command ended on one kernel.
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) passed: usize,
    pub(crate) failed: Vec<String>,
    pub(crate) code: Option<i32>,
}

/// The verb. A kernel on which something fails makes it fail, after all of them have run.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let wanted = chosen(&arguments.kernels)?;
    setup::ensure(&[Group::Build, Group::Extras, Group::Kernels])?;
    ebpf::run()?;
    let tests: Vec<String> = if arguments.tests.is_empty() {
        TESTS.map(str::to_owned).to_vec()
    } else {
        arguments.tests.clone()
    };
    let programs = build(&tests)?;
    let mut failed = false;
    for series in wanted {
        let image = Image::prepare(series.package)?;
        run::announce(&format!("Linux {} ({})", series.name, image.release()));
        let outcomes = machine::run(&image, &programs, arguments.patience)?;
        println!("Linux {}", image.release());
        for outcome in &outcomes {
            let ended = outcome.code.map_or_else(|| "no end".to_owned(), |code| code.to_string());
            let (passed, lost) = (outcome.passed, outcome.failed.len());
            println!("  {:<12} {passed:>3} ok, {lost} failed, exit {ended}", outcome.name);
            for name in &outcome.failed {
                println!("    FAILED {name}");
            }
            failed |= outcome.code != Some(0);
        }
    }
    if failed {
        bail!(
            "not everything holds on every kernel; the consoles are in {}",
            paths::logs().display()
        );
    }
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Series>> {
    if names.is_empty() {
        return Ok(SERIES.iter().collect());
    }
    names
        .iter()
        .map(|name| {
            SERIES.iter().find(|series| series.name == name).with_context(|| {
                let known = SERIES.map(|series| series.name).join(", ");
                format!("no kernel series is called {name}; there are: {known}")
            })
        })
        .collect()
}

/// Something to run in the machine: what it is called, and its command line.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) command: String,
}

/// Builds the tests and the binary that they start.
fn build(tests: &[String]) -> Result<Vec<Program>> {
    let mut programs = vec![Program {
        name: "doctor".to_owned(),
        command: format!("{} doctor", paths::target().join("debug/tollgate").display()),
    }];
    for test in tests {
        let mut cargo = run::cargo(["test", "--no-run", "--message-format=json", "--package"]);
        cargo.args(["gateway", "--test", test]);
        let messages = run::output(&mut cargo)?;
        let program = executable(&messages, test)
            .with_context(|| format!("cargo names no program for the test {test}"))?;
        // Emulated, a test takes many times as long as it does here: fewer at once keep within their patience.
        let command = format!("{} --test-threads=2", program.display());
        programs.push(Program { name: test.clone(), command });
    }
    Ok(programs)
}

/// The program of the test target `test` among cargo's messages.
fn executable(messages: &str, test: &str) -> Option<PathBuf> {
    let at = |message: &serde_json::Value, pointer: &str| message.pointer(pointer).cloned();
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| at(message, "/target/name").is_some_and(|name| name == test))
        .filter(|message| at(message, "/profile/test").is_some_and(|is_test| is_test == true))
        .find_map(|message| at(&message, "/executable")?.as_str().map(PathBuf::from))
}
