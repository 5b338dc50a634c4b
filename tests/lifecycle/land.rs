//! A host with cgroups of a test's own, a daemon that governs them, and processes in them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use crate::tollgate::{Finished, Host, PATIENCE, Running, TOLLGATE, finish, wait_for};

/// What an agent gets that talks to the gateway: by default everything is denied.
pub(crate) const SERVED: &str = "403";
/// What it gets that is closed in.
pub(crate) const REFUSED: &str = "ECONNREFUSED";

/// Starts a command that cannot send frames of its own making.
pub(crate) const WITHOUT_NET_RAW: [&str; 5] =
    ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"];

/// See the module.
pub(crate) struct Land {
    pub(crate) host: Host,
    /// The parent of the cgroups, below the mount of the hierarchy.
    base: PathBuf,
    name: String,
}

static LANDS: AtomicU32 = AtomicU32::new(0);

impl Land {
    /// `None` where it cannot be made and nobody insists.
    pub(crate) fn new() -> Option<Self> {
        Self::below("")
    }

    /// One whose cgroups are in Tollgate's slice.
    pub(crate) fn in_slice() -> Option<Self> {
        Self::below("tollgate.slice/")
    }

    fn below(parent: &str) -> Option<Self> {
        let host = Host::new("")?;
        let number = LANDS.fetch_add(1, Ordering::SeqCst);
        let name = format!("{parent}tollgate-test-{}-{number}", std::process::id());
        let base = hierarchy().join(&name);
        fs::create_dir_all(&base).unwrap();
        let land = Self { host, base, name };
        land.configure(&land.glob("*"));
        Some(land)
    }

    /// The glob for cgroups of this land.
    pub(crate) fn glob(&self, pattern: &str) -> String {
        format!("/{}/{pattern}", self.name)
    }

    /// The agent is what is in the cgroups of this glob.
    pub(crate) fn configure(&self, glob: &str) {
        self.host.configure(&format!("match = {{ cgroup = \"{glob}\" }}\n"));
    }

    /// Where the cgroup of this name is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// Makes a cgroup.
    pub(crate) fn cgroup(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Starts the daemon and does not wait for anything.
    pub(crate) fn daemon(&self) -> Running {
        let config = self.host.config();
        let words = [TOLLGATE, "daemon", "--config", config.to_str().unwrap()];
        let mut daemon = self.host.plain(words);
        Running::start(daemon.env("TOLLGATE_LOG", "info").stdin(Stdio::null()))
    }

    /// Where the pins of a cgroup are.
    pub(crate) fn pins(&self, id: u64) -> PathBuf {
        self.host.seen(&format!("/sys/fs/bpf/tollgate/cg-{id}"))
    }

    /// Waits until a cgroup is closed: its last program is attached.
    pub(crate) fn closed(&self, cgroup: &Path) {
        let last = self.pins(id_of(cgroup)).join("tollgate_connect6");
        wait_for("the cgroup is closed", || last.exists().then_some(()));
    }

    /// A process in `cgroup` with a network of its own, which lives until it is dropped.
    pub(crate) fn agent(&self, cgroup: &Path) -> Agent {
        self.agent_with(cgroup, &["unshare", "--net"])
    }

    /// The same in the host's network.
    pub(crate) fn agent_in_host_network(&self, cgroup: &Path) -> Agent {
        self.agent_with(cgroup, &[])
    }

    /// The same, started by the command `before`.
    pub(crate) fn agent_with(&self, cgroup: &Path, before: &[&str]) -> Agent {
        let up = self.host.folder().join(format!("up-{}", LANDS.fetch_add(1, Ordering::SeqCst)));
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec {} sh -c 'ip link set lo up; : > {}; exec sleep 1000'",
            cgroup.display(),
            before.join(" "),
            up.display()
        );
        let run = Running::start(self.host.plain(["sh", "-c", &script]).stdin(Stdio::null()));
        wait_for("the agent", || up.exists().then_some(()));
        Agent { run, cgroup: cgroup.to_owned() }
    }

    /// The records of one reason about workloads of this land.
    pub(crate) fn records_of(&self, reason: &str) -> Vec<Value> {
        self.host.records_of(reason)
    }

    /// What Python prints in the network of `agent`, as a process of its cgroup.
    pub(crate) fn python(&self, agent: &Agent, code: &str) -> String {
        finish(self.python_command(agent, code).stdin(Stdio::null())).success()
    }

    /// What Python prints in the network of `agent`, as a process of no cgroup of this land.
    pub(crate) fn python_outside(&self, agent: &Agent, code: &str) -> String {
        let target = agent.pid().to_string();
        let code = format!("{PRELUDE}\n{code}");
        finish(
            &mut self.host.plain(["nsenter", "--net", "--target", &target, "python3", "-c", &code]),
        )
        .success()
    }

    /// Starts Python in the network of `agent`, as a process of its cgroup.
    pub(crate) fn start_python(&self, agent: &Agent, code: &str) -> Running {
        Running::start(self.python_command(agent, code).stdin(Stdio::piped()))
    }

    /// A request in the network of `agent`, as a process of its cgroup that the command `before` starts.
    pub(crate) fn python_as(&self, agent: &Agent, before: &[&str]) -> Command {
        self.python_in(agent.pid(), &agent.cgroup, before, "print(fetch())")
    }

    fn python_command(&self, agent: &Agent, code: &str) -> Command {
        self.python_in(agent.pid(), &agent.cgroup, &[], code)
    }

    /// First the network, then the cgroup: no process of it is in the host's network even for a moment.
    fn python_in(&self, network_of: u32, cgroup: &Path, before: &[&str], code: &str) -> Command {
        let script = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", cgroup.display());
        let target = network_of.to_string();
        let code = format!("{PRELUDE}\n{code}");
        let mut words = vec!["nsenter", "--net", "--target", &target, "sh", "-c", &script, "sh"];
        words.extend(before);
        words.extend(["python3", "-c", &code]);
        self.host.plain(words)
    }

    /// What an HTTP request to an address outside gets: the status, or the name of the error.
    pub(crate) fn fetch(&self, agent: &Agent) -> String {
        self.python(agent, "print(fetch())").trim().to_owned()
    }

    /// The same in the network of any process, as a process of `cgroup`.
    pub(crate) fn fetch_in(&self, network_of: u32, cgroup: &Path) -> String {
        let mut python = self.python_in(network_of, cgroup, &[], "print(fetch())");
        finish(python.stdin(Stdio::null())).success().trim().to_owned()
    }

    /// Waits until requests of `agent` are answered by the gateway.
    pub(crate) fn served(&self, agent: &Agent) {
        wait_for("the agent is served", || (self.fetch(agent) == SERVED).then_some(()));
    }

    /// Gives the network of `agent` a device `out0` with a way out, whose other end `host0` is the host's. IPv6 and ARP
    /// are off: every frame is an agent's.
    pub(crate) fn give_device(&self, agent: &Agent) {
        let script = format!(
            "set -e
            ip link add host0 type veth peer name out0 netns {0}
            sysctl -qw net.ipv6.conf.host0.disable_ipv6=1
            ip link set host0 up
            nsenter -t {0} -n sh -c '
            sysctl -qw net.ipv6.conf.out0.disable_ipv6=1
            ip link set out0 arp off
            ip addr add 203.0.113.200/24 dev out0
            ip link set out0 up
            ip route add default via 203.0.113.1 dev out0'",
            agent.pid()
        );
        finish(&mut self.host.plain(["sh", "-c", &script])).success();
    }

    /// How many frames have come out of that device.
    pub(crate) fn frames(&self) -> u64 {
        let devices = finish(&mut self.host.plain(["cat", "/proc/net/dev"])).success();
        let line = devices.lines().find_map(|line| line.trim().strip_prefix("host0:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Land {
    /// The hierarchy is the machine's: nothing may stay in it.
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.base.join("cgroup.kill"), "1") {
            println!("{}: {error}", self.base.display());
        }
        let deadline = std::time::Instant::now() + PATIENCE;
        while remove_tree(&self.base).is_err() && std::time::Instant::now() < deadline {
            std::thread::park_timeout(std::time::Duration::from_millis(10));
        }
    }
}

/// A process that keeps a network namespace, ended when it is dropped.
pub(crate) struct Agent {
    run: Running,
    cgroup: PathBuf,
}

impl Agent {
    pub(crate) fn pid(&self) -> u32 {
        self.run.pid()
    }
}

/// What every probe starts with.
const PRELUDE: &str = r#"
import errno, os, select, socket, sys, time
def fetch(address=('203.0.113.9', 80)):
    try:
        with socket.create_connection(address, 10) as s:
            s.sendall(b'GET / HTTP/1.1\r\nHost: 203.0.113.9\r\nConnection: close\r\n\r\n')
            return s.recv(1000).split(b' ')[1].decode()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except IndexError:
        return 'closed'
def error_of(call):
    try:
        call()
        return 'done'
    except OSError as error:
        return errno.errorcode[error.errno]
"#;

/// Where the cgroup v2 hierarchy is mounted.
pub(crate) fn hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2");
    PathBuf::from(mount.split(' ').nth(4).unwrap())
}

/// The kernel's id of a cgroup.
pub(crate) fn id_of(cgroup: &Path) -> u64 {
    fs::metadata(cgroup).unwrap().ino()
}

/// Kills what is in a cgroup and removes it.
pub(crate) fn destroy(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.kill"), "1").unwrap();
    wait_for("the cgroup is gone", || remove_tree(cgroup).ok());
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// Seconds of the clock that Python calls `time.monotonic`.
pub(crate) fn monotonic() -> f64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    std::time::Duration::from(now).as_secs_f64()
}

/// How a command that cannot go on ended: what it said.
pub(crate) fn failed(finished: &Finished) -> &str {
    assert!(!finished.status.success(), "{finished:?}");
    &finished.stderr
}
