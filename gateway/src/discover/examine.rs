//! What a process could undo its government with.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::objection::{Capability, Objection, Waiver};
use crate::capture::MountInfo;

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
const ENGINE_SOCKETS: [&str; 6] = [
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
