//! What speaks against a workload, in words for people.

use std::fmt;

/// An objection that `[discover] permit` can waive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Waiver {
    /// It shares the host's mount namespace.
    HostMounts,
    /// It shares the host's PID namespace.
    HostPids,
    /// A capability with which it could undo its government.
    Capability(Capability),
    /// The socket of a container engine.
    EngineSocket,
    /// The cgroup or BPF file system of the host, writable.
    KernelMounts,
    /// A device that carries packets past the kernel's IP stack, or reads the kernel's memory.
    PacketDevices,
}

/// Capabilities in the initial user namespace that no fence holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// Mounts, namespaces, and nearly everything else.
    SysAdmin,
    /// Kernel programs of its own.
    Bpf,
    /// Routes, address translation, tunnels, closing the gateway's listener.
    NetAdmin,
    /// Kernel modules.
    SysModule,
    /// Ports and memory.
    SysRawio,
    /// Other processes, where it sees them.
    SysPtrace,
    /// Files by handle, past its root.
    DacReadSearch,
    /// Reading what kernel programs trace.
    Perfmon,
}

/// Why a workload stays closed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Objection {
    /// It shares the host's network namespace: its loopback is the host's.
    HostNetwork,
    /// One that can be waived, and what was seen.
    Waivable(Waiver, String),
}

const CAPABILITIES: [(Capability, u32, &str); 8] = [
    (Capability::DacReadSearch, 2, "cap-dac-read-search"),
    (Capability::NetAdmin, 12, "cap-net-admin"),
    (Capability::SysModule, 16, "cap-sys-module"),
    (Capability::SysRawio, 17, "cap-sys-rawio"),
    (Capability::SysPtrace, 19, "cap-sys-ptrace"),
    (Capability::SysAdmin, 21, "cap-sys-admin"),
    (Capability::Perfmon, 38, "cap-perfmon"),
    (Capability::Bpf, 39, "cap-bpf"),
];

const OTHERS: [(Waiver, &str); 5] = [
    (Waiver::HostMounts, "host-mounts"),
    (Waiver::HostPids, "host-pids"),
    (Waiver::EngineSocket, "engine-socket"),
    (Waiver::KernelMounts, "kernel-mounts"),
    (Waiver::PacketDevices, "packet-devices"),
];

impl Capability {
    /// Those in a mask as `/proc/PID/status` has it (proc(5), `CapBnd`).
    pub(super) fn in_mask(mask: u64) -> impl Iterator<Item = Self> {
        CAPABILITIES
            .into_iter()
            .filter(move |(_, bit, _)| mask >> bit & 1 == 1)
            .map(|(capability, ..)| capability)
    }
}

impl Waiver {
    /// Every waiver with its word in the configuration.
    pub fn all() -> impl Iterator<Item = (&'static str, Self)> {
        let others = OTHERS.into_iter().map(|(waiver, word)| (word, waiver));
        let capability = |(capability, _, word)| (word, Self::Capability(capability));
        others.chain(CAPABILITIES.into_iter().map(capability))
    }

    /// The word in the configuration.
    #[must_use]
    pub fn word(self) -> &'static str {
        Self::all().find(|(_, waiver)| *waiver == self).map_or("", |(word, _)| word)
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::HostMounts => "give it a mount namespace of its own",
            Self::HostPids => "give it a PID namespace of its own",
            Self::Capability(_) => "start it without this capability",
            Self::EngineSocket => "do not mount it there: whoever can use it is root on the host",
            Self::KernelMounts => "do not mount it there, or only for reading",
            Self::PacketDevices => "start it without this device",
        }
    }
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostNetwork => f.write_str(
                "it shares the host's network namespace; give it a network namespace of its own",
            ),
            Self::Waivable(waiver, seen) => write!(
                f,
                "{seen}; {}, or accept it with permit = [\"{}\"] under [discover]",
                waiver.remedy(),
                waiver.word()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_waiver_has_a_word_of_its_own() {
        let words: std::collections::BTreeSet<_> = Waiver::all().map(|(word, _)| word).collect();
        assert_eq!(words.len(), OTHERS.len() + CAPABILITIES.len());
        for (word, waiver) in Waiver::all() {
            assert_eq!(waiver.word(), word);
        }
    }

    #[test]
    fn capabilities_are_read_from_a_mask_and_docker_s_own_set_has_none_of_them() {
        // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD
        // AUDIT_WRITE SETFCAP
        assert_eq!(Capability::in_mask(0xa804_25fb).count(), 0);
        let privileged: Vec<_> = Capability::in_mask(0x1ff_ffff_ffff).collect();
        assert_eq!(privileged.len(), CAPABILITIES.len());
        assert_eq!(Capability::in_mask(1 << 21).collect::<Vec<_>>(), [Capability::SysAdmin]);
    }

    #[test]
    fn an_objection_names_what_was_seen_the_remedy_and_its_waiver() {
        let seen = "it has CAP_SYS_ADMIN".to_owned();
        let objection = Objection::Waivable(Waiver::Capability(Capability::SysAdmin), seen);
        assert_eq!(
            objection.to_string(),
            "it has CAP_SYS_ADMIN; start it without this capability, or accept it with permit = [\"cap-sys-admin\"] under [discover]"
        );
    }
}
