//! Interfaces and addresses of network namespaces, as the kernel tells them (rtnetlink(7)).
//!
//! A netlink socket belongs to the namespace that it was opened in, whatever thread uses it: nobody has to stay in a
//! workload's namespace to ask about it.

mod answer;
mod change;
mod monitor;
mod neighbour;
#[cfg(test)]
mod tests;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::constants::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

pub use answer::{Counters, Link, OwnAddress};
pub use monitor::Monitor;

use super::{Namespace, NamespaceError};
use answer::{address_of, link_of, neighbour_of};

/// A socket that asks and changes one network namespace.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// The kernel does not answer, or refuses.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The kernel refuses one step.
    #[error("cannot {step}")]
    Refused {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An answer that nobody understands.
    #[error("cannot {step}: the kernel's answer is not understood: {answer}")]
    Answer {
        /// What was tried.
        step: &'static str,
        /// What is wrong with the answer.
        answer: String,
    },
}

impl NetlinkError {
    /// Whether there is no such interface (any more).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(libc::ENODEV))
    }
}

/// Room for one answer of the kernel: it fills at most 32 KiB at a time.
const ANSWER_BYTES: usize = 64 * 1024;
/// How often a list that changed while it was read is read again.
const TRIES: u8 = 16;

impl Netlink {
    /// For the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn here() -> Result<Self, NetlinkError> {
        let opened = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = opened().map_err(refused("open a netlink socket"))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// For `namespace`.
    ///
    /// # Errors
    /// When it cannot be entered, or the kernel gives no socket.
    pub fn of(namespace: &Namespace) -> Result<Self, NetlinkError> {
        namespace.run(Self::here)
    }

    /// Every interface.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let step = "list interfaces";
        let all = self.list(step, &RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let links = all.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link_of(&link)),
            _other => None,
        });
        Ok(links.collect())
    }

    /// The interface `index`, if it is there.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn link(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.one_link(message)
    }

    /// The interface `name`, if it is there.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn link_named(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.one_link(message)
    }

    fn one_link(&mut self, message: LinkMessage) -> Result<Option<Link>, NetlinkError> {
        let answers = match self.ask(
            "look at an interface",
            &RouteNetlinkMessage::GetLink(message),
            NLM_F_ACK,
        ) {
            Err(error) if error.is_gone() => return Ok(None),
            other => other?,
        };
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link_of(&link)),
            _other => None,
        }))
    }

    /// Every address of every interface.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn addresses(&mut self) -> Result<Vec<OwnAddress>, NetlinkError> {
        let step = "list addresses";
        let all = self.list(step, &RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let addresses = all.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(address) => address_of(&address),
            _other => None,
        });
        Ok(addresses.collect())
    }

    /// Which machines on the wire of an interface have which IPv4 addresses, as far as the namespace knows.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn neighbours(&mut self, index: u32) -> Result<Vec<(Ipv4Addr, [u8; 6])>, NetlinkError> {
        let question = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let all = self.list("list neighbours", &question)?;
        let known = all.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(known) if known.header.ifindex == index => {
                neighbour_of(&known)
            }
            _other => None,
        });
        Ok(known.collect())
    }

    /// The id by which this socket's namespace knows `other`, if it knows it.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn nsid_of(&mut self, other: &Namespace) -> Result<Option<i32>, NetlinkError> {
        let mut message = NsidMessage::default();
        let fd = u32::try_from(other.as_fd().as_raw_fd())
            .map_err(io::Error::other)
            .map_err(refused("look up a namespace"))?;
        message.attributes.push(NsidAttribute::Fd(fd));
        let step = "look up a namespace";
        let answers = self.ask(step, &RouteNetlinkMessage::GetNsId(message), NLM_F_ACK)?;
        let ids = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNsId(answer) => Some(&answer.attributes),
            _other => None,
        });
        Ok(ids.flatten().find_map(|attribute| match attribute {
            NsidAttribute::Id(id) if *id >= 0 => Some(*id),
            _other => None,
        }))
    }

    fn create(
        &mut self,
        step: &'static str,
        message: &RouteNetlinkMessage,
    ) -> Result<(), NetlinkError> {
        self.ask(step, message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    fn change(
        &mut self,
        step: &'static str,
        message: &RouteNetlinkMessage,
    ) -> Result<(), NetlinkError> {
        self.ask(step, message, NLM_F_ACK).map(drop)
    }

    /// A whole list: the kernel says when it changed while it was read.
    fn list(
        &mut self,
        step: &'static str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut tries = TRIES;
        loop {
            match self.ask(step, message, NLM_F_DUMP) {
                Err(NetlinkError::Refused { source, .. })
                    if source.kind() == io::ErrorKind::Interrupted && tries > 0 =>
                {
                    tries -= 1;
                }
                other => return other,
            }
        }
    }

    fn ask(
        &mut self,
        step: &'static str,
        message: &RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut question = NetlinkMessage::from(message.clone());
        question.header.flags = NLM_F_REQUEST | flags;
        question.header.sequence_number = self.sequence;
        question.finalize();
        let mut bytes = vec![0; question.buffer_len()];
        question.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(refused(step))?;
        self.answers(step)
    }

    fn answers(&self, step: &'static str) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut answers = Vec::new();
        let mut has_changed = false;
        loop {
            let mut bytes = Vec::with_capacity(ANSWER_BYTES);
            self.socket.recv(&mut bytes, 0).map_err(refused(step))?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (message, after) = split_first(rest).map_err(not_understood(step))?;
                rest = after;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                has_changed |= message.header.flags & NLM_F_DUMP_INTR != 0;
                let refusal = match message.payload {
                    NetlinkPayload::InnerMessage(answer) => {
                        answers.push(answer);
                        continue;
                    }
                    NetlinkPayload::Done(done) => done.code,
                    NetlinkPayload::Error(error) => error.raw_code(),
                    _noop => continue,
                };
                if has_changed {
                    return Err(refused(step)(io::ErrorKind::Interrupted.into()));
                }
                if refusal < 0 {
                    return Err(refused(step)(io::Error::from_raw_os_error(-refusal)));
                }
                return Ok(answers);
            }
        }
    }
}

type Message = NetlinkMessage<RouteNetlinkMessage>;

/// The first of several messages and what comes after it, aligned to four bytes.
fn split_first(bytes: &[u8]) -> Result<(Message, &[u8]), String> {
    let message = Message::deserialize(bytes).map_err(|error| error.to_string())?;
    let length = usize::try_from(message.header.length).map_err(|error| error.to_string())?;
    Ok((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn refused(step: &'static str) -> impl Fn(io::Error) -> NetlinkError {
    move |source| NetlinkError::Refused { step, source }
}

fn not_understood(step: &'static str) -> impl Fn(String) -> NetlinkError {
    move |answer| NetlinkError::Answer { step, answer }
}
