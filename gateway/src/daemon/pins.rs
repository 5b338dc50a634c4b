//! The pins of cgroups: their names, and when they go.

use crate::capture::{BpfFs, Pins};

/// The name of a workload's pins.
pub(super) fn pins_name(cgroup_id: u64) -> String {
    format!("{PINS_PREFIX}{cgroup_id}")
}

/// Names of the pins of cgroups start with it.
pub(super) const PINS_PREFIX: &str = "cg-";

/// Pins that hold no link refuse nothing; those with one do, even if it is only one.
pub(super) fn remove_if_useless(pins: &Pins) {
    if pins.links().is_ok_and(|links| links.is_empty())
        && let Err(error) = pins.clone().remove()
    {
        tracing::debug!(%error, "an empty directory of pins stays");
    }
}

/// Removes the pins of a cgroup that is gone, sockets included. Says whether nothing is left.
pub(super) fn remove_if_dead(bpf: &BpfFs, name: &str) -> bool {
    let Some(pins) = bpf.existing(name) else { return true };
    if !pins.are_dead().unwrap_or(false) {
        return false;
    }
    let removed = pins.remove();
    if let Err(error) = &removed {
        tracing::error!(%error, "the pins of a workload that is gone stay");
    }
    bpf.remove_if_empty();
    removed.is_ok()
}
