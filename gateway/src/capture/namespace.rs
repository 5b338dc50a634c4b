//! Network namespaces: one of the workload's own, with nothing in it but `lo`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;

/// A network namespace, kept alive by this descriptor.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
}

/// A namespace cannot be made or entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The kernel refuses one step.
    #[error("cannot {step} for the workload's network namespace")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The thread ended without an answer.
    #[error("the thread that works in the workload's network namespace died")]
    ThreadDied,
}

impl Namespace {
    /// Makes a network namespace whose only interface is `lo`, up.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN, or when the kernel has no room for one more.
    pub fn isolated() -> Result<Self, NamespaceError> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(step("make a namespace"))?;
            loopback_up().map_err(|source| NamespaceError::Step { step: "bring lo up", source })?;
            let fd = File::open("/proc/thread-self/ns/net")
                .map_err(|source| NamespaceError::Step { step: "open the namespace", source })?;
            Ok(Self { fd: OwnedFd::from(fd) })
        })
    }

    /// The network namespace of a process, which may end at any time: whoever asks has to check afterwards that the
    /// process is still who it was.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of_process(pid: Pid) -> Result<Self, NamespaceError> {
        let file = File::open(format!("/proc/{pid}/ns/net"))
            .map_err(|source| NamespaceError::Step { step: "open a process's entry", source })?;
        Ok(Self { fd: OwnedFd::from(file) })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn own() -> Result<Self, NamespaceError> {
        let file = File::open("/proc/thread-self/ns/net")
            .map_err(|source| NamespaceError::Step { step: "open the own entry", source })?;
        Ok(Self { fd: OwnedFd::from(file) })
    }

    /// A second descriptor of the same namespace.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn again(&self) -> Result<Self, NamespaceError> {
        let fd = self.fd.try_clone();
        let fd = fd.map_err(|source| NamespaceError::Step { step: "copy a descriptor", source })?;
        Ok(Self { fd })
    }

    /// What names a namespace as long as it lives: the inode number of its file.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn inode(&self) -> Result<u64, NamespaceError> {
        let stat = nix::sys::stat::fstat(&self.fd).map_err(step("look at the file"))?;
        Ok(stat.st_ino)
    }

    /// Runs `work` on an OS thread of its own inside this namespace. The thread ends with `work`: no pooled thread is
    /// ever left behind in a workload's namespace, where it would dial from.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and what `work` returns.
    pub fn run<T: Send, E: Send + From<NamespaceError>>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, E> {
        on_own_thread(|| {
            setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(step("enter the namespace"))?;
            work()
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn on_own_thread<T: Send, E: Send + From<NamespaceError>>(
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("tollgate-netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|source| NamespaceError::Step { step: "start a thread", source })?;
        thread.join().unwrap_or_else(|_panic| Err(NamespaceError::ThreadDied.into()))
    })
}

fn step(step: &'static str) -> impl Fn(nix::Error) -> NamespaceError {
    move |errno| NamespaceError::Step { step, source: errno.into() }
}

/// Sets `lo` up in the calling thread's network namespace (SIOCSIFFLAGS, netdevice(7)).
#[expect(unsafe_code, reason = "interface flags are set by an ioctl that no safe crate here wraps")]
pub(crate) fn loopback_up() -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: ifreq is plain old data for which all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(*b"lo\0") {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    let flags =
        libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(io::Error::other)?;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the descriptor is open, and SIOCSIFFLAGS reads one ifreq, which lives across the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
