//! Signals that Tollgate gets belong to the command.
//!
//! A signal from the terminal reaches the whole foreground process group, the command included, by itself; one that
//! somebody sent to Tollgate alone is passed on.

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

/// Signals that are blocked in every thread and read from a descriptor instead.
pub(super) struct Signals {
    fd: SignalFd,
    /// What was blocked before: the command starts with that again.
    before: SigSet,
}

/// What is passed on. SIGCHLD is the process's own; SIGKILL and SIGSTOP cannot be caught.
const PASSED_ON: [Signal; 11] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGWINCH,
    Signal::SIGURG,
];

/// `si_code` of a signal that the kernel itself raised, for example for Ctrl-C at the terminal (`asm-generic/siginfo.h`).
const SI_KERNEL: i32 = 0x80;

impl Signals {
    /// Blocks the signals in the calling thread and those that it starts.
    pub(super) fn block() -> anyhow::Result<Self> {
        let mut set: SigSet = PASSED_ON.into_iter().collect();
        set.add(Signal::SIGCHLD);
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { fd, before })
    }

    pub(super) fn fd(&self) -> &SignalFd {
        &self.fd
    }

    /// Numbers of the signals that the caller of Tollgate had blocked.
    pub(super) fn blocked_before(&self) -> Vec<i32> {
        self.before.iter().map(|signal| signal as i32).collect()
    }

    /// Sends `process` what has arrived and is to be passed on.
    pub(super) fn pass_on(&self, process: Pid) -> anyhow::Result<()> {
        for signal in self.take()? {
            // ESRCH: it has just ended.
            if let Err(error) = kill(process, signal) {
                tracing::debug!(%error, ?signal, "a signal could not be passed on");
            }
        }
        Ok(())
    }

    fn take(&self) -> anyhow::Result<Vec<Signal>> {
        let mut taken = Vec::new();
        while let Some(info) = self.fd.read_signal()? {
            let from_terminal = info.ssi_code == SI_KERNEL;
            let number = i32::try_from(info.ssi_signo)?;
            let signal = Signal::try_from(number)?;
            if signal != Signal::SIGCHLD && !from_terminal {
                taken.push(signal);
            }
        }
        Ok(taken)
    }
}

/// Blocks exactly the signals with these numbers in the calling thread: the mask outlives `exec`.
pub(super) fn restore_mask(numbers: &[i32]) -> anyhow::Result<()> {
    let mut set = SigSet::empty();
    for number in numbers {
        set.add(Signal::try_from(*number)?);
    }
    Ok(set.thread_set_mask()?)
}
