//! The real daemon, on a world's host.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};

use crate::common::place::Place;
use crate::common::running::Running;
use crate::common::waivers::permit_everything;
use crate::common::{wait_for, wait_until};
use crate::workload::Workload;

/// The daemon.
pub(crate) struct Governor {
    daemon: Running,
}

/// The port of the gateway in every workload.
pub(crate) const PORT: u16 = 10_255;

impl Governor {
    /// Starts it, and waits until the workload is armed.
    pub(crate) fn start(host: &Place, workload: &Workload, directory: &Path) -> Self {
        Self::start_until(GOVERNED, host, workload, directory)
    }

    /// Starts it, and waits until it says `text`.
    pub(crate) fn start_until(
        text: &str,
        host: &Place,
        workload: &Workload,
        directory: &Path,
    ) -> Self {
        let config = directory.join("tollgate.toml");
        fs::write(&config, configuration(workload, directory)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_tollgate"), "daemon", "--config"]);
        command.arg(config).env_clear().env("TOLLGATE_LOG", "info");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let mut daemon = spawn(host, command, &directory.join("daemon"));
        wait_for(&format!("the daemon says: {text}"), || {
            assert!(!daemon.has_ended(), "the daemon has ended: {}", daemon.stderr());
            daemon.stderr().contains(text).then_some(())
        });
        Self { daemon }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.daemon.pid(), signal).unwrap();
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        wait_until("the daemon is gone", || self.daemon.has_ended());
    }
}

/// What the daemon says when a workload is armed.
const GOVERNED: &str = ": governed agent=";

fn configuration(workload: &Workload, directory: &Path) -> String {
    format!(
        "[gateway]\nport = {PORT}\nconnects_per_second = 1000000\n\
         state_dir = \"{at}/state\"\naudit = \"{at}/audit.jsonl\"\n\
         [discover]\npermit = {permit}\n\
         [[agent]]\nname = \"attacker\"\ndefault = \"deny\"\nmatch = {{ cgroup = \"{cgroup}\" }}\n",
        at = directory.display(),
        cgroup = workload.cgroup.name(),
        // The attackers share the machine's files and processes, and some have more rights than they should.
        permit = permit_everything(),
    )
}

/// Starts a command in the host's namespaces, its output in files named `output`.
pub(crate) fn spawn(host: &Place, mut command: Command, output: &Path) -> Running {
    let outputs: [PathBuf; 2] = ["out", "err"].map(|end| output.with_extension(end));
    command.stdin(Stdio::null());
    command.stdout(File::create(&outputs[0]).unwrap());
    command.stderr(File::create(&outputs[1]).unwrap());
    let child = host.run(move || command.spawn().expect("the command starts"));
    let [out, err] = outputs;
    Running::new(child, out, err)
}
