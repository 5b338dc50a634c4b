//! A world of its own for each test: a machine that Tollgate runs on, and an internet. Neither has a way out.
//!
//! ```text
//! host (network, mounts) ── wan 203.0.113.1 ═══ veth ═══ wan 203.0.113.2 ── internet
//!   tollgate run -- agent                                                   DNS, origins, frame counter
//! ```
//!
//! Nothing in it has a name outside, so that any number of worlds live side by side, and all of it ends with the
//! threads that hold it.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use serde_json::Value;
use tempfile::TempDir;

use super::names::Names;
use super::origin::{self, Identity, Manner, Origin, TestCa};
use super::place::Place;
use super::running::{Ended, Running};
use super::wire::{Frame, Wire};
use super::{is_privileged, wait_for, wait_until};

/// The machine's address on the wire.
pub(crate) const HOST: &str = "203.0.113.1";
/// The internet's first address: DNS, and nobody else.
pub(crate) const INTERNET: &str = "203.0.113.2";
/// An address of the internet that nobody may talk to.
pub(crate) const FORBIDDEN_V4: &str = "203.0.113.99";
/// The same in IPv6.
pub(crate) const FORBIDDEN_V6: &str = "2001:db8::99";
/// An address in the internet that is private.
pub(crate) const PRIVATE: &str = "10.0.0.7";

/// How many origins a world has room for.
const ORIGINS: u8 = 40;

/// See the module. The order of the fields is the order of their end.
pub(crate) struct World {
    wire: Wire,
    pub(crate) host: Place,
    internet: Place,
    pub(crate) names: Names,
    ca: Arc<TestCa>,
    origins: AtomicUsize,
    outputs: AtomicUsize,
    markers: AtomicU16,
    audit_read: Mutex<usize>,
    directory: TempDir,
}

impl World {
    /// Builds it; `None` where that is not possible and nobody insists.
    pub(crate) fn new() -> Option<Self> {
        if !is_privileged() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let internet = Place::new("internet", CloneFlags::CLONE_NEWNET);
        let wire = internet.run(Wire::tap);
        let host = Place::new("host", CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS);
        let peer = internet.network.clone();
        host.run(move || furnish_host(&peer));
        internet.run(furnish_internet);
        let server = SocketAddr::new(INTERNET.parse().unwrap(), 53);
        let names = internet.run(move || Names::serve(server));
        let ca = TestCa::new();
        fs::write(directory.path().join("roots.pem"), &ca.pem).unwrap();
        Some(Self {
            wire,
            host,
            internet,
            names,
            ca: Arc::new(ca),
            origins: AtomicUsize::new(0),
            outputs: AtomicUsize::new(0),
            markers: AtomicU16::new(20_000),
            audit_read: Mutex::new(0),
            directory,
        })
    }

    /// A file or folder of this world.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the configuration: `text` after the sections that every test shares.
    pub(crate) fn configure(&self, text: &str) {
        self.configure_permitting(&super::waivers::permit_everything(), text);
    }

    /// The same with waivers of one's own.
    pub(crate) fn configure_permitting(&self, permit: &str, text: &str) {
        let text = format!(
            "[gateway]\nstate_dir = \"state\"\naudit = \"audit.jsonl\"\n\
             [discover]\npermit = {permit}\n\
             [upstream]\nca_files = [\"roots.pem\"]\nresolvers = [\"{INTERNET}:53\"]\n{text}"
        );
        fs::write(self.path("tollgate.toml"), text).unwrap();
    }

    /// Writes a secret and returns the path of its file.
    pub(crate) fn secret(&self, name: &str, value: &str) -> String {
        let path = self.path(name);
        let mut options = File::options();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
        writeln!(file, "{value}").unwrap();
        path.display().to_string()
    }

    /// A well-behaved name on the internet.
    pub(crate) fn origin(&self, name: &str) -> Origin {
        self.origin_that(name, Identity::Trusted, Manner::Http)
    }

    /// A name on the internet, of whatever manners.
    pub(crate) fn origin_that(&self, name: &str, identity: Identity, manner: Manner) -> Origin {
        let number = u8::try_from(self.origins.fetch_add(1, Ordering::SeqCst)).unwrap();
        assert!(number < ORIGINS, "too many origins");
        let v4 = Ipv4Addr::new(203, 0, 113, 10 + number);
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10 + u16::from(number));
        self.names.set(name, &[v4.into(), v6.into()]);
        let (ca, name) = (Arc::clone(&self.ca), name.to_owned());
        self.internet.run(move || origin::start(&ca, &name, (v4, v6), identity, manner))
    }

    /// Runs `work` in the internet, inside its runtime.
    pub(crate) fn in_internet<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.internet.run(work)
    }

    /// Starts a command as an agent.
    pub(crate) fn start(&self, agent: &str, command: &[&str]) -> Running {
        self.start_with(agent, &[], command)
    }

    /// Starts a command as an agent; Tollgate and the command get these variables too.
    pub(crate) fn start_with(
        &self,
        agent: &str,
        variables: &[(&str, &str)],
        command: &[&str],
    ) -> Running {
        let config = self.path("tollgate.toml");
        let config = config.to_str().unwrap();
        let own = [env!("CARGO_BIN_EXE_tollgate"), "run", "--agent", agent, "--config", config];
        let all: Vec<&str> = own.into_iter().chain(["--"]).chain(command.iter().copied()).collect();
        self.start_ungoverned(variables, &all)
    }

    /// Runs a command as an agent to its end.
    pub(crate) fn run(&self, agent: &str, command: &[&str]) -> Ended {
        self.start(agent, command).wait()
    }

    /// Starts a command on the same machine without Tollgate: what it would do if nobody stopped it.
    pub(crate) fn start_ungoverned(&self, variables: &[(&str, &str)], command: &[&str]) -> Running {
        let number = self.outputs.fetch_add(1, Ordering::SeqCst);
        let (out, err) = (self.path(&format!("{number}.out")), self.path(&format!("{number}.err")));
        // It ends with this world, however that ends.
        let mut start = Command::new("setpriv");
        start.args(["--pdeathsig", "KILL"]).args(command);
        start.env_clear().env("HOME", self.directory.path());
        start.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        start.envs(variables.iter().copied()).current_dir(self.directory.path());
        start.stdin(Stdio::null());
        start.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let child = self.host.run(move || start.spawn().expect("the command starts"));
        Running::new(child, out, err)
    }

    /// Every whole line of the audit log.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("audit.jsonl")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    }

    /// The records of one kind.
    pub(crate) fn audit_of(&self, kind: &str) -> Vec<Value> {
        self.audit().into_iter().filter(|record| record["kind"] == kind).collect()
    }

    /// The `request` records since the last call; there must be exactly `count`.
    #[track_caller]
    pub(crate) fn new_requests(&self, count: usize) -> Vec<Value> {
        let mut read = self.audit_read.lock().unwrap();
        let due = *read + count;
        let records = wait_for("the audit log has its records", || {
            let records = self.audit_of("request");
            (records.len() >= due).then_some(records)
        });
        assert_eq!(records.len(), due, "one record per request: {records:#?}");
        let new = records[*read..].to_vec();
        *read = due;
        new
    }

    /// How many frames of this kind have arrived in the internet, everything counted that was sent before this call.
    pub(crate) fn arrived(&self, matches: impl Fn(&Frame) -> bool) -> usize {
        let port = self.markers.fetch_add(1, Ordering::SeqCst);
        let internet: IpAddr = INTERNET.parse().unwrap();
        // Frames stay in order on the wire: what was sent before the marker has been counted when the marker has.
        wait_until("a marker arrives", || {
            let sent = self.host.run(move || {
                let socket = std::net::UdpSocket::bind((HOST, 0)).unwrap();
                socket.send_to(b"marker", (internet, port)).is_ok()
            });
            sent && self.wire.count(|frame| frame.to == internet && frame.port == port) > 0
        });
        self.wire.count(matches)
    }

    /// How many frames have arrived for one address.
    pub(crate) fn arrived_at(&self, address: &str) -> usize {
        let address: IpAddr = address.parse().unwrap();
        self.arrived(|frame| frame.to == address)
    }
}

impl Drop for World {
    /// A run whose Tollgate had to be killed leaves a cgroup behind, which the next start sweeps. There is a next start
    /// only here: nobody else sees this world's run directories.
    fn drop(&mut self) {
        let has_leftovers = || {
            // A daemon leaves its lock and its socket there.
            let is_run = |entry: fs::DirEntry| {
                entry.file_name().to_str().is_some_and(|name| name.starts_with("run-"))
            };
            let is_some =
                move || fs::read_dir("/run/tollgate").is_ok_and(|runs| runs.flatten().any(is_run));
            self.host.run(is_some)
        };
        if has_leftovers() {
            self.configure("[[agent]]\nname = \"sweeper\"\n");
            let swept = self.run("sweeper", &["true"]);
            if swept.code != Some(0) || has_leftovers() {
                eprintln!("a world leaves runs behind: {swept:?}");
            }
        }
    }
}

fn furnish_host(peer: &Path) {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    // Run directories and pins of this world alone.
    for (kind, target) in [("tmpfs", "/run"), ("bpf", "/sys/fs/bpf")] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>).unwrap();
    }
    ip(&format!(
        "link set lo up
         link add wan type veth peer name wan netns {}
         address add {HOST}/24 dev wan
         address add 10.0.0.1/24 dev wan
         address add 2001:db8::1/64 dev wan nodad
         link set wan up",
        peer.display()
    ));
}

fn furnish_internet() {
    let mut lines = format!(
        "link set lo up
         link set wan up
         address add {INTERNET}/24 dev wan
         address add {FORBIDDEN_V4}/24 dev wan
         address add {FORBIDDEN_V6}/64 dev wan nodad
         address add {PRIVATE}/24 dev wan\n"
    );
    for number in 0..u16::from(ORIGINS) {
        let (v4, v6) = (10 + number, 0x10 + number);
        lines += &format!("address add 203.0.113.{v4}/24 dev wan\n");
        lines += &format!("address add 2001:db8::{v6:x}/64 dev wan nodad\n");
    }
    ip(&lines);
}

/// Runs `ip` in the calling thread's namespace, one command a line.
fn ip(lines: &str) {
    let mut ip = Command::new("ip");
    let mut child = ip.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip is there");
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip: {lines}");
}
