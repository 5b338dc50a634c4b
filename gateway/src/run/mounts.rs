//! The workload's own view of the file system: the CA is trusted in it, and what belongs to Tollgate is not.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use super::directory::PARENT;

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
}

/// Where the workload finds the bundle.
pub(super) const BUNDLE: &str = "/run/tollgate/ca-bundle.pem";
/// Where the workload finds the CA's certificate alone.
pub(super) const CA: &str = "/run/tollgate/ca.pem";

/// Sockets of host services that would open connections, resolve names or start processes for whoever asks.
pub(super) const HOST_SOCKETS: [&str; 16] = [
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
    "/run/nscd",
    "/run/avahi-daemon",
    "/run/snapd.socket",
    "/run/libvirt",
    "/var/lib/lxd/unix.socket",
];

/// Every query goes to the gateway wherever it is sent; one server that is always there is enough.
const RESOLV_CONF: &str =
    "# Tollgate answers every query of this workload.\nnameserver 127.0.0.1\n";

impl Mounts {
    /// Applies everything in the calling process's own mount namespace.
    pub(super) fn apply(&self) -> anyhow::Result<()> {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .context("cannot make mounts private")?;
        own_proc()?;
        own_sysfs()?;
        for path in self.masks.iter().filter(|path| !is_below(path, PARENT)) {
            mask(path).with_context(|| format!("cannot hide {}", path.display()))?;
        }
        self.trust().context("cannot mount the certificate bundle")
    }

    /// A file system of our own over the run directories holds what the workload may read; it is read-only then.
    fn trust(&self) -> anyhow::Result<()> {
        let sealed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), PARENT, Some("tmpfs"), sealed, Some("size=16m,mode=755"))?;
        let resolv_conf = Path::new(PARENT).join("resolv.conf");
        for (path, text) in [
            (Path::new(CA), self.ca.as_str()),
            (Path::new(BUNDLE), self.bundle.as_str()),
            (&resolv_conf, RESOLV_CONF),
        ] {
            fs::write(path, text)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o444))?;
        }
        mount(
            None::<&str>,
            PARENT,
            None::<&str>,
            sealed | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
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
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)
        .context("cannot mount /proc")?;
    for path in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"] {
        if Path::new(path).exists() {
            bind(Path::new(path), Path::new(path)).context("cannot make /proc read-only")?;
            let read_only = flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
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
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("sysfs"), "/sys", Some("sysfs"), flags, None::<&str>).context("cannot mount /sys")
}

fn mask(path: &Path) -> io::Result<()> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if metadata.is_dir() {
        let sealed =
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
        mount(Some("tmpfs"), path, Some("tmpfs"), sealed, Some("size=4k,mode=755"))?;
    } else {
        bind(Path::new("/dev/null"), path)?;
    }
    Ok(())
}

fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Run directories are hidden as a whole by [`Mounts::trust`].
fn is_below(path: &Path, parent: &str) -> bool {
    path.starts_with(parent)
}
