//! io_uring by hand: one connect or send, executed by a kernel worker.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr::{null_mut, read_volatile, write_volatile};
use std::sync::atomic::{Ordering, fence};

use libc::{c_int, c_void};
use socket2::SockAddr;

/// `IORING_OP_CONNECT`.
const CONNECT: u8 = 16;
/// `IORING_OP_SENDMSG`.
const SENDMSG: u8 = 9;
/// `IOSQE_ASYNC`: not inline by the caller but by a worker.
const ASYNC: u8 = 1 << 4;
/// `IORING_ENTER_GETEVENTS`.
const GET_EVENTS: u32 = 1;
/// `IORING_FEAT_SINGLE_MMAP`, since Linux 5.4.
const SINGLE_MAPPING: u32 = 1;
/// `IORING_OFF_SQES`.
const SUBMISSIONS_OFFSET: libc::off_t = 0x1000_0000;

/// `struct io_sqring_offsets` and `struct io_cqring_offsets` (linux/io_uring.h): ten words each.
#[repr(C)]
#[derive(Default)]
struct Offsets {
    head: u32,
    tail: u32,
    mask: u32,
    entries: u32,
    /// `flags` of the submissions, `overflow` of the completions.
    fifth: u32,
    /// `dropped` of the submissions, `cqes` of the completions.
    sixth: u32,
    /// `array` of the submissions, `flags` of the completions.
    seventh: u32,
    reserved: u32,
    user: u64,
}

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Default)]
struct Parameters {
    submissions: u32,
    completions: u32,
    flags: u32,
    cpu: u32,
    idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    submission_offsets: Offsets,
    completion_offsets: Offsets,
}

/// `struct io_uring_sqe`, of which only the head is used.
#[repr(C)]
struct Submission {
    opcode: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    offset: u64,
    address: u64,
    length: u32,
    operation_flags: u32,
    user_data: u64,
    rest: [u64; 3],
}

const _: () = assert!(size_of::<Offsets>() == 40);
const _: () = assert!(size_of::<Parameters>() == 120);
const _: () = assert!(size_of::<Submission>() == 64);

/// connect(2) through io_uring.
pub(crate) fn connect_by_ring(socket: &impl AsFd, to: &SockAddr) -> io::Result<()> {
    let address = to.as_ptr().expose_provenance() as u64;
    one(CONNECT, socket.as_fd().as_raw_fd(), address, 0, u64::from(to.len()))
}

/// sendmsg(2) through io_uring.
#[expect(unsafe_code, reason = "the message is built by hand")]
pub(crate) fn send_by_ring(socket: &impl AsFd, to: &SockAddr, payload: &[u8]) -> io::Result<()> {
    let mut part =
        libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: msghdr is plain old data for which all zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let address = (&raw const message).expose_provenance() as u64;
    one(SENDMSG, socket.as_fd().as_raw_fd(), address, 1, 0)
}

/// Submits one operation and waits for its result, so that everything it points to lives until the kernel is done.
fn one(opcode: u8, fd: c_int, address: u64, length: u32, offset: u64) -> io::Result<()> {
    let mut parameters = Parameters::default();
    let ring = set_up(&mut parameters)?;
    if parameters.features & SINGLE_MAPPING == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    let rings = Mapping::of(&ring, RINGS_BYTES, 0)?;
    let submissions = Mapping::of(&ring, PAGE, SUBMISSIONS_OFFSET)?;
    let submission = Submission {
        opcode,
        flags: ASYNC,
        priority: 0,
        fd,
        offset,
        address,
        length,
        operation_flags: 0,
        user_data: 0,
        rest: [0; 3],
    };
    submissions.write(0, submission)?;
    let offsets = &parameters.submission_offsets;
    rings.write(offsets.seventh, 0_u32)?;
    // The kernel must see the entry before it sees that there is one.
    fence(Ordering::SeqCst);
    rings.write(offsets.tail, 1_u32)?;
    enter(&ring)?;
    fence(Ordering::SeqCst);
    // An entry of the completions is `u64 user_data, i32 result, u32 flags`.
    let result: i32 = rings.read(parameters.completion_offsets.sixth + 8)?;
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

const PAGE: usize = 4096;
/// Both rings, of one entry each, fit into a page.
const RINGS_BYTES: usize = PAGE;

#[expect(unsafe_code, reason = "io_uring_setup(2) has no safe wrapper here")]
fn set_up(parameters: &mut Parameters) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads and writes one `io_uring_params`, which is what `Parameters` is (sizes asserted).
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut *parameters) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[expect(unsafe_code, reason = "io_uring_enter(2) has no safe wrapper here")]
fn enter(ring: &OwnedFd) -> io::Result<()> {
    // SAFETY: submits one entry and waits for one completion; no signal mask is passed. What the entry points to
    // lives in the callers of `one` until this returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            1,
            1,
            GET_EVENTS,
            null_mut::<c_void>(),
            0,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Memory that is shared with the kernel.
pub(super) struct Mapping {
    start: *mut c_void,
    bytes: usize,
}

impl Mapping {
    #[expect(unsafe_code, reason = "shared memory of a kernel object")]
    pub(super) fn of(fd: &impl AsFd, bytes: usize, offset: libc::off_t) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe {
            libc::mmap(
                null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_fd().as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start, bytes })
    }

    fn at<T>(&self, offset: u32) -> io::Result<*mut T> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let inside = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.bytes);
        if !inside || !offset.is_multiple_of(align_of::<T>()) {
            return Err(io::Error::from_raw_os_error(libc::EOVERFLOW));
        }
        Ok(self.start.wrapping_byte_add(offset).cast())
    }

    #[expect(unsafe_code, reason = "the kernel reads it at any time")]
    pub(super) fn write<T>(&self, offset: u32, value: T) -> io::Result<()> {
        let place = self.at::<T>(offset)?;
        // SAFETY: `at` has checked that a `T` fits there and is aligned; the mapping lives as long as `self`.
        unsafe { write_volatile(place, value) };
        Ok(())
    }

    /// Only integers are read, so that whatever the kernel has written is a value.
    #[expect(unsafe_code, reason = "the kernel writes it at any time")]
    fn read(&self, offset: u32) -> io::Result<i32> {
        let place = self.at::<i32>(offset)?;
        // SAFETY: `at` has checked that it fits there and is aligned; the mapping lives as long as `self`.
        Ok(unsafe { read_volatile(place) })
    }
}

impl Drop for Mapping {
    #[expect(unsafe_code, reason = "gives back what mmap gave")]
    fn drop(&mut self) {
        // SAFETY: exactly what `of` mapped, which nothing refers to any more: `at` hands out pointers inside this file
        // only, and they are used at once.
        let result = unsafe { libc::munmap(self.start, self.bytes) };
        if result != 0 {
            tracing::trace!("a mapping stays");
        }
    }
}
