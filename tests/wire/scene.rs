//! A workload on a bridge, as an engine makes it, and a machine beside it.
//!
//! ```text
//! workload ── eth1 10.9.0.11 ═══ w1 ─┐
//!             eth2 10.9.0.12 ═══ w2 ─┼─ br0 10.9.0.1 ── n0 ═══ n0 10.9.0.3, 10.9.0.4 ── neighbour
//!                                   host
//! ```

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use gateway::capture::{Cgroup, CgroupRoot, HeldProcess, Namespace, Netlink};
use nix::sched::CloneFlags;

use crate::common::place::Place;
use crate::common::running::{Ended, Running};
use crate::common::world::World;
use crate::common::{wait_for, wait_until};
use crate::tap::Tap;

/// The machine beside the workload.
pub(crate) const NEIGHBOUR: &str = "10.9.0.3";

/// See the module. The order of the fields is the order of their end.
pub(crate) struct Scene {
    daemon: Option<Running>,
    workload: Option<Running>,
    cgroup: Leftover,
    pub(crate) tap: Tap,
    pub(crate) neighbour: Place,
    markers: AtomicU16,
    pub(crate) world: World,
}

/// A cgroup that goes with the scene.
struct Leftover(PathBuf);

impl Drop for Leftover {
    fn drop(&mut self) {
        for path in [self.0.clone(), self.0.parent().unwrap().to_owned()] {
            wait_until("the cgroup is empty", || !path.exists() || fs::remove_dir(&path).is_ok());
        }
    }
}

static SCENES: AtomicU16 = AtomicU16::new(0);

impl Scene {
    /// Builds it, with a workload that nobody governs yet; `agent` are further keys of its agent.
    pub(crate) fn new(agent: &str) -> Option<Self> {
        let world = World::new()?;
        let number = SCENES.fetch_add(1, Ordering::SeqCst);
        let name = format!("wire-{}-{number}", std::process::id());
        let cgroup = CgroupRoot::find().unwrap().mount().join(&name).join("agent");
        fs::create_dir_all(&cgroup).unwrap();
        world.configure(&format!(
            "[[agent]]\nname = \"worker\"\nmatch = {{ cgroup = \"/{name}/*\" }}\n{agent}\n"
        ));
        let neighbour = Place::new("neighbour", CloneFlags::CLONE_NEWNET);
        let tap = neighbour.run(Tap::here);
        let there = neighbour.network.clone();
        world.host.run(move || {
            ip(&format!(
                "link add br0 type bridge
                 link set br0 type bridge mcast_snooping 0
                 address add 10.9.0.1/24 dev br0
                 link set br0 up
                 link add n0 type veth peer name n0 netns {}
                 link set n0 master br0 up",
                there.display()
            ));
        });
        neighbour.run(|| {
            ip("link set lo up
                address add 10.9.0.3/24 dev n0
                address add 10.9.0.4/24 dev n0
                link set n0 up");
        });
        let mut scene = Self {
            daemon: None,
            workload: None,
            cgroup: Leftover(cgroup),
            tap,
            neighbour,
            markers: AtomicU16::new(30_000),
            world,
        };
        scene.start_workload();
        Some(scene)
    }

    fn start_workload(&mut self) {
        let enter = format!(
            "echo $$ > {}/cgroup.procs && exec unshare --net sh -c \
             'ip link set lo up; sysctl -qw net.ipv4.ping_group_range=\"0 2147483647\"; echo up; exec sleep 1000'",
            self.cgroup.0.display()
        );
        let mut workload = self.world.start_ungoverned(&[], &["sh", "-c", &enter]);
        workload.wait_until_printed("up");
        self.workload = Some(workload);
    }

    /// The workload's network namespace.
    pub(crate) fn namespace(&self) -> Namespace {
        HeldProcess::of(self.workload.as_ref().unwrap().pid()).unwrap().network().unwrap().unwrap()
    }

    /// A process of the workload.
    pub(crate) fn workload_pid(&self) -> nix::unistd::Pid {
        self.workload.as_ref().unwrap().pid()
    }

    /// The workload's cgroup.
    pub(crate) fn open_cgroup(&self) -> Cgroup {
        CgroupRoot::find().unwrap().open(&self.cgroup.0).unwrap()
    }

    /// Starts the daemon and waits until it governs the workload.
    pub(crate) fn govern(&mut self) {
        let config = self.world.path("tollgate.toml");
        let words =
            [env!("CARGO_BIN_EXE_tollgate"), "daemon", "--config", config.to_str().unwrap()];
        let mut daemon = self.world.start_ungoverned(&[("TOLLGATE_LOG", "info")], &words);
        wait_for("the workload is governed", || {
            let said = daemon.stderr();
            assert!(!daemon.has_ended(), "the daemon has ended: {said}");
            said.contains(" governed ").then_some(())
        });
        self.daemon = Some(daemon);
    }

    /// Whether there is a daemon.
    pub(crate) fn is_governed(&self) -> bool {
        self.daemon.is_some()
    }

    /// What the daemon has complained of.
    pub(crate) fn complaints(&self) -> String {
        self.daemon.as_ref().map(Running::stderr).unwrap_or_default()
    }

    /// Takes the agent out of the configuration, and waits until the daemon has let its workload go.
    pub(crate) fn disown(&self) {
        self.world.configure("[[agent]]\nname = \"other\"\nmatch = { cgroup = \"/nobody-s\" }\n");
        let daemon = self.daemon.as_ref().unwrap();
        nix::sys::signal::kill(daemon.pid(), nix::sys::signal::Signal::SIGHUP).unwrap();
        wait_until("it is let go", || daemon.stderr().contains(" released "));
    }

    /// Starts a second process of the workload's cgroup in a network namespace of its own.
    pub(crate) fn start_elsewhere(&self, script: &str) -> Running {
        let enter = format!(
            "echo $$ > {}/cgroup.procs && exec unshare --net sh -c '{script}'",
            self.cgroup.0.display()
        );
        self.world.start_ungoverned(&[], &["sh", "-c", &enter])
    }

    /// Starts a process of the workload's cgroup in the host's network, with all rights, for which the workload is closed.
    pub(crate) fn spoil(&self) -> Running {
        let enter = format!(
            "echo $$ > {}/cgroup.procs && echo up && exec sleep 1000",
            self.cgroup.0.display()
        );
        let mut spoiler = self.world.start_ungoverned(&[], &["sh", "-c", &enter]);
        spoiler.wait_until_printed("up");
        wait_until("it is closed", || self.complaints().contains("not governed: its process"));
        spoiler
    }

    /// Kills the daemon: no way out of its own.
    pub(crate) fn kill_daemon(&mut self) {
        let daemon = self.daemon.take().unwrap();
        nix::sys::signal::kill(daemon.pid(), nix::sys::signal::Signal::SIGKILL).unwrap();
        daemon.wait();
    }

    /// Gives the workload the interface `eth<number>` by the steps of an engine: a pair on the host, one end on the
    /// bridge, the other moved, named, addressed, set up.
    pub(crate) fn add_interface(&self, number: u8) {
        self.make_pair(number);
        self.move_pair(number);
    }

    /// The steps on the host.
    pub(crate) fn make_pair(&self, number: u8) {
        self.world.host.run(move || {
            ip(&format!(
                "link add w{number} type veth peer name t{number} address 02:77:00:00:00:{number:02x}
                 link set w{number} master br0 up"
            ));
        });
    }

    /// The steps in the workload's namespace, as fast as they can be made.
    pub(crate) fn move_pair(&self, number: u8) {
        let namespace = self.namespace();
        self.world.host.run(move || {
            let mut here = Netlink::here().unwrap();
            let mut there = Netlink::of(&namespace).unwrap();
            let address: IpAddr = format!("10.9.0.{}", 10 + number).parse().unwrap();
            let (old, new) = (format!("t{number}"), format!("eth{number}"));
            let pair = here.link_named(&old).unwrap().unwrap();
            here.move_to(pair.index, &namespace).unwrap();
            let pair = there.link_named(&old).unwrap().unwrap();
            there.rename(pair.index, &new).unwrap();
            there.add_address(pair.index, address, 24).unwrap();
            there.set_up(pair.index, true).unwrap();
        });
    }

    /// Runs `ip` on the host, one command a line.
    pub(crate) fn on_host(&self, lines: &str) {
        let lines = lines.to_owned();
        self.world.host.run(move || ip(&lines));
    }

    /// Starts Python in the workload.
    pub(crate) fn start(&self, code: &str) -> Running {
        self.start_in(self.workload.as_ref().unwrap(), ":", code)
    }

    /// First the network, then the cgroup: no process of it is in the host's network even for a moment.
    fn start_in(&self, process: &Running, before: &str, code: &str) -> Running {
        let target = process.pid().to_string();
        let script = format!(
            "echo $$ > {}/cgroup.procs && {before} && exec python3 -c \"$1\"",
            self.cgroup.0.display(),
        );
        let code = format!("{PRELUDE}\n{code}");
        let words = ["nsenter", "-t", &target, "--net", "--", "sh", "-c", &script, "sh", &code];
        self.world.start_ungoverned(&[], &words)
    }

    /// Runs a command and then Python in the network of another process of the workload; both must end well.
    pub(crate) fn inside_of(&self, process: &Running, before: &str, code: &str) {
        self.start_in(process, before, code).wait().ok();
    }

    /// Runs Python in the workload to its end; it must end well.
    #[track_caller]
    pub(crate) fn inside(&self, code: &str) -> String {
        let ended: Ended = self.start(code).wait();
        ended.ok().to_owned()
    }

    /// Waits until the neighbour has got everything that was sent to it before.
    pub(crate) fn settle(&self) {
        let port = self.markers.fetch_add(1, Ordering::SeqCst);
        let mark = format!("marker-{port}-");
        let text = mark.clone();
        wait_until("a marker arrives", || {
            let text = text.clone();
            self.world.host.run(move || {
                let socket = std::net::UdpSocket::bind(("10.9.0.1", 0)).unwrap();
                // Until ARP is answered, it waits.
                socket.send_to(text.as_bytes(), (NEIGHBOUR, port)).is_ok()
            });
            self.tap.count(|frame| holds(frame, mark.as_bytes())) > 0
        });
    }

    /// Every frame of the workload that the neighbour has got.
    pub(crate) fn escaped(&self) -> Vec<Vec<u8>> {
        self.settle();
        self.tap.workloads()
    }

    /// A server on the neighbour that answers every connection with `hello`.
    pub(crate) fn serve(&self, address: &str, port: u16) {
        let address: IpAddr = address.parse().unwrap();
        self.neighbour.run(move || {
            let listener = std::net::TcpListener::bind((address, port)).unwrap();
            listener.set_nonblocking(true).unwrap();
            tokio::spawn(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((mut stream, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        use tokio::io::AsyncWriteExt as _;
                        drop(stream.write_all(b"hello").await);
                    });
                }
            });
        });
    }

    /// Whether the neighbour can connect to an address.
    pub(crate) fn connects(&self, address: &str, port: u16) -> bool {
        let to = SocketAddr::new(address.parse().unwrap(), port);
        self.neighbour.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok())
    }

    /// The audit records with this reason.
    pub(crate) fn records(&self, reason: &str) -> Vec<String> {
        let records = self.world.audit();
        let ours = records.iter().filter(|record| record["reason"] == reason);
        ours.map(|record| record["detail"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

/// What the probes share.
const PRELUDE: &str = "
import errno, fcntl, os, socket, struct, sys, time
def tcp(host, port, timeout=4):
    try:
        with socket.create_connection((host, port), timeout) as s:
            return s.recv(100).decode() or 'closed'
    except OSError as error:
        return errno.errorcode.get(error.errno, 'TIMEOUT') if error.errno else 'TIMEOUT'
def packet():
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    s.setsockopt(263, 20, 1)
    return s
def mac(name):
    with socket.socket() as s:
        return fcntl.ioctl(s, 0x8927, struct.pack('256s', name.encode()))[18:24]
";

/// Whether `needle` is in `frame`.
pub(crate) fn holds(frame: &[u8], needle: &[u8]) -> bool {
    frame.windows(needle.len()).any(|window| window == needle)
}

/// Runs `ip` in the calling thread's namespace, one command a line.
pub(crate) fn ip(lines: &str) {
    let mut ip = Command::new("ip");
    let mut child = ip.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip is there");
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip: {lines}");
}
