//! The workload's own view of the file system: the CA is trusted in it, and what belongs to Tollgate is not.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde::{Deserialize, Serialize};

use super::directory::PARENT;
use crate::dns::Search;
use crate::mountinfo::MountInfo;

/// What is mounted for one workload.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Mounts {
    /// The CA's certificate, PEM.
    pub(super) ca: String,
    /// The system's roots and the CA, PEM.
    pub(super) bundle: String,
    /// Over which files the bundle is mounted, where they exist.
    pub(super) bundle_targets: Vec<PathBuf>,
    /// What is hidden, where it exists: files behind `/dev/null`, directories behind an empty one.
    pub(super) masks: Vec<PathBuf>,
    /// What stands in for the host's resolv.conf.
    pub(super) resolv_conf: String,
}

/// Where the workload finds the bundle.
pub(super) const BUNDLE: &str = "/run/tollgate/ca-bundle.pem";
/// Where the workload finds the CA's certificate alone.
pub(super) const CA: &str = "/run/tollgate/ca.pem";

/// Where Tollgate's own files are by default. As a whole, because a file that is replaced while the workload runs (a
/// rotated secret or log) is no longer the one that was hidden.
pub(super) const OWN_DIRECTORIES: [&str; 3] =
    ["/etc/tollgate", "/var/lib/tollgate", "/var/log/tollgate"];

/// Sockets of host services that would open connections, resolve names or start processes for whoever asks.
pub(super) const HOST_SOCKETS: [&str; 23] = [
    "/run/docker.sock",
    "/run/docker",
    "/run/containerd",
    "/run/podman",
    "/run/crio",
    "/run/buildkit",
    "/run/dbus",
    "/run/user",
    "/run/systemd/private",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/systemd/resolve/io.systemd.Resolve.Monitor",
    "/run/systemd/notify",
    "/run/systemd/userdb",
    "/run/nscd",
    "/run/nslcd",
    "/var/lib/sss/pipes",
    "/run/cups",
    "/run/tailscale",
    "/run/rpcbind.sock",
    "/run/avahi-daemon",
    "/run/snapd.socket",
    "/run/libvirt",
    "/var/lib/lxd/unix.socket",
];

/// Every query goes to the gateway wherever it is sent; one server that is always there is enough.
pub(super) fn resolv_conf(search: &Search) -> String {
    let search = search.to_lines();
    format!("# Tollgate answers every query of this workload.\n{search}nameserver 127.0.0.1\n")
}

/// Nothing that is mounted so gives rights, is a device, or is executed.
const SEALED: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

impl Mounts {
    /// Applies everything in the calling process's own mount namespace.
    pub(super) fn apply(&self) -> anyhow::Result<()> {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .context("cannot make mounts private")?;
        // Before anything is mounted: what is hidden now would no longer be found by its file.
        let hidden = self.everything_to_hide(&MountInfo::read()?)?;
        own_proc()?;
        own_sysfs()?;
        own_devices().context("cannot make /dev")?;
        // Run directories are hidden as a whole by `trust`.
        for path in hidden.iter().filter(|path| !path.starts_with(PARENT)) {
            mask(path).with_context(|| format!("cannot hide {}", path.display()))?;
        }
        self.trust().context("cannot mount the certificate bundle")
    }

    /// What is to be hidden, under all its names.
    fn everything_to_hide(&self, table: &MountInfo) -> anyhow::Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> = table.foreign_views().map(Path::to_owned).collect();
        for path in &self.masks {
            let path = match path.canonicalize() {
                Ok(path) => path,
                Err(error) if is_absent(&error) => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot hide {}", path.display()));
                }
            };
            let metadata = fs::metadata(&path)?;
            if metadata.is_file() && metadata.nlink() > 1 {
                anyhow::bail!(
                    "cannot hide {}: the file has another name (a hard link); remove the link, or copy the file",
                    path.display()
                );
            }
            if metadata.is_dir() {
                paths.extend(table.parts_of(&path));
            }
            paths.extend(table.names_of(&path));
        }
        Ok(paths)
    }

    /// A file system of our own over the run directories holds what the workload may read; it is read-only then.
    fn trust(&self) -> anyhow::Result<()> {
        mount(Some("tmpfs"), PARENT, Some("tmpfs"), SEALED, Some("size=16m,mode=755"))?;
        let resolv_conf = Path::new(PARENT).join("resolv.conf");
        for (path, text) in [
            (Path::new(CA), self.ca.as_str()),
            (Path::new(BUNDLE), self.bundle.as_str()),
            (&resolv_conf, self.resolv_conf.as_str()),
        ] {
            fs::write(path, text)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o444))?;
        }
        mount(
            None::<&str>,
            PARENT,
            None::<&str>,
            SEALED | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
            None::<&str>,
        )?;
        for target in self.bundle_targets.iter().filter(|target| target.is_file()) {
            bind(Path::new(BUNDLE), target)?;
        }
        let resolver = Path::new("/etc/resolv.conf");
        if resolver.is_file() {
            bind(&resolv_conf, resolver)?;
        }
        Ok(())
    }
}

/// `/proc` of the workload's own PID namespace: no other process of the host is in it. What would reach past the
/// namespaces is read-only.
fn own_proc() -> anyhow::Result<()> {
    mount(Some("proc"), "/proc", Some("proc"), SEALED, None::<&str>)
        .context("cannot mount /proc")?;
    for path in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"] {
        if Path::new(path).exists() {
            bind(Path::new(path), Path::new(path)).context("cannot make /proc read-only")?;
            let read_only = SEALED | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, path, None::<&str>, read_only, None::<&str>)
                .with_context(|| format!("cannot make {path} read-only"))?;
        }
    }
    for path in ["/proc/kcore", "/proc/keys"] {
        mask(Path::new(path)).with_context(|| format!("cannot hide {path}"))?;
    }
    Ok(())
}

/// `/sys` of the workload's own network namespace, read-only, without the cgroup, BPF and debug file systems below it.
fn own_sysfs() -> anyhow::Result<()> {
    if !Path::new("/sys").is_dir() {
        return Ok(());
    }
    let flags = SEALED | MsFlags::MS_RDONLY;
    mount(Some("sysfs"), "/sys", Some("sysfs"), flags, None::<&str>).context("cannot mount /sys")
}

/// `/dev` of the workload's own: the devices that programs count on, terminals and shared memory, and none that holds
/// files, memory or packets. A disk of the host would show what is hidden by name.
fn own_devices() -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    // Put together out of the way, as it takes a part of the old one with it. `trust` covers this place again.
    let new = Path::new(PARENT);
    mount(Some("tmpfs"), new, Some("tmpfs"), flags, Some("size=64k,mode=755"))?;
    for (name, major, minor) in DEVICES {
        let path = new.join(name);
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&path, SFlag::S_IFCHR, mode, makedev(major, minor))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    }
    for (name, target) in DEVICE_LINKS {
        std::os::unix::fs::symlink(target, new.join(name))?;
    }
    let (terminals, memory) = (new.join("pts"), new.join("shm"));
    fs::create_dir(&terminals)?;
    if Path::new("/dev/pts").is_dir() {
        bind(Path::new("/dev/pts"), &terminals)?;
    }
    fs::create_dir(&memory)?;
    mount(Some("tmpfs"), &memory, Some("tmpfs"), SEALED, Some("mode=1777"))?;
    let read_only = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, new, None::<&str>, read_only, None::<&str>)?;
    mount(Some(new), "/dev", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    Ok(())
}

/// Name, major and minor number (`admin-guide/devices.txt`).
const DEVICES: [(&str, u64, u64); 7] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("ptmx", 5, 2),
];

const DEVICE_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

fn mask(path: &Path) -> io::Result<()> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    if metadata.is_dir() {
        let flags = SEALED | MsFlags::MS_RDONLY;
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some("size=4k,mode=755"))?;
    } else {
        bind(Path::new("/dev/null"), path)?;
    }
    Ok(())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}
