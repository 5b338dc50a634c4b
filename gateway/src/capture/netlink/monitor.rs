//! What has changed since one looked.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::constants::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::answer::link_of;
use super::{ANSWER_BYTES, Link, NetlinkError, refused, split_first};
use crate::capture::Namespace;

/// Tells that links or addresses of one network namespace have changed.
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Watches `namespace` from now on.
    ///
    /// # Errors
    /// When it cannot be entered, or the kernel gives no socket.
    pub fn of(namespace: &Namespace) -> Result<Self, NetlinkError> {
        namespace.run(Self::here)
    }

    /// Watches the calling thread's namespace from now on.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn here() -> Result<Self, NetlinkError> {
        let opened = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            socket.bind(&SocketAddr::new(0, GROUPS))?;
            Ok(socket)
        };
        Ok(Self { socket: opened().map_err(refused("watch interfaces"))? })
    }

    /// Empties the socket; whether there was anything in it. What has changed has to be asked: changes may be lost when
    /// there are many, which counts as a change.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn drain(&self) -> io::Result<bool> {
        self.drain_to(|_link| {})
    }

    /// The same, and calls `each` with every interface that is new or has changed, as it was then.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn drain_to(&self, mut each: impl FnMut(Link)) -> io::Result<bool> {
        let mut has_changed = false;
        let mut bytes = Vec::with_capacity(ANSWER_BYTES);
        loop {
            bytes.clear();
            match self.socket.recv(&mut bytes, 0) {
                Ok(_length) => {
                    has_changed = true;
                    links_in(&bytes, &mut each);
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => has_changed = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(has_changed),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// What is not understood here shows when it is asked for.
fn links_in(mut rest: &[u8], each: &mut impl FnMut(Link)) {
    while !rest.is_empty() {
        let Ok((message, after)) = split_first(rest) else { return };
        rest = after;
        if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = message.payload {
            each(link_of(&link));
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Links and addresses of both families (`linux/rtnetlink.h`).
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
