//! A workload as a container engine would make it: a cgroup, a network namespace with `lo` and `eth0`, and processes
//! with Docker's default capabilities in namespaces of their own.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use gateway::capture::{Namespace, NamespaceError};
use nix::unistd::Pid;

use crate::common::wait_until;
use crate::world::ip;

/// See the module.
pub(crate) struct Workload {
    pub(crate) namespace: Namespace,
    /// Where its network namespace can be named in this process.
    pub(crate) network: PathBuf,
    pub(crate) cgroup: TestCgroup,
}

/// As whom an attack runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// root with the capabilities that Docker gives by default.
    Docker,
    /// The same and CAP_NET_ADMIN.
    NetAdmin,
    /// nobody, with none.
    Nobody,
}

/// The capabilities of a container that asks for nothing special.
const DOCKER: &str = "+chown,+dac_override,+fsetid,+fowner,+mknod,+net_raw,+setgid,+setuid,+setfcap,+setpcap,\
                      +net_bind_service,+sys_chroot,+kill,+audit_write";

/// A cgroup of a test's own at the root of the hierarchy. Whoever is in it is killed with it.
pub(crate) struct TestCgroup {
    path: PathBuf,
}

static CGROUPS: AtomicUsize = AtomicUsize::new(0);

impl Workload {
    pub(crate) fn new() -> Self {
        let namespace = Namespace::isolated().unwrap();
        let network = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsFd::as_fd(&namespace).as_raw_fd()
        );
        let number = CGROUPS.fetch_add(1, Ordering::SeqCst);
        let cgroup = TestCgroup::new(&format!("escapes-{}-{number}", std::process::id()));
        Self { namespace, network: network.into(), cgroup }
    }

    /// Gives `eth0` its addresses and routes, and opens what engines open: ping sockets and low ports.
    pub(crate) fn furnish(&self) {
        let done: Result<(), NamespaceError> = self.namespace.run(|| {
            for (key, value) in [
                ("ipv4/ping_group_range", "0 2147483647"),
                ("ipv4/ip_unprivileged_port_start", "0"),
                ("ipv6/conf/eth0/accept_ra", "0"),
                ("ipv6/conf/eth0/router_solicitations", "0"),
                ("ipv6/conf/eth0/accept_dad", "0"),
            ] {
                fs::write(Path::new("/proc/sys/net").join(key), value).unwrap();
            }
            ip("link set eth0 up
                address add 203.0.113.10/26 dev eth0
                address add 2001:db8:1::10/64 dev eth0 nodad
                route add default via 203.0.113.1
                route add default via 2001:db8:1::1
                neigh replace 203.0.113.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
                neigh replace 2001:db8:1::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
                neigh replace 203.0.113.5 lladdr 02:00:00:00:00:05 dev eth0 nud permanent
                neigh replace 2001:db8:1::5 lladdr 02:00:00:00:00:05 dev eth0 nud permanent");
            Ok(())
        });
        done.unwrap();
    }

    /// The start of a command in the workload, to which program and arguments are added. It is to be started in the
    /// host's namespaces.
    pub(crate) fn command(&self, rights: Rights) -> Command {
        self.command_in(&self.cgroup.path, rights)
    }

    /// The same in another cgroup.
    pub(crate) fn command_in(&self, cgroup: &Path, rights: Rights) -> Command {
        // The container sees its own part of the cgroups, and may write there.
        let script = r#"
            set -e
            echo $$ > "$1/cgroup.procs"
            cgroups=$2; shift 2
            exec unshare --mount --ipc --uts --cgroup sh -c '
                set -e
                mount -t tmpfs run /run
                mount -t tmpfs bpf /sys/fs/bpf
                umount -l "$0"
                mount -t cgroup2 cgroups "$0"
                exec "$@"' "$cgroups" "$@"
        "#;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter"]);
        // Into the network first: from its first moment in the cgroup, it is in the workload's network.
        command.arg(format!("--net={}", self.network.display())).args(["sh", "-c", script, "sh"]);
        command.arg(cgroup).arg(cgroup2_mount());
        match rights {
            Rights::Docker | Rights::NetAdmin => {
                let more = if rights == Rights::NetAdmin { ",+net_admin" } else { "" };
                command.args(["setpriv", "--inh-caps=-all"]);
                command.arg(format!("--bounding-set=-all,{DOCKER}{more}"));
            }
            Rights::Nobody => {
                command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
                command.args(["--inh-caps=-all", "--bounding-set=-all"]);
            }
        }
        command.args(["--pdeathsig", "KILL"]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// The directory of its pins.
    pub(crate) fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf/tollgate").join(format!("cg-{}", self.cgroup.id()))
    }
}

impl TestCgroup {
    fn new(name: &str) -> Self {
        let path = cgroup2_mount().join(name);
        fs::create_dir(&path).unwrap();
        Self { path }
    }

    /// A cgroup that nobody governs, for what is not the workload.
    pub(crate) fn beside(workload: &Workload) -> Self {
        Self::new(&format!("{}-elsewhere", workload.cgroup.name().trim_matches('/')))
    }

    /// Moves a process into it, as the host's root can.
    pub(crate) fn take(&self, process: Pid) {
        fs::write(self.path.join("cgroup.procs"), process.to_string()).unwrap();
    }

    pub(crate) fn is_empty(&self) -> bool {
        !is_populated(&self.path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its path below the hierarchy's root, as configurations name it.
    pub(crate) fn name(&self) -> String {
        format!("/{}", self.path.strip_prefix(cgroup2_mount()).unwrap().display())
    }

    /// The kernel's id.
    pub(crate) fn id(&self) -> u64 {
        File::open(&self.path).unwrap().metadata().unwrap().ino()
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        if fs::write(self.path.join("cgroup.kill"), "1").is_err() {
            return;
        }
        wait_until("the workload's processes are gone", || self.is_empty());
        remove_tree(&self.path);
    }
}

fn is_populated(path: &Path) -> bool {
    let events = fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
    events.contains("populated 1")
}

fn remove_tree(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    if let Err(error) = fs::remove_dir(path) {
        eprintln!("the cgroup {} stays: {error}", path.display());
    }
}

/// Where the cgroup v2 hierarchy is mounted.
pub(crate) fn cgroup2_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_cgroup2 =
        |line: &&str| line.split_once(" - ").is_some_and(|(_, kind)| kind.starts_with("cgroup2 "));
    let line = mounts.lines().find(is_cgroup2).expect("a cgroup v2 hierarchy is mounted");
    PathBuf::from(line.split(' ').nth(4).unwrap())
}
