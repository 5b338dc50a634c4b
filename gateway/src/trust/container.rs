//! A running container → it trusts the CA: extended copies of its stores, mounted over them in its own mount
//! namespace.
//!
//! Neither image nor command change, and nothing is written to the container's file system except, where an image has
//! no place for roots at all, the empty directory that they are mounted on. The copies are read-only. They go away
//! with the mount namespace: after a restart the container gets them anew.
//!
//! The container's files are hostile: every lookup stays below its root, only regular files are read, and not without
//! end. What can still hang (a network file system) hangs a thread that nobody waits for longer than [`PATIENCE`].

mod cover;
mod node;
mod place;
mod plan;
mod stores;
mod view;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags, Stat};
use rustix::mount::MountPropagationFlags;
use serde::Serialize;

use super::bundle::{self, Anchors};
use super::environment::NODE_FILE;
use super::keystore::{self, KeystoreError};
pub(super) use node::NodeBuild;
pub use stores::StoreKind;
use stores::Stores;
use view::View;

/// What was done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Every store that was found or made.
    pub stores: Vec<StoreReport>,
    /// Whether anything was mounted or taken away.
    pub is_changed: bool,
    /// Whether the search for stores came to its end.
    pub is_complete: bool,
}

/// One store.
#[derive(Debug, Serialize)]
pub struct StoreReport {
    /// Where it is, links resolved.
    pub path: PathBuf,
    /// How it is read.
    pub kind: StoreKind,
    /// Why clients that read it will not trust the CA.
    pub problem: Option<String>,
}

/// What a container has, before or after its stores were covered.
pub(super) struct Inspection {
    /// Every store, with a problem where the CA is not in it.
    pub(super) stores: Vec<StoreReport>,
    /// Which of the programs that were asked for exist, where.
    pub(super) programs: Vec<PathBuf>,
    /// Of the one that is called `node`.
    pub(super) node: NodeBuild,
    /// The environment of its first process.
    pub(super) environment: Vec<(String, String)>,
}

/// Why a store is not covered.
#[derive(Debug, thiserror::Error)]
pub enum Uncovered {
    /// A directory, pipe or device.
    #[error("it is not what clients could read there")]
    NotAFile,
    /// Larger than any bundle, or a directory with more in it than any has.
    #[error("it is too large to be a store of roots")]
    TooLarge,
    /// In a file system of the kernel's own.
    #[error("it is not on a file system for files")]
    NoFileSystem,
    /// The system refuses.
    #[error("it cannot be read")]
    Unreadable {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Java's store cannot be extended.
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
    /// Replaced while it was looked at.
    #[error("it was changed meanwhile")]
    Changed,
    /// A mount there would appear elsewhere.
    #[error("it is on a volume whose mounts the host shares")]
    Shared,
    /// There is no directory to mount on, and none can be made.
    #[error("the image has no directory for roots, and its file system is read-only")]
    NoPlace {
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// There is no directory to mount on, and the files are the host's.
    #[error("there is no directory for roots, and none is made among the host's own files")]
    HostPlace,
    /// The kernel refuses the mount.
    #[error("it cannot be mounted over")]
    Refused {
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a container's files cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The process has ended.
    #[error("the process {pid} is gone")]
    Gone {
        /// Its number.
        pid: Pid,
    },
    /// It has no mount namespace of its own.
    #[error(
        "the process {pid} shares the host's files: only variables of its environment make its clients trust the CA"
    )]
    HostFiles {
        /// Its number.
        pid: Pid,
    },
    /// The system refuses a step.
    #[error("cannot {step} for the container's trust")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Something in the container does not answer.
    #[error("the container's files did not answer in {PATIENCE:?}")]
    Timeout,
}

/// How long all of it may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Makes the clients in the container of process `pid` trust `anchors`. The second time it changes nothing, unless the
/// anchors or the container's stores have changed.
///
/// The process may end at any time, and its number be given to another: whoever asks has to check afterwards that it
/// is still who it was.
///
/// # Errors
/// When the container's mounts cannot be entered. What cannot be covered is no error but stands in the report.
pub fn install(pid: Pid, anchors: &Anchors) -> Result<Report, InstallError> {
    let anchors = anchors.clone();
    in_container(pid, move |inside| inside.install(&anchors))
}

/// Says what the container has: which stores are without an anchor, and which of `programs` exist where programs are.
///
/// # Errors
/// When the container's mounts cannot be entered.
pub(super) fn inspect(
    pid: Pid,
    anchors: &Anchors,
    programs: &[&'static str],
) -> Result<Inspection, InstallError> {
    let (anchors, programs) = (anchors.clone(), programs.to_vec());
    in_container(pid, move |inside| inside.inspect(&anchors, &programs))
}

/// The calling thread in a container's mount namespace.
struct Inside {
    /// Of this thread, in our own proc.
    proc: OwnedFd,
    namespace: OwnedFd,
    /// The roots of this program and of the machine's first process.
    hosts_roots: Vec<Stat>,
    environment: Vec<(String, String)>,
}

fn in_container<T: Send + 'static>(
    pid: Pid,
    work: impl FnOnce(&Inside) -> Result<T, InstallError> + Send + 'static,
) -> Result<T, InstallError> {
    let (answer, wait) = mpsc::channel();
    // A thread of its own, which ends in there: no pooled thread is left behind in a container's files.
    let enter = move || {
        let result = Inside::enter(pid).and_then(|inside| work(&inside));
        // Nobody waits after the deadline.
        drop(answer.send(result));
    };
    std::thread::Builder::new()
        .name("tollgate-mountns".to_owned())
        .spawn(enter)
        .map_err(step("start a thread"))?;
    wait.recv_timeout(PATIENCE).unwrap_or(Err(InstallError::Timeout))
}

impl Inside {
    fn enter(pid: Pid) -> Result<Self, InstallError> {
        let gone = || InstallError::Gone { pid };
        let number = rustix::process::Pid::from_raw(pid.as_raw()).ok_or_else(gone)?;
        let no_flags = rustix::process::PidfdFlags::empty();
        let process = rustix::process::pidfd_open(number, no_flags).map_err(|_errno| gone())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open(c"/proc/thread-self", flags, Mode::empty())
            .map_err(|errno| step("open the own entry in /proc")(errno.into()))?;
        let open = |path: String| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map_err(|_errno| gone())
        };
        let namespace = open(format!("/proc/{pid}/ns/mnt"))?;
        let own = open("/proc/thread-self/ns/mnt".to_owned())?;
        // Whoever starts this program may have given it a namespace of its own, and not the right to look at others.
        let hosts = open("/proc/1/ns/mnt".to_owned()).ok();
        let roots = ["/proc/self/root", "/proc/1/root"].map(rustix::fs::stat);
        let hosts_roots: Vec<Stat> = roots.into_iter().flatten().collect();
        let environment = environment(pid);
        // The entries were those of the process that the descriptor holds if it still lives.
        let mut events = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if !matches!(rustix::event::poll(&mut events, Some(&now)), Ok(0)) {
            return Err(gone());
        }
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        let is_hosts = |other: &OwnedFd| inode(other).ok() == inode(&namespace).ok();
        if is_hosts(&own) || hosts.as_ref().is_some_and(is_hosts) {
            return Err(InstallError::HostFiles { pid });
        }
        // Root, working directory and mask of this thread alone.
        unshare(CloneFlags::CLONE_FS).map_err(nix_step("leave the process's directories"))?;
        rustix::process::umask(Mode::empty());
        let inside = Self { proc, namespace, hosts_roots, environment };
        inside.enter_mounts()?;
        if hosts.is_none() && inside.has_hosts_root(&inside.view()?) {
            return Err(InstallError::HostFiles { pid });
        }
        Ok(inside)
    }

    fn enter_mounts(&self) -> Result<(), InstallError> {
        setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNS)
            .map_err(nix_step("enter the mount namespace"))
    }

    fn view(&self) -> Result<View<'_>, InstallError> {
        View::open(self.proc.as_fd()).map_err(step("open the root"))
    }

    fn install(&self, anchors: &Anchors) -> Result<Report, InstallError> {
        // In a copy of the namespace, where what was mounted before can be taken away without anybody missing it.
        unshare(CloneFlags::CLONE_NEWNS).map_err(nix_step("copy the mount namespace"))?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private)
            .map_err(|errno| step("part the copy from its origin")(errno.into()))?;
        let view = self.view()?;
        for mounted in view.mounts().map_err(step("read the mounts"))?.iter().rev() {
            if cover::is_ours(mounted)
                && let Err(error) = cover::uncover(&view, mounted)
            {
                tracing::debug!(%error, path = %mounted.path.display(), "extended twice");
            }
        }
        let mounts = view.mounts().map_err(step("read the mounts"))?;
        let stores = Stores::find(&view, &self.named_files());
        let mut plan = plan::Plan::new(&view, &mounts, &stores, anchors);
        drop(stores);
        let mut reports = std::mem::take(&mut plan.stores);
        plan.items.retain_mut(|item| {
            if item.covers.is_none() {
                match self.make_place(&view, &item.path) {
                    Ok(made) => item.covers = Some(made),
                    Err(why) => cover::say(&mut reports, &item.path, &why),
                }
            }
            item.covers.is_some()
        });
        drop(view);
        let prepared = cover::prepare(&plan).map_err(step("write the stores"))?;
        self.enter_mounts()?;
        let is_changed = cover::cover(&self.view()?, &plan, &prepared, &mut reports)
            .map_err(step("read the mounts"))?;
        Ok(Report { stores: reports, is_changed, is_complete: plan.is_complete })
    }

    fn make_place(&self, view: &View<'_>, path: &Path) -> Result<Stat, Uncovered> {
        if self.has_hosts_root(view) {
            return Err(Uncovered::HostPlace);
        }
        place::make(view, path)
    }

    /// Also where it cannot be told.
    fn has_hosts_root(&self, view: &View<'_>) -> bool {
        let Ok(root) = rustix::fs::fstat(view.root()) else { return true };
        let same = |other: &Stat| (other.st_dev, other.st_ino) == (root.st_dev, root.st_ino);
        self.hosts_roots.iter().any(same)
    }

    fn inspect(
        &self,
        anchors: &Anchors,
        programs: &[&'static str],
    ) -> Result<Inspection, InstallError> {
        let view = self.view()?;
        let stores = Stores::find(&view, &self.named_files());
        let list = stores.list.iter();
        let stores = list.map(|store| StoreReport {
            path: store.found.path.clone(),
            kind: store.kind,
            problem: lack(&view, store, anchors),
        });
        let mut found = Vec::new();
        let mut node = NodeBuild::default();
        let own = self.environment.iter().find(|(name, _)| name == "PATH");
        let own = own.map_or("", |(_name, value)| value).split(':').take(FOLDERS_MAX);
        let folders: Vec<&str> = own.chain(PROGRAM_FOLDERS).collect();
        for name in programs {
            for folder in &folders {
                let path = Path::new(folder).join(name);
                if let Ok(program) = view.find(&path)
                    && is_program(&program)
                {
                    // It is large, and does not matter where it is told.
                    if *name == "node" && !self.is_set(NODE_FILE) {
                        node = node::build_of(&view, &program);
                    }
                    found.push(path);
                    break;
                }
            }
        }
        let stores = stores.collect();
        let environment = self.environment.clone();
        Ok(Inspection { stores, programs: found, node, environment })
    }

    fn is_set(&self, variable: &str) -> bool {
        self.environment.iter().any(|(name, value)| name == variable && !value.is_empty())
    }

    /// The bundles that variables name which clients read.
    fn named_files(&self) -> Vec<PathBuf> {
        let names = super::environment::names_of_files();
        self.environment
            .iter()
            .filter(|(name, value)| names.contains(&name.as_str()) && value.starts_with('/'))
            .map(|(_name, value)| PathBuf::from(value))
            .collect()
    }
}

/// What keeps a client that reads this store from trusting an anchor.
fn lack(view: &View<'_>, store: &stores::Store, anchors: &Anchors) -> Option<String> {
    let missing = Some("the CA is not in it".to_owned());
    let read = |found: &view::Found| view.read(found, bundle::BUNDLE_MAX_BYTES);
    match store.kind {
        StoreKind::Bundle | StoreKind::Java => match read(&store.found) {
            Err(error) => Some(error.to_string_chain()),
            Ok(content) if store.kind == StoreKind::Java => {
                (!keystore::has(&content, anchors)).then_some(missing)?
            }
            Ok(content) => {
                (bundle::count_of(&content, anchors).1 < anchors.iter().len()).then_some(missing)?
            }
        },
        StoreKind::Directory | StoreKind::Anchors => {
            let entries = View::entries(&store.found, DIRECTORY_MAX_ENTRIES).unwrap_or_default();
            let ours = entries.iter().filter_map(|(name, _)| {
                let name = name.to_str().ok()?;
                (name.starts_with("tollgate-") || is_hash_of(name, anchors)).then_some(name)
            });
            (ours.count() < anchors.iter().len()).then_some(missing)?
        }
    }
}

fn is_hash_of(name: &str, anchors: &Anchors) -> bool {
    let hash = name.split('.').next();
    anchors.iter().any(|anchor| bundle::openssl_subject_hash(&anchor.der).as_deref() == hash)
}

fn is_program(found: &view::Found) -> bool {
    found.kind() == rustix::fs::FileType::RegularFile && found.stat.st_mode & 0o111 != 0
}

/// As the process was started; nothing where it cannot be read.
fn environment(pid: Pid) -> Vec<(String, String)> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(format!("/proc/{pid}/environ"));
    let read = file.and_then(|file| {
        io::Read::read_to_end(&mut io::Read::take(file, ENVIRONMENT_MAX_BYTES), &mut bytes)
    });
    if let Err(error) = read {
        tracing::debug!(%error, %pid, "the environment of a container cannot be read");
    }
    let text = String::from_utf8_lossy(&bytes);
    let pair = |line: &str| line.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned()));
    text.split('\0').filter_map(pair).collect()
}

// === impl Uncovered ===

impl Uncovered {
    fn unreadable(error: impl Into<io::Error>) -> Self {
        Self::Unreadable { source: error.into() }
    }

    /// With the cause, for a report.
    fn to_string_chain(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

impl StoreReport {
    fn new(store: &stores::Store, result: Result<(), Uncovered>) -> Self {
        let problem = result.err().map(|why| why.to_string_chain());
        Self { path: store.found.path.clone(), kind: store.kind, problem }
    }

    fn covered(path: &str, kind: StoreKind) -> Self {
        Self { path: path.into(), kind, problem: None }
    }
}

fn step(step: &'static str) -> impl Fn(io::Error) -> InstallError {
    move |source| InstallError::Step { step, source }
}

fn nix_step(step: &'static str) -> impl Fn(nix::Error) -> InstallError {
    move |errno| InstallError::Step { step, source: errno.into() }
}

/// The kernel allows arguments and environment some megabytes together.
const ENVIRONMENT_MAX_BYTES: u64 = 4 * 1024 * 1024;
const DIRECTORY_MAX_ENTRIES: usize = 8192;
/// Of a `PATH` that the container's own process was given.
const FOLDERS_MAX: usize = 64;
const PROGRAM_FOLDERS: [&str; 6] =
    ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"];
