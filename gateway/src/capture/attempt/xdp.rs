//! AF_XDP by hand: one frame, copied to the interface's transmit path past every socket hook.

use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::null;

use libc::{c_int, c_void};
use socket2::{Domain, Socket, Type};

use super::ring::Mapping;
use super::{checked, set_option};

/// Level of the options.
const SOL_XDP: c_int = 283;
/// `XDP_TX_RING`.
const TX_RING: c_int = 3;
/// `XDP_UMEM_REG`.
const UMEM_REG: c_int = 4;
/// `XDP_UMEM_FILL_RING`.
const FILL_RING: c_int = 5;
/// `XDP_UMEM_COMPLETION_RING`.
const COMPLETION_RING: c_int = 6;
/// `XDP_MMAP_OFFSETS`.
const MMAP_OFFSETS: c_int = 1;
/// `XDP_PGOFF_TX_RING`.
const TX_RING_OFFSET: libc::off_t = 0x8000_0000;
/// `XDP_COPY`: no support of the driver is needed.
const COPY: u16 = 1 << 1;
/// Entries of each ring.
const ENTRIES: u32 = 4;
/// Bytes of one frame's room in the shared memory.
const FRAME: usize = 4096;

/// `struct xdp_desc`.
#[repr(C)]
struct Descriptor {
    offset: u64,
    length: u32,
    options: u32,
}

/// `struct xdp_ring_offset` for each of the rings rx, tx, fill, completion, as words.
const OFFSETS_WORDS: usize = 16;
const PRODUCER_OF_TX: usize = 4;
const DESCRIPTORS_OF_TX: usize = 6;

/// Memory for frames, shared with the kernel by its registration: whole pages.
#[repr(C, align(4096))]
struct Frames([u8; FRAME]);

/// Sends `frame` on the first queue of the interface `index`.
pub(crate) fn send_by_xdp(index: u32, frame: &[u8]) -> io::Result<()> {
    // Made before the socket, so that it is dropped after it: the kernel uses the memory until the socket is closed.
    let mut frames = Box::new(Frames([0; FRAME]));
    let socket = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None)?;
    let room = frames.0.get_mut(..frame.len()).ok_or(io::ErrorKind::InvalidInput)?;
    room.copy_from_slice(frame);
    register(&socket, &frames)?;
    for ring in [FILL_RING, COMPLETION_RING, TX_RING] {
        set_option(&socket, SOL_XDP, ring, &ENTRIES.to_ne_bytes())?;
    }
    let offsets = offsets(&socket)?;
    let word = |at: usize| -> io::Result<u32> {
        let word = offsets.get(at).copied().ok_or(io::ErrorKind::InvalidData)?;
        u32::try_from(word).map_err(io::Error::other)
    };
    let (producer, descriptors) = (word(PRODUCER_OF_TX)?, word(DESCRIPTORS_OF_TX)?);
    let ring = Mapping::of(&socket, FRAME, TX_RING_OFFSET)?;
    bind(&socket, index)?;
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    ring.write(descriptors, Descriptor { offset: 0, length, options: 0 })?;
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    ring.write(producer, 1_u32)?;
    kick(&socket)
}

fn register(socket: &Socket, frames: &Frames) -> io::Result<()> {
    // `struct xdp_umem_reg` (linux/if_xdp.h) as its first version, which every kernel takes: address and bytes of the
    // memory, bytes of one frame's room, headroom.
    let bytes = u32::try_from(FRAME).map_err(io::Error::other)?;
    let address = frames.0.as_ptr().expose_provenance() as u64;
    let mut value = [address.to_ne_bytes(), u64::from(bytes).to_ne_bytes()].concat();
    value.extend([bytes.to_ne_bytes(), 0_u32.to_ne_bytes()].concat());
    set_option(socket, SOL_XDP, UMEM_REG, &value)
}

#[expect(unsafe_code, reason = "no safe crate here reads this socket option")]
fn offsets(socket: &Socket) -> io::Result<[u64; OFFSETS_WORDS]> {
    let mut words = [0_u64; OFFSETS_WORDS];
    let mut length = libc::socklen_t::try_from(size_of_val(&words)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open; the kernel writes at most `length` bytes, the size of `words`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            SOL_XDP,
            MMAP_OFFSETS,
            words.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    checked(result)?;
    Ok(words)
}

#[expect(unsafe_code, reason = "no safe crate here binds such a socket")]
fn bind(socket: &Socket, index: u32) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: u16::try_from(libc::AF_XDP).map_err(io::Error::other)?,
        sxdp_flags: COPY,
        sxdp_ifindex: index,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: 0,
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads one `sockaddr_xdp`, which lives across the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    checked(result)
}

/// Tells the kernel that the ring is not empty.
#[expect(unsafe_code, reason = "an empty message without an address")]
fn kick(socket: &Socket) -> io::Result<()> {
    // SAFETY: no bytes and no address are passed.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), null::<c_void>(), 0, libc::MSG_DONTWAIT, null(), 0)
    };
    if sent >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
