//! The child's side: one real attempt, made with the rights that its row names, which says how far it got.

pub(super) mod around;
pub(super) mod datagrams;
pub(super) mod frames;
pub(super) mod places;
pub(super) mod streams;

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use caps::{CapSet, Capability};
use nix::net::if_::if_nametoindex;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::mark::Mark;
use super::row::{self, Rights};
use super::scratch::INTERFACE;

/// Hidden verb of the binary.
pub(super) const ATTEMPT_VERB: &str = "__attempt";

/// What an attempt does; [`Stopped`] where it was refused.
pub(super) type Attempt = fn(&Ground) -> Result<(), Stopped>;

/// What the child is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Order {
    /// Name of the row.
    name: String,
    /// The mark that everything sent carries.
    #[arg(long)]
    mark: u16,
    /// The file by which to join the cgroup.
    #[arg(long)]
    procs: PathBuf,
    /// Capabilities to keep.
    #[arg(long)]
    rights: Rights,
}

/// Where an attempt is made.
pub(super) struct Ground {
    pub(super) mark: Mark,
    /// Index of the interface that is not `lo`.
    pub(super) interface: u32,
}

/// The step at which the kernel refused.
pub(super) struct Stopped {
    step: &'static str,
    source: io::Error,
}

/// How far an attempt got, as its last line says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reached {
    /// Where it was refused; without, it was done.
    pub(super) stopped_at: Option<String>,
    /// What the kernel said.
    pub(super) errno: Option<i32>,
}

/// The workload's addresses.
pub(super) const AGENT_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(super) const AGENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The addresses outside.
pub(super) const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(super) const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// Addresses that are nobody's.
const SPOOFED_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SPOOFED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 7);
/// The gateway's port in the scratch namespace.
pub(super) const GATEWAY_PORT: u16 = 10_255;

/// Last word of a child that waits for something from outside, before its report.
pub(super) const READY: &str = "ready";

/// How long what was sent already may take to be heard.
const HEAR_WAIT: Duration = Duration::from_millis(100);

/// What Docker leaves a container by default.
const DOCKER: [Capability; 14] = [
    Capability::CAP_AUDIT_WRITE,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
];

/// Makes the attempt in the calling process, which must have just begun.
///
/// # Errors
/// When it cannot be made; that it was refused is no error.
pub fn attempt(order: &Order) -> anyhow::Result<ExitCode> {
    // The doctor killed: nobody would count what this sends.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let (_, row) = row::named(&order.name).context("no such attempt")?;
    let mark = Mark::from_port(order.mark).context("no such mark")?;
    let interface = if_nametoindex(INTERFACE).context("not in a scratch namespace")?;
    fs::write(&order.procs, "0").context("cannot join the scratch cgroup")?;
    reduce_to(order.rights)?;
    let reached = match (row.attempt)(&Ground { mark, interface }) {
        Ok(()) => Reached { stopped_at: None, errno: None },
        Err(Stopped { step, source }) => {
            Reached { stopped_at: Some(step.to_owned()), errno: source.raw_os_error() }
        }
    };
    say(&serde_json::to_string(&reached)?)?;
    Ok(ExitCode::SUCCESS)
}

fn reduce_to(rights: Rights) -> anyhow::Result<()> {
    let held = caps::read(None, CapSet::Permitted)?;
    let kept: HashSet<Capability> = match rights {
        Rights::Nothing => HashSet::new(),
        Rights::Docker => {
            DOCKER.into_iter().filter(|capability| held.contains(capability)).collect()
        }
    };
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Says that the attempt is in place, and waits until the doctor has done its part.
fn wait_for_the_doctor() -> Result<(), Stopped> {
    say(READY).at("say")?;
    io::stdin().read_to_end(&mut Vec::new()).at("wait")?;
    Ok(())
}

/// Names the step of a result.
trait At<T> {
    fn at(self, step: &'static str) -> Result<T, Stopped>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, step: &'static str) -> Result<T, Stopped> {
        self.map_err(|source| Stopped { step, source })
    }
}

impl Ground {
    /// The destination outside, over IPv4.
    fn outside_v4(&self) -> SockAddr {
        address(OUTSIDE_V4, self.mark.port())
    }

    /// The same over IPv6.
    fn outside_v6(&self) -> SockAddr {
        address(OUTSIDE_V6, self.mark.port())
    }

    /// The same, v4-mapped.
    fn outside_mapped(&self) -> SockAddr {
        address(OUTSIDE_V4.to_ipv6_mapped(), self.mark.port())
    }

    /// The workload's own loopback.
    fn local_v4(&self) -> SockAddr {
        address(Ipv4Addr::LOCALHOST, self.mark.port())
    }

    /// The same over IPv6.
    fn local_v6(&self) -> SockAddr {
        address(Ipv6Addr::LOCALHOST, self.mark.port())
    }

    fn payload(&self) -> Vec<u8> {
        self.mark.payload()
    }
}

fn address(ip: impl Into<IpAddr>, port: u16) -> SockAddr {
    SocketAddr::new(ip.into(), port).into()
}

/// Without lingering: what the kernel would send again after the attempt would come in another pass.
fn tcp(domain: Domain) -> Result<Socket, Stopped> {
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).at("socket")?;
    socket.set_linger(Some(Duration::ZERO)).at("set up")?;
    Ok(socket)
}

fn udp(domain: Domain) -> Result<Socket, Stopped> {
    Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).at("socket")
}

/// Sends the SYN and does not wait for the answer.
fn connect(socket: &Socket, to: &SockAddr) -> Result<(), Stopped> {
    socket.set_nonblocking(true).at("set up")?;
    match socket.connect(to) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other.at("connect"),
    }
}
