//! The layers that hold a workload, and the switch that takes some of them away. The switch is the test's own: it
//! deletes pinned links, which only the host's root can do.

use std::fs;
use std::path::Path;
use std::process::Command;

use aya::programs::links::PinnedLink;
use aya::programs::loaded_links;

use crate::common::wait_until;

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

/// Detaches every program of `layers` whose link is pinned in `pins`; each layer must have been there.
pub(crate) fn remove(pins: &Path, layers: &[Layer]) {
    let mut links = Vec::new();
    for layer in layers {
        let names: Vec<String> = fs::read_dir(pins)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| layer.holds(name))
            .collect();
        if names.is_empty() && *layer == Layer::Wire && take_off_filters() {
            continue;
        }
        assert!(!names.is_empty(), "{layer:?} is not pinned in {}", pins.display());
        for name in names {
            let link = PinnedLink::from_pin(pins.join(name)).unwrap().unpin().unwrap();
            links.push(link.info().unwrap().id());
        }
    }
    // The kernel detaches a program some time after the last reference to its link is gone.
    wait_until("the programs are detached", || {
        loaded_links().flatten().all(|link| !links.contains(&link.id()))
    });
}

/// Kernels without tcx have filters instead, which are no links and go with the queue that they hang on.
fn take_off_filters() -> bool {
    let mut tc = Command::new("tc");
    tc.args(["qdisc", "del", "dev", "port0", "clsact"]).status().is_ok_and(|ended| ended.success())
}
