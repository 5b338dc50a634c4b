//! The scratch world: a cgroup, two namespaces, and the wire between them.
//!
//! ```text
//! agent: lo, tollgate0 203.0.113.1 ═══ veth ═══ tollgate0 203.0.113.2 :outside
//! ```
//!
//! Both namespaces have no other interface: whatever leaves the agent's ends at the tap. Every neighbour is known
//! beforehand, so that a frame never fails to leave for want of an answer.
//!
//! The namespaces have no name and end with this process. Cgroup and pins stay when it is killed; the cgroup is
//! locked by its owner, and one that nobody has locked is swept by the next.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};

use super::attempt::{AGENT_V4, AGENT_V6, GATEWAY_PORT, OUTSIDE_V4, OUTSIDE_V6};
use crate::capture::{
    BpfFs, Cgroup, CgroupRoot, Namespace, NamespaceError, Netlink, PinError, Pins, RUNS,
};

/// Name of both ends of the wire.
pub(super) const INTERFACE: &str = "tollgate0";
/// Names of scratch cgroups and their pin directories start with it.
const PREFIX: &str = "doctor-";

/// A scratch workload, as [`super::Arming`] finds it.
#[derive(Debug)]
pub struct Scratch {
    /// Name of its cgroup below [`RUNS`], and of its directory of pins.
    pub name: String,
    /// Whose sockets are to be held.
    pub cgroup: Cgroup,
    /// The namespace of the workload.
    pub agent: Namespace,
    /// The namespace that stands for everything else.
    pub outside: Namespace,
    /// The port that the gateway's listeners are to have.
    pub port: u16,
    /// Index of the end of the wire in [`Self::outside`].
    pub outside_interface: u32,
    /// Whether the kernel has IPv6.
    pub(super) has_ipv6: bool,
    cgroups: CgroupRoot,
    bpf: BpfFs,
    /// Held as long as the scratch world lives; the kernel lets it go when the process dies.
    _lock: Flock<File>,
}

impl Scratch {
    /// Builds it, after removing what earlier ones have left behind.
    pub(super) fn build() -> anyhow::Result<Self> {
        let cgroups = CgroupRoot::find()?;
        let bpf = BpfFs::find_or_mount()?;
        sweep(&cgroups, &bpf);
        let (name, cgroup, lock) = own_cgroup(&cgroups)?;
        let (agent, outside, outside_interface, has_ipv6) = match furnish() {
            Ok(furnished) => furnished,
            Err(error) => {
                remove(cgroup, None, &cgroups, &bpf);
                return Err(error);
            }
        };
        Ok(Self {
            name,
            cgroup,
            agent,
            outside,
            port: GATEWAY_PORT,
            outside_interface,
            has_ipv6,
            cgroups,
            bpf,
            _lock: lock,
        })
    }

    /// An empty directory of pins.
    pub(super) fn make_pins(&self) -> Result<Pins, PinError> {
        self.bpf.create(&self.name)
    }

    /// Removes everything. What cannot be removed is swept by the next.
    pub(super) fn remove(self) {
        let pins = self.bpf.existing(&self.name);
        remove(self.cgroup, pins, &self.cgroups, &self.bpf);
    }
}

/// The two namespaces and the wire between them.
fn furnish() -> anyhow::Result<(Namespace, Namespace, u32, bool)> {
    let (agent, outside) = (Namespace::isolated()?, Namespace::isolated()?);
    for namespace in [&agent, &outside] {
        quieten(namespace)?;
    }
    let mut inside = Netlink::of(&agent)?;
    inside.add_veth(INTERFACE, INTERFACE, &outside)?;
    let mut beyond = Netlink::of(&outside)?;
    let near = inside.link_named(INTERFACE)?.context("the wire has no end inside")?;
    let far = beyond.link_named(INTERFACE)?.context("the wire has no end outside")?;
    // Both first: an end without the other has no carrier.
    inside.set_up(near.index, true)?;
    beyond.set_up(far.index, true)?;
    for (netlink, own, other, addresses) in [
        (
            &mut inside,
            &near,
            &far,
            [AGENT_V4.into(), AGENT_V6.into(), OUTSIDE_V4.into(), OUTSIDE_V6.into()],
        ),
        (
            &mut beyond,
            &far,
            &near,
            [OUTSIDE_V4.into(), OUTSIDE_V6.into(), AGENT_V4.into(), AGENT_V6.into()],
        ),
    ] {
        let [own_v4, own_v6, other_v4, other_v6]: [IpAddr; 4] = addresses;
        netlink.add_address(own.index, own_v4, 24)?;
        netlink.add_neighbour(own.index, other_v4, &other.hardware)?;
        netlink.add_default_route(other_v4)?;
        if has_ipv6() {
            netlink.add_address(own.index, own_v6, 64)?;
            netlink.add_neighbour(own.index, other_v6, &other.hardware)?;
            netlink.add_default_route(other_v6)?;
        }
    }
    Ok((agent, outside, far.index, has_ipv6()))
}

fn remove(cgroup: Cgroup, pins: Option<Pins>, cgroups: &CgroupRoot, bpf: &BpfFs) {
    if let Some(pins) = pins
        && let Err(error) = pins.remove()
    {
        tracing::warn!("pins of the scratch workload stay: {error:#}");
    }
    if let Err(error) = cgroup.destroy() {
        tracing::warn!("the scratch cgroup stays: {error:#}");
    }
    bpf.remove_if_empty();
    cgroups.remove_runs_if_empty();
}

/// A cgroup that is locked by this process before anybody could sweep it.
fn own_cgroup(cgroups: &CgroupRoot) -> anyhow::Result<(String, Cgroup, Flock<File>)> {
    for number in 0..TRIES {
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let cgroup = match cgroups.create(&name) {
            Ok(cgroup) => cgroup,
            Err(error) if number + 1 < TRIES => {
                tracing::debug!("{error:#}");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // Somebody who sweeps may have taken it for a dead one's.
        if let Ok(Some(lock)) = lock(&cgroup)
            && cgroup.is_there()
        {
            return Ok((name, cgroup, lock));
        }
    }
    anyhow::bail!("no scratch cgroup can be had")
}

/// Other doctors of this process, a dead one of the same id, sweepers that come between two steps.
const TRIES: u32 = 16;

/// Locks a scratch cgroup; `None` when it has an owner.
fn lock(cgroup: &Cgroup) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(File::open(cgroup.path())?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Removes the scratch cgroups and pins of doctors that were killed.
fn sweep(cgroups: &CgroupRoot, bpf: &BpfFs) {
    let Ok(entries) = fs::read_dir(cgroups.mount().join(RUNS)) else { return };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    for name in names.filter(|name| name.starts_with(PREFIX)) {
        let Ok(Some(cgroup)) = cgroups.existing(&name) else { continue };
        if let Ok(Some(_lock)) = lock(&cgroup) {
            tracing::info!(name, "sweeping what a former doctor has left behind");
            remove(cgroup, bpf.existing(&name), cgroups, bpf);
        }
    }
}

fn has_ipv6() -> bool {
    fs::exists("/proc/sys/net/ipv6").is_ok_and(|there| there)
}

/// Nothing is sent that nobody asked for, and whoever may open a ping socket may.
fn quieten(namespace: &Namespace) -> Result<(), NamespaceError> {
    let settings = [
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/router_solicitations", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/ping_group_range", "0 2147483647"),
    ];
    namespace.run(|| {
        for (name, value) in settings {
            // A kernel without it has no such frames, or the row that needs it says so.
            if let Err(error) = fs::write(format!("/proc/sys/net/{name}"), value) {
                tracing::debug!(name, %error, "not set in the scratch namespace");
            }
        }
        Ok(())
    })
}
