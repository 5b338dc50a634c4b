//! Reading and writing the address of a `bpf_sock_addr`.
//!
//! Fields are read one at a time and volatile: merged loads make the verifier see a modified context pointer
//! ("dereference of modified ctx ptr", seen on 6.18).

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::programs::SockAddrContext;
use gateway_ebpf::abi::Address;

/// Which address fields a hook has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fields {
    V4,
    V6,
}

#[inline(always)]
pub(crate) fn address(ctx: &SockAddrContext, fields: Fields) -> Address {
    let raw: *mut bpf_sock_addr = ctx.sock_addr;
    if fields == Fields::V6 {
        let words = unsafe { &raw const (*raw).user_ip6 }.cast::<u32>();
        Address {
            words_be: unsafe {
                [
                    read_volatile(words),
                    read_volatile(words.add(1)),
                    read_volatile(words.add(2)),
                    read_volatile(words.add(3)),
                ]
            },
        }
    } else {
        Address::from_v4_be(unsafe { read_volatile(&raw const (*raw).user_ip4) })
    }
}

#[inline(always)]
pub(crate) fn port(ctx: &SockAddrContext) -> u16 {
    // Network byte order in the low half; the kernel allows 32-bit access on every version.
    let port_be = unsafe { read_volatile(&raw const (*ctx.sock_addr).user_port) };
    u16::from_be(port_be as u16)
}

#[inline(always)]
pub(crate) fn set(ctx: &SockAddrContext, fields: Fields, address: Address, port: u16) {
    let raw = ctx.sock_addr;
    if fields == Fields::V6 {
        let words = unsafe { &raw mut (*raw).user_ip6 }.cast::<u32>();
        unsafe {
            write_volatile(words, address.words_be[0]);
            write_volatile(words.add(1), address.words_be[1]);
            write_volatile(words.add(2), address.words_be[2]);
            write_volatile(words.add(3), address.words_be[3]);
        }
    } else {
        unsafe { write_volatile(&raw mut (*raw).user_ip4, address.words_be[3]) };
    }
    unsafe { write_volatile(&raw mut (*raw).user_port, u32::from(port.to_be())) };
}

#[inline(always)]
pub(crate) fn protocol(ctx: &SockAddrContext) -> u32 {
    unsafe { read_volatile(&raw const (*ctx.sock_addr).protocol) }
}

#[inline(always)]
pub(crate) fn socket_kind(ctx: &SockAddrContext) -> u32 {
    unsafe { read_volatile(&raw const (*ctx.sock_addr).type_) }
}

#[inline(always)]
pub(crate) fn family(ctx: &SockAddrContext) -> u32 {
    unsafe { read_volatile(&raw const (*ctx.sock_addr).family) }
}

#[inline(always)]
pub(crate) fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    unsafe { read_volatile(&raw const (*ctx.sock_addr).__bindgen_anon_1.sk) }
}
