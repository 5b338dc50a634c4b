//! Tollgate's kernel programs: entry points only.
//!
//! Each calls the function in the file of its hook; where that can fail, `Err` becomes the hook's safe return value,
//! which is "refuse" wherever the hook can refuse.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "programs read contexts and call helpers through raw pointers")]

use aya_ebpf::macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, classifier, sock_ops};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockContext, SockOpsContext, TcContext};
use gateway_ebpf::frame::Direction;

use redirect::Hook;
use sockaddr::Fields;

mod event;
mod fence;
mod flow;
mod maps;
mod peer;
mod rate;
mod redirect;
mod slice;
mod sockaddr;
mod socket;
mod wire;

/// Refuses: the kernel answers with the errno that `set_retval` left, `EPERM` without one.
const REFUSE: i32 = 0;
/// Lets pass.
const PASS: i32 = 1;

#[cgroup_sock_addr(connect4)]
fn tollgate_connect4(ctx: SockAddrContext) -> i32 {
    redirect::redirect(&ctx, Fields::V4, Hook::Connect).unwrap_or(REFUSE)
}

#[cgroup_sock_addr(connect6)]
fn tollgate_connect6(ctx: SockAddrContext) -> i32 {
    redirect::redirect(&ctx, Fields::V6, Hook::Connect).unwrap_or(REFUSE)
}

#[cgroup_sock_addr(sendmsg4)]
fn tollgate_sendmsg4(ctx: SockAddrContext) -> i32 {
    redirect::redirect(&ctx, Fields::V4, Hook::Send).unwrap_or(REFUSE)
}

#[cgroup_sock_addr(sendmsg6)]
fn tollgate_sendmsg6(ctx: SockAddrContext) -> i32 {
    redirect::redirect(&ctx, Fields::V6, Hook::Send).unwrap_or(REFUSE)
}

// The kernel accepts no other value than 1 from the next four: they hide the gateway, they cannot refuse.

#[cgroup_sock_addr(recvmsg4)]
fn tollgate_recvmsg4(ctx: SockAddrContext) -> i32 {
    peer::restore(&ctx, Fields::V4);
    PASS
}

#[cgroup_sock_addr(recvmsg6)]
fn tollgate_recvmsg6(ctx: SockAddrContext) -> i32 {
    peer::restore(&ctx, Fields::V6);
    PASS
}

#[cgroup_sock_addr(getpeername4)]
fn tollgate_getpeername4(ctx: SockAddrContext) -> i32 {
    peer::restore(&ctx, Fields::V4);
    PASS
}

#[cgroup_sock_addr(getpeername6)]
fn tollgate_getpeername6(ctx: SockAddrContext) -> i32 {
    peer::restore(&ctx, Fields::V6);
    PASS
}

#[cgroup_sock(sock_create)]
fn tollgate_sock_create(ctx: SockContext) -> i32 {
    socket::create(&ctx)
}

#[cgroup_sock(post_bind4)]
fn tollgate_post_bind4(ctx: SockContext) -> i32 {
    socket::post_bind(&ctx, Fields::V4)
}

#[cgroup_sock(post_bind6)]
fn tollgate_post_bind6(ctx: SockContext) -> i32 {
    socket::post_bind(&ctx, Fields::V6)
}

#[sock_ops]
fn tollgate_sock_ops(ctx: SockOpsContext) -> u32 {
    flow::record(&ctx);
    1
}

#[cgroup_skb]
fn tollgate_egress(ctx: SkBuffContext) -> i32 {
    fence::egress(&ctx)
}

#[cgroup_skb]
fn tollgate_ingress(ctx: SkBuffContext) -> i32 {
    fence::ingress(&ctx)
}

// At the host's end of a workload's wire, where what the workload sends comes in.

#[classifier]
fn tollgate_wire_out(ctx: TcContext) -> i32 {
    wire::frame(&ctx, Direction::Out)
}

#[classifier]
fn tollgate_wire_in(ctx: TcContext) -> i32 {
    wire::frame(&ctx, Direction::In)
}

// At Tollgate's slice. The kernel keeps 15 bytes of a name: all of these are `tollgate_slice_` to it.

#[cgroup_sock_addr(connect4)]
fn tollgate_slice_connect4(_ctx: SockAddrContext) -> i32 {
    slice::destination()
}

#[cgroup_sock_addr(connect6)]
fn tollgate_slice_connect6(_ctx: SockAddrContext) -> i32 {
    slice::destination()
}

#[cgroup_sock_addr(sendmsg4)]
fn tollgate_slice_sendmsg4(_ctx: SockAddrContext) -> i32 {
    slice::destination()
}

#[cgroup_sock_addr(sendmsg6)]
fn tollgate_slice_sendmsg6(_ctx: SockAddrContext) -> i32 {
    slice::destination()
}

#[cgroup_sock(sock_create)]
fn tollgate_slice_sock_create(ctx: SockContext) -> i32 {
    slice::create(&ctx)
}

#[cgroup_skb]
fn tollgate_slice_egress(ctx: SkBuffContext) -> i32 {
    slice::packet(&ctx)
}

#[cgroup_skb]
fn tollgate_slice_ingress(ctx: SkBuffContext) -> i32 {
    slice::packet(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The programs have no panicking operation left after optimisation; the verifier refuses a loop that never ends,
    // so a panic that crept in fails to load instead of running.
    loop {}
}

/// The kernel allows GPL-only helpers to programs that say so.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
