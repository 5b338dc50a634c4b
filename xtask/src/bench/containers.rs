//! What the daemon costs those that it governs, and those that it does not: workloads that appear at once, each with a
//! cgroup, a network namespace and a wire of its own, as a container engine makes them; and one beside them that no
//! agent's `match` names.
//!
//! They are cgroups and network namespaces without an engine: what it takes one to start 200 containers is not the daemon's,
//! and would be most of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::crowd::{PERMIT, mount};
use super::{Bench, Figure, Line, Results, number};
use crate::demo::agent::{Tollgate, neutral_environment};
use crate::demo::secrets::Secrets;
use crate::demo::world::{Background, tied, wait_until};
use crate::run;

/// What all of the names begin with.
pub(super) const NAME: &str = "containers: ";

/// More than a machine of this size runs as containers.
const CROWD: usize = 200;

const BESIDE: &str = "containers: connect() of one that is no agent's, p50";

/// Measures all of it. In each round the daemon starts anew, and governs workloads that are new as well.
pub(super) fn measure(
    bench: &Bench<'_>,
    folder: &Path,
    binary: &Path,
    rounds: u32,
    results: &mut Results,
) -> Result<()> {
    let folder = folder.join("containers");
    fs::create_dir(&folder)?;
    // Pins, socket and lock of this measurement alone: they end with this world.
    fs::create_dir_all("/run/tollgate")?;
    run::output(Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]))?;
    run::output(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run/tollgate"]))?;
    let groups = Groups::new()?;
    let rules = format!(
        "[[agent]]\nname = \"crowd\"\nmatch = {{ cgroup = \"/{}/crowd-*\" }}\n{PERMIT}",
        groups.name
    );
    Tollgate::new(&folder, binary, bench.world, &Secrets::none(), &rules)?;
    let scene = Scene { bench, binary, config: folder.join("tollgate.toml"), groups };
    let beside = scene.groups.workload("beside")?;
    run::announce(&format!("{NAME}{CROWD} at once, {rounds} rounds"));
    let (mut direct, mut governed, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        direct.push(scene.connect(&beside)?);
        let daemon = scene.daemon()?;
        let one = scene.one(&daemon, round)?;
        governed.push(scene.connect(&beside)?);
        all.push(one);
    }
    results.lines.push(Line::new(BESIDE, "ns", direct, governed)?);
    let figure =
        |what, unit, of: fn(&Round) -> f64| Figure::new(what, unit, all.iter().map(of).collect());
    results.figures.push(figure("containers: one alone, found to served", "ms", |it| it.alone)?);
    results.figures.push(figure(
        "containers: 200 cgroups at once, found to served, p50",
        "ms",
        |it| it.p50,
    )?);
    results.figures.push(figure(
        "containers: 200 cgroups at once, found to served, p99",
        "ms",
        |it| it.p99,
    )?);
    results.figures.push(figure(
        "containers: 200 cgroups at once, first made to last closed",
        "ms",
        |it| it.closed,
    )?);
    results.figures.push(figure(
        "containers: 200 cgroups at once, first made to last served",
        "ms",
        |it| it.served,
    )?);
    results
        .figures
        .push(figure("containers: 200 cgroups at once, making them", "ms", |it| it.made)?);
    results
        .figures
        .push(figure("containers: memory of the daemon for each", "KiB", |it| it.memory)?);
    Ok(())
}

/// What one daemon was measured to do, in milliseconds and KiB.
struct Round {
    alone: f64,
    p50: f64,
    p99: f64,
    closed: f64,
    served: f64,
    made: f64,
    memory: f64,
}

struct Scene<'a> {
    bench: &'a Bench<'a>,
    binary: &'a Path,
    config: PathBuf,
    groups: Groups,
}

impl Scene<'_> {
    /// A daemon that answers.
    fn daemon(&self) -> Result<Background> {
        let mut daemon = Command::new(self.binary);
        daemon.arg("daemon").arg("--config").arg(&self.config);
        let mut daemon = tied(&daemon);
        neutral_environment(&mut daemon);
        let mut daemon = Background::start(&mut daemon)?;
        wait_until("the daemon answers", PATIENCE, || {
            daemon.has_ended() || self.workloads().is_ok()
        })?;
        ensure!(!daemon.has_ended(), "the daemon has ended");
        Ok(daemon)
    }

    fn one(&self, daemon: &Background, round: u32) -> Result<Round> {
        let alone = self.groups.workload(&format!("crowd-{round}-alone"))?;
        wait_until("the first is served", PATIENCE, || self.in_state(SERVED) == 1)?;
        let alone_ms = self.armed()?.first().copied().context("nothing is served")?;
        let before = resident(daemon)?;
        let begun = Instant::now();
        let crowd =
            (0..CROWD).map(|number| self.groups.workload(&format!("crowd-{round}-{number}")));
        let crowd = crowd.collect::<Result<Vec<Workload<'_>>>>()?;
        let made = milliseconds(begun.elapsed());
        wait_until("all are closed", PATIENCE, || {
            self.in_state(SERVED) + self.in_state(CLOSED) == CROWD + 1
        })?;
        let closed = milliseconds(begun.elapsed());
        wait_until("all are served", PATIENCE, || self.in_state(SERVED) == CROWD + 1)?;
        let served = milliseconds(begun.elapsed());
        let armed = self.armed()?;
        let memory = (resident(daemon)? - before) / f64::from(u32::try_from(crowd.len())?);
        drop((crowd, alone));
        let (p50, p99) = (percentile(&armed, 50)?, percentile(&armed, 99)?);
        Ok(Round { alone: alone_ms, p50, p99, closed, served, made, memory })
    }

    fn workloads(&self) -> Result<Vec<Value>> {
        let text = run::output(Command::new(self.binary).args(["status", "--json"]))?;
        let report: Value = serde_json::from_str(&text)?;
        report.get("workloads").and_then(Value::as_array).cloned().context("no workloads")
    }

    /// How many are in this state; none while the daemon is too busy to answer.
    fn in_state(&self, state: &str) -> usize {
        let is_so =
            |workload: &&Value| workload.get("state").and_then(Value::as_str) == Some(state);
        self.workloads().map_or(0, |all| all.iter().filter(is_so).count())
    }

    /// How long each was found before it was served, shortest first.
    fn armed(&self) -> Result<Vec<f64>> {
        let all = self.workloads()?;
        let mut armed: Vec<f64> =
            all.iter().filter_map(|it| it.get("armed_ms")?.as_f64()).collect();
        armed.sort_by(f64::total_cmp);
        Ok(armed)
    }

    fn connect(&self, from: &Workload<'_>) -> Result<f64> {
        let mut load = Command::new(self.bench.load);
        load.args(self.bench.arguments("loopback", "50"));
        load.arg("--ca").arg(self.bench.world.root_certificate());
        let mut inside = from.command(&load);
        neutral_environment(&mut inside);
        number(&run::output(&mut inside)?)
    }
}

/// The cgroup that the others are in.
struct Groups {
    name: String,
    path: PathBuf,
}

impl Groups {
    fn new() -> Result<Self> {
        let name = format!("tollgate-bench-containers-{}", std::process::id());
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let path = mount(&mounts, " - cgroup2 ", "").context("no cgroup v2")?.join(&name);
        fs::create_dir(&path)?;
        Ok(Self { name, path })
    }

    /// A process with a network of its own, and a wire to this world.
    fn workload(&self, name: &str) -> Result<Workload<'_>> {
        let path = self.path.join(name);
        fs::create_dir(&path)?;
        let mut keeper = Command::new("unshare");
        keeper.args(["--net", "sh", "-c", JOIN]).arg(path.join("cgroup.procs"));
        keeper.arg(std::process::id().to_string());
        let keeper = Background::start(&mut tied(&keeper))?;
        Ok(Workload { keeper: Some(keeper), path, _groups: self })
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Gets its wire, and is a member from then on.
const JOIN: &str = "ip link set lo up; ip link add eth0 type veth peer name \"w$$\" netns \"$1\"; ip link set eth0 up; \
    echo $$ > \"$0\"; exec sleep infinity";

/// One that lives as long as this value.
struct Workload<'a> {
    keeper: Option<Background>,
    path: PathBuf,
    _groups: &'a Groups,
}

impl Workload<'_> {
    /// `command`, as a member with its network.
    fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ > \"$0\"; exec \"$@\""]).arg(self.path.join("cgroup.procs"));
        let process = self.keeper.as_ref().map_or(0, Background::id);
        inside.arg("nsenter").arg(format!("--net=/proc/{process}/ns/net"));
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }
}

impl Drop for Workload<'_> {
    fn drop(&mut self) {
        drop(self.keeper.take());
        remove(&self.path);
    }
}

fn remove(group: &Path) {
    let is_gone = || !group.exists() || fs::remove_dir(group).is_ok();
    if let Err(error) = wait_until("the end of a cgroup", PATIENCE, is_gone) {
        eprintln!("warning: {}: {error}", group.display());
    }
}

/// What the process has of the machine's memory, in KiB.
fn resident(process: &Background) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    number(line.context("no VmRSS")?.trim().trim_end_matches(" kB"))
}

fn percentile(in_order: &[f64], percentile: usize) -> Result<f64> {
    in_order
        .get((in_order.len() * percentile / 100).min(in_order.len().saturating_sub(1)))
        .copied()
        .context("nothing")
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

const SERVED: &str = "served";
const CLOSED: &str = "closed";
const PATIENCE: Duration = Duration::from_secs(120);
