//! Network namespaces: one of the workload's own, with nothing in it but `lo`.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
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
    /// process is still who it was, or ask a [`HeldProcess`].
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

/// A process that is held: what is asked of it later is asked of this one, or fails, however soon its number is given
/// to another process.
///
/// It is the process's directory in `/proc`, which the kernel ties to the process like a pidfd, and unlike a pidfd
/// answers questions.
#[derive(Debug)]
pub struct HeldProcess {
    directory: OwnedFd,
}

impl HeldProcess {
    /// Takes hold of the process that has this number now; none when there is none.
    #[must_use]
    pub fn of(pid: Pid) -> Option<Self> {
        Self::hold(pid).ok().flatten()
    }

    /// The same for those to whom it matters why: none only when there is no such process.
    ///
    /// # Errors
    /// When the process may be there and cannot be held, as when there are no more descriptors.
    pub fn hold(pid: Pid) -> Result<Option<Self>, NamespaceError> {
        let path = format!("/proc/{pid}");
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match nix::fcntl::open(path.as_str(), flags, Mode::empty()) {
            Ok(directory) => Ok(Some(Self { directory })),
            Err(nix::Error::ENOENT | nix::Error::ESRCH) => Ok(None),
            Err(errno) => Err(step("hold a process")(errno)),
        }
    }

    /// The network namespaces that its threads are in, each once, with their inode numbers: a thread may have one of its
    /// own, and the first thread may have ended before the others.
    ///
    /// # Errors
    /// Where they may not be looked at, or there are more than [`THREADS_MAX`] threads.
    pub fn networks(&self) -> Result<Vec<(u64, Namespace)>, NamespaceError> {
        let mut found: Vec<(u64, Namespace)> = Vec::new();
        let failed = |source| NamespaceError::Step { step: "list a process's threads", source };
        let tasks = match fs::read_dir(format!("/proc/self/fd/{}/task", self.directory.as_raw_fd()))
        {
            Ok(tasks) => tasks,
            Err(error) if is_gone(&error) => return Ok(found),
            Err(error) => return Err(failed(error)),
        };
        for (number, task) in tasks.enumerate() {
            let task = match task {
                Ok(task) => task,
                Err(error) if is_gone(&error) => break,
                Err(error) => return Err(failed(error)),
            };
            if number >= THREADS_MAX {
                return Err(failed(io::Error::other("there are too many")));
            }
            let name = format!("task/{}/ns/net", task.file_name().to_string_lossy());
            match self.open(&name) {
                Ok(fd) => {
                    let namespace = Namespace { fd };
                    let inode = namespace.inode()?;
                    if !found.iter().any(|(known, _)| *known == inode) {
                        found.push((inode, namespace));
                    }
                }
                Err(nix::Error::ENOENT | nix::Error::ESRCH) => {}
                Err(errno) => return Err(step("open a thread's entry")(errno)),
            }
        }
        Ok(found)
    }

    /// The network namespace that its first thread is in; none when the process has ended.
    ///
    /// # Errors
    /// Where it may not be looked at (ptrace(2), "ptrace access mode checking").
    pub fn network(&self) -> Result<Option<Namespace>, NamespaceError> {
        match self.open("ns/net") {
            Ok(fd) => Ok(Some(Namespace { fd })),
            Err(nix::Error::ENOENT | nix::Error::ESRCH) => Ok(None),
            Err(errno) => Err(step("open a process's entry")(errno)),
        }
    }

    /// When it started, in clock ticks since the machine did; none when the process has ended.
    #[must_use]
    pub fn started(&self) -> Option<u64> {
        self.stat(22)
    }

    /// How many threads it has; none when the process has ended.
    #[must_use]
    pub fn threads(&self) -> Option<usize> {
        self.stat(20)
    }

    /// A field of its `stat`, counted as in proc(5).
    fn stat<T: std::str::FromStr>(&self, field: usize) -> Option<T> {
        let mut stat = Vec::new();
        File::from(self.open("stat").ok()?).read_to_end(&mut stat).ok()?;
        // The second field is a name in brackets, of the process's own choice, in any bytes.
        let end = stat.windows(2).rposition(|bytes| bytes == b") ")?;
        let rest = std::str::from_utf8(stat.get(end + 2..)?).ok()?;
        rest.split(' ').nth(field.checked_sub(3)?)?.parse().ok()
    }

    fn open(&self, name: &str) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        nix::fcntl::openat(&self.directory, name, flags, Mode::empty())
    }
}

/// Threads of one process that are looked at: a workload with more in one stays closed.
pub(crate) const THREADS_MAX: usize = 16_384;

/// Whether an entry of `/proc` says that its process or thread has ended.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
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

/// Sets `lo` up in the calling thread's network namespace (netdevice(7)) and gives it a second address of each family.
///
/// With 127.0.0.1 and ::1 alone, the C library takes the machine for one without a network: it looks up no name for a
/// program that asks for the addresses of one family that are of use here (AI_ADDRCONFIG).
pub(crate) fn loopback_up() -> io::Result<()> {
    let v4 = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let flags =
        libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(io::Error::other)?;
    let up = libc::__c_anonymous_ifr_ifru { ifru_flags: flags };
    set(&v4, libc::SIOCSIFFLAGS, &interface(b"lo", up))?;
    let address = libc::__c_anonymous_ifr_ifru { ifru_addr: socket_address(SECOND_V4) };
    set(&v4, libc::SIOCSIFADDR, &interface(b"lo:0", address))?;
    let second_v6 = || {
        let v6 = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None)?;
        let request = libc::in6_ifreq {
            ifr6_addr: libc::in6_addr { s6_addr: SECOND_V6.octets() },
            ifr6_prefixlen: 128,
            ifr6_ifindex: LO_INDEX,
        };
        set(&v6, libc::SIOCSIFADDR, &request)
    };
    if let Err(error) = second_v6() {
        // Then nobody asks for its addresses either.
        tracing::debug!(%error, "the workload has no IPv6");
    }
    Ok(())
}

/// Hands one request about an interface to the kernel.
#[expect(unsafe_code, reason = "interfaces are set up by ioctls that no safe crate here wraps")]
fn set<T>(socket: &socket2::Socket, what: libc::Ioctl, request: &T) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the request, of the type that `what` reads, lives across the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), what, std::ptr::from_ref(request)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn interface(name: &[u8], value: libc::__c_anonymous_ifr_ifru) -> libc::ifreq {
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: value };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name) {
        *slot = libc::c_char::from_ne_bytes([*byte]);
    }
    request
}

/// `address` as it stands behind the family in a `sockaddr_in`: after two bytes of port.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default();
    let mut data = [0; 14];
    for (slot, byte) in data.iter_mut().skip(2).zip(address.octets()) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    libc::sockaddr { sa_family: family, sa_data: data }
}

/// Within 127/8, which is the workload's own anyway.
const SECOND_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Link-local: only who names `lo` with it means it.
const SECOND_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// `lo` is the first interface of every network namespace.
const LO_INDEX: libc::c_int = 1;
