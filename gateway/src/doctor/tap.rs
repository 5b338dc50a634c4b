//! Counts what arrives at the outer end of the wire, before and behind the wire fence.
//!
//! A packet socket for every protocol sees a frame before the interface's traffic control, one for a certain protocol
//! behind it. So the first says what reached the fence, and the others what passed it.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::mark::Mark;
use crate::capture::attempt::{send_frame, set_option};
use crate::capture::{Namespace, NamespaceError};

/// The tap and what it has counted.
pub(super) struct Tap {
    before: Socket,
    behind: Vec<Socket>,
    pub(super) reached: Counts,
    pub(super) passed: Counts,
}

/// Frames by their mark.
#[derive(Debug, Default)]
pub(super) struct Counts {
    by_mark: BTreeMap<Mark, usize>,
    /// Frames without one: what the kernel sends by itself.
    pub(super) unmarked: usize,
}

/// `ETH_P_ALL`.
const EVERY: u16 = 0x0003;
/// IPv4, ARP, IPv6, VLAN, and what is sent to find the tap.
const CERTAIN: [u16; 5] = [0x0800, 0x0806, 0x86dd, 0x8100, PROBE];
/// An EtherType for experiments (IEEE 802).
const PROBE: u16 = 0x88b5;
/// `PACKET_IGNORE_OUTGOING`: what the doctor itself sends inwards does not count.
const IGNORE_OUTGOING: i32 = 23;
/// Longer frames are cut; marks stand at their beginning.
const FRAME_BYTES: usize = 512;

impl Counts {
    pub(super) fn of(&self, mark: Mark) -> usize {
        self.by_mark.get(&mark).copied().unwrap_or_default()
    }

    fn add(&mut self, frame: &[u8]) {
        match Mark::on(frame) {
            Some(mark) => *self.by_mark.entry(mark).or_default() += 1,
            None => self.unmarked += 1,
        }
    }
}

impl Tap {
    /// Opens it in the namespace outside.
    pub(super) fn open(outside: &Namespace) -> anyhow::Result<Self> {
        let (before, behind) = outside.run(|| {
            let open = || -> io::Result<(Socket, Vec<Socket>)> {
                let before = socket(EVERY)?;
                set_option(&before, libc::SOL_PACKET, IGNORE_OUTGOING, &1_i32.to_ne_bytes())?;
                let behind = CERTAIN.into_iter().map(socket).collect::<io::Result<_>>()?;
                Ok((before, behind))
            };
            open().map_err(|source| NamespaceError::Step { step: "open the tap", source })
        })?;
        Ok(Self { before, behind, reached: Counts::default(), passed: Counts::default() })
    }

    /// What to wait for.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.behind.iter().chain([&self.before]).map(|socket| socket.as_fd())
    }

    /// Counts what has arrived; whether that was anything.
    pub(super) fn drain(&mut self) -> io::Result<bool> {
        let mut any = drain(&self.before, &mut self.reached)?;
        for socket in &self.behind {
            any |= drain(socket, &mut self.passed)?;
        }
        Ok(any)
    }

    /// Sends frames from inside until one is seen on both sides of the place where the fence will be: from then on, the
    /// wire carries and the tap counts. The calling thread is inside.
    pub(super) fn prove(&mut self, interface: u32) -> anyhow::Result<()> {
        let sender = Socket::new(Domain::PACKET, Type::RAW, None)?;
        let frame =
            [&[0xff; 6][..], &[0x02, 0, 0, 0, 0, 0x0b], &PROBE.to_be_bytes(), &[0; 46]].concat();
        for _try in 0..PROOF_TRIES {
            // ENETDOWN and the like, until the carrier is there.
            if let Err(error) = send_frame(&sender, interface, &frame) {
                tracing::trace!(%error, "the wire is not up yet");
            }
            let mut fds: Vec<PollFd<'_>> =
                self.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            poll(&mut fds, PollTimeout::from(PROOF_WAIT_MS))?;
            drop(fds);
            self.drain()?;
            if self.reached.unmarked > 0 && self.passed.unmarked > 0 {
                return Ok(());
            }
        }
        anyhow::bail!("a frame that is sent into the scratch wire is not seen at its other end")
    }
}

const PROOF_TRIES: usize = 200;
const PROOF_WAIT_MS: u8 = 10;

fn socket(protocol: u16) -> io::Result<Socket> {
    let protocol = Protocol::from(i32::from(protocol.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn drain(mut socket: &Socket, counts: &mut Counts) -> io::Result<bool> {
    let mut any = false;
    let mut frame = [0; FRAME_BYTES];
    loop {
        match socket.read(&mut frame) {
            Ok(length) => {
                any = true;
                counts.add(frame.get(..length).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
