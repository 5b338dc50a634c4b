//! The layers that hold a workload, and the switch that takes some of them away. The switch is the test's own: it
//! replaces the programs of pinned links or comes before them, which only the host's root can do.

use std::fs;
use std::path::Path;
use std::process::Command;

/// What closes vectors, by the pins that hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    /// connect and sendmsg go to the gateway or are refused.
    Redirect,
    /// Only TCP and UDP sockets can be made.
    Sockets,
    /// The gateway's ports cannot be bound.
    Ports,
    /// What a socket sends must leave by `lo`.
    Egress,
    /// What a socket receives must have come by `lo`.
    Ingress,
    /// Nothing passes the host's end of an interface, in either direction.
    Wire,
}

impl Layer {
    pub(crate) const ALL: [Self; 6] =
        [Self::Redirect, Self::Sockets, Self::Ports, Self::Egress, Self::Ingress, Self::Wire];

    fn holds(self, pin: &str) -> bool {
        match self {
            Self::Redirect => {
                pin.starts_with("tollgate_connect") || pin.starts_with("tollgate_sendmsg")
            }
            Self::Sockets => pin.starts_with("tollgate_sock_create"),
            Self::Ports => pin.starts_with("tollgate_post_bind"),
            Self::Egress => pin == "tollgate_egress",
            Self::Ingress => pin == "tollgate_ingress",
            Self::Wire => pin.starts_with("wire-"),
        }
    }
}

/// How much of Tollgate a world has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing: the control.
    Off,
    /// Everything, as it is delivered.
    Governed,
    /// Everything but these layers.
    GovernedBut(&'static [Layer]),
    /// Of all layers these alone.
    Only(&'static [Layer]),
}

impl State {
    /// The layers that it leaves out.
    pub(crate) fn absent(self) -> Vec<Layer> {
        match self {
            Self::Off => Layer::ALL.to_vec(),
            Self::Governed => Vec::new(),
            Self::GovernedBut(layers) => layers.to_vec(),
            Self::Only(kept) => {
                Layer::ALL.into_iter().filter(|layer| !kept.contains(layer)).collect()
            }
        }
    }
}

/// Makes a program that lets everything pass decide in place of every program of `layers` whose link is pinned in
/// `pins`; each layer must have been there. Nothing is detached: whoever looks whether it is at work finds that it is.
pub(crate) fn remove(pins: &Path, layers: &[Layer]) {
    let mut links = Vec::new();
    for layer in layers {
        let before = links.len();
        links.extend(
            fs::read_dir(pins)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| layer.holds(name))
                .map(|name| pins.join(name)),
        );
        if links.len() == before {
            let is_off = *layer == Layer::Wire && take_off_filters();
            assert!(is_off, "{layer:?} is not pinned in {}", pins.display());
        }
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/escapes/let_pass.py");
    let replaced = Command::new("/usr/bin/python3").arg(script).args(&links).status().unwrap();
    assert!(replaced.success(), "the programs of {layers:?} are not replaced");
}

/// Kernels without tcx have filters instead, which are no links and go with the queue that they hang on.
fn take_off_filters() -> bool {
    let mut tc = Command::new("tc");
    tc.args(["qdisc", "del", "dev", "port0", "clsact"]).status().is_ok_and(|ended| ended.success())
}
