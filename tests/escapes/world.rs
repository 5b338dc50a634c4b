//! A machine with a container on a bridge, as an engine lays it out, and an outside that counts frames.
//!
//! ```text
//! workload (eth0 203.0.113.10) ═ port0 ┐
//! neighbour (near0 203.0.113.5)  ══════╪═ br0 203.0.113.1 ── host ── wan 203.0.113.65 ═ far 203.0.113.66 (and .200)
//!                                      └ outside is both neighbour and far end: one namespace, two interfaces
//! ```
//!
//! IPv6 is the same with 2001:db8:1::/64 on the bridge and 2001:db8:2::/64 outside. Nothing has a way out of these
//! namespaces, and all of them end with the test.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use crate::common::place::Place;
use crate::common::running::{Ended, Running};
use crate::common::{is_privileged, wait_until};
use crate::governor::{self, Governor};
use crate::layers::{Layer, State};
use crate::tap::{Frame, Frames, Point, Tap};
use crate::workload::{Rights, Workload};

/// The workload's own addresses on `eth0`.
pub(crate) const OWN: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
/// The bridge: the workload's default gateway.
pub(crate) const GATEWAY: [&str; 2] = ["203.0.113.1", "2001:db8:1::1"];
/// Outside, on the workload's own bridge.
pub(crate) const NEAR: [&str; 2] = ["203.0.113.5", "2001:db8:1::5"];
/// Outside, behind the host.
pub(crate) const FAR: [&str; 2] = ["203.0.113.66", "2001:db8:2::66"];
/// Outside, one more address behind the host.
pub(crate) const AWAY: [&str; 2] = ["203.0.113.200", "2001:db8:3::200"];

/// Ethernet addresses: of the workload, and of everybody else.
pub(crate) const WORKLOAD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
const OTHER_MACS: [[u8; 6]; 6] = [
    [2, 0, 0, 0, 0, 0x01],
    [2, 0, 0, 0, 0, 0x05],
    [2, 0, 0, 0, 0, 0x65],
    [2, 0, 0, 0, 0, 0x66],
    [2, 0, 0, 0, 0, 0x68],
    [2, 0, 0, 0, 0, 0x69],
];

/// What a test's own frames carry to say that all before them have been counted.
const SENTINEL: &[u8] = b"tollgate-sentinel";
/// What outside answers to whoever talks to it.
pub(crate) const ANSWER: &[u8] = b"an answer from outside";

/// See the module. The order of the fields is the order of their end.
pub(crate) struct World {
    governor: Option<Governor>,
    /// A process of the workload that is there from the start: by it the daemon finds the workload's network.
    resident: Running,
    pub(crate) workload: Workload,
    _taps: Vec<Tap>,
    pub(crate) host: Place,
    pub(crate) outside: Place,
    frames: Frames,
    state: State,
    outputs: AtomicUsize,
    directory: TempDir,
}

impl World {
    /// Builds it in `state`; `None` where that is not possible and nobody insists.
    pub(crate) fn new(state: State) -> Option<Self> {
        let mut world = Self::ungoverned()?;
        world.govern(state);
        Some(world)
    }

    /// Builds it without Tollgate, which [`World::govern`] may bring later.
    pub(crate) fn ungoverned() -> Option<Self> {
        if !is_privileged() {
            return None;
        }
        let outside = Place::new("outside", CloneFlags::CLONE_NEWNET);
        let host = Place::new("host", CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS);
        host.run(furnish_mounts);
        let workload = Workload::new();
        let (there, inside) = (outside.network.clone(), workload.network.clone());
        host.run(move || furnish_host(&there, &inside));
        outside.run(furnish_outside);
        workload.furnish();
        let frames = Arc::new(Mutex::new(Vec::new()));
        let (all, ports) = (Arc::clone(&frames), Arc::clone(&frames));
        let points = [(Some("port0"), Point::Offered), (Some("br0"), Point::Bridge)];
        let taps = vec![
            outside.run(move || Tap::open(&[(None, Point::Outside)], &all)),
            host.run(move || Tap::open(&points, &ports)),
        ];
        let directory = tempfile::tempdir().unwrap();
        let mut waits = workload.command(Rights::Docker);
        waits.args(["sh", "-c", "echo up; exec sleep infinity"]);
        let mut resident = governor::spawn(&host, waits, &directory.path().join("resident"));
        resident.wait_until_printed("up");
        Some(Self {
            governor: None,
            resident,
            workload,
            _taps: taps,
            host,
            outside,
            frames,
            state: State::Off,
            outputs: AtomicUsize::new(0),
            directory,
        })
    }

    /// Brings Tollgate: returns when the workload is armed, and when the layers that `state` leaves out are gone.
    pub(crate) fn govern(&mut self, state: State) {
        assert!(self.governor.is_none(), "a world is governed once");
        self.state = state;
        if state == State::Off {
            return;
        }
        self.governor = Some(Governor::start(&self.host, &self.workload, self.directory.path()));
        self.strip(state);
    }

    /// Takes away the layers that `state` leaves out.
    pub(crate) fn strip(&mut self, state: State) {
        self.state = state;
        let pins = self.pins();
        let absent = state.absent();
        self.host.run(move || crate::layers::remove(&pins, &absent));
        self.frames.lock().unwrap().clear();
    }

    /// Ends the process by which the daemon finds the workload's network.
    pub(crate) fn end_resident(&self) {
        kill(self.resident.pid(), Signal::SIGKILL).unwrap();
        wait_until("nobody is in the cgroup", || self.workload.cgroup.is_empty());
    }

    /// Ends the daemon as `kill -9` does. What it has pinned stays.
    pub(crate) fn kill_daemon(&mut self) {
        self.governor.as_mut().expect("it is governed").kill();
    }

    /// Sends the daemon a signal.
    pub(crate) fn signal_daemon(&self, signal: Signal) {
        self.governor.as_ref().expect("it is governed").signal(signal);
    }

    /// The directory of this workload's pins, as the host sees it.
    pub(crate) fn pins(&self) -> PathBuf {
        self.workload.pins()
    }

    /// A file or folder of this world.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs an attack program of `tests/fixtures` to its end, in the workload, with Docker's default capabilities.
    pub(crate) fn attack(&self, program: &str, arguments: &[&str]) -> Ended {
        self.start(program, arguments).wait()
    }

    /// Starts an attack program of `tests/fixtures` in the workload, with Docker's default capabilities.
    pub(crate) fn start(&self, program: &str, arguments: &[&str]) -> Running {
        self.start_as(Rights::Docker, &[], program, arguments)
    }

    /// Starts an attack program of `tests/fixtures` in the workload. Python is run by its interpreter, else `program`
    /// is a path to something executable.
    pub(crate) fn start_as(
        &self,
        rights: Rights,
        variables: &[(&str, &str)],
        program: &str,
        arguments: &[&str],
    ) -> Running {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let path = fixtures.join(program);
        let python = path.extension().is_some_and(|end| end == "py").then_some("/usr/bin/python3");
        let mut command = self.workload.command(rights);
        command.args(python).arg(path).args(arguments);
        command.envs(variables.iter().copied());
        self.spawn(command)
    }

    /// Starts a command in the host's namespaces, its output collected.
    pub(crate) fn spawn(&self, mut command: Command) -> Running {
        let number = self.outputs.fetch_add(1, Ordering::SeqCst);
        command.env("WORLD", self.directory.path());
        governor::spawn(&self.host, command, &self.path(&number.to_string()))
    }

    /// Lets outside take TCP connections and datagrams on `port` of all its addresses, read what comes, and answer.
    pub(crate) fn serve_outside(&self, port: u16) {
        self.outside.run(move || crate::sink::serve(port));
    }

    /// Every frame that was sent before this call and seen at one of the three points, without those of everybody
    /// else.
    pub(crate) fn seen(&self) -> Vec<Frame> {
        self.flush();
        let frames = self.frames.lock().unwrap();
        frames.iter().filter(|frame| !self.is_background(frame)).cloned().collect()
    }

    /// Every frame that was sent before this call, those of everybody included.
    pub(crate) fn frames(&self) -> Vec<Frame> {
        self.flush();
        self.frames.lock().unwrap().clone()
    }

    /// Every frame out of the workload that has arrived, on the bridge or outside, and was sent before this call.
    pub(crate) fn arrived(&self) -> Vec<Frame> {
        self.seen().into_iter().filter(|frame| frame.at != Point::Offered).collect()
    }

    /// Waits until a frame that `matches` has arrived.
    #[track_caller]
    pub(crate) fn wait_for_frame(&self, what: &str, matches: impl Fn(&Frame) -> bool) {
        wait_until(what, || self.arrived().iter().any(&matches));
    }

    /// Fails when anything out of the workload has arrived.
    #[track_caller]
    pub(crate) fn assert_nothing_arrived(&self, after: &str) {
        let arrived = self.arrived();
        let first = &arrived[..arrived.len().min(4)];
        assert!(arrived.is_empty(), "{} frames after {after}: {first:#?}", arrived.len());
    }

    /// Frames of the other participants, and, as long as the wire is open, what the kernel itself sends of the
    /// workload's interface to keep a link.
    fn is_background(&self, frame: &Frame) -> bool {
        let mac = frame.source_mac();
        let marked = frame.contains(MARKER);
        if frame.contains(SENTINEL) {
            return true;
        }
        // What comes from the bridge's other port comes from outside; what the host forwards comes from the workload.
        let to_workload = frame.bytes.starts_with(&WORKLOAD_MAC);
        let from_outside = frame.at == Point::Bridge && mac == OTHER_MACS[1] && to_workload;
        let wire_is_open = self.state.absent().contains(&Layer::Wire) || frame.at == Point::Offered;
        from_outside
            || !marked
                && ((OTHER_MACS.contains(&mac) && frame.is_link_upkeep())
                    || (mac == WORKLOAD_MAC && wire_is_open && frame.is_link_upkeep()))
    }

    /// Returns when what was sent before has been counted: the taps see frames in the order of their arrival.
    fn flush(&self) {
        let number = self.outputs.fetch_add(1, Ordering::SeqCst);
        let text = [SENTINEL, number.to_string().as_bytes(), b";"].concat();
        let passed = |at| {
            let frames = self.frames.lock().unwrap();
            frames.iter().any(|frame| frame.at == at && frame.contains(&text))
        };
        wait_until("the taps have seen everything", || {
            let (there, here) = (text.clone(), text.clone());
            self.host.run(move || send(FAR[0], &there));
            self.outside.run(move || send(GATEWAY[0], &here));
            passed(Point::Outside) && passed(Point::Bridge)
        });
    }
}

/// Bytes that attacks put into what they send, followed by a word of their own.
pub(crate) const MARKER: &[u8] = b"escape:";

fn send(to: &str, text: &[u8]) {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // An error of an earlier datagram (nobody listens) may be reported here.
    let _sent = socket.send_to(text, (to, 9)).is_ok();
}

fn furnish_mounts() {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    // Run directories and pins of this world alone; its own view of its devices.
    for (kind, target) in [("tmpfs", "/run"), ("bpf", "/sys/fs/bpf")] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>).unwrap();
    }
}

/// Neighbours are known for good, so that nobody but the workload has to ask for them.
fn furnish_host(outside: &Path, workload: &Path) {
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(Path::new("/proc/sys/net").join(key), "1").unwrap();
    }
    ip(&format!(
        "link set lo up
         link add br0 address 02:00:00:00:00:01 type bridge mcast_snooping 0 stp_state 0
         link add port0 address 02:00:00:00:00:68 type veth peer name eth0 address 02:00:00:00:00:10 netns {workload}
         link add near0 address 02:00:00:00:00:69 type veth peer name near address 02:00:00:00:00:05 netns {outside}
         link add wan address 02:00:00:00:00:65 type veth peer name far address 02:00:00:00:00:66 netns {outside}
         link set port0 addrgenmode none master br0
         link set near0 addrgenmode none master br0
         address add 203.0.113.1/26 dev br0
         address add 2001:db8:1::1/64 dev br0 nodad
         address add 203.0.113.65/26 dev wan
         address add 2001:db8:2::1/64 dev wan nodad
         link set br0 promisc on up
         link set port0 up
         link set near0 up
         link set wan up
         route add 203.0.113.128/25 via 203.0.113.66
         route add 2001:db8:3::/64 via 2001:db8:2::66
         neigh replace 203.0.113.10 lladdr 02:00:00:00:00:10 dev br0 nud permanent
         neigh replace 2001:db8:1::10 lladdr 02:00:00:00:00:10 dev br0 nud permanent
         neigh replace 203.0.113.5 lladdr 02:00:00:00:00:05 dev br0 nud permanent
         neigh replace 2001:db8:1::5 lladdr 02:00:00:00:00:05 dev br0 nud permanent
         neigh replace 203.0.113.66 lladdr 02:00:00:00:00:66 dev wan nud permanent
         neigh replace 2001:db8:2::66 lladdr 02:00:00:00:00:66 dev wan nud permanent",
        workload = workload.display(),
        outside = outside.display(),
    ));
    // As container engines do it for published ports; a loopback address must not be a way in.
    fs::write("/proc/sys/net/ipv4/conf/br0/route_localnet", "1").unwrap();
}

fn furnish_outside() {
    ip("link set lo up
        link set near up
        link set far up
        address add 203.0.113.5/26 dev near
        address add 2001:db8:1::5/64 dev near nodad
        address add 203.0.113.66/26 dev far
        address add 203.0.113.200/32 dev far
        address add 2001:db8:2::66/64 dev far nodad
        address add 2001:db8:3::200/128 dev far nodad
        neigh replace 203.0.113.10 lladdr 02:00:00:00:00:10 dev near nud permanent
        neigh replace 2001:db8:1::10 lladdr 02:00:00:00:00:10 dev near nud permanent
        neigh replace 203.0.113.1 lladdr 02:00:00:00:00:01 dev near nud permanent
        neigh replace 2001:db8:1::1 lladdr 02:00:00:00:00:01 dev near nud permanent
        neigh replace 203.0.113.65 lladdr 02:00:00:00:00:65 dev far nud permanent
        neigh replace 2001:db8:2::1 lladdr 02:00:00:00:00:65 dev far nud permanent
        route add default via 203.0.113.65
        route add default via 2001:db8:2::1");
}

/// Runs `ip` in the calling thread's namespace, one command a line.
pub(crate) fn ip(lines: &str) {
    let mut ip = Command::new("ip");
    let mut child = ip.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip is there");
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip: {lines}");
}
