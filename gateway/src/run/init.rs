//! The workload's first process: pid 1 of its PID namespace.
//!
//! It joins the cgroup, mounts, starts the command, passes signals on, reaps, and reports. It keeps its rights (the
//! command cannot trace or kill it) and parses nothing that the command writes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Context as _;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::directory::{plan_path, status_path};
use super::enter::{self, ENTER_VERB};
use super::plan::Plan;
use super::signals::Signals;

/// What init tells Tollgate about the command, as two bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    /// Stopped, as by Ctrl-Z.
    Stopped,
    /// Ended with an exit code.
    Exited(u8),
    /// Ended by a signal.
    Signaled(u8),
}

impl Report {
    pub(super) const BYTES: usize = 2;

    pub(super) fn from_bytes(bytes: [u8; Self::BYTES]) -> anyhow::Result<Self> {
        match bytes {
            [b'S', _] => Ok(Self::Stopped),
            [b'E', code] => Ok(Self::Exited(code)),
            [b'K', signal] => Ok(Self::Signaled(signal)),
            [kind, _] => anyhow::bail!("init reports the unknown kind {kind}"),
        }
    }

    fn bytes(self) -> [u8; Self::BYTES] {
        match self {
            Self::Stopped => [b'S', 0],
            Self::Exited(code) => [b'E', code],
            Self::Signaled(signal) => [b'K', signal],
        }
    }
}

/// Runs the workload described in the run directory `run`.
///
/// # Errors
/// When a step fails; the command is not started then.
pub fn init(run: &Path) -> anyhow::Result<ExitCode> {
    // Tollgate killed: the kernel kills this process, and with pid 1 the whole namespace.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The command must not read this process's memory, whatever rights it gets.
    prctl::set_dumpable(false)?;
    let mut status = open_status(run).context("Tollgate is gone")?;
    let plan: Plan = serde_json::from_slice(&fs::read(plan_path(run))?)?;
    fs::remove_file(plan_path(run))?;
    fs::write(&plan.cgroup_procs, "0").context("cannot join the workload's cgroup")?;
    // Its root is the workload's cgroup: no path above it can be named, whatever is mounted later.
    unshare(CloneFlags::CLONE_NEWCGROUP).context("cannot make a cgroup namespace")?;
    plan.mounts.apply()?;
    // By its name, not by the inherited directory: what is hidden now must not be reachable through it.
    std::env::set_current_dir(&plan.working_directory)
        .with_context(|| format!("cannot enter {}", plan.working_directory.display()))?;
    let signals = Signals::block()?;
    let command = start(&plan)?;
    let last = reap(command, &mut status, &signals)?;
    report(&mut status, last)?;
    Ok(ExitCode::SUCCESS)
}

/// Without waiting for a reader: Tollgate may have been killed before this process asked to die with it, and would
/// never come. Then there is nobody at the other end, and the kernel says so.
fn open_status(run: &Path) -> io::Result<File> {
    let status =
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(status_path(run))?;
    fcntl(&status, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(status)
}

fn start(plan: &Plan) -> anyhow::Result<Pid> {
    let child = Command::new("/proc/self/exe")
        .arg(ENTER_VERB)
        .args(enter::arguments(plan))
        .arg("--")
        .args(&plan.command)
        .env_clear()
        .envs(plan.environment.iter().map(|(name, value)| (name, value)))
        .spawn()
        .context("cannot start the command")?;
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// Reaps until the command has ended.
fn reap(command: Pid, status: &mut File, signals: &Signals) -> anyhow::Result<Report> {
    loop {
        loop {
            let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED;
            match waitpid(None, Some(flags)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == command => {
                    return Ok(Report::Exited(u8::try_from(code & 0xff)?));
                }
                Ok(WaitStatus::Signaled(pid, signal, _core)) if pid == command => {
                    return Ok(Report::Signaled(u8::try_from(signal as i32)?));
                }
                Ok(WaitStatus::Stopped(pid, _signal)) if pid == command => {
                    report(status, Report::Stopped)?
                }
                Ok(WaitStatus::StillAlive) => break,
                Ok(_orphan) => {}
                Err(nix::Error::EINTR) => {}
                // Somebody was ended by a real-time signal, which nix has no name for.
                Err(nix::Error::EINVAL) if kill(command, None).is_ok() => {}
                Err(nix::Error::EINVAL) => return Ok(Report::Signaled(SIGRTMIN)),
                Err(error) => return Err(error.into()),
            }
        }
        let mut fds = [PollFd::new(signals.fd().as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        signals.pass_on(command)?;
    }
}

/// Stands for every real-time signal.
const SIGRTMIN: u8 = 34;

fn report(status: &mut File, report: Report) -> io::Result<()> {
    status.write_all(&report.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_the_pipe() {
        for report in [Report::Stopped, Report::Exited(0), Report::Exited(255), Report::Signaled(9)]
        {
            assert_eq!(Report::from_bytes(report.bytes()).unwrap(), report);
        }
        assert!(Report::from_bytes([b'x', 0]).is_err());
    }

    #[test]
    fn a_status_pipe_that_nobody_reads_is_an_error_and_not_a_wait() {
        let run = tempfile::tempdir().unwrap();
        let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
        nix::unistd::mkfifo(&status_path(run.path()), mode).unwrap();
        let error = open_status(run.path()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENXIO));
        // With a reader it opens, and later writes wait as they should.
        let _reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(status_path(run.path()))
            .unwrap();
        let status = open_status(run.path()).unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&status, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
    }
}
