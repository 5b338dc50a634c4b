//! Loading, attaching and arming the kernel programs.

use aya::maps::{HashMap, Map, MapData, RingBuf};
use aya::programs::links::FdLink;
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, ProgramError,
    SockOps,
};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use aya_log::EbpfLogger;
use gateway_ebpf::abi;
use tracing_log::LogTracer;

use super::maps::{KernelFlows, Wire};
use super::{Cgroup, PinError, Pins, Refusals, wire};

/// The programs cannot be loaded, attached or armed.
#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    /// The binary was built without the kernel object.
    #[error("this binary was built without its kernel programs; build it with `cargo xtask build`")]
    NotBuilt,
    /// The kernel refuses the object as a whole (maps, BTF).
    #[error("the kernel refuses Tollgate's BPF object")]
    Load(#[source] aya::EbpfError),
    /// The object does not hold what it should: a build of another version.
    #[error("the BPF object has no {what} `{name}`; rebuild with `cargo xtask build`")]
    Missing {
        /// `program` or `map`.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The kernel refuses one program, or its attachment.
    #[error("the kernel refuses to {step} the program `{name}`")]
    Program {
        /// `load` or `attach`.
        step: &'static str,
        /// The program.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: ProgramError,
    },
    /// A link cannot be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A map cannot be used.
    #[error("the BPF map `{name}` cannot be used")]
    Map {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: aya::maps::MapError,
    },
}

/// Loaded programs on their way to be attached and armed.
pub(super) struct Programs {
    ebpf: Ebpf,
    log: Option<EbpfLogger<LogTracer>>,
}

/// The maps that the gateway reads.
pub(super) struct Armed {
    pub(super) flows: KernelFlows,
    pub(super) refusals: Refusals,
}

/// How a program is attached.
#[derive(Clone, Copy)]
enum Hook {
    Addr,
    Sock,
    Ops,
    Skb(CgroupSkbAttachType),
}

/// Every program: its name in the object, and its hook. The fence comes first and the redirect last, so that at no
/// moment of attaching a redirected packet could leave.
const PROGRAMS: [(&str, Hook); 14] = [
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

impl Programs {
    pub(super) fn load(kernel_log: u8) -> Result<Self, ProgramsError> {
        if !object_is_built_in() {
            return Err(ProgramsError::NotBuilt);
        }
        let mut ebpf = EbpfLoader::new()
            .override_global(aya_log::LEVEL, &kernel_log, true)
            .load(OBJECT)
            .map_err(ProgramsError::Load)?;
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

    /// Attaches every program to `cgroup` by a link that is pinned at once.
    pub(super) fn attach(&mut self, cgroup: &Cgroup, pins: &Pins) -> Result<(), ProgramsError> {
        for (name, hook) in PROGRAMS {
            let link = attach_one(&mut self.ebpf, name, hook, cgroup)?;
            pins.pin_link(name, link)?;
        }
        Ok(())
    }

    /// The parts that work on wires.
    pub(super) fn wire_parts(&mut self) -> Result<wire::Parts, ProgramsError> {
        wire::Parts::take(&mut self.ebpf)
    }

    /// Opens the way to the gateway for one network namespace, and hands out the maps.
    pub(super) fn arm(
        &mut self,
        netns_cookie: u64,
        port: u16,
        has_ipv6: bool,
    ) -> Result<Armed, ProgramsError> {
        let mut workloads: HashMap<MapData, u64, Wire<abi::Workload>> =
            take(&mut self.ebpf, abi::WORKLOADS)?;
        let flows: HashMap<MapData, Wire<abi::FlowKey>, Wire<abi::Flow>> =
            take(&mut self.ebpf, abi::FLOWS)?;
        let refusals: RingBuf<MapData> = take(&mut self.ebpf, abi::REFUSALS)?;
        let flags = if has_ipv6 { abi::HAS_IPV6 } else { 0 };
        let workload = abi::Workload { gateway_port: port, flags, pad: 0 };
        workloads
            .insert(netns_cookie, Wire(workload), 0)
            .map_err(|source| ProgramsError::Map { name: abi::WORKLOADS, source })?;
        Ok(Armed {
            flows: KernelFlows::new(flows, netns_cookie, port),
            refusals: Refusals::new(refusals),
        })
    }

    pub(super) fn into_log(self) -> Option<EbpfLogger<LogTracer>> {
        self.log
    }
}

fn attach_one(
    ebpf: &mut Ebpf,
    name: &'static str,
    hook: Hook,
    cgroup: &Cgroup,
) -> Result<FdLink, ProgramsError> {
    let program = ebpf.program_mut(name).ok_or(ProgramsError::Missing { what: "program", name })?;
    let load = |source| {
        if let ProgramError::LoadError { verifier_log, .. } = &source {
            tracing::debug!(target: "tollgate::verifier", program = name, "{verifier_log}");
        }
        ProgramsError::Program { step: "load", name, source: without_verifier_log(source) }
    };
    let attach = |source| ProgramsError::Program { step: "attach", name, source };
    // No flag: links share a cgroup by nature, and the kernel refuses a link that says so.
    let mode = CgroupAttachMode::Single;
    match hook {
        Hook::Addr => {
            let program: &mut CgroupSockAddr = program.try_into().map_err(load)?;
            program.load().map_err(load)?;
            let id = program.attach(cgroup, mode).map_err(attach)?;
            program.take_link(id).and_then(link).map_err(attach)
        }
        Hook::Sock => {
            let program: &mut CgroupSock = program.try_into().map_err(load)?;
            program.load().map_err(load)?;
            let id = program.attach(cgroup, mode).map_err(attach)?;
            program.take_link(id).and_then(link).map_err(attach)
        }
        Hook::Ops => {
            let program: &mut SockOps = program.try_into().map_err(load)?;
            program.load().map_err(load)?;
            let id = program.attach(cgroup, mode).map_err(attach)?;
            program.take_link(id).and_then(link).map_err(attach)
        }
        Hook::Skb(direction) => {
            let program: &mut CgroupSkb = program.try_into().map_err(load)?;
            program.load().map_err(load)?;
            let id = program.attach(cgroup, direction, mode).map_err(attach)?;
            program.take_link(id).and_then(link).map_err(attach)
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

fn take<M: TryFrom<Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, ProgramsError> {
    let map = ebpf.take_map(name).ok_or(ProgramsError::Missing { what: "map", name })?;
    M::try_from(map).map_err(|source| ProgramsError::Map { name, source })
}
