//! A daemon and its two workloads: `flood` does what a test says, `calm` asks for one page whenever it is told to.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use std::time::{Duration, Instant};

use gateway::capture::Way;
use serde_json::Value;

use crate::common::origin::Origin;
use crate::common::running::{Ended, Running};
use crate::common::world::World;
use crate::common::{PATIENCE, wait_for};

/// The order of the fields is the order of their end: workloads, their cgroups, the gateway, its world.
pub(crate) struct Pair {
    flood: Option<Running>,
    calm: Running,
    _cgroups: Cgroups,
    pub(crate) daemon: Running,
    pub(crate) origin: Origin,
    asked: AtomicUsize,
    pub(crate) world: World,
}

/// Two cgroups that the daemon's configuration names.
struct Cgroups(PathBuf);

const SHARED: &str = include_str!("../fixtures/quotas.py");

const CALM: &str = r#"
import itertools
until_governed(); say("ready")
for n in itertools.count():
    wait("calm%d" % n)
    begun = time.monotonic()
    say("served", n, get()[0], time.monotonic() - begun)
"#;

impl Pair {
    /// Starts both; `flood` runs `script` once it is governed. `None` where that is not possible and nobody insists.
    pub(crate) fn new(script: &str) -> Option<Self> {
        Self::with_rate(script, Way::CONNECTS_PER_SECOND.get())
    }

    /// The same where each workload may make as many connections a second.
    pub(crate) fn with_rate(script: &str, connects_per_second: u32) -> Option<Self> {
        let world = World::new()?;
        let origin = world.origin("origin.test");
        let cgroups = Cgroups::new();
        let name = cgroups.0.file_name().unwrap().to_str().unwrap();
        world.configure(&format!(
            "[[agent]]\nname = \"flood\"\nmatch = {{ cgroup = \"/{name}/flood\" }}\n\
             [[agent]]\nname = \"calm\"\nmatch = {{ cgroup = \"/{name}/calm\" }}\n\
             [[rule]]\nname = \"origin\"\nhosts = [\"{}\"]\npaths = [\"/\", \"/silent\", \"/held\"]\n\
             action = \"allow\"\n",
            origin.v4
        ));
        let config = world.path("tollgate.toml");
        let text = fs::read_to_string(&config).unwrap();
        let rate = format!("[gateway]\nconnects_per_second = {connects_per_second}\n");
        fs::write(&config, text.replace("[gateway]\n", &rate)).unwrap();
        let config = config.display().to_string();
        let daemon = [env!("CARGO_BIN_EXE_tollgate"), "daemon", "--config", &config];
        let daemon = world.start_ungoverned(&[], &daemon);
        wait_for("the CA", || world.path("state/ca.pem").exists().then_some(()));
        let start = |agent: &str, script: &str| {
            let cgroup = cgroups.0.join(agent).display().to_string();
            let ca = world.path("state/ca.pem").display().to_string();
            let folder = world.path(".").display().to_string();
            let code = format!("{SHARED}\n{script}");
            let enter =
                "ip link set lo up && echo $$ > \"$0/cgroup.procs\" && exec python3 -c \"$@\"";
            let (address, words) = (origin.v4.to_string(), ["unshare", "--net", "sh", "-c", enter]);
            let rest = [cgroup.as_str(), code.as_str(), address.as_str(), ca.as_str(), &folder];
            world.start_ungoverned(&[], &[&words[..], &rest[..]].concat())
        };
        let calm = start("calm", CALM);
        let said =
            |daemon: &Running, calm: &Running| format!("{}\n{}", daemon.stderr(), calm.stderr());
        let deadline = Instant::now() + PATIENCE / 2;
        while !calm.stdout().contains("ready") {
            assert!(Instant::now() < deadline, "not governed: {}", said(&daemon, &calm));
            std::thread::park_timeout(Duration::from_millis(10));
        }
        let flood = start("flood", &format!("until_governed()\n{script}"));
        let asked = AtomicUsize::new(0);
        Some(Self { flood: Some(flood), calm, _cgroups: cgroups, daemon, origin, asked, world })
    }

    /// Waits until the flood says so.
    #[track_caller]
    pub(crate) fn flood_says(&mut self, text: &str) {
        self.flood.as_mut().expect("it runs").wait_until_printed(text);
    }

    /// The number that the flood says behind this word, before a full stop.
    #[track_caller]
    pub(crate) fn flood_number(&mut self, word: &str) -> u64 {
        let flood = self.flood.as_mut().expect("it runs");
        flood.wait_until_printed(word);
        let said = flood.stdout();
        let line = said.lines().find_map(|line| line.strip_prefix(word)).unwrap();
        line.trim_end_matches(" .").parse().unwrap()
    }

    /// How many refusals of one class the kernel's records of this agent speak of.
    pub(crate) fn counted(&self, agent: &str, vector: &str) -> u64 {
        let records = self.records(agent, "kernel_refused");
        let of_class = records.iter().filter(|record| record["vector"] == vector);
        of_class.map(|record| record["count"].as_u64().unwrap_or(1)).sum()
    }

    /// Lets the flood go on.
    pub(crate) fn mark(&self, mark: &str) {
        fs::write(self.world.path(mark), "").unwrap();
    }

    /// Waits for the end of the flood.
    pub(crate) fn flood_ends(&mut self) -> Ended {
        let ended = self.flood.take().expect("it runs").wait();
        ended.ok();
        ended
    }

    /// The other workload asks for a page and gets it without waiting for anything of the flood's.
    #[track_caller]
    pub(crate) fn calm_is_served_at_once(&mut self) {
        let n = self.asked.fetch_add(1, Ordering::SeqCst);
        self.mark(&format!("calm{n}"));
        self.calm.wait_until_printed(&format!("served {n} "));
        let said = self.calm.stdout();
        let line = said.lines().find(|line| line.starts_with(&format!("served {n} "))).unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let seconds: f64 = words[3].parse().unwrap();
        assert!(words[2] == "200" && seconds < 2.0, "{line}");
    }

    /// The records that say so about this agent.
    pub(crate) fn records(&self, agent: &str, reason: &str) -> Vec<Value> {
        let is_meant = |record: &Value| record["agent"] == agent && record["reason"] == reason;
        self.world.audit().into_iter().filter(is_meant).collect()
    }
}

impl Cgroups {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2");
        let (own, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        let name = format!("tollgate-quotas-{own}-{number}");
        let path = PathBuf::from(mount.split(' ').nth(4).unwrap()).join(name);
        for agent in ["flood", "calm"] {
            fs::create_dir_all(path.join(agent)).unwrap();
        }
        Self(path)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for agent in ["flood", "calm"] {
            let cgroup = self.0.join(agent);
            if let Err(error) = fs::write(cgroup.join("cgroup.kill"), "1") {
                eprintln!("{}: {error}", cgroup.display());
            }
            wait_for("the cgroup is empty", || fs::remove_dir(&cgroup).ok());
        }
        fs::remove_dir(&self.0).unwrap();
    }
}
