//! `Agent` → [`Captured`]: the kernel programs, their maps, and the listeners inside the workload's network namespace.
//!
//! A workload is captured in this order, and not one step of it may be skipped: its cgroup exists and is empty, the
//! programs are attached to it by pinned links, the listeners stand in its network namespace, and only then the
//! namespace is armed. Until it is armed, the programs refuse everything.
//!
//! This is the only module with `unsafe` and the only one that needs CAP_BPF. It does not look into connections.

mod arm;
pub(crate) mod attempt;
mod bpf;
mod cgroup;
mod events;
mod links;
mod listener;
mod manifest;
mod maps;
mod namespace;
mod netlink;
mod pins;
mod programs;
mod programs_error;
mod slice;
mod sockets;
mod syscalls;
mod wire;

use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

pub use cgroup::{Cgroup, CgroupError, CgroupRoot, RUNS, SLICE, cgroup_of_process};
pub use events::{Counted, KernelRefusal, Refusals, Watch};
pub(crate) use links::GATE_PREFIX;
pub use links::PinnedLink;
pub use listener::ListenError;
pub(crate) use listener::tells_netns_cookie;
pub use maps::KernelFlows;
pub use namespace::{HeldProcess, Namespace, NamespaceError};
pub(crate) use namespace::{THREADS_MAX, is_gone, loopback_up};
pub use netlink::{Counters, Link, Monitor, Netlink, NetlinkError, OwnAddress};
pub use pins::{BpfFs, PinError, Pins};
pub use programs::{kernel_log_level, object_is_built_in};
pub use programs_error::ProgramsError;
pub use slice::{SliceGate, slice_is_gated};
pub use sockets::{Cut, CutError, cut_connections};
pub use syscalls::refuse_ways_around;
pub use wire::{
    Attachment, Census, Fence, Gate, Unfenceable, WireError, WireEvent, Wires, reaches_out,
};

use crate::audit::Process;
use crate::net::{ClientAddr, Openings, OriginalDst};

/// What the kernel recorded of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Where the agent wanted to go.
    pub original_dst: OriginalDst,
    /// Who connected.
    pub process: Process,
    /// Cgroup of the connecting task: a cross-check, not an identity.
    pub cgroup_id: u64,
}

/// The narrow way from the privileged half to the connection path.
pub trait FlowTable: Send + Sync {
    /// Takes the record of the connection that came from `client`; a second look-up finds nothing.
    fn take(&self, client: ClientAddr) -> Option<Flow>;
}

/// Sockets inside a workload's network namespace: loopback only, bound to device `lo`, non-blocking.
#[derive(Debug)]
pub struct Listeners {
    /// One per address family.
    pub tcp: Vec<TcpListener>,
    /// One per address family, for DNS.
    pub udp: Vec<UdpSocket>,
    /// Where the workload's network had IPv6 when they were made: what tells whether it still has it.
    pub ipv6: Option<Arc<UdpSocket>>,
}

impl Listeners {
    /// Whether the workload can connect to one of them over IPv6, now: not where its network has none, and none any more
    /// once `disable_ipv6` is set, which runtimes do after a network has its first process.
    pub fn reachable_over_ipv6(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let probe = self.ipv6.clone();
        // A datagram socket sends nothing by being connected: the kernel only looks for a way (`ip6_datagram_connect`).
        move || probe.as_ref().is_some_and(|probe| probe.connect((Ipv6Addr::LOCALHOST, 9)).is_ok())
    }
}

/// A captured workload. Dropping it closes the sockets; the pinned links go on enforcing until [`Pins::remove`].
pub struct Captured {
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// The gateway's sockets in it.
    pub listeners: Listeners,
    /// Where its connections wanted to go.
    pub flows: KernelFlows,
    /// What the kernel refused it.
    pub refusals: Refusals,
    /// Diagnostics of the kernel programs, where they are switched on.
    pub log: Option<aya_log::EbpfLogger<tracing_log::LogTracer>>,
}

/// A workload that cannot be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The programs cannot be loaded, attached or pinned.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// The wires cannot be fenced.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The listeners cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// A cgroup whose programs are at work. Its sockets are refused everything until a network namespace is armed.
///
/// Dropping it changes nothing: the pinned links go on enforcing until [`Pins::remove`].
pub struct Closed {
    programs: programs::Programs,
    links: links::Links,
    pins: Pins,
    /// Since when a gate above has refused it everything, by the clock that counts from the machine's start.
    gated_since: Option<Duration>,
}

/// Fenced wires that nobody watches.
pub struct Fenced {
    fence: Fence,
    events: Vec<WireEvent>,
}

impl Fenced {
    /// Watches them from now on, for the workload that is armed.
    ///
    /// # Errors
    /// When that cannot be done: then the workload must not be served.
    pub fn watch(self, netns_cookie: u64) -> Result<Wires, CaptureError> {
        Ok(self.fence.watch(Some(netns_cookie), self.events)?)
    }

    /// Watches them from now on for a workload that is not served: whatever comes is fenced, and nothing is open.
    ///
    /// # Errors
    /// When that cannot be done: what is fenced stays so, and what comes later is not.
    pub fn hold(self) -> Result<Wires, CaptureError> {
        Ok(self.fence.watch(None, self.events)?)
    }
}

/// Programs that are loaded and wait for a cgroup: the kernel checks them for far longer than it takes to attach them.
pub struct Spare(programs::Programs);

impl Spare {
    /// Loads them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn load(kernel_log: u8) -> Result<Self, CaptureError> {
        Ok(Self(programs::Programs::spare(kernel_log)?))
    }
}

impl Closed {
    /// Puts the programs of this version to work for `cgroup`. Where `pins` hold links and maps already, the links go
    /// on with the new programs, and the maps with what is in them: there is no moment without a program, and none
    /// with two.
    ///
    /// # Errors
    /// When the kernel refuses; what was attached until then goes on refusing until `pins` are removed.
    pub fn close(cgroup: &Cgroup, pins: &Pins, kernel_log: u8) -> Result<Self, CaptureError> {
        Self::close_with(None, cgroup, pins, kernel_log)
    }

    /// The same with programs that are loaded already, where nothing is pinned yet that they would have to go on with.
    ///
    /// # Errors
    /// As for [`Closed::close`].
    pub fn close_with(
        spare: Option<Spare>,
        cgroup: &Cgroup,
        pins: &Pins,
        kernel_log: u8,
    ) -> Result<Self, CaptureError> {
        if let Some(path) = links::governed_below(cgroup.path()) {
            return Err(ProgramsError::Doubled { path }.into());
        }
        let mut programs = match spare.filter(|_| pins.is_empty()) {
            Some(Spare(spare)) => {
                spare.pin_maps(pins)?;
                spare
            }
            None => programs::Programs::load(pins, kernel_log)?,
        };
        let links = programs.attach(cgroup, pins)?;
        let unknown = pins.tidy(programs::is_known).map_err(ProgramsError::from)?;
        if !unknown.is_empty() {
            tracing::warn!(
                cgroup = %cgroup.path().display(),
                "left attached, as this version has no program for them: {}",
                unknown.join(", ")
            );
        }
        let gated_since = slice::admit(cgroup)?;
        Ok(Self { programs, links, pins: pins.clone(), gated_since })
    }

    /// Takes the way through the gate of Tollgate's slice back, as for a cgroup that nobody governs any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn expel(&self, cgroup: &Cgroup) -> Result<(), CaptureError> {
        Ok(slice::expel(cgroup)?)
    }

    /// Since when the gate of Tollgate's slice has kept the cgroup closed, where it is below it: by the clock that
    /// counts from the machine's start (`CLOCK_BOOTTIME`).
    #[must_use]
    pub fn gated_since(&self) -> Option<Duration> {
        self.gated_since
    }

    /// Fences every interface of `namespace`, by links that are pinned in `pins`, and opens of them what `openings`
    /// say. Comes before [`Self::open`]. The calling thread must be in the host's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses. An interface that cannot be fenced is no error: it is set down, and everything is
    /// refused to the workload as long as it is there.
    pub fn fence(
        &mut self,
        namespace: &Namespace,
        pins: &Pins,
        openings: &Openings,
        gate: &Gate,
    ) -> Result<Fenced, CaptureError> {
        let parts = self.programs.wire_parts(&self.pins)?;
        let (fence, events) = Fence::new(parts, namespace, pins, openings, gate)?;
        Ok(Fenced { fence, events })
    }

    /// Opens the listeners in `namespace` and arms it, and no other: from here on, what the cgroup sends goes to them
    /// or is refused.
    ///
    /// # Errors
    /// When a listener cannot be opened or the kernel refuses; then nothing is armed.
    pub fn open(&mut self, namespace: &Namespace, way: Way) -> Result<Captured, CaptureError> {
        let opened = self.try_open(namespace, way);
        if opened.is_err() {
            self.disarm()?;
        }
        opened
    }

    fn try_open(&mut self, namespace: &Namespace, way: Way) -> Result<Captured, CaptureError> {
        arm::forget_flows(&self.pins)?;
        let opened = listener::open(namespace, way.port)?;
        let maps = arm::arm(&self.pins, opened.netns_cookie, way, opened.has_ipv6)?;
        Ok(Captured {
            netns_cookie: opened.netns_cookie,
            listeners: opened.listeners,
            flows: maps.flows,
            refusals: maps.refusals,
            log: self.programs.take_log(),
        })
    }

    /// Closes the way to the gateway: everything is refused again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn disarm(&self) -> Result<(), CaptureError> {
        Ok(arm::disarm(&self.pins)?)
    }

    /// Whether every program still runs for the sockets of `cgroup`, and no other of Tollgate's.
    ///
    /// # Errors
    /// Says which does not.
    pub fn verify(&self, cgroup: &Cgroup) -> Result<(), CaptureError> {
        self.links.verify(cgroup)?;
        self.links.refuse_doubling(cgroup)?;
        Ok(self.links.verify_pins(&self.pins)?)
    }

    /// Closes a cgroup again whose links somebody has detached or unpinned. What is still held stays at work.
    ///
    /// # Errors
    /// As for [`Closed::close`].
    pub fn close_again(&mut self, cgroup: &Cgroup, kernel_log: u8) -> Result<(), CaptureError> {
        self.links.restore_pins(&self.pins)?;
        let pins = self.pins.clone();
        *self = Self::close(cgroup, &pins, kernel_log)?;
        Ok(())
    }
}

/// The way from a workload to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Port of the listeners, TCP and UDP.
    pub port: u16,
    /// TCP connections that may come in the long run; what comes faster fails with ECONNREFUSED in the workload itself.
    pub connects_per_second: NonZeroU32,
}

impl Way {
    /// Several times what a crawler or a browser needs, and a fraction of what the gateway can take.
    pub const CONNECTS_PER_SECOND: NonZeroU32 = NonZeroU32::new(1_000).unwrap();

    /// With the rate of a configuration that says nothing of it.
    #[must_use]
    pub const fn by(port: u16) -> Self {
        Self { port, connects_per_second: Self::CONNECTS_PER_SECOND }
    }
}

/// Captures the workload whose processes will live in `cgroup` and in `namespace`.
///
/// When this returns, everything that a process in that cgroup sends goes to the listeners on the way's port or is refused.
///
/// # Errors
/// When any step fails; then nothing is armed, and what was pinned goes away with `pins`.
pub fn capture(
    cgroup: &Cgroup,
    namespace: &Namespace,
    pins: &Pins,
    way: Way,
    kernel_log: u8,
) -> Result<Captured, CaptureError> {
    Closed::close(cgroup, pins, kernel_log)?.open(namespace, way)
}

/// Marks every descriptor but the three standard ones to be closed on exec.
///
/// # Errors
/// When the kernel refuses (before Linux 5.11 it does not know how).
#[expect(unsafe_code, reason = "close_range(2) has no safe wrapper here")]
pub fn close_descriptors_on_exec() -> std::io::Result<()> {
    let flags = libc::c_int::try_from(libc::CLOSE_RANGE_CLOEXEC).map_err(std::io::Error::other)?;
    // SAFETY: with the CLOEXEC flag the call closes nothing now; it only sets a flag that `exec` acts upon, so no
    // owner of a descriptor in this process loses it.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, flags) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Gives `signal` back the action that a process without handlers has for it.
///
/// # Errors
/// For SIGSTOP, whose action cannot be set; that of SIGKILL is the default anyway.
#[expect(unsafe_code, reason = "sigaction(2) is unsafe, as handlers are")]
pub fn restore_default_action(signal: nix::sys::signal::Signal) -> nix::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal as set_action};
    if signal == Signal::SIGKILL {
        return Ok(());
    }
    // SAFETY: the default action runs no code of this process, so none that is not async-signal-safe; that a handler
    // of Rust's runtime is replaced costs its message about stack overflows, nothing else.
    unsafe { set_action(signal, SigHandler::SigDfl) }.map(drop)
}

/// Relays diagnostics of the kernel programs to `tracing` until the buffer fails.
#[expect(unsafe_code, reason = "waiting for a ring buffer's descriptor")]
pub async fn relay_log(log: aya_log::EbpfLogger<tracing_log::LogTracer>) {
    // SAFETY: the logger owns its map's descriptor as long as it lives, and it moves into the `AsyncFd`: the descriptor
    // stays open and the same until it is deregistered. Safe code has no way to promise that.
    let registered = unsafe {
        tokio::io::unix::AsyncFd::register_with_interest(log, tokio::io::Interest::READABLE)
    };
    let mut log = match registered {
        Ok(log) => log,
        Err(error) => {
            tracing::warn!(error = %error.into_parts().1, "no diagnostics of the kernel programs");
            return;
        }
    };
    while let Ok(mut ready) = log.readable_mut().await {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
