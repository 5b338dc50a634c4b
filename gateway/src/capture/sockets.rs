//! Connections that a workload had before it was closed: found and ended (sock_diag(7)).
//!
//! The programs let none of their packets through anyway. What is ended here fails at once, instead of after minutes of
//! silence, and is not there any more should the programs ever be taken away.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::{Socket, SocketAddr};

use super::{Cgroup, CgroupError, Namespace, NamespaceError};

/// Connections cannot be ended.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The cgroup cannot be looked at.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The kernel refuses one step.
    #[error("cannot {step} of the workload's network namespace")]
    Refused {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What became of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cut {
    /// How many were ended.
    pub ended: usize,
    /// How many the kernel would not end: nothing of them gets through, but they are there.
    pub silent: usize,
}

/// Ends every TCP connection and every connected UDP socket in `namespace` that leads elsewhere and whose socket was
/// made in `cgroup` or below: other workloads in the same network keep theirs.
///
/// # Errors
/// When the sockets cannot be listed.
pub fn cut_connections(namespace: &Namespace, cgroup: &Cgroup) -> Result<Cut, CutError> {
    let cgroups = cgroup.ids()?;
    namespace.run(|| {
        let sockets = Diagnostics::open()?;
        let mut cut = Cut::default();
        for family in [libc::AF_INET, libc::AF_INET6] {
            for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
                for socket in sockets.list(byte(family), byte(protocol))? {
                    if !socket.leads_elsewhere() || !cgroups.contains(&socket.cgroup) {
                        continue;
                    }
                    match sockets.destroy(&socket, byte(protocol)) {
                        Ok(()) => cut.ended += 1,
                        // It has ended by itself.
                        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                        Err(error) => {
                            tracing::debug!(%error, "a connection cannot be ended");
                            cut.silent += 1;
                        }
                    }
                }
            }
        }
        Ok(cut)
    })
}

/// A socket as the kernel lists it.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    family: u8,
    /// `struct inet_diag_sockid`, which names it when it is to be destroyed.
    id: [u8; ID_BYTES],
    cgroup: u64,
}

impl Found {
    fn of(answer: &[u8]) -> Option<Self> {
        let family = *answer.first()?;
        let id = *answer.get(ID_OFFSET..)?.first_chunk::<ID_BYTES>()?;
        let mut rest = answer.get(HEAD_BYTES..)?;
        while let Some((head, _)) = rest.split_first_chunk::<4>() {
            let [l0, l1, k0, k1] = *head;
            let length = usize::from(u16::from_ne_bytes([l0, l1]));
            let value = rest.get(4..length)?;
            if u16::from_ne_bytes([k0, k1]) == INET_DIAG_CGROUP_ID {
                let cgroup = u64::from_ne_bytes(*value.first_chunk::<8>()?);
                return Some(Self { family, id, cgroup });
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        // A connection that is half open has no socket of its own yet; who listens for it gets none of its packets.
        None
    }

    /// Whether its other end is neither on loopback nor the same address.
    fn leads_elsewhere(&self) -> bool {
        let [_, _, p0, p1, ..] = self.id;
        let (near, far) = (self.address(4), self.address(20));
        let is_connected = [p0, p1] != [0, 0];
        is_connected && !far.is_loopback() && !far.is_unspecified() && near != far
    }

    fn address(&self, offset: usize) -> IpAddr {
        let octets = self.id.get(offset..).and_then(|rest| rest.first_chunk::<16>());
        let octets = octets.copied().unwrap_or_default();
        if i32::from(self.family) == libc::AF_INET {
            let [a, b, c, d, ..] = octets;
            Ipv4Addr::new(a, b, c, d).into()
        } else {
            Ipv6Addr::from(octets).to_canonical()
        }
    }
}

/// A socket of the calling thread's namespace that asks for sockets.
struct Diagnostics(Socket);

impl Diagnostics {
    fn open() -> Result<Self, CutError> {
        let opened = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        opened().map(Self).map_err(refused("ask for the sockets"))
    }

    fn list(&self, family: u8, protocol: u8) -> Result<Vec<Found>, CutError> {
        let listed = || -> io::Result<Vec<Found>> {
            let request =
                request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, protocol, &[0; ID_BYTES]);
            self.0.send(&request, 0)?;
            let mut found = Vec::new();
            loop {
                let mut answer = Vec::with_capacity(ANSWER_BYTES);
                self.0.recv(&mut answer, 0)?;
                for (kind, body) in Messages(&answer) {
                    match kind {
                        NLMSG_DONE => return Ok(found),
                        NLMSG_ERROR => return Err(error_in(body)),
                        _socket => found.extend(Found::of(body)),
                    }
                }
            }
        };
        listed().or_else(|error| match error.raw_os_error() {
            // A kernel that has no such sockets.
            Some(libc::ENOENT) => Ok(Vec::new()),
            _other => Err(refused("list the sockets")(error)),
        })
    }

    fn destroy(&self, socket: &Found, protocol: u8) -> io::Result<()> {
        let request = request(SOCK_DESTROY, NLM_F_ACK, socket.family, protocol, &socket.id);
        self.0.send(&request, 0)?;
        let mut answer = Vec::with_capacity(ANSWER_BYTES);
        self.0.recv(&mut answer, 0)?;
        let body = Messages(&answer).find(|(kind, _)| *kind == NLMSG_ERROR).map(|(_, body)| body);
        let error = error_in(body.unwrap_or_default());
        if error.raw_os_error() == Some(0) { Ok(()) } else { Err(error) }
    }
}

/// The messages of one answer: kind and body.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, _) = self.0.split_first_chunk::<NLMSG_HEAD_BYTES>()?;
        let [l0, l1, l2, l3, k0, k1, ..] = *head;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body = self.0.get(NLMSG_HEAD_BYTES..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]), body))
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, protocol: u8, id: &[u8; ID_BYTES]) -> Vec<u8> {
    let mut message = Vec::with_capacity(REQUEST_BYTES);
    message.extend(u32::try_from(REQUEST_BYTES).unwrap_or_default().to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence and port: one question at a time, on a socket of its own.
    message.extend([0; 8]);
    message.extend([family, protocol, 0, 0]);
    message.extend(STATES.to_ne_bytes());
    message.extend(id);
    message
}

fn error_in(body: &[u8]) -> io::Error {
    let code = body.first_chunk::<4>().map_or(-libc::EBADMSG, |code| i32::from_ne_bytes(*code));
    io::Error::from_raw_os_error(-code)
}

fn refused(step: &'static str) -> impl Fn(io::Error) -> CutError {
    move |source| CutError::Refused { step, source }
}

fn byte(number: libc::c_int) -> u8 {
    u8::try_from(number).unwrap_or_default()
}

// === linux/sock_diag.h, linux/inet_diag.h, linux/netlink.h ===

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// All states but TCP_TIME_WAIT (6), TCP_CLOSE (7) as far as TCP goes, and TCP_LISTEN (10). A UDP socket that is
/// connected is in state TCP_ESTABLISHED.
const STATES: u32 = 0xfff & !(1 << 6 | 1 << 7 | 1 << 10);
const ID_BYTES: usize = 48;
const ID_OFFSET: usize = 4;
/// `struct inet_diag_msg`.
const HEAD_BYTES: usize = 72;
const REQUEST_BYTES: usize = NLMSG_HEAD_BYTES + 8 + ID_BYTES;
const NLMSG_HEAD_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// The kernel fills at most 32 KiB at a time.
const ANSWER_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer as the kernel builds it, with this far end and the attributes `more`.
    fn answer(family: i32, near: IpAddr, far: IpAddr, port: u16, more: &[(u16, &[u8])]) -> Vec<u8> {
        let octets = |address| match address {
            IpAddr::V4(v4) => Ipv6Addr::from_bits(u128::from(v4.to_bits()) << 96).octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut bytes = vec![byte(family), 1, 0, 0, 0x12, 0x34];
        bytes.extend(port.to_be_bytes());
        bytes.extend(octets(near));
        bytes.extend(octets(far));
        bytes.resize(HEAD_BYTES, 7);
        for (kind, value) in more {
            bytes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn a_socket_has_the_cgroup_that_the_kernel_says_and_without_one_it_is_left_alone() {
        let (near, far) = ("10.0.0.2".parse().unwrap(), "203.0.113.9".parse().unwrap());
        let cgroup = 4711_u64.to_ne_bytes();
        let with = answer(libc::AF_INET, near, far, 443, &[(8, &[0]), (21, &cgroup)]);
        let found = Found::of(&with).unwrap();
        assert_eq!((found.cgroup, found.address(4), found.address(20)), (4711, near, far));
        assert_eq!(Found::of(&answer(libc::AF_INET, near, far, 443, &[(8, &[0])])), None);
        for length in 0..with.len() {
            assert_eq!(Found::of(&with[..length]), None, "cut at {length}");
        }
    }

    #[test]
    fn only_what_leads_elsewhere_is_ended() {
        let rows = [
            ("10.0.0.2", "203.0.113.9", 443, true),
            ("10.0.0.2", "10.0.0.2", 443, false),
            ("127.0.0.1", "127.0.0.1", 443, false),
            ("10.0.0.2", "203.0.113.9", 0, false),
            ("2001:db8::2", "2001:db8::9", 443, true),
            ("::1", "::1", 443, false),
            ("::ffff:10.0.0.2", "::ffff:127.0.0.1", 443, false),
        ];
        for (near, far, port, expected) in rows {
            let (near, far): (IpAddr, IpAddr) = (near.parse().unwrap(), far.parse().unwrap());
            let family = if near.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let cgroup = 1_u64.to_ne_bytes();
            let found = Found::of(&answer(family, near, far, port, &[(21, &cgroup)])).unwrap();
            assert_eq!(found.leads_elsewhere(), expected, "{near} {far} {port}");
        }
    }

    #[test]
    fn messages_are_told_apart_and_a_torn_one_ends_the_list() {
        let one = request(SOCK_DESTROY, NLM_F_ACK, 2, 6, &[9; ID_BYTES]);
        let two = [one.as_slice(), one.as_slice()].concat();
        assert_eq!(Messages(&two).count(), 2);
        assert!(Messages(&two).all(|(kind, body)| kind == SOCK_DESTROY && body.len() == 56));
        assert_eq!(Messages(&two[..two.len() - 1]).count(), 1);
    }
}
