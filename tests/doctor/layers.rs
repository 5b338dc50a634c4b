//! The conformance run as a function, armed as for production or with one layer left out.

use std::fs;
use std::path::{Path, PathBuf};

use gateway::capture::{Attachment, Captured, Pins};
use gateway::doctor::{
    Arming, AsInProduction, Form, Report, Request, Scratch, Verdict, conformance,
};

use super::common::is_privileged;

/// What kernels may lack; the control then says so.
const MAY_BE_MISSING: [&str; 3] = ["sctp", "dccp", "l2tp"];

fn run(arming: &dyn Arming, form: Form) -> Report {
    conformance(&Request {
        program: Path::new(env!("CARGO_BIN_EXE_tollgate")),
        arming,
        form,
        is_interrupted: &|| false,
    })
    .unwrap_or_else(|error| panic!("{error:#}"))
}

fn open_rows(report: &Report) -> Vec<&'static str> {
    let is_open = |verdict: &Verdict| matches!(verdict, Verdict::Open(_));
    report.rows().iter().filter(|row| is_open(row.verdict())).map(|row| row.name()).collect()
}

#[test]
fn every_way_out_is_open_without_rules_and_closed_with_them() {
    if !is_privileged() {
        return;
    }
    let report = run(&AsInProduction, Form::Full);
    println!("{}", report.table());
    println!("it took {:.1} s", report.took().as_secs_f64());
    assert!(report.passes(), "{:?}", report.failures());
    for row in report.rows() {
        let is_closed = *row.verdict() == Verdict::Closed;
        assert!(is_closed || MAY_BE_MISSING.contains(&row.name()), "{row:?}");
    }
}

/// As on a kernel without tcx.
struct ByClsact;

impl Arming for ByClsact {
    fn arm_sockets(&self, scratch: &Scratch, pins: &Pins) -> anyhow::Result<Captured> {
        AsInProduction.arm_sockets(scratch, pins)
    }

    fn arm_all(&self, scratch: &Scratch, pins: &Pins) -> anyhow::Result<(Captured, Box<dyn Send>)> {
        AsInProduction.arm_all_by(Attachment::Clsact, scratch, pins)
    }
}

#[test]
fn the_wire_fence_of_kernels_without_tcx_holds_as_well() {
    if !is_privileged() {
        return;
    }
    let report = run(&ByClsact, Form::Full);
    assert!(report.passes(), "{}", report.table());
}

/// As in production, but for one link that is unpinned right after: the kernel then detaches its program.
struct Without(&'static str);

impl Without {
    fn unpin(&self, scratch: &Scratch) {
        let name = self.0.replace("{wire}", &format!("wire-{}", scratch.outside_interface));
        let pin = PathBuf::from("/sys/fs/bpf/tollgate").join(&scratch.name).join(name);
        fs::remove_file(&pin).unwrap_or_else(|error| panic!("{}: {error}", pin.display()));
    }

    fn is_wire(&self) -> bool {
        self.0.starts_with("{wire}")
    }
}

impl Arming for Without {
    fn arm_sockets(&self, scratch: &Scratch, pins: &Pins) -> anyhow::Result<Captured> {
        let captured = AsInProduction.arm_sockets(scratch, pins)?;
        if !self.is_wire() {
            self.unpin(scratch);
        }
        Ok(captured)
    }

    fn arm_all(&self, scratch: &Scratch, pins: &Pins) -> anyhow::Result<(Captured, Box<dyn Send>)> {
        let (captured, watch) = AsInProduction.arm_all(scratch, pins)?;
        // It would put back what is taken off; the pinned links hold the wire without it.
        drop(watch);
        self.unpin(scratch);
        Ok((captured, Box::new(())))
    }
}

#[track_caller]
fn is_open_without(link: &'static str, expected: &[&str]) {
    if !is_privileged() {
        return;
    }
    let report = run(&Without(link), Form::Full);
    assert_eq!(open_rows(&report), expected, "without {link}:\n{}", report.table());
    assert!(!report.passes());
    // The quick form has a row for every layer.
    let quick = run(&Without(link), Form::Quick);
    assert!(!quick.passes(), "the quick form without {link}:\n{}", quick.table());
}

#[test]
fn without_connect4_its_rows_are_open_though_the_fence_holds_the_packets() {
    is_open_without(
        "tollgate_connect4",
        &[
            "tcp4",
            "udp-connected",
            "uring-connect",
            "fastopen",
            "fastopen-connect",
            "reconnect",
            "device-tcp",
            "own-source",
            "nested",
            "gateway-direct4",
            "storage",
        ],
    );
}

#[test]
fn without_connect6_its_rows_are_open() {
    is_open_without("tollgate_connect6", &["tcp6", "tcp-mapped", "gateway-direct6"]);
}

#[test]
fn without_sendmsg4_its_rows_are_open() {
    is_open_without(
        "tollgate_sendmsg4",
        &["udp-mapped", "udp4", "udp-several", "udp-other", "uring-send"],
    );
}

#[test]
fn without_sendmsg6_its_rows_are_open() {
    is_open_without("tollgate_sendmsg6", &["udp6", "dns-spoofed6"]);
}

#[test]
fn without_sock_create_its_rows_are_open() {
    is_open_without(
        "tollgate_sock_create",
        &["mptcp", "udplite", "ping", "raw4", "raw4-connected", "raw4-header", "raw6"],
    );
}

#[test]
fn without_post_bind_the_gateways_port_can_be_taken() {
    is_open_without("tollgate_post_bind4", &["gateway-port4"]);
}

#[test]
fn without_post_bind_the_gateways_port_can_be_taken_over_ipv6() {
    is_open_without("tollgate_post_bind6", &["gateway-port6"]);
}

#[test]
fn without_the_socket_fence_inwards_datagrams_arrive() {
    is_open_without("tollgate_ingress", &["inbound-udp"]);
}

#[test]
fn without_the_record_nothing_is_redirected() {
    is_open_without(
        "tollgate_sock_ops",
        &[
            "tcp4",
            "tcp6",
            "tcp-mapped",
            "uring-connect",
            "fastopen",
            "fastopen-connect",
            "reconnect",
            "own-source",
        ],
    );
}

#[test]
fn without_the_socket_fence_whatever_goes_round_the_hooks_is_open() {
    is_open_without(
        "tollgate_egress",
        &[
            "lsrr-tcp",
            "lsrr-udp",
            "lsrr-message",
            "lsrr-fastopen",
            "srv6",
            "pktinfo4",
            "pktinfo6",
            "unicast-if4",
            "unicast-if6",
            "device-after",
            "lsrr-after",
        ],
    );
}

#[test]
fn without_the_wire_fence_what_no_hook_sees_is_open() {
    is_open_without(
        "{wire}-out",
        &["packet", "packet-bypass", "xdp", "igmp", "mld", "foreign-socket"],
    );
}

#[test]
fn without_the_wire_fence_inwards_the_workload_hears() {
    is_open_without("{wire}-in", &["eavesdrop"]);
}
