//! The attack programs of `tests/fixtures/attacks`, compiled once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::common::has_program;

/// Where the compiled programs are.
pub(super) struct Programs {
    /// `attack NAME …`: every attempt of a 64-bit program.
    pub(super) attack: PathBuf,
    /// `i386 NAME …`: those of a 32-bit one; nothing on a machine that has no such programs.
    pub(super) i386: Option<PathBuf>,
}

impl Programs {
    /// Whether this machine has what the attempt `name` runs in.
    pub(super) fn can_run(&self, name: &str) -> bool {
        self.i386.is_some() || !name.starts_with("i386 ")
    }

    /// The program of the attempt `name`, and what that one calls it: `i386 udp`, `admin dnat`, or one of `attack`.
    pub(super) fn of<'name>(&self, name: &'name str) -> (&Path, &'name str) {
        match name.split_once(' ') {
            Some(("i386", word)) => (self.i386.as_deref().expect("rows are filtered"), word),
            Some((_admin, word)) => (Path::new("attacks/admin.py"), word),
            None => (&self.attack, name),
        }
    }
}

const SHARED: [&str; 2] = ["-O1", "-static"];

/// Nothing, after saying so, where there is no compiler.
pub(super) fn programs() -> Option<&'static Programs> {
    static BUILT: OnceLock<Option<Programs>> = OnceLock::new();
    BUILT.get_or_init(|| has_program("gcc").then(build)).as_ref()
}

fn build() -> Programs {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/attacks");
    let alone = sources.join("i386.c");
    let mut shared: Vec<PathBuf> =
        fs::read_dir(&sources).unwrap().map(|entry| entry.unwrap().path()).collect();
    shared.retain(|path| path.extension().is_some_and(|end| end == "c") && *path != alone);
    // Not randomised: what 32-bit calls point to must stand below 4 GiB.
    let attack = compile("attack", &["-std=gnu11", "-no-pie"], &shared);
    let freestanding = ["-m32", "-nostdlib", "-ffreestanding", "-fno-stack-protector"];
    let i386 = cfg!(target_arch = "x86_64").then(|| compile("i386", &freestanding, &[alone]));
    Programs { attack, i386 }
}

/// Compiled beside and moved into place: another test process may be running it. What is newer than everything it
/// comes from is used as it is, since an emulated machine compiles slowly.
fn compile(name: &str, flags: &[&str], sources: &[PathBuf]) -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    let folder = sources[0].parent().expect("a source is in a folder");
    let newest =
        fs::read_dir(folder).unwrap().map(|entry| changed(&entry.unwrap().path()).unwrap());
    if changed(&program).is_ok_and(|built| newest.max().is_some_and(|newest| built > newest)) {
        return program;
    }
    let beside = program.with_extension(std::process::id().to_string());
    let mut gcc = Command::new("gcc");
    gcc.args(SHARED).args(flags).arg("-o").arg(&beside).args(sources);
    let output = gcc.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&beside, &program).unwrap();
    program
}
