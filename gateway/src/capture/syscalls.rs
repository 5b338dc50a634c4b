//! System calls that reach past every network hook and namespace, refused by a filter of the command's own.
//!
//! What only this closes: AF_VSOCK (the hypervisor of a virtual machine is one `connect` away, in every namespace and
//! without a hook), `request_key` (the kernel starts a host process that asks DNS for a name of the caller's choice),
//! keyrings of the caller, and typing into the caller's terminal (TIOCSTI). A cgroup namespace would let a command mount
//! its own cgroup and freeze the process that must end it. io_uring and clone3 are refused because they do the same
//! out of a filter's sight.
//!
//! What it does not do: replace the fence. It is the inner wall for what has no other.

use std::io;

use libc::{c_long, sock_filter, sock_fprog};

/// Refuses them for the calling thread and everything that it becomes or starts, for good.
///
/// # Errors
/// When the kernel does not take the filter (`no_new_privs` must be set).
#[expect(unsafe_code, reason = "no safe crate here installs a seccomp filter")]
pub fn refuse_ways_around() -> io::Result<()> {
    let mut filter = program();
    let length = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = sock_fprog { len: length, filter: filter.as_mut_ptr() };
    // SAFETY: the program points to `filter`, which lives across the call; the kernel copies and checks it.
    let result =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The numbers of one calling convention.
struct Numbers {
    /// What takes an address family as its first argument.
    with_family: &'static [c_long],
    /// What takes clone flags as its first argument.
    with_flags: &'static [c_long],
    ioctl: c_long,
    /// What is answered as by a kernel that does not have it.
    missing: &'static [c_long],
}

const NATIVE: Numbers = Numbers {
    with_family: &[libc::SYS_socket, libc::SYS_socketpair],
    with_flags: &[libc::SYS_clone, libc::SYS_unshare],
    ioctl: libc::SYS_ioctl,
    missing: &[
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_io_uring_setup,
        libc::SYS_clone3,
    ],
};

#[cfg(target_arch = "x86_64")]
const NATIVE_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE_ARCH: u32 = 0xc000_00b7;

/// 32-bit programs (`asm/unistd_32.h`). socketcall hides its arguments behind a pointer that a filter cannot follow.
#[cfg(target_arch = "x86_64")]
const COMPATIBLE: Option<(u32, Numbers)> = Some((
    0x4000_0003,
    Numbers {
        with_family: &[359, 360],
        with_flags: &[120, 310],
        ioctl: 54,
        missing: &[286, 287, 288, 102, 425, 435],
    },
));
#[cfg(target_arch = "aarch64")]
const COMPATIBLE: Option<(u32, Numbers)> = None;

/// `__X32_SYSCALL_BIT`: a third convention on x86-64, under numbers of its own; no number of arm64 is as large.
const X32_BIT: u32 = 0x4000_0000;

/// Families that stay inside the workload's own namespaces or have hooks. Netlink is how programs list interfaces.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// `SOCK_PACKET` and `SOCK_TYPE_MASK` (linux/net.h).
const SOCK_PACKET: u32 = 10;
const SOCK_TYPE_MASK: u32 = 0xf;

/// `TIOCLINUX` (ioctl_console(2)): pastes into a virtual terminal.
const TIOCLINUX: u32 = 0x541c;
/// `TIOCSTI` (ioctl_tty(2)).
const TIOCSTI: u32 = 0x5412;

/// Offsets in `struct seccomp_data` (seccomp(2)); of an argument the low half, which is all that the kernel uses of
/// these (both architectures are little-endian).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const SECOND_ARGUMENT: u32 = 24;

fn program() -> Vec<sock_filter> {
    let mut program = vec![load(ARCH)];
    when_arch(&mut program, NATIVE_ARCH, section(&NATIVE));
    if let Some((arch, numbers)) = COMPATIBLE {
        when_arch(&mut program, arch, section(&numbers));
    }
    program.push(refuse(libc::ENOSYS));
    program
}

/// `section` ends in a verdict on every way through it.
fn when_arch(program: &mut Vec<sock_filter>, arch: u32, section: Vec<sock_filter>) {
    program.push(jump_equal(arch, 0, length(&section)));
    program.extend(section);
}

fn section(numbers: &Numbers) -> Vec<sock_filter> {
    let mut section = vec![load(NUMBER)];
    section.push(statement(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, X32_BIT, 0, 1));
    section.push(refuse(libc::ENOSYS));
    for number in numbers.missing {
        section.extend([jump_equal(number_of(*number), 0, 1), refuse(libc::ENOSYS)]);
    }
    let family = only_families();
    for number in numbers.with_family {
        section.push(jump_equal(number_of(*number), 0, length(&family)));
        section.extend(family.iter().copied());
    }
    let flags = no_cgroup_namespace();
    for number in numbers.with_flags {
        section.push(jump_equal(number_of(*number), 0, length(&flags)));
        section.extend(flags.iter().copied());
    }
    let ioctl = no_typing();
    section.push(jump_equal(number_of(numbers.ioctl), 0, length(&ioctl)));
    section.extend(ioctl);
    section.push(allow());
    section
}

fn only_families() -> Vec<sock_filter> {
    // The kernel takes this type of AF_INET for AF_PACKET. The mask leaves the type without its flags.
    let mask = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    let mut block = vec![
        load(SECOND_ARGUMENT),
        statement(mask, SOCK_TYPE_MASK, 0, 0),
        jump_equal(SOCK_PACKET, 0, 1),
        refuse(libc::EAFNOSUPPORT),
        load(FIRST_ARGUMENT),
    ];
    for family in FAMILIES {
        block.extend([jump_equal(family.cast_unsigned(), 0, 1), allow()]);
    }
    block.push(refuse(libc::EAFNOSUPPORT));
    block
}

fn no_cgroup_namespace() -> Vec<sock_filter> {
    let flag = libc::CLONE_NEWCGROUP.cast_unsigned();
    let jump_any = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    vec![load(FIRST_ARGUMENT), statement(jump_any, flag, 0, 1), refuse(libc::EPERM), allow()]
}

fn no_typing() -> Vec<sock_filter> {
    let mut block = vec![load(SECOND_ARGUMENT)];
    for request in [TIOCSTI, TIOCLINUX] {
        block.extend([jump_equal(request, 0, 1), refuse(libc::EPERM)]);
    }
    block.push(allow());
    block
}

// === instructions (linux/filter.h) ===

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

fn jump_equal(value: u32, if_equal: u8, otherwise: u8) -> sock_filter {
    statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, if_equal, otherwise)
}

fn allow() -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0)
}

fn refuse(errno: libc::c_int) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned(), 0, 0)
}

fn statement(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: u16::try_from(code).unwrap_or(u16::MAX), jt, jf, k }
}

/// No number is outside: they are the small constants above. The largest value matches no call.
fn number_of(number: c_long) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Every block is a dozen instructions, every section a few dozen: checked by the test, which runs them all.
fn length(block: &[sock_filter]) -> u8 {
    u8::try_from(block.len()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

    fn refused(errno: libc::c_int) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
    }

    /// What the filter says of a call, as the kernel would run it.
    fn verdict(arch: u32, number: u32, first: u32, second: u32) -> u32 {
        let program = program();
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            match u32::from(code) {
                0x20 => {
                    loaded = match k {
                        NUMBER => number,
                        ARCH => arch,
                        FIRST_ARGUMENT => first,
                        SECOND_ARGUMENT => second,
                        other => panic!("offset {other}"),
                    }
                }
                0x54 => loaded &= k,
                0x15 => at += usize::from(if loaded == k { jt } else { jf }),
                0x45 => at += usize::from(if loaded & k != 0 { jt } else { jf }),
                0x35 => at += usize::from(if loaded >= k { jt } else { jf }),
                0x06 => return k,
                other => panic!("code {other:#x}"),
            }
        }
    }

    #[test]
    fn only_sockets_of_known_families_may_exist() {
        for number in NATIVE.with_family {
            for family in 0..64 {
                let expected =
                    if FAMILIES.contains(&family) { ALLOWED } else { refused(libc::EAFNOSUPPORT) };
                let said = verdict(NATIVE_ARCH, number_of(*number), family.cast_unsigned(), 1);
                assert_eq!(said, expected, "{number} {family}");
            }
        }
    }

    #[test]
    fn a_packet_socket_by_its_old_type_is_refused_with_every_flag() {
        let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).cast_unsigned();
        for kind in 0..16 {
            let expected = if kind == SOCK_PACKET { refused(libc::EAFNOSUPPORT) } else { ALLOWED };
            for kind in [kind, kind | flags] {
                let family = libc::AF_INET.cast_unsigned();
                let said = verdict(NATIVE_ARCH, number_of(libc::SYS_socket), family, kind);
                assert_eq!(said, expected, "{kind:#x}");
            }
        }
    }

    #[test]
    fn keyrings_cgroup_namespaces_and_typing_into_terminals_are_refused_and_nothing_else() {
        for number in NATIVE.missing {
            assert_eq!(verdict(NATIVE_ARCH, number_of(*number), 0, 0), refused(libc::ENOSYS));
        }
        let ioctl = number_of(NATIVE.ioctl);
        assert_eq!(verdict(NATIVE_ARCH, ioctl, 0, TIOCSTI), refused(libc::EPERM));
        assert_eq!(verdict(NATIVE_ARCH, ioctl, 0, TIOCLINUX), refused(libc::EPERM));
        // TCGETS
        assert_eq!(verdict(NATIVE_ARCH, ioctl, 0, 0x5401), ALLOWED);
        for number in NATIVE.with_flags {
            let flags = (libc::CLONE_NEWUSER | libc::CLONE_NEWCGROUP).cast_unsigned();
            assert_eq!(verdict(NATIVE_ARCH, number_of(*number), flags, 0), refused(libc::EPERM));
            let flags = (libc::CLONE_NEWUSER | libc::SIGCHLD).cast_unsigned();
            assert_eq!(verdict(NATIVE_ARCH, number_of(*number), flags, 0), ALLOWED);
        }
        let filtered = || NATIVE.missing.iter().chain(NATIVE.with_family).chain([&NATIVE.ioctl]);
        for number in 0..600 {
            if !filtered().any(|filtered| *filtered == number) {
                assert_eq!(
                    verdict(NATIVE_ARCH, number_of(number), 40, TIOCSTI),
                    ALLOWED,
                    "{number}"
                );
            }
        }
    }

    #[test]
    fn other_calling_conventions_are_no_way_around() {
        assert_eq!(verdict(NATIVE_ARCH, X32_BIT + 41, 40, 0), refused(libc::ENOSYS));
        assert_eq!(verdict(0x1234_5678, 0, 0, 0), refused(libc::ENOSYS));
        if let Some((arch, numbers)) = COMPATIBLE {
            assert_eq!(verdict(arch, 359, 40, 0), refused(libc::EAFNOSUPPORT));
            assert_eq!(verdict(arch, 359, 2, 0), ALLOWED);
            assert_eq!(verdict(arch, 102, 2, 0), refused(libc::ENOSYS));
            assert_eq!(verdict(arch, number_of(numbers.ioctl), 0, TIOCSTI), refused(libc::EPERM));
            // exit(2)
            assert_eq!(verdict(arch, 1, 0, 0), ALLOWED);
        }
    }
}
