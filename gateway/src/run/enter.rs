//! The last step before the command: gives up rights, then becomes it.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context as _;
use caps::{CapSet, Capability};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use super::plan::Plan;
use super::signals::restore_mask;
use crate::capture;

/// Hidden verb of the binary: becomes the command.
pub(super) const ENTER_VERB: &str = "__enter";

/// The command could not be executed.
#[derive(Debug, thiserror::Error)]
#[error("cannot execute `{program}`")]
pub struct NotStarted {
    program: String,
    /// 127 when there is no such command, 126 when it cannot be executed.
    pub exit_code: u8,
    #[source]
    source: io::Error,
}

/// Exit code when the command is there and cannot be executed (POSIX, `env`, `sudo`).
const CANNOT_EXECUTE: u8 = 126;
/// Exit code when there is no such command.
const NOT_FOUND: u8 = 127;

/// What a command that runs as root keeps: what it needs for its own files and processes. Everything that reaches past
/// the namespaces (SYS_ADMIN, NET_ADMIN, BPF, SYS_PTRACE, SYS_MODULE, MKNOD …) is gone for good.
const KEPT: [Capability; 12] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_SETFCAP,
];

/// Who the command is, as init says it on the command line of this step.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Identity {
    /// Signals that are blocked in the command.
    #[arg(long, value_delimiter = ',')]
    blocked: Vec<i32>,
    /// Soft limit of open files.
    #[arg(long)]
    open_files: u64,
    /// User id; without it nothing changes.
    #[arg(long, requires = "gid")]
    uid: Option<u32>,
    /// Group id.
    #[arg(long)]
    gid: Option<u32>,
    /// All groups.
    #[arg(long, value_delimiter = ',')]
    groups: Vec<u32>,
}

/// The arguments of the verb for this plan.
pub(super) fn arguments(plan: &Plan) -> Vec<OsString> {
    fn option<T: ToString>(name: &str, values: &[T]) -> Option<OsString> {
        let values: Vec<String> = values.iter().map(T::to_string).collect();
        (!values.is_empty()).then(|| format!("--{name}={}", values.join(",")).into())
    }
    let user = plan.user.as_ref();
    let ids = user.map(|user| (user.uid, user.gid, user.groups.as_slice()));
    [
        option("blocked", &plan.blocked_signals),
        option("open-files", &[plan.open_files]),
        ids.and_then(|(uid, _, _)| option("uid", &[uid])),
        ids.and_then(|(_, gid, _)| option("gid", &[gid])),
        ids.and_then(|(_, _, groups)| option("groups", groups)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Becomes `command` as `identity`. Returns only when it cannot.
///
/// # Errors
/// When rights cannot be given up.
pub fn enter(identity: Identity, command: &[OsString]) -> anyhow::Result<NotStarted> {
    // Sockets and files that Tollgate's caller left open are no part of the workload.
    capture::close_descriptors_on_exec().context("cannot close inherited files")?;
    let (_soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, identity.open_files.min(hard), hard)?;
    give_up_capabilities().context("cannot give up capabilities")?;
    if let (Some(uid), Some(gid)) = (identity.uid, identity.gid) {
        let groups: Vec<Gid> = identity.groups.into_iter().map(Gid::from_raw).collect();
        setgroups(&groups)?;
        setgid(Gid::from_raw(gid))?;
        setuid(Uid::from_raw(uid))?;
    }
    // No setuid binary gives back what was given up.
    prctl::set_no_new_privs()?;
    capture::refuse_ways_around().context("cannot filter system calls (CONFIG_SECCOMP_FILTER)")?;
    restore_mask(&identity.blocked)?;
    let (program, arguments) = command.split_first().context("no command")?;
    let source = Command::new(program).args(arguments).exec();
    let exit_code =
        if source.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_EXECUTE };
    Ok(NotStarted { program: program.to_string_lossy().into_owned(), exit_code, source })
}

fn give_up_capabilities() -> Result<(), caps::errors::CapsError> {
    caps::clear(None, CapSet::Ambient)?;
    for capability in caps::runtime::thread_all_supported() {
        if !KEPT.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    caps::clear(None, CapSet::Inheritable)
}
