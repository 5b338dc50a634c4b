//! The scratch gateway: takes what is redirected, answers what is asked, and remembers whose it was.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};

use super::mark::Mark;
use crate::capture::{Captured, FlowTable, KernelFlows, Listeners};
use crate::net::ClientAddr;

/// Listeners in the workload's namespace.
pub(super) struct Gateway {
    listeners: Listeners,
    /// Without, everybody is served: the control.
    flows: Option<KernelFlows>,
    /// Connections that a gateway would serve.
    pub(super) served: BTreeSet<Mark>,
}

impl Gateway {
    /// One that nothing protects, in the calling thread's namespace: neither bound to `lo`, nor to one address where
    /// that matters, and it serves whoever comes.
    pub(super) fn unprotected(port: u16, has_ipv6: bool) -> io::Result<Self> {
        let mut tcp = vec![TcpListener::bind((Ipv4Addr::LOCALHOST, port))?];
        let mut udp = vec![UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?];
        if has_ipv6 {
            tcp.push(TcpListener::bind((Ipv6Addr::LOCALHOST, port))?);
            udp.push(UdpSocket::bind((Ipv6Addr::LOCALHOST, port))?);
        }
        for listener in &tcp {
            listener.set_nonblocking(true)?;
        }
        for socket in &udp {
            socket.set_nonblocking(true)?;
        }
        let listeners = Listeners { tcp, udp, ipv6: None };
        Ok(Self { listeners, flows: None, served: BTreeSet::new() })
    }

    /// The product's own listeners and records.
    pub(super) fn captured(captured: Captured) -> Self {
        let Captured { listeners, flows, .. } = captured;
        Self { listeners, flows: Some(flows), served: BTreeSet::new() }
    }

    /// What to wait for.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let tcp = self.listeners.tcp.iter().map(|listener| listener.as_fd());
        tcp.chain(self.listeners.udp.iter().map(|socket| socket.as_fd()))
    }

    /// Serves what waits; whether anything did.
    pub(super) fn serve(&mut self) -> io::Result<bool> {
        let mut any = false;
        for listener in &self.listeners.tcp {
            loop {
                match listener.accept() {
                    Ok((_connection, client)) => {
                        any = true;
                        let port = match &self.flows {
                            None => Some(client.port()),
                            Some(flows) => flows
                                .take(ClientAddr(client))
                                .map(|flow| flow.original_dst.0.port()),
                        };
                        self.served.extend(port.and_then(Mark::from_port));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // The client is gone already.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for socket in &self.listeners.udp {
            any |= echo(socket)?;
        }
        Ok(any)
    }
}

/// Answers as a resolver would: to whoever the question seems to come from.
fn echo(socket: &UdpSocket) -> io::Result<bool> {
    let mut any = false;
    let mut question = [0; 512];
    loop {
        match socket.recv_from(&mut question) {
            Ok((length, from)) => {
                any = true;
                let answer = question.get(..length).unwrap_or_default();
                if let Err(error) = socket.send_to(answer, from) {
                    tracing::trace!(%error, "an answer does not leave");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
}
