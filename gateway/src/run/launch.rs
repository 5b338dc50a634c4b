//! Starting the workload's first process, and waiting until it ends.

use std::fs::File;
use std::io::{self, PipeReader, Read as _};
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::sync::mpsc;

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, raise};
use nix::unistd::Pid;

use super::directory::Directory;
use super::init::Report;
use super::signals::Signals;
use crate::capture::Namespace;

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Exited(u8),
    /// By this signal.
    Signaled(i32),
}

/// Starts init in namespaces of its own and waits for the command's end.
pub(super) fn launch(
    namespace: &Namespace,
    directory: &Directory,
    status: File,
    signals: &Signals,
) -> anyhow::Result<Ended> {
    std::thread::scope(|scope| {
        let (started, start) = mpsc::channel();
        // Its other end closes when init has ended, whether or not init ever opened the status pipe.
        let (gone, alive) = io::pipe()?;
        let launcher = std::thread::Builder::new().name("tollgate-launcher".to_owned());
        // The kernel kills init when the thread that started it ends: it lives as long as init does.
        let thread = launcher.spawn_scoped(scope, move || {
            let _alive = alive;
            let outcome = spawn_init(namespace, directory);
            match outcome {
                Ok(mut child) => {
                    let pid = child.id();
                    if started.send(Ok(pid)).is_ok() {
                        child
                            .wait()
                            .context("cannot wait for the workload's first process")
                            .map(drop)
                    } else {
                        Ok(())
                    }
                }
                Err(error) => {
                    if started.send(Err(error)).is_err() {
                        tracing::error!("nobody waits for the launcher");
                    }
                    Ok(())
                }
            }
        })?;
        let pid = start.recv().context("the launcher ended early")??;
        let ended = watch(Pid::from_raw(i32::try_from(pid)?), status, &gone, signals);
        let joined = thread.join().map_err(|_panic| anyhow::anyhow!("the launcher panicked"))?;
        let ended = ended?;
        joined?;
        ended.context("the workload's first process ended without a report; see the messages above")
    })
}

/// Runs on the launcher thread: what it unshares is its own and its children's.
fn spawn_init(namespace: &Namespace, directory: &Directory) -> anyhow::Result<Child> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC)
        .context("cannot make mount, PID and IPC namespaces for the command")?;
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
        .context("cannot enter the command's network namespace")?;
    Command::new("/proc/self/exe")
        .arg(INIT_VERB)
        .arg(directory.path())
        .env_clear()
        .spawn()
        .context("cannot start the workload's first process")
}

/// Hidden verb of the binary: the workload's first process.
pub(super) const INIT_VERB: &str = "__init";

/// Passes signals on and reads init's reports until it ends. `None` when init died without a last word.
fn watch(
    init: Pid,
    mut status: File,
    gone: &PipeReader,
    signals: &Signals,
) -> anyhow::Result<Option<Ended>> {
    let mut ended = None;
    loop {
        let mut fds = [
            PollFd::new(signals.fd().as_fd(), PollFlags::POLLIN),
            PollFd::new(status.as_fd(), PollFlags::POLLIN),
            PollFd::new(gone.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let closed = fds
            .iter()
            .skip(1)
            .any(|fd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)));
        signals.pass_on(init)?;
        while let Some(report) = read_report(&mut status)? {
            match report {
                Report::Stopped => raise(Signal::SIGSTOP)?,
                Report::Exited(code) => ended = Some(Ended::Exited(code)),
                Report::Signaled(signal) => ended = Some(Ended::Signaled(i32::from(signal))),
            }
        }
        if closed {
            return Ok(ended);
        }
    }
}

fn read_report(status: &mut File) -> anyhow::Result<Option<Report>> {
    let mut bytes = [0; Report::BYTES];
    match status.read(&mut bytes) {
        Ok(Report::BYTES) => Ok(Some(Report::from_bytes(bytes)?)),
        Ok(_end_of_file) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt as _;

    use super::*;

    #[test]
    fn the_wait_for_init_ends_with_init_although_it_never_opened_the_status_pipe() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join("status");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let status = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let (gone, alive) = io::pipe().unwrap();
        drop(alive);
        let signals = Signals::block().unwrap();
        assert_eq!(watch(Pid::this(), status, &gone, &signals).unwrap(), None);
    }
}
