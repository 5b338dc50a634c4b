//! A Python process that waits, tries something, and stays until its attempt is in the audit.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::tollgate::{
    AGENT, Host, Running, TOLLGATE, cgroup_of, finish, processes_in, run_name, wait_for,
};

/// What every probe can say and do.
const PRELUDE: &str = r#"
import ctypes, errno, os, socket, struct, subprocess, time
def named(name): ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
def tried(what):
    try: what(); print("DONE", flush=True)
    except OSError as error: print(errno.errorcode.get(error.errno, error), flush=True)
def mark(name): open(name, "w").close()
def wait(name):
    while not os.path.exists(name): time.sleep(0.01)
named(b"probe"); mark("up"); wait("go")
out0 = next((i for i, name in socket.if_nameindex() if name == "out0"), 0); open("ifindex", "w").write(str(out0))
"#;

const MARKS: [&str; 5] = ["up", "go", "ifindex", "done", "end"];

pub(crate) struct Probe<'a> {
    host: &'a Host,
    run: Running,
    daemon: Option<Daemon>,
    /// As the host numbers it.
    pub(crate) pid: u32,
    /// The workload's cgroup; 0 without one.
    pub(crate) cgroup: u64,
}

impl<'a> Probe<'a> {
    /// As the agent's command.
    pub(crate) fn governed(host: &'a Host, code: &str) -> Self {
        let program = program(host, code);
        let mut run = host.run(&["python3", "-c", &program]);
        let run = Running::start(run.stdin(Stdio::null()));
        is_up(host);
        let cgroup = cgroup_of(&run_name(run.pid()));
        let is_probe = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "probe\n")
        };
        let pid = processes_in(&cgroup).into_iter().find(is_probe).expect("the probe is there");
        Self { host, run, daemon: None, pid, cgroup: fs::metadata(cgroup).unwrap().ino() }
    }

    /// In a network namespace like a workload's, without Tollgate.
    pub(crate) fn free(host: &'a Host, code: &str) -> Self {
        let script = "ip link set lo up; exec python3 -c \"$1\"";
        let program = program(host, code);
        let mut free = host.plain(["unshare", "--net", "sh", "-c", script, "sh", &program]);
        let run = Running::start(free.stdin(Stdio::null()));
        is_up(host);
        let pid = run.pid();
        Self { host, run, daemon: None, pid, cgroup: 0 }
    }

    /// In a cgroup and a network namespace of its own, as a container is, for a daemon to find.
    pub(crate) fn contained(host: &'a Host, code: &str) -> Self {
        let cgroup = Daemon::make_cgroup();
        let script = format!(
            "ip link set lo up; echo $$ > {}/cgroup.procs; exec python3 -c \"$1\"",
            cgroup.display()
        );
        let program = program(host, code);
        let mut contained = host.plain(["unshare", "--net", "sh", "-c", &script, "sh", &program]);
        let run = Running::start(contained.stdin(Stdio::null()));
        is_up(host);
        let (pid, id) = (run.pid(), fs::metadata(&cgroup).unwrap().ino());
        Self { host, run, daemon: Some(Daemon { cgroup, running: None }), pid, cgroup: id }
    }

    /// Starts the daemon that governs the probe, and waits until it does.
    pub(crate) fn govern(mut self) -> Self {
        let daemon = self.daemon.as_mut().expect("it is contained");
        let parent = daemon.cgroup.parent().unwrap().file_name().unwrap().to_str().unwrap();
        self.host.configure(&format!("match = {{ cgroup = \"/{parent}/*\" }}\n"));
        let config = self.host.config();
        let words = [TOLLGATE, "daemon", "--config", config.to_str().unwrap()];
        let mut start = self.host.plain(words);
        daemon.running = Some(Running::start(start.stdin(Stdio::null())));
        // 10255, listening (proc_pid_net(5)).
        wait_for("the gateway's listener", || {
            let sockets = fs::read_to_string(format!("/proc/{}/net/tcp", self.pid)).unwrap();
            sockets.contains("0100007F:280F 00000000:0000 0A").then_some(())
        });
        self
    }

    /// Moves it to a cgroup that its daemon finds only now, and so has programs ready for.
    pub(crate) fn move_to_a_later_cgroup(&mut self) {
        let daemon = self.daemon.as_mut().expect("it is contained");
        let later = daemon.cgroup.with_file_name("later");
        fs::create_dir(&later).unwrap();
        self.cgroup = fs::metadata(&later).unwrap().ino();
        let last_pin = format!(
            "/proc/{}/root/sys/fs/bpf/tollgate/cg-{}/tollgate_connect6",
            daemon.running.as_ref().expect("it is governed").pid(),
            self.cgroup
        );
        wait_for("the later cgroup is closed", || Path::new(&last_pin).exists().then_some(()));
        fs::write(later.join("cgroup.procs"), self.pid.to_string()).unwrap();
        let former = std::mem::replace(&mut daemon.cgroup, later);
        fs::remove_dir(former).unwrap();
    }

    /// Puts a device `out0` with an address and a default route into the probe's network namespace, whose other end
    /// `host0` is on the host. Without ARP and IPv6 every frame is the probe's.
    pub(crate) fn give_device(self) -> Self {
        let script = format!(
            "set -e
            ip link add host0 type veth peer name out0 netns {pid}
            nsenter -t {pid} -n sysctl -qw net.ipv6.conf.out0.disable_ipv6=1
            sysctl -qw net.ipv6.conf.host0.disable_ipv6=1
            ip address add 203.0.113.1/24 dev host0
            ip link set host0 up
            nsenter -t {pid} -n sh -c '
            ip link set out0 arp off
            ip address add 203.0.113.200/24 dev out0
            ip link set out0 up
            ip route add default via 203.0.113.1 dev out0'
            mac=$(nsenter -t {pid} -n ip -o link show out0 | sed 's/.*ether \\([^ ]*\\).*/\\1/')
            ip neigh replace 203.0.113.200 lladdr $mac dev host0",
            pid = self.pid
        );
        finish(&mut self.host.plain(["sh", "-c", &script])).success();
        self
    }

    /// Lets it try, and waits until it has.
    pub(crate) fn go(&self) {
        self.mark("go");
        wait_for("the attempt", || self.host.folder().join("done").exists().then_some(()));
    }

    pub(crate) fn mark(&self, name: &str) {
        fs::write(self.host.folder().join(name), "").unwrap();
    }

    /// Waits until the audit has `count` records of the class, and returns them.
    #[track_caller]
    pub(crate) fn records(&self, vector: &str, count: usize) -> Vec<Value> {
        wait_for(&format!("{count} records of {vector}"), || {
            let found = records(self.host, vector);
            (found.len() >= count).then_some(found)
        })
    }

    /// Index of `out0`.
    pub(crate) fn device(&self) -> u64 {
        fs::read_to_string(self.host.folder().join("ifindex")).unwrap().parse().unwrap()
    }

    /// Checks everything that the record says of whoever tried.
    #[track_caller]
    pub(crate) fn is_named_in(&self, record: &Value) {
        let process = &record["process"];
        assert_eq!(process["pid"], self.pid, "{record}");
        assert_eq!(process["comm"], "probe", "{record}");
        assert!(process["exe"].as_str().is_some_and(|exe| exe.contains("python")), "{record}");
        assert_eq!(record["cgroup"], self.cgroup, "{record}");
        assert_eq!((&record["agent"], &record["kind"]), (&AGENT.into(), &"kernel".into()));
        assert_eq!(record["reason"], "kernel_refused", "{record}");
        assert_eq!(record["decision"], "block", "{record}");
        let is_run = record["workload"].as_str().unwrap().starts_with("run-");
        assert_eq!(is_run, self.daemon.is_none(), "{record}");
    }

    /// Ends it, and returns what it said.
    pub(crate) fn finish(self) -> String {
        self.mark("end");
        let said = self.run.finish().success();
        drop(self.daemon);
        for mark in MARKS {
            if let Err(error) = fs::remove_file(self.host.folder().join(mark)) {
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
            }
        }
        said
    }

    /// Stops what governs it, and waits until the last record is written.
    pub(crate) fn release(&mut self) {
        self.daemon.as_mut().expect("it is contained").running = None;
    }

    /// Process id of Tollgate, or of the free probe.
    pub(crate) fn parent(&self) -> u32 {
        self.run.pid()
    }
}

/// A daemon and the cgroup that it governs.
struct Daemon {
    cgroup: PathBuf,
    // Its end waits until it has ended.
    running: Option<Running>,
}

impl Daemon {
    fn make_cgroup() -> PathBuf {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let root = cgroup_of("x").ancestors().nth(2).unwrap().to_owned();
        let cgroup = root.join(format!("tg-events-{}-{number}", std::process::id())).join("probe");
        fs::create_dir_all(&cgroup).unwrap();
        cgroup
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.running.take());
        // Whoever still lives there belongs to a test that failed.
        for step in [
            fs::write(self.cgroup.join("cgroup.kill"), "1"),
            wait_for_empty(&self.cgroup),
            fs::remove_dir(&self.cgroup),
            fs::remove_dir(self.cgroup.parent().unwrap()),
        ] {
            if let Err(error) = step {
                println!("the cgroup {}: {error}", self.cgroup.display());
            }
        }
    }
}

fn wait_for_empty(cgroup: &Path) -> std::io::Result<()> {
    wait_for("the end of the cgroup's processes", || {
        let events = fs::read_to_string(cgroup.join("cgroup.events")).ok()?;
        events.contains("populated 0").then_some(())
    });
    Ok(())
}

/// The records of one class so far.
pub(crate) fn records(host: &Host, vector: &str) -> Vec<Value> {
    host.records().into_iter().filter(|record| record["vector"] == vector).collect()
}

/// How many refusals the records of one class speak of.
pub(crate) fn refusals(host: &Host, vector: &str) -> u64 {
    records(host, vector).iter().map(|record| record["count"].as_u64().unwrap_or(1)).sum()
}

fn program(host: &Host, code: &str) -> String {
    let folder = host.folder().display();
    format!("import os; os.chdir('{folder}')\n{PRELUDE}\n{code}\nmark('done'); wait('end')\n")
}

fn is_up(host: &Host) {
    wait_for("the probe", || host.folder().join("up").exists().then_some(()));
}
