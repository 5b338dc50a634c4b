//! Vectors 33, 34, 39, 52, 54 and 55: what the kernel or the container refuses, and what becomes of it where it does not.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::layers::Layer::{Egress, Redirect, Wire};
use crate::layers::State::{Governed, GovernedBut, Off, Only};
use crate::workload::Rights::{Docker, Nobody};
use crate::world::NEAR;

use super::programs::programs;
use super::rows::{FIRST_PORT, Trial, marker, steps, strs, text, words};

/// Vectors 33 and 55. A family that the kernel has is tried as far as it goes.
#[test]
fn families_besides_ip_are_not_there_or_send_nothing() {
    let Some(programs) = programs() else { return };
    let Some(free) = Trial::new(programs, Off) else { return };
    let governed = Trial::new(programs, Governed).expect("there was one already");
    for name in ["layer-two", "clusters"] {
        let said = free.attempt(name, Docker, FIRST_PORT);
        for step in said.split(", ") {
            let lacks = ["EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"]
                .iter()
                .any(|errno| step.ends_with(errno));
            println!("{}: {step}", if lacks { "not in this kernel" } else { "in this kernel" });
        }
        let said = governed.attempt(name, Docker, FIRST_PORT);
        governed.world.assert_nothing_arrived(&format!("{name}: {said}"));
    }
}

/// Vector 34. Such a socket is only made and closed: what it sends would leave the machine.
#[test]
fn a_socket_for_the_hypervisor_is_for_the_container_s_filter_and_puts_nothing_on_the_wire() {
    let Some(programs) = programs() else { return };
    let Some(trial) = Trial::new(programs, Governed) else { return };
    let said = trial.attempt("vsock", Docker, FIRST_PORT);
    println!("no hook of a cgroup sees AF_VSOCK: {said}");
    trial.all_held();
}

/// Vector 39: a program of root's, started by nobody, has the rights of root and the cgroup of nobody.
#[test]
fn a_setuid_program_is_governed_like_who_starts_it() {
    let Some(programs) = programs() else { return };
    let states = [
        (Off, true),
        (GovernedBut(&[Redirect, Egress, Wire]), true),
        (Governed, false),
        (Only(&[Redirect]), false),
        (Only(&[Egress]), false),
        (Only(&[Wire]), false),
    ];
    for (state, arrives) in states {
        let Some(trial) = Trial::new(programs, state) else { return };
        let program = trial.world.path("setuid");
        fs::set_permissions(trial.world.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(&programs.attack, &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
        let marker = marker("udp");
        let words = words("udp", "eth0", NEAR, &marker, FIRST_PORT);
        let mut arguments = vec!["--reuid=65534", "--clear-groups", text(&program)];
        arguments.extend(strs(&words));
        let said = trial.world.start_as(Docker, &[], "/usr/bin/setpriv", &arguments).wait();
        let said = steps(said.ok());
        assert!(said.starts_with("user 0, socket OK"), "it is not setuid: {said}");
        let arrived = trial.has_arrived(|frame| frame.contains(marker.as_bytes()));
        assert_eq!(arrived, arrives, "{state:?}: {said}");
    }
}

/// Vector 52. Which devices there are is for the container's device list; making their nodes takes a capability.
#[test]
fn without_its_capability_no_device_can_be_made_and_an_opened_one_puts_nothing_on_the_wire() {
    let Some(programs) = programs() else { return };
    let Some(trial) = Trial::new(programs, Governed) else { return };
    let refused = trial.attempt("devices", Nobody, FIRST_PORT);
    assert!(refused.split(", ").all(|step| step.ends_with("EPERM")), "{refused}");
    let said = trial.attempt("devices", Docker, FIRST_PORT);
    println!("opened by who may make nodes: {said}");
    trial.all_held();
}

/// Vector 54: the kernel would dial for them, from no cgroup that is governed.
#[test]
fn file_systems_over_the_network_are_not_a_workload_s_to_mount() {
    let Some(programs) = programs() else { return };
    let Some(free) = Trial::new(programs, Off) else { return };
    let said = free.attempt("mounts", Docker, FIRST_PORT);
    let steps: Vec<&str> = said.split(", ").collect();
    assert_eq!(steps.len(), 15, "{said}");
    for step in steps {
        // In a user namespace: not allowed, or unknown to this kernel.
        let errnos: &[&str] = if step.contains(" user namespace ") {
            &["EPERM", "ENODEV"]
        } else if step.starts_with("unshare") {
            &["OK", "EPERM", "ENOSPC", "EUSERS"]
        } else {
            &["EPERM"]
        };
        assert!(errnos.iter().any(|errno| step.ends_with(errno)), "{step}");
    }
    assert!(free.world.arrived().is_empty());
}
