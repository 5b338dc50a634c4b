//! What a process could undo its government with.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::objection::{Capability, Objection, Waiver};
use crate::mountinfo::MountInfo;

/// Everything that speaks against governing `process`, waived or not; empty for one that can be held.
///
/// # Errors
/// When the process is gone, or `/proc` does not show it.
pub fn examine(process: Pid) -> io::Result<Vec<Objection>> {
    let folder = PathBuf::from(format!("/proc/{process}"));
    let mut objections = Vec::new();
    if shares(&folder, "net")? {
        objections.push(Objection::HostNetwork);
    }
    let waivable = |waiver, seen: &str| Objection::Waivable(waiver, seen.to_owned());
    let host_mounts = shares(&folder, "mnt")?;
    if host_mounts {
        let seen = "it shares the host's mount namespace, with the pins of its own programs";
        objections.push(waivable(Waiver::HostMounts, seen));
    }
    if shares(&folder, "pid")? {
        let seen = "it shares the host's PID namespace";
        objections.push(waivable(Waiver::HostPids, seen));
    }
    // In a user namespace of its own a capability is one over that namespace, not over the host.
    if shares(&folder, "user")? {
        let mask = capability_mask(&fs::read_to_string(folder.join("status"))?)?;
        objections.extend(Capability::in_mask(mask).map(|capability| {
            let waiver = Waiver::Capability(capability);
            let name = waiver.word().to_uppercase().replace('-', "_");
            Objection::Waivable(waiver, format!("it has {name}"))
        }));
    }
    // Of the host's own mounts everything can be said; the objection above has said it.
    if !host_mounts {
        objections.extend(of_mounts(&MountInfo::parse(&fs::read(folder.join("mountinfo"))?)));
        objections.extend(of_devices(&folder.join("root/dev")));
    }
    Ok(objections)
}

/// Whether the process is in the same namespace of this kind as this one.
fn shares(process: &Path, kind: &str) -> io::Result<bool> {
    let own = fs::read_link(format!("/proc/thread-self/ns/{kind}"))?;
    Ok(fs::read_link(process.join("ns").join(kind))? == own)
}

/// What the process has or can get back by a set-user-ID program (proc(5)).
fn capability_mask(status: &str) -> io::Result<u64> {
    let mut mask = 0;
    let mut found = 0;
    for line in status.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        if ["CapBnd", "CapPrm", "CapEff", "CapInh"].contains(&key) {
            mask |= u64::from_str_radix(value.trim(), 16).map_err(io::Error::other)?;
            found += 1;
        }
    }
    if found == 4 { Ok(mask) } else { Err(io::Error::other("a status without capabilities")) }
}

/// Names of the sockets of container engines, wherever they are mounted.
pub const ENGINE_SOCKETS: [&str; 6] = [
    "docker.sock",
    "containerd.sock",
    "podman.sock",
    "crio.sock",
    "buildkitd.sock",
    "containerd.sock.ttrpc",
];

fn of_mounts(mounts: &MountInfo) -> Vec<Objection> {
    let mut objections = Vec::new();
    for mount in mounts.iter() {
        let is_socket = |path: &Path| {
            path.file_name().is_some_and(|name| ENGINE_SOCKETS.iter().any(|socket| name == *socket))
        };
        let at = mount.point.display();
        if is_socket(&mount.root) || is_socket(&mount.point) {
            let seen = format!("the socket of a container engine is mounted at {at}");
            objections.push(Objection::Waivable(Waiver::EngineSocket, seen));
        }
        if ["bpf", "cgroup2", "cgroup"].contains(&mount.kind.as_str()) && mount.is_writable {
            let seen = format!("a {} file system can be written at {at}", mount.kind);
            objections.push(Objection::Waivable(Waiver::KernelMounts, seen));
        }
    }
    objections
}

/// Devices that move packets or memory past everything that is governed.
const DEVICES: [&str; 9] =
    ["net/tun", "infiniband", "vfio", "vhost-net", "vhost-vsock", "vsock", "kvm", "mem", "uio0"];

fn of_devices(dev: &Path) -> Vec<Objection> {
    let is_device = |path: &Path| {
        // Never followed: the links in there are the workload's own.
        fs::symlink_metadata(path).is_ok_and(|found| {
            let kind = found.file_type();
            kind.is_char_device() || kind.is_block_device()
        })
    };
    DEVICES
        .iter()
        .filter(|name| {
            let path = dev.join(name);
            let has_devices = || {
                let is_folder = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
                is_folder
                    && fs::read_dir(&path)
                        .is_ok_and(|entries| entries.flatten().any(|e| is_device(&e.path())))
            };
            is_device(&path) || has_devices()
        })
        .map(|name| {
            Objection::Waivable(Waiver::PacketDevices, format!("it has the device /dev/{name}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(objections: &[Objection]) -> Vec<&'static str> {
        objections
            .iter()
            .map(|objection| match objection {
                Objection::HostNetwork => "host-network",
                Objection::Waivable(waiver, _) => waiver.word(),
            })
            .collect()
    }

    #[test]
    fn sockets_of_engines_and_writable_views_of_the_kernel_are_seen_in_a_table_of_mounts() {
        let container = b"207 184 0:50 / / rw - overlay overlay rw\n\
            208 207 0:58 / /proc rw - proc proc rw\n\
            210 207 0:22 /docker/1 /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n";
        assert!(words(&of_mounts(&MountInfo::parse(container))).is_empty());
        let rows: [(&[u8], &str); 4] = [
            (b"1 2 0:9 /docker.sock /var/run/docker.sock rw - tmpfs tmpfs rw", "engine-socket"),
            (b"1 2 0:9 /podman/podman.sock /x rw - tmpfs tmpfs rw", "engine-socket"),
            (b"1 2 0:9 / /sys/fs/bpf rw - bpf bpf rw", "kernel-mounts"),
            (b"1 2 0:9 / /mnt rw - cgroup2 cgroup2 rw", "kernel-mounts"),
        ];
        for (line, expected) in rows {
            assert_eq!(words(&of_mounts(&MountInfo::parse(line))), [expected]);
        }
        let of_all = b"1 2 0:9 / /sys/fs/bpf rw - bpf bpf ro";
        assert!(words(&of_mounts(&MountInfo::parse(of_all))).is_empty());
    }

    #[test]
    fn this_very_process_shares_everything_with_itself() {
        let words = words(&examine(nix::unistd::getpid()).unwrap());
        assert_eq!(words.get(..3), Some(&["host-network", "host-mounts", "host-pids"][..]));
    }

    #[test]
    fn capabilities_count_however_a_process_has_them_and_a_status_without_them_is_refused() {
        let status = "Name:\tx\nCapInh:\t0\nCapPrm:\t0\nCapEff:\t0000000000200000\nCapBnd:\t1000\n";
        assert_eq!(capability_mask(status).unwrap(), 0x20_1000);
        assert!(capability_mask("Name:\tx\n").is_err());
    }
}
