//! What a process could undo its government with.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use nix::unistd::Pid;

use super::objection::{Capability, Objection, Waiver};
use crate::capture::{THREADS_MAX, is_gone};
use crate::mountinfo::MountInfo;

/// Everything that speaks against governing `process`, waived or not; empty for one that can be held. Each of its
/// threads counts, as each can have rights, mounts and a network of its own.
///
/// # Errors
/// When the process is gone, or `/proc` does not show it.
pub fn examine(process: Pid) -> io::Result<Vec<Objection>> {
    let mut objections = BTreeSet::new();
    let mut seen = BTreeSet::new();
    of_each_thread(process, |thread| {
        objections.extend(of_rights(thread)?);
        // Of the host's own mounts everything can be said; the objection above has said it.
        if !shares(thread, "mnt")?
            && seen.insert([
                fs::read_link(thread.join("ns/mnt"))?,
                fs::read_link(thread.join("root"))?,
            ])
        {
            let mounts = MountInfo::parse(&fs::read(thread.join("mountinfo"))?);
            objections.extend(of_mounts(&mounts));
            objections.extend(of_devices(&thread.join("root/dev")));
            objections.extend(of_renamed_devices(&thread.join("root/dev")));
        }
        Ok(())
    })?;
    Ok(objections.into_iter().collect())
}

/// Whether a thread of `process` can send frames of its own making wherever it is: CAP_NET_RAW that is not confined to
/// a user namespace of its own (packet(7)).
///
/// # Errors
/// When the process is gone, or `/proc` does not show it.
pub fn can_send_raw(process: Pid) -> io::Result<bool> {
    let mut can = false;
    of_each_thread(process, |thread| {
        can |= capabilities(thread)? >> NET_RAW & 1 == 1;
        Ok(())
    })?;
    Ok(can)
}

/// CAP_NET_RAW (capabilities(7)).
const NET_RAW: u32 = 13;

/// Looks at every thread of a process by its folder in `/proc`, but for those that end meanwhile.
fn of_each_thread(process: Pid, mut look: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut number = 0_usize;
    let mut looked_at = false;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        number += 1;
        if number > THREADS_MAX {
            return Err(io::Error::other("it has too many threads"));
        }
        match thread.and_then(|thread| look(&thread.path())) {
            Ok(()) => looked_at = true,
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    if looked_at { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn of_rights(thread: &Path) -> io::Result<Vec<Objection>> {
    let mut objections = Vec::new();
    if shares(thread, "net")? {
        objections.push(Objection::HostNetwork);
    }
    let waivable = |waiver, seen: &str| Objection::Waivable(waiver, seen.to_owned());
    if shares(thread, "mnt")? {
        let seen = "it shares the host's mount namespace, with the pins of its own programs";
        objections.push(waivable(Waiver::HostMounts, seen));
    }
    if shares(thread, "pid")? {
        let seen = "it shares the host's PID namespace";
        objections.push(waivable(Waiver::HostPids, seen));
    }
    objections.extend(Capability::in_mask(capabilities(thread)?).map(|capability| {
        let waiver = Waiver::Capability(capability);
        let name = waiver.word().to_uppercase().replace('-', "_");
        Objection::Waivable(waiver, format!("it has {name}"))
    }));
    Ok(objections)
}

/// The capabilities of a thread over the host: in a user namespace of its own a capability is one over that namespace.
fn capabilities(thread: &Path) -> io::Result<u64> {
    if shares(thread, "user")? {
        // Its name is in there, in any bytes.
        capability_mask(&String::from_utf8_lossy(&fs::read(thread.join("status"))?))
    } else {
        Ok(0)
    }
}

/// Whether the thread is in the same namespace of this kind as this one.
fn shares(thread: &Path, kind: &str) -> io::Result<bool> {
    let own = fs::read_link(format!("/proc/thread-self/ns/{kind}"))?;
    Ok(fs::read_link(thread.join("ns").join(kind))? == own)
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

/// Numbers of some of them, which tell a device by whatever name it has (devices.txt of the kernel): without a minor
/// number it is all of the major one.
const DEVICE_NUMBERS: [(u64, Option<u64>, &str); 9] = [
    (1, Some(1), "mem"),
    (1, Some(2), "kmem"),
    (1, Some(4), "port"),
    (10, Some(196), "vfio/vfio"),
    (10, Some(200), "net/tun"),
    (10, Some(232), "kvm"),
    (10, Some(238), "vhost-net"),
    (10, Some(241), "vhost-vsock"),
    (231, None, "infiniband"),
];

/// What the host calls a character device that moves packets or memory, by its numbers: `None` stands for all.
#[must_use]
pub fn packet_device(major: Option<u64>, minor: Option<u64>) -> Option<&'static str> {
    let covers = |asked: Option<u64>, number: u64| asked.is_none_or(|asked| asked == number);
    let found = DEVICE_NUMBERS.iter().find(|(known, number, _)| {
        covers(major, *known) && number.is_none_or(|number| covers(minor, number))
    });
    found.map(|(_, _, name)| *name)
}

/// Devices of other names in the topmost folder.
fn of_renamed_devices(dev: &Path) -> Vec<Objection> {
    let entries = fs::read_dir(dev).into_iter().flatten().flatten().take(DEVICES_MAX);
    let renamed = entries.filter_map(|entry| {
        let path = entry.file_name();
        let found = entry.metadata().ok().filter(|found| found.file_type().is_char_device())?;
        let number = found.rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let device = packet_device(Some(major), Some(minor)).filter(|name| path != *name)?;
        let seen = format!("it has the device {device}, as /dev/{}", path.display());
        Some(Objection::Waivable(Waiver::PacketDevices, seen))
    });
    renamed.collect()
}

/// An engine's containers have some twenty.
const DEVICES_MAX: usize = 4_096;

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
    fn a_process_that_is_gone_is_no_process_without_objections() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        child.wait().unwrap();
        assert!(examine(pid).is_err());
        assert!(can_send_raw(pid).is_err());
    }

    #[test]
    fn a_device_is_known_by_its_numbers_whatever_its_name() {
        assert_eq!(packet_device(Some(10), Some(200)), Some("net/tun"));
        assert_eq!(packet_device(Some(10), None), Some("vfio/vfio"), "all of a major number");
        assert_eq!(packet_device(Some(231), Some(7)), Some("infiniband"));
        for (major, minor) in [(1, 3), (1, 5), (5, 0), (10, 229), (136, 0)] {
            assert_eq!(packet_device(Some(major), Some(minor)), None, "{major}:{minor}");
        }
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "only root makes devices, and CI is set");
            return println!("SKIPPED: only root makes devices");
        }
        let dev = tempfile::tempdir().unwrap();
        let make = |name: &str, minor: u64| {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            mknod(&dev.path().join(name), SFlag::S_IFCHR, Mode::S_IRUSR, makedev(10, minor))
                .unwrap();
        };
        make("fuse", 229);
        assert!(of_renamed_devices(dev.path()).is_empty(), "the control");
        make("harmless", 200);
        assert_eq!(words(&of_renamed_devices(dev.path())), ["packet-devices"]);
    }

    #[test]
    fn a_process_whose_name_is_no_text_is_looked_at_like_any_other() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", r"printf '\377) R 1' > /proc/$$/comm; echo done; read line"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 4];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let name = fs::read(format!("/proc/{pid}/comm")).unwrap();
        assert!(std::str::from_utf8(&name).is_err(), "the control: {name:?}");
        assert_eq!(examine(pid).unwrap(), examine(nix::unistd::getpid()).unwrap());
        let process = crate::capture::HeldProcess::of(pid).unwrap();
        assert!(process.started().is_some_and(|ticks| ticks > 0));
        assert_eq!(process.threads(), Some(1));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn capabilities_count_however_a_process_has_them_and_a_status_without_them_is_refused() {
        let status = "Name:\tx\nCapInh:\t0\nCapPrm:\t0\nCapEff:\t0000000000200000\nCapBnd:\t1000\n";
        assert_eq!(capability_mask(status).unwrap(), 0x20_1000);
        assert!(capability_mask("Name:\tx\n").is_err());
    }
}
