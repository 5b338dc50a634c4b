//! Loading the kernel programs, and attaching them: by a new link, or in place of the program of a link that is pinned.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use aya::maps::MapInfo;
use aya::programs::links::FdLink;
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, Program,
    ProgramError, ProgramFd, ProgramType, SockOps,
};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use aya_log::EbpfLogger;
use gateway_ebpf::abi;
use tracing_log::LogTracer;

use super::links::{Link, Links};
use super::manifest::{Manifest, MapShape};
use super::{Cgroup, PinError, Pins, ProgramsError, bpf, wire};

/// Loaded programs on their way to be attached and armed.
pub(super) struct Programs {
    ebpf: Ebpf,
    log: Option<EbpfLogger<LogTracer>>,
}

/// How a program is attached.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hook {
    Addr,
    Sock,
    Ops,
    Skb(CgroupSkbAttachType),
}

/// Programs that are attached together: their names in the object, and their hooks.
pub(super) type Table = &'static [(&'static str, Hook)];

/// Every program of a workload: its name in the object, and its hook. The fence comes first and the redirect last, so that at no
/// moment of attaching a redirected packet could leave.
pub(super) const PROGRAMS: [(&str, Hook); 14] = [
    ("tollgate_egress", Hook::Skb(CgroupSkbAttachType::Egress)),
    ("tollgate_ingress", Hook::Skb(CgroupSkbAttachType::Ingress)),
    ("tollgate_sock_create", Hook::Sock),
    ("tollgate_post_bind4", Hook::Sock),
    ("tollgate_post_bind6", Hook::Sock),
    ("tollgate_sock_ops", Hook::Ops),
    ("tollgate_getpeername4", Hook::Addr),
    ("tollgate_getpeername6", Hook::Addr),
    ("tollgate_recvmsg4", Hook::Addr),
    ("tollgate_recvmsg6", Hook::Addr),
    ("tollgate_sendmsg4", Hook::Addr),
    ("tollgate_sendmsg6", Hook::Addr),
    ("tollgate_connect4", Hook::Addr),
    ("tollgate_connect6", Hook::Addr),
];

pub(super) static OBJECT: &[u8] =
    include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tollgate-bpf.o"));

/// Whether this binary carries its kernel programs.
#[must_use]
pub fn object_is_built_in() -> bool {
    !OBJECT.is_empty()
}

/// The level of kernel diagnostics for a level's name; 0 is off.
#[must_use]
pub fn kernel_log_level(level: Option<tracing::Level>) -> u8 {
    level.map_or(0, |level| match level {
        tracing::Level::ERROR => 1,
        tracing::Level::WARN => 2,
        tracing::Level::INFO => 3,
        tracing::Level::DEBUG => 4,
        tracing::Level::TRACE => 5,
    })
}

/// Whether this version has a program of this name, or a link that is not one to a cgroup.
pub(super) fn is_known(name: &str) -> bool {
    PROGRAMS.iter().any(|(known, _)| *known == name)
}

impl Hook {
    /// As a number of `enum bpf_attach_type`. The object names it, but for packets, where the table above does.
    pub(super) fn number(self, name: &str) -> Result<u32, ProgramsError> {
        match self {
            Self::Skb(CgroupSkbAttachType::Ingress) => Ok(INET_INGRESS),
            Self::Skb(CgroupSkbAttachType::Egress) => Ok(INET_EGRESS),
            Self::Addr | Self::Sock | Self::Ops => Manifest::get()?.hook(name),
        }
    }
}

/// `BPF_CGROUP_INET_INGRESS` and `BPF_CGROUP_INET_EGRESS`.
const INET_INGRESS: u32 = 0;
const INET_EGRESS: u32 = 1;

impl Programs {
    /// Loads the object over the maps that are pinned in `pins`; what is missing is made and pinned there.
    pub(super) fn load(pins: &Pins, kernel_log: u8) -> Result<Self, ProgramsError> {
        let mut loader = loader(&kernel_log);
        loader.map_max_entries(abi::ADMITTED, 1);
        Self::load_over(loader, Manifest::get()?.maps(), pins, kernel_log)
    }

    /// Loads the object for the gate of the slice, over its map.
    pub(super) fn load_gate(pins: &Pins) -> Result<Self, ProgramsError> {
        Self::load_over(loader(&0), Manifest::get()?.gate_maps(), pins, 0)
    }

    fn load_over<'a>(
        mut loader: EbpfLoader<'a>,
        maps: &'a [MapShape],
        pins: &Pins,
        kernel_log: u8,
    ) -> Result<Self, ProgramsError> {
        for map in maps {
            let path = pins.map_path(&map.name);
            if path.exists() {
                let found = MapInfo::from_pin(&path)
                    .map_err(|source| ProgramsError::Map { name: map.name.clone(), source })?;
                if !map.is_like(&found) {
                    return Err(ProgramsError::Layout { path });
                }
            }
            loader.map_pin_path(&map.name, path);
        }
        Self::load_by(loader, kernel_log)
    }

    /// Loads the object and every program with maps that are nobody's yet.
    pub(super) fn spare(kernel_log: u8) -> Result<Self, ProgramsError> {
        Manifest::get()?;
        let mut loader = loader(&kernel_log);
        loader.map_max_entries(abi::ADMITTED, 1);
        let mut programs = Self::load_by(loader, kernel_log)?;
        for (name, _hook) in PROGRAMS {
            programs.loaded(name)?;
        }
        Ok(programs)
    }

    /// Pins the maps of a spare. There must be none yet.
    pub(super) fn pin_maps(&self, pins: &Pins) -> Result<(), ProgramsError> {
        for map in Manifest::get()?.maps() {
            let missing = || ProgramsError::Missing { what: "map", name: map.name.clone() };
            let path = pins.map_path(&map.name);
            self.ebpf
                .map(&map.name)
                .ok_or_else(missing)?
                .pin(&path)
                .map_err(|source| PinError::Link { path, source })?;
        }
        Ok(())
    }

    fn load_by(mut loader: EbpfLoader<'_>, kernel_log: u8) -> Result<Self, ProgramsError> {
        let mut ebpf = loader.load(OBJECT).map_err(ProgramsError::Load)?;
        let log = if kernel_log > 0 {
            EbpfLogger::init_with_logger(&mut ebpf, LogTracer::new())
                .inspect_err(
                    |error| tracing::warn!(%error, "no diagnostics of the kernel programs"),
                )
                .ok()
        } else {
            None
        };
        Ok(Self { ebpf, log })
    }

    /// Puts every program of a workload to work for `cgroup`, where no other of Tollgate's is.
    pub(super) fn attach(&mut self, cgroup: &Cgroup, pins: &Pins) -> Result<Links, ProgramsError> {
        Links::pinned(&PROGRAMS, cgroup, pins)?.refuse_doubling(cgroup)?;
        let links = self.attach_all(&PROGRAMS, cgroup, pins)?;
        links.refuse_doubling(cgroup)?;
        Ok(links)
    }

    /// Puts every program of `table` to work for `cgroup`: in place of the one that its pinned link runs, or by a new
    /// link that is pinned at once.
    pub(super) fn attach_all(
        &mut self,
        table: Table,
        cgroup: &Cgroup,
        pins: &Pins,
    ) -> Result<Links, ProgramsError> {
        let mut links = Links::pinned(table, cgroup, pins)?;
        for &(name, hook) in table {
            if links.get(name).is_none() {
                links.add(self.attach_one(name, hook, cgroup, pins)?);
            }
        }
        // The other way round: where the maps are new, the redirect refuses everything before the gateway's port loses
        // the guard that knows it.
        for &(name, _hook) in table.iter().rev() {
            if let Some(link) = links.get(name).filter(|link| !link.is_new) {
                let program = self.loaded(name)?;
                bpf::replace_program(&link.fd, program.as_fd()).map_err(|source| {
                    ProgramsError::Link { step: "replace a program", name: name.to_owned(), source }
                })?;
            }
        }
        links.verify(cgroup)?;
        Ok(links)
    }

    /// The parts that work on wires.
    pub(super) fn wire_parts(&mut self, pins: &Pins) -> Result<wire::Parts, ProgramsError> {
        wire::Parts::new(&mut self.ebpf, pins)
    }

    pub(super) fn take_log(&mut self) -> Option<EbpfLogger<LogTracer>> {
        self.log.take()
    }

    fn attach_one(
        &mut self,
        name: &'static str,
        hook: Hook,
        cgroup: &Cgroup,
        pins: &Pins,
    ) -> Result<Link, ProgramsError> {
        self.loaded(name)?;
        let link =
            attach(self.program(name)?, hook, cgroup).map_err(|source| match is_not_permitted(
                &source,
            )
            .then(|| exclusive_above(cgroup, hook, name))
            .flatten()
            {
                Some(path) => ProgramsError::Exclusive { path, name },
                None => ProgramsError::Program { step: "attach", name, source },
            })?;
        let path = pins.link_path(name);
        // A link whose cgroup is gone, or that somebody detached, holds the name and nothing else.
        super::pins::gone_is_as_good(std::fs::remove_file(&path)).map_err(|source| {
            PinError::Path { step: "replace the dead link", path: path.clone(), source }
        })?;
        link.pin(&path).map_err(|source| PinError::Link { path: path.clone(), source })?;
        let fd = open_link(&path, name)?;
        Ok(Link { name, fd, hook: hook.number(name)?, is_new: true })
    }

    /// The program `name`, loaded into the kernel.
    fn loaded(&mut self, name: &'static str) -> Result<&ProgramFd, ProgramsError> {
        let program = self.program(name)?;
        let failed = |source| {
            if let ProgramError::LoadError { verifier_log, .. } = &source {
                tracing::debug!(target: "tollgate::verifier", program = name, "{verifier_log}");
            }
            ProgramsError::Program { step: "load", name, source: without_verifier_log(source) }
        };
        if program.fd().is_err() {
            load(program).map_err(failed)?;
        }
        program.fd().map_err(failed)
    }

    fn program(&mut self, name: &'static str) -> Result<&mut Program, ProgramsError> {
        self.ebpf
            .program_mut(name)
            .ok_or(ProgramsError::Missing { what: "program", name: name.to_owned() })
    }
}

/// A loader that sets every variable of the object that the kernel or the operator decides.
fn loader(kernel_log: &u8) -> EbpfLoader<'_> {
    let fence_sees_processes = if fence_may_see_processes() { &1_u8 } else { &0 };
    let mut loader = EbpfLoader::new();
    loader.override_global(aya_log::LEVEL, kernel_log, true);
    loader.override_global(abi::FENCE_SEES_PROCESSES, fence_sees_processes, true);
    loader
}

/// Whether this kernel lets the fence ask which process runs: asked of the kernel, once.
fn fence_may_see_processes() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        [
            BpfHelper::BPF_FUNC_get_current_pid_tgid,
            BpfHelper::BPF_FUNC_get_current_comm,
            BpfHelper::BPF_FUNC_get_current_cgroup_id,
        ]
        .into_iter()
        .all(|helper| is_helper_supported(ProgramType::CgroupSkb, helper).unwrap_or(false))
    })
}

fn open_link(path: &Path, name: &str) -> Result<OwnedFd, ProgramsError> {
    bpf::open_pin(path).map_err(|source| ProgramsError::Link {
        step: "open the pinned link",
        name: name.to_owned(),
        source,
    })
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn attach(program: &mut Program, hook: Hook, cgroup: &Cgroup) -> Result<FdLink, ProgramError> {
    // No flag: links share a cgroup by nature, and the kernel refuses a link that says so.
    let mode = CgroupAttachMode::Single;
    match hook {
        Hook::Addr => {
            let program: &mut CgroupSockAddr = program.try_into()?;
            let id = program.attach(cgroup, mode)?;
            program.take_link(id).and_then(link)
        }
        Hook::Sock => {
            let program: &mut CgroupSock = program.try_into()?;
            let id = program.attach(cgroup, mode)?;
            program.take_link(id).and_then(link)
        }
        Hook::Ops => {
            let program: &mut SockOps = program.try_into()?;
            let id = program.attach(cgroup, mode)?;
            program.take_link(id).and_then(link)
        }
        Hook::Skb(direction) => {
            let program: &mut CgroupSkb = program.try_into()?;
            let id = program.attach(cgroup, direction, mode)?;
            program.take_link(id).and_then(link)
        }
    }
}

/// What the kernel said in one line; the verifier's pages go to the log at debug level.
fn without_verifier_log(error: ProgramError) -> ProgramError {
    match error {
        ProgramError::LoadError { io_error, verifier_log: _ } => ProgramError::IOError(io_error),
        other => other,
    }
}

/// Only links that are file descriptors can be pinned; kernels before 5.7 have none.
fn link<L: TryInto<FdLink>>(link: L) -> Result<FdLink, ProgramError> {
    link.try_into().map_err(|_not_a_link| ProgramError::NotAttached)
}

/// Whether the kernel answered EPERM, as it does where a program above allows no other.
fn is_not_permitted(error: &ProgramError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error() == Some(libc::EPERM);
        }
        source = error.source();
    }
    false
}

/// The cgroup, `cgroup` or above it, whose program on this hook allows none beside it.
fn exclusive_above(cgroup: &Cgroup, hook: Hook, name: &str) -> Option<PathBuf> {
    let hook = hook.number(name).ok()?;
    cgroup.path().ancestors().find_map(|path| {
        let directory = std::fs::File::open(path).ok()?;
        let attached = bpf::programs_on(&directory, hook, false).ok()?;
        attached.is_exclusive.then(|| path.to_owned())
    })
}
