//! What has changed since one looked.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_sys::constants::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::{NetlinkError, refused};
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
        let mut has_changed = false;
        // A part of a message is enough: it says that there was one.
        let mut bytes = Vec::with_capacity(64);
        loop {
            bytes.clear();
            match self.socket.recv(&mut bytes, 0) {
                Ok(_length) => has_changed = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => has_changed = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(has_changed),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
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
