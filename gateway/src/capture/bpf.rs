//! bpf(2) where aya has no words for it: links that are looked at, kept and given another program; what is attached to
//! a cgroup.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A link of a program to a cgroup, as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// The kernel's number of it; it stays the same when the program is replaced.
    pub(super) id: u32,
    /// The program that it runs.
    pub(super) program: u32,
    /// The cgroup; 0 when that is gone, or when somebody detached the link.
    pub(super) cgroup: u64,
    /// The hook, as a number of `enum bpf_attach_type`.
    pub(super) hook: u32,
}

/// What is attached to one hook of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attached {
    /// The programs, by id.
    pub(super) programs: Vec<u32>,
    /// Whether nothing may be attached beside them, here and below.
    pub(super) is_exclusive: bool,
}

/// Opens what is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Object { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // `path` lives across the call.
    call_for_descriptor(OBJ_GET, &mut attr)
}

/// Pins an object at `path`, where nothing is yet.
pub(super) fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let bpf_fd = number(object.as_fd().as_raw_fd())?;
    let mut attr = Object { pathname: path.as_ptr() as u64, bpf_fd, file_flags: 0 };
    call(OBJ_PIN, &mut attr).map(drop)
}

/// Makes `link` run `program` instead of the one that it runs, in one step: no packet meets both or neither.
pub(super) fn replace_program(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: number(link.as_fd().as_raw_fd())?,
        new_prog_fd: number(program.as_fd().as_raw_fd())?,
        flags: 0,
        old_prog_fd: 0,
    };
    call(LINK_UPDATE, &mut attr).map(drop)
}

/// What the kernel says of a link; an error where it is no link of a program to a cgroup.
pub(super) fn link_info(link: impl AsFd) -> io::Result<LinkInfo> {
    let mut raw = RawLinkInfo::default();
    let mut attr = Info {
        bpf_fd: number(link.as_fd().as_raw_fd())?,
        info_len: u32::try_from(size_of::<RawLinkInfo>()).map_err(io::Error::other)?,
        info: (&raw mut raw) as u64,
    };
    call(OBJ_GET_INFO_BY_FD, &mut attr)?;
    if raw.kind != LINK_TYPE_CGROUP {
        return Err(io::Error::other("not a link to a cgroup"));
    }
    Ok(LinkInfo { id: raw.id, program: raw.prog_id, cgroup: raw.cgroup_id, hook: raw.attach_type })
}

/// The programs on `hook` of a cgroup: those attached to itself, or with `effective` all that run for its sockets.
pub(super) fn programs_on(cgroup: impl AsFd, hook: u32, effective: bool) -> io::Result<Attached> {
    let mut programs = vec![0_u32; PROGRAMS_MAX];
    let mut attr = Query {
        target_fd: number(cgroup.as_fd().as_raw_fd())?,
        attach_type: hook,
        query_flags: if effective { QUERY_EFFECTIVE } else { 0 },
        attach_flags: 0,
        prog_ids: programs.as_mut_ptr() as u64,
        prog_cnt: u32::try_from(PROGRAMS_MAX).map_err(io::Error::other)?,
        pad: 0,
    };
    call(PROG_QUERY, &mut attr)?;
    programs.truncate(usize::try_from(attr.prog_cnt).map_err(io::Error::other)?);
    let is_exclusive =
        !effective && !programs.is_empty() && attr.attach_flags & (MULTI | OVERRIDE) == 0;
    Ok(Attached { programs, is_exclusive })
}

/// The name of a program, of which the kernel keeps 15 bytes; none when the program is gone.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    let info = program_info(id, &mut [])?;
    Ok(super::maps::comm_of(&info.name))
}

/// The numbers of the maps that a program uses.
pub(super) fn maps_of_program(id: u32) -> io::Result<Vec<u32>> {
    let mut maps = vec![0_u32; MAPS_MAX];
    let info = program_info(id, &mut maps)?;
    maps.truncate(usize::try_from(info.nr_map_ids).map_err(io::Error::other)?);
    Ok(maps)
}

/// What the kernel says of a program; the numbers of its maps go to `maps`, as many as there is room for.
fn program_info(id: u32, maps: &mut [u32]) -> io::Result<RawProgramInfo> {
    let mut attr = ById { id, next_id: 0, open_flags: 0 };
    let program = call_for_descriptor(PROG_GET_FD_BY_ID, &mut attr)?;
    let mut raw = RawProgramInfo {
        nr_map_ids: u32::try_from(maps.len()).map_err(io::Error::other)?,
        map_ids: maps.as_mut_ptr() as u64,
        ..RawProgramInfo::default()
    };
    let mut attr = Info {
        bpf_fd: number(program.as_raw_fd())?,
        info_len: u32::try_from(size_of::<RawProgramInfo>()).map_err(io::Error::other)?,
        info: (&raw mut raw) as u64,
    };
    call(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(raw)
}

// === bpf(2), linux/bpf.h ===

const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const LINK_UPDATE: libc::c_int = 29;

const QUERY_EFFECTIVE: u32 = 1;
const OVERRIDE: u32 = 1;
const MULTI: u32 = 2;
const LINK_TYPE_CGROUP: u32 = 3;
/// The kernel allows 64 programs on one hook of a cgroup; its ancestors add theirs.
const PROGRAMS_MAX: usize = 1024;
/// The kernel allows a program 64 maps.
const MAPS_MAX: usize = 64;

/// The attributes of a command.
///
/// # Safety
/// `repr(C)`, the head of the kernel's `union bpf_attr` for the commands it is used with, without padding; what it
/// points to is as large as it says and lives as long as it does.
#[expect(unsafe_code, reason = "the safety contract of the system call lives on this trait")]
unsafe trait Attributes {}

#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// `struct bpf_link_info` as far as links to cgroups fill it.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    pad_end: u32,
}

/// `struct bpf_prog_info` up to the name.
#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
}

// SAFETY: BPF_OBJ_PIN and BPF_OBJ_GET read a path that ends in NUL (a `CString` of the caller's) and a descriptor.
#[expect(unsafe_code, reason = "implements the marker of the system call")]
unsafe impl Attributes for Object {}
// SAFETY: BPF_LINK_UPDATE takes four numbers.
#[expect(unsafe_code, reason = "implements the marker of the system call")]
unsafe impl Attributes for LinkUpdate {}
// SAFETY: the kernel writes at most `info_len` bytes to `info`, which its makers take from the type it points to, and
// at most `nr_map_ids` ids to the `map_ids` in it, which its maker takes from the slice's length.
#[expect(unsafe_code, reason = "implements the marker of the system call")]
unsafe impl Attributes for Info {}
// SAFETY: the kernel writes at most `prog_cnt` ids to `prog_ids`, which its maker takes from the vector's length.
#[expect(unsafe_code, reason = "implements the marker of the system call")]
unsafe impl Attributes for Query {}
// SAFETY: BPF_PROG_GET_FD_BY_ID takes three numbers.
#[expect(unsafe_code, reason = "implements the marker of the system call")]
unsafe impl Attributes for ById {}

#[expect(unsafe_code, reason = "no safe crate here makes these calls of bpf(2)")]
fn call<A: Attributes>(command: libc::c_int, attributes: &mut A) -> io::Result<RawFd> {
    // SAFETY: `Attributes` promises that the kernel may read them, and write what they point to.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

#[expect(unsafe_code, reason = "a descriptor that a system call made gets its owner")]
fn call_for_descriptor<A: Attributes>(
    command: libc::c_int,
    attributes: &mut A,
) -> io::Result<OwnedFd> {
    let descriptor = call(command, attributes)?;
    // SAFETY: the two commands this is called with return a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn number(descriptor: RawFd) -> io::Result<u32> {
    u32::try_from(descriptor).map_err(io::Error::other)
}
