//! The first process of a container, which is its runtime's until it becomes the container's own program.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::Pid;

/// See the module. It has every right, and most of the host's files, until then; of what it will be, the container's
/// configuration has been judged.
///
/// A container's own program can be the runtime's again (`/proc/self/exe`, with libraries of the image): so it waits no
/// longer either, once it has been seen with nothing that speaks against it. A runtime gives up its rights last.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pid: Pid,
    /// Device and inode of the runtime's program.
    runtime: (u64, u64),
    /// Clones share it.
    is_over: Arc<AtomicBool>,
}

impl Waiting {
    /// The process `pid`, as long as its program is the one that it has now.
    pub(super) fn of(pid: Pid) -> io::Result<Self> {
        Ok(Self { pid, runtime: program_of(pid)?, is_over: Arc::default() })
    }

    /// Whether it is this process, and still waits.
    pub(super) fn is(&self, pid: Pid) -> bool {
        let waits = self.pid == pid && !self.is_over.load(Ordering::Acquire);
        waits && program_of(pid).is_ok_and(|program| program == self.runtime)
    }

    /// It was seen as what it is to be.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }
}

fn program_of(pid: Pid) -> io::Result<(u64, u64)> {
    let program = fs::metadata(format!("/proc/{pid}/exe"))?;
    Ok((program.dev(), program.ino()))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_waits_until_it_becomes_another_program() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "read line; exec sleep 1000"]).stdin(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let becomes = |path: &str| {
            let program = fs::metadata(path).unwrap();
            while program_of(pid).unwrap() != (program.dev(), program.ino()) {
                std::thread::yield_now();
            }
        };
        becomes("/bin/sh");
        let waiting = Waiting::of(pid).unwrap();
        assert!(waiting.is(pid) && !waiting.is(nix::unistd::getpid()));
        let seen = Waiting::of(pid).unwrap();
        let another_look = seen.clone();
        another_look.end();
        assert!(!seen.is(pid), "it was seen as what it is to be, whatever its program");
        assert!(waiting.is(pid), "the control");
        drop(child.stdin.take());
        becomes("/bin/sleep");
        assert!(!waiting.is(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!waiting.is(pid) && Waiting::of(pid).is_err());
    }
}
