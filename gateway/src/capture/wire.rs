//! The fence at the host's end of every interface of a workload's network namespace.
//!
//! ```text
//! workload's namespace          host's namespace
//! eth0 ───────── veth ───────── vethX ── tc ingress: what the workload sends ── bridge
//!                                     └─ tc egress:  what it would receive
//! ```
//!
//! Every interface but `lo` is either such a pair, fenced in both directions, or it is set down and everything is
//! refused to the workload until it is gone. Interfaces that come later are fenced when they appear, which is before
//! they can be set up by whoever made them.

mod attach;
mod census;
mod classify;
mod gate;
mod tables;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use attach::Attachment;
use attach::Programs;
use aya::Ebpf;
pub use census::Census;
use classify::{Class, classify, leads_out};
pub use gate::Gate;
use gate::Registered;
use gateway_ebpf::abi;
use tables::Tables;
pub use watch::Wires;

use super::{Counters, Link, Namespace, Netlink, NetlinkError, PinError, Pins, ProgramsError};
use crate::net::Openings;

/// The wires of a workload cannot be fenced, or not be watched.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The kernel does not tell about interfaces.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The programs or their maps cannot be used.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// A link cannot be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The thread that watches cannot be started.
    #[error("the workload's interfaces cannot be watched")]
    Watch(#[source] std::io::Error),
}

/// An interface that no fence holds. While it is there, everything is refused to the workload, and it is set down.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its interface `{interface}` ({kind}) cannot be fenced: {why}")]
pub struct Unfenceable {
    /// Its name in the workload's namespace.
    pub interface: String,
    /// What made it: `macvlan`, `tun`, `hardware`, …
    pub kind: String,
    /// Why not.
    pub why: String,
}

/// What has happened to a workload's wires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireEvent {
    /// An interface is fenced from now on.
    Fenced {
        /// Its name in the workload's namespace.
        interface: String,
        /// Packets that may have passed before: at most this many sent by the workload, and received.
        before: Counters,
    },
    /// An interface that cannot be fenced is set down, and everything is refused.
    Unfenceable(Unfenceable),
    /// The last of those is gone: the workload is served again.
    Restored,
    /// The wires cannot be looked at: everything is refused until they can.
    Failed(String),
}

/// The parts of the loaded object that work on wires.
pub(super) struct Parts {
    programs: Programs,
    tables: Tables,
}

impl Parts {
    /// Loads the programs and opens their maps.
    pub(super) fn new(ebpf: &mut Ebpf, pins: &Pins) -> Result<Self, ProgramsError> {
        Ok(Self { programs: Programs::load(ebpf)?, tables: Tables::of(pins)? })
    }
}

/// The wires of one workload, fenced as they were when they were looked at last.
pub struct Fence {
    workload: Namespace,
    host: Namespace,
    inside: Netlink,
    outside: Netlink,
    programs: Programs,
    tables: Tables,
    pins: Pins,
    /// By the index of the host's end.
    fenced: BTreeMap<u32, Wire>,
    /// What has been told of, by index and kind in the workload's namespace.
    unfenceable: BTreeSet<(u32, String)>,
    /// Nothing passes: an interface has no fence, or the workload is not armed yet.
    is_cut: bool,
    /// Whether somebody was told that everything is refused.
    is_told: bool,
    /// The workload, once it is armed.
    netns_cookie: Option<u64>,
    registered: Registered,
    census: Arc<Census>,
}

/// A veth pair between the workload's namespace and the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wire {
    inner: Link,
    outer: Link,
}

/// The interfaces of a workload.
struct Seen {
    /// By the index of the host's end.
    wires: BTreeMap<u32, Wire>,
    /// And why.
    unfenceable: Vec<(Link, String)>,
}

impl Wire {
    fn is_same(&self, other: &Self) -> bool {
        self.inner.index == other.inner.index && self.inner.hardware == other.inner.hardware
    }
}

impl Fence {
    /// Fences every interface of `workload` that is there; nothing of it is open until it is watched. The calling thread must be in the host's namespace.
    pub(super) fn new(
        parts: Parts,
        workload: &Namespace,
        pins: &Pins,
        openings: &Openings,
        gate: &Gate,
    ) -> Result<(Self, Vec<WireEvent>), WireError> {
        let host = Namespace::own().map_err(NetlinkError::from)?;
        let Parts { mut programs, mut tables } = parts;
        programs.attach_by(gate.attachment());
        tables.open(openings)?;
        let mut fence = Self {
            inside: Netlink::of(workload)?,
            outside: Netlink::here()?,
            workload: workload.again().map_err(NetlinkError::from)?,
            host,
            programs,
            tables,
            pins: pins.clone(),
            fenced: BTreeMap::new(),
            unfenceable: BTreeSet::new(),
            is_cut: true,
            is_told: false,
            netns_cookie: None,
            registered: gate.register(workload.again().map_err(NetlinkError::from)?),
            census: Arc::default(),
        };
        let mut events = Vec::new();
        fence.sync(&mut events)?;
        Ok((fence, events))
    }

    /// Makes what is fenced what is there.
    fn sync(&mut self, events: &mut Vec<WireEvent>) -> Result<(), WireError> {
        let Seen { wires, mut unfenceable } = self.look()?;
        let gone: Vec<u32> =
            self.fenced.keys().copied().filter(|i| !wires.contains_key(i)).collect();
        for index in gone {
            self.forget(index)?;
        }
        // What is new first: to look after the others takes a while, in which it may be set up.
        let (known, new): (Vec<_>, Vec<_>) =
            wires.into_iter().partition(|(index, _)| self.fenced.contains_key(index));
        for (index, wire) in new.into_iter().chain(known) {
            match self.fence(index, &wire) {
                Ok(None) => {}
                Ok(Some(event)) => events.push(event),
                Err(error) => unfenceable.push((wire.inner, chain(&error))),
            }
        }
        self.set_own_addresses()?;
        self.census.take(self.fenced.len(), unfenceable.len());
        self.judge(unfenceable, events)
    }

    /// Sorts the interfaces of the workload into wires and what cannot be fenced.
    fn look(&mut self) -> Result<Seen, WireError> {
        let mut wires = BTreeMap::new();
        let mut unfenceable = Vec::new();
        let links = self.inside.links()?;
        // Asked after the list: listing a link makes the id of its other end's namespace known.
        let host = self.inside.nsid_of(&self.host)?;
        for inner in links {
            match classify(&inner, host) {
                Class::Harmless => {}
                Class::Wire { peer } => match self.other_end(&inner, peer)? {
                    Some(outer) => {
                        wires.insert(peer, Wire { inner, outer });
                    }
                    // Gone meanwhile, which the monitor tells, or not what it seems.
                    None if self.inside.link(inner.index)?.is_none() => {}
                    None => unfenceable.push((inner, NOT_THE_HOSTS.to_owned())),
                },
                Class::Unfenceable(why) => unfenceable.push((inner, why.to_owned())),
            }
        }
        let surplus: Vec<u32> = wires.keys().copied().skip(abi::DEVICES_MAX).collect();
        for wire in surplus.iter().filter_map(|index| wires.remove(index)) {
            unfenceable.push((wire.inner, "there are too many".to_owned()));
        }
        Ok(Seen { wires, unfenceable })
    }

    /// The host's end of a pair, if both ends say so of each other.
    fn other_end(&mut self, inner: &Link, peer: u32) -> Result<Option<Link>, WireError> {
        let Some(outer) = self.outside.link(peer)? else { return Ok(None) };
        let workload = self.outside.nsid_of(&self.workload)?;
        let agrees = outer.kind == VETH
            && outer.peer == Some(inner.index)
            && outer.peer_nsid.is_some()
            && outer.peer_nsid == workload;
        Ok(agrees.then_some(outer))
    }

    fn fence(&mut self, index: u32, wire: &Wire) -> Result<Option<WireEvent>, WireError> {
        let is_same = self.fenced.get(&index).is_some_and(|fenced| fenced.is_same(wire));
        if is_same && self.programs.are_at_work(&wire.outer, &self.pins) {
            return Ok(None);
        }
        if is_same {
            tracing::error!(interface = wire.inner.name, "somebody took its fence off");
        }
        let was_there = self.programs.fence(&wire.outer, &self.pins)?;
        self.fenced.insert(index, wire.clone());
        if !self.is_cut {
            self.tables.let_pass(wire.inner.index, index, &wire.inner.hardware)?;
        }
        if was_there {
            return Ok(None);
        }
        for (ip, hardware) in self.inside.neighbours(wire.inner.index)? {
            self.tables.know(ip, hardware)?;
        }
        let before = self.before(index, wire)?;
        tracing::info!(interface = wire.inner.name, peer = wire.outer.name, "fenced");
        Ok(Some(WireEvent::Fenced { interface: wire.inner.name.clone(), before }))
    }

    /// At most what has passed before the fence: an interface that is still down has never carried anything here.
    fn before(&mut self, index: u32, wire: &Wire) -> Result<Counters, NetlinkError> {
        let now = self.outside.link(index)?.map(|link| link.counters).unwrap_or_default();
        let is_down = self.inside.link(wire.inner.index)?.is_none_or(|link| !link.is_up);
        let never_up = is_down && wire.inner.counters == Counters::default();
        let carried = self.registered.may_have_carried(index, now);
        Ok(if never_up { Counters::default() } else { carried })
    }

    fn forget(&mut self, index: u32) -> Result<(), WireError> {
        if let Some(wire) = self.fenced.remove(&index) {
            self.tables.close(wire.inner.index, index)?;
            self.programs.forget(index, &self.pins)?;
            tracing::info!(interface = wire.inner.name, "no longer there");
        }
        Ok(())
    }

    fn set_own_addresses(&mut self) -> Result<(), WireError> {
        let own = self.inside.addresses()?.into_iter().map(|address| address.ip);
        Ok(self.tables.set_own(&own.collect())?)
    }

    /// Refuses everything while there is an interface without a fence, and sets it down.
    fn judge(
        &mut self,
        unfenceable: Vec<(Link, String)>,
        events: &mut Vec<WireEvent>,
    ) -> Result<(), WireError> {
        if unfenceable.is_empty() {
            self.unfenceable.clear();
            return self.restore(events);
        }
        self.cut()?;
        let mut seen = BTreeSet::new();
        for (link, why) in unfenceable {
            if link.is_up {
                match self.inside.set_up(link.index, false) {
                    Err(error) if !error.is_gone() => return Err(error.into()),
                    _down_or_gone => {}
                }
            }
            let kind = if link.kind.is_empty() { "hardware".to_owned() } else { link.kind };
            let key = (link.index, kind.clone());
            if !self.unfenceable.contains(&key) {
                let interface = link.name;
                events.push(WireEvent::Unfenceable(Unfenceable { interface, kind, why }));
            }
            seen.insert(key);
        }
        self.unfenceable = seen;
        Ok(())
    }

    /// Refuses everything.
    fn cut(&mut self) -> Result<(), WireError> {
        self.is_cut = true;
        self.is_told = true;
        self.tables.disarm(self.netns_cookie)?;
        for (index, wire) in &self.fenced {
            self.tables.close(wire.inner.index, *index)?;
        }
        Ok(())
    }

    fn restore(&mut self, events: &mut Vec<WireEvent>) -> Result<(), WireError> {
        if !self.is_cut || self.netns_cookie.is_none() {
            return Ok(());
        }
        for (index, wire) in &self.fenced {
            self.tables.let_pass(wire.inner.index, *index, &wire.inner.hardware)?;
        }
        self.tables.arm_again()?;
        self.is_cut = false;
        if std::mem::take(&mut self.is_told) {
            events.push(WireEvent::Restored);
        }
        Ok(())
    }
}

/// Whether an interface of `namespace` leads out of it. The calling thread must be in the host's namespace.
///
/// # Errors
/// When the kernel does not answer.
pub fn reaches_out(namespace: &Namespace) -> Result<bool, NetlinkError> {
    let host = Namespace::own()?;
    let mut inside = Netlink::of(namespace)?;
    let links = inside.links()?;
    let host = inside.nsid_of(&host)?;
    Ok(links.iter().any(|link| leads_out(link, host)))
}

const VETH: &str = "veth";
const NOT_THE_HOSTS: &str = "its other end is not in the host's network namespace";

/// An error and all its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}
