//! Raw system calls of the conformance attempts: what a hostile process would call and no safe crate wraps.
//!
//! The functions are safe to call and dangerous in what they ask of the network; only the doctor's child processes
//! call those that send, and only in namespaces without a route out. [`attached_to`] asks the kernel which programs
//! others have attached.

mod ring;
mod xdp;

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use libc::c_int;
use socket2::SockAddr;

pub(crate) use ring::{connect_by_ring, send_by_ring};
pub(crate) use xdp::send_by_xdp;

/// One control message (cmsg(3)) of a datagram.
pub(crate) struct Control<'a> {
    pub(crate) level: c_int,
    pub(crate) kind: c_int,
    pub(crate) data: &'a [u8],
}

/// setsockopt(2) with an option that has no safe wrapper.
#[expect(unsafe_code, reason = "no safe crate here sets options by number")]
pub(crate) fn set_option(
    socket: &impl AsFd,
    level: c_int,
    name: c_int,
    value: &[u8],
) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call; the kernel reads `length` bytes of `value`, which lives across it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            length_of(value)?,
        )
    };
    checked(result)
}

/// connect(2) to AF_UNSPEC: a connected socket becomes an unconnected one.
#[expect(unsafe_code, reason = "no safe crate here connects to AF_UNSPEC")]
pub(crate) fn disconnect(socket: &impl AsFd) -> io::Result<()> {
    let nowhere = [0_u8; size_of::<libc::sockaddr>()];
    // SAFETY: all zero is a `sockaddr` of family AF_UNSPEC; the kernel reads `length` bytes of it.
    let result = unsafe {
        libc::connect(socket.as_fd().as_raw_fd(), nowhere.as_ptr().cast(), length_of(&nowhere)?)
    };
    checked(result)
}

/// sendmsg(2) with control messages of any kind.
#[expect(unsafe_code, reason = "no safe crate here sends control messages by number")]
pub(crate) fn send_message(
    socket: &impl AsFd,
    to: &SockAddr,
    payload: &[u8],
    control: &[Control<'_>],
) -> io::Result<()> {
    let mut control = control_bytes(control);
    let mut part =
        libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: msghdr is plain old data for which all zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = control.len();
    // SAFETY: name, vector, payload and control point to values that live across the call with the lengths that are
    // given; the kernel only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, 0) };
    sent_all(sent)
}

/// sendmmsg(2) with one datagram.
#[expect(unsafe_code, reason = "the call itself is what is attempted")]
pub(crate) fn send_several(socket: &impl AsFd, to: &SockAddr, payload: &[u8]) -> io::Result<()> {
    let mut part =
        libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: mmsghdr is plain old data for which all zero is a value.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_hdr.msg_namelen = to.len();
    message.msg_hdr.msg_iov = &raw mut part;
    message.msg_hdr.msg_iovlen = 1;
    // SAFETY: one message, whose name, vector and payload live across the call; the kernel writes its `msg_len` alone.
    let sent = unsafe { libc::sendmmsg(socket.as_fd().as_raw_fd(), &raw mut message, 1, 0) };
    checked(sent.min(0))
}

/// sendto(2) of a whole Ethernet frame on the interface `index` (packet(7)).
#[expect(unsafe_code, reason = "no safe crate here has addresses of the link layer to send to")]
pub(crate) fn send_frame(socket: &impl AsFd, index: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain old data for which all zero is a value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    to.sll_ifindex = c_int::try_from(index).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size_of_val(&to)).map_err(io::Error::other)?;
    // SAFETY: frame and address live across the call with the lengths that are given; the kernel only reads them.
    let sent = unsafe {
        libc::sendto(
            socket.as_fd().as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    sent_all(sent)
}

/// The programs that a cgroup has attached for one hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attached {
    /// Flags of the attachment: without `BPF_F_ALLOW_MULTI` and `BPF_F_ALLOW_OVERRIDE` it is exclusive.
    pub(crate) flags: u32,
    /// Ids of the programs.
    pub(crate) programs: Vec<u32>,
}

/// Which programs are attached to `cgroup` itself for the hook `attach_type`.
pub(crate) fn attached_to(cgroup: &impl AsFd, attach_type: u32) -> io::Result<Attached> {
    let target = cgroup.as_fd().as_raw_fd().cast_unsigned();
    query(target, attach_type)
}

/// Whether programs can be attached to the interface by links (tcx, Linux 6.6).
pub(crate) fn interface_has_tcx(index: u32) -> bool {
    query(index, BPF_TCX_INGRESS).is_ok()
}

/// `BPF_PROG_QUERY` (bpf(2)) for a cgroup's descriptor or an interface's index, as the hook wants it.
#[expect(unsafe_code, reason = "no safe crate here asks a cgroup for its programs")]
fn query(target: u32, attach_type: u32) -> io::Result<Attached> {
    /// The head of `union bpf_attr` for this command (linux/bpf.h).
    #[repr(C)]
    struct Query {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        pad: u32,
        flags_of_each: u64,
    }
    let mut ids = [0_u32; ATTACHED_MAX];
    let mut query = Query {
        target,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(ATTACHED_MAX).map_err(io::Error::other)?,
        pad: 0,
        flags_of_each: 0,
    };
    // SAFETY: the kernel reads and writes `size_of::<Query>()` bytes of `query`, and writes at most `count` ids to
    // `ids`; both live across the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let count = usize::try_from(query.count).unwrap_or(ATTACHED_MAX);
    Ok(Attached { flags: query.attach_flags, programs: ids.into_iter().take(count).collect() })
}

/// `enum bpf_attach_type`.
const BPF_TCX_INGRESS: u32 = 46;
/// Room for the programs of one hook on one cgroup; the kernel allows no more (`BPF_CGROUP_MAX_PROGS`).
const ATTACHED_MAX: usize = 64;
/// Command of bpf(2).
const BPF_PROG_QUERY: c_int = 16;

/// The control messages as sendmsg(2) wants them: header, data, padding to the header's alignment.
fn control_bytes(messages: &[Control<'_>]) -> Vec<u8> {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let mut bytes = Vec::new();
    for Control { level, kind, data } in messages {
        bytes.extend((HEADER + data.len()).to_ne_bytes());
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(*data);
        bytes.resize(bytes.len().next_multiple_of(size_of::<usize>()), 0);
    }
    bytes
}

fn length_of(value: &[u8]) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(value.len()).map_err(io::Error::other)
}

fn checked(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn sent_all(sent: isize) -> io::Result<()> {
    if sent >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_are_laid_out_as_the_kernel_reads_them() {
        let bytes = control_bytes(&[
            Control { level: 0, kind: 7, data: &[1, 2, 3] },
            Control { level: 41, kind: 50, data: &[9; 20] },
        ]);
        assert_eq!(bytes.len(), 24 + 40);
        assert_eq!(bytes[..8], 19_usize.to_ne_bytes());
        assert_eq!(bytes[8..20], [0, 0, 0, 0, 7, 0, 0, 0, 1, 2, 3, 0]);
        assert_eq!(bytes[24..32], 36_usize.to_ne_bytes());
    }
}
