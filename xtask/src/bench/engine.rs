//! How long a container of a real engine takes to be served, for each way in, beside how long a plain one takes to start.
//!
//! The engine, its containers and the daemon live in a process namespace and below a cgroup of their own, which is the
//! root of the hierarchy to them: whatever becomes of the measurement, they end with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::crowd::{PERMIT, mount};
use super::{Bench, Figure, Line, Results};
use crate::demo::agent::{Tollgate, neutral_environment};
use crate::demo::secrets::Secrets;
use crate::demo::world::{Background, tied, wait_until};
use crate::run;

/// What all of the names begin with.
pub(super) const NAME: &str = "docker run";

/// How often each way.
const STARTS: usize = 20;

/// Names of the lines, and what `docker run` is told.
const WAYS: [(&str, &str, &[&str]); 3] = [
    (
        "docker run until served (label), p50",
        "docker run until served (label), slowest of 20",
        &["--label=tollgate.agent=bench"],
    ),
    (
        "docker run until served (slice), p50",
        "docker run until served (slice), slowest of 20",
        &["--label=tollgate.agent=bench", "--cgroup-parent=/tollgate.slice"],
    ),
    (
        "docker run until served (runtime), p50",
        "docker run until served (runtime), slowest of 20",
        &["--label=tollgate.agent=bench", "--runtime=tollgate"],
    ),
];

/// Measures all ways.
pub(super) fn measure(
    bench: &Bench<'_>,
    folder: &Path,
    binary: &Path,
    results: &mut Results,
) -> Result<()> {
    let folder = folder.join("engine");
    fs::create_dir(&folder)?;
    for (kind, target) in [("bpf", "/sys/fs/bpf"), ("tmpfs", "/run")] {
        run::output(Command::new("mount").args(["-t", kind, kind, target]))?;
    }
    let rules = format!("[[agent]]\nname = \"bench\"\n{PERMIT}");
    Tollgate::new(&folder, binary, bench.world, &Secrets::none(), &rules)?;
    let scene = Scene::new(&folder, binary)?;
    run::announce(&format!("{NAME}, {STARTS} starts of each way"));
    let mut plain = Vec::new();
    let mut governed: [Vec<f64>; 3] = Default::default();
    let mut open = Vec::new();
    for _ in 0..STARTS {
        plain.push(scene.start(&[])?.0);
        for ((_, _, options), found) in WAYS.iter().zip(&mut governed) {
            let (took, report) = scene.start(options)?;
            found.push(took);
            let is_label_alone = options.len() == 1;
            let open_ms = report.get("open_ms").and_then(Value::as_f64);
            open.extend(open_ms.filter(|_| is_label_alone));
        }
    }
    for ((p50, slowest, _), found) in WAYS.iter().zip(governed) {
        let worst = |all: &[f64]| vec![all.iter().copied().fold(0.0, f64::max)];
        results.lines.push(Line::new(slowest, "ms", worst(&plain), worst(&found))?);
        results.lines.push(Line::new(p50, "ms", plain.clone(), found)?);
    }
    let what = "docker run (label): open before it was closed, at most, p50";
    results.figures.push(Figure::new(what, "ms", open)?);
    Ok(())
}

/// The order of the fields is the order of their end.
struct Scene<'a> {
    binary: &'a Path,
    _daemon: Background,
    _engine: Background,
    machine: Machine,
}

/// The first process of the namespace that everything is in.
struct Machine {
    unshare: Option<Background>,
    first: String,
    cgroup: PathBuf,
}

impl<'a> Scene<'a> {
    fn new(folder: &Path, binary: &'a Path) -> Result<Self> {
        let machine = Machine::new()?;
        let path = |name: &str| folder.join(name).display().to_string();
        let configuration = path("daemon.json");
        fs::write(&configuration, "{}\n")?;
        let mut daemon = Command::new(binary);
        daemon.arg("daemon").arg("--config").arg(folder.join("tollgate.toml"));
        let daemon = Background::start(&mut machine.inside(&daemon))?;
        let mut install = Command::new(binary);
        install.args(["runtime", "install", "--engine-config", &configuration]);
        install.arg("--folder").arg(folder.join("runtime"));
        run::output(&mut machine.inside(&install))?;
        let mut engine = Command::new("dockerd");
        engine.args(["--data-root", &path("docker"), "--config-file", &configuration]);
        let engine = Background::start(machine.inside(&engine).args(DOCKERD))?;
        let scene = Self { binary, _daemon: daemon, _engine: engine, machine };
        wait_until("the engine answers", PATIENCE, || scene.docker(&["version"]).is_ok())?;
        wait_until("the daemon answers", PATIENCE, || scene.workloads().is_ok())?;
        let root = folder.join("image");
        fs::create_dir_all(root.join("bin"))?;
        let busybox = crate::paths::find_program("busybox").context("there is no busybox")?;
        fs::copy(busybox, root.join("bin/busybox"))?;
        let archive = path("image.tar");
        run::output(Command::new("tar").arg("-C").arg(&root).args(["-cf", &archive, "."]))?;
        scene.docker(&["import", &archive, IMAGE])?;
        // What happens only once is not measured.
        for options in [&[][..]].into_iter().chain(WAYS.iter().map(|(_, _, options)| *options)) {
            scene.start(options)?;
        }
        Ok(scene)
    }

    fn docker(&self, arguments: &[&str]) -> Result<String> {
        let mut docker = Command::new("docker");
        docker.args(arguments);
        run::output(&mut self.machine.inside(&docker))
    }

    fn workloads(&self) -> Result<Vec<Value>> {
        let mut status = Command::new(self.binary);
        status.args(["status", "--json"]);
        let report: Value = serde_json::from_str(&run::output(&mut self.machine.inside(&status))?)?;
        report.get("workloads").and_then(Value::as_array).cloned().context("no workloads")
    }

    /// Milliseconds from the engine's being asked for a container until it runs, and is served unless it is a plain
    /// one; and what the daemon says of it. It is gone afterwards.
    fn start(&self, options: &[&str]) -> Result<(f64, Value)> {
        let run = ["run", "--detach", "--log-driver=none"];
        let program = [IMAGE, "/bin/busybox", "sleep", "1000"];
        let begun = Instant::now();
        let id = self.docker(&[run.as_slice(), options, &program].concat())?;
        let is_it = |workload: &Value| {
            let container = workload.get("container").and_then(|it| it.get("id"));
            container.and_then(Value::as_str) == Some(id.trim())
        };
        let is_served =
            |workload: &Value| workload.get("state").and_then(Value::as_str) == Some("served");
        let mut report = Value::Null;
        let what = format!("the service of {options:?}");
        wait_until(&what, PATIENCE, || {
            let Ok(all) = self.workloads() else { return false };
            report = all.into_iter().find(|it| is_it(it) && is_served(it)).unwrap_or_default();
            options.is_empty() || !report.is_null()
        })?;
        let took = begun.elapsed().as_secs_f64() * 1_000.0;
        ensure!(report.is_null() == options.is_empty(), "a plain one is governed: {report}");
        self.docker(&["rm", "--force", id.trim()])?;
        Ok((took, report))
    }
}

impl Machine {
    fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let unified = mount(&mounts, " - cgroup2 ", "").context("no cgroup v2")?;
        let cgroup = unified.join(format!("tollgate-bench-engine-{}", std::process::id()));
        fs::create_dir_all(cgroup.join("machine"))?;
        let mut unshare = Command::new("sh");
        unshare.args(["-c", &MACHINE.replace("ROOT", &cgroup.display().to_string())]);
        let unshare = Background::start(&mut tied(&unshare))?;
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let mut machine = Self { unshare: Some(unshare), first: String::new(), cgroup };
        wait_until("the machine's first process", PATIENCE, || {
            machine.first = fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
            !machine.first.is_empty() && Path::new(READY).exists()
        })?;
        Ok(machine)
    }

    /// `command`, as a process of it that ends with whoever waits for it.
    fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.args(["--target", &self.first, "--pid", "--mount", "--cgroup", "--"]);
        inside.args(["sh", "-c", JOIN, "sh", "setpriv", "--pdeathsig", "KILL"]);
        inside.arg(command.get_program()).args(command.get_args());
        let mut inside = tied(&inside);
        neutral_environment(&mut inside);
        inside.env("DOCKER_HOST", SOCKET);
        inside
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Everything in its namespace ends with it.
        drop(self.unshare.take());
        let is_gone = || remove(&self.cgroup);
        if let Err(error) = wait_until("the end of the engine's cgroups", PATIENCE, is_gone) {
            eprintln!("warning: {}: {error}", self.cgroup.display());
        }
    }
}

/// Whether nothing of it is left.
fn remove(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !remove(&entry.path()) {
            return false;
        }
    }
    fs::remove_dir(group).is_ok() || !group.exists()
}

const IMAGE: &str = "bench";
const SOCKET: &str = "unix:///run/docker.sock";
const READY: &str = "/run/machine-is-ready";
/// Makes a cgroup the root of the hierarchy, and stands by as the first process of the machine.
const MACHINE: &str = "echo 0 > ROOT/cgroup.procs && exec unshare --cgroup sh -c '
echo 0 > ROOT/machine/cgroup.procs
exec unshare --mount --pid --mount-proc --fork --kill-child=KILL sh -c \"
umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && touch /run/machine-is-ready || exit 1
while :; do sleep 1000 & wait \\$!; done\"'";
/// Lets a command that comes in live in the machine's cgroup too.
const JOIN: &str = "echo 0 > /sys/fs/cgroup/machine/cgroup.procs && exec \"$@\"";
const DOCKERD: [&str; 10] = [
    "--host",
    SOCKET,
    "--bip",
    "172.30.0.1/24",
    "--exec-opt",
    "native.cgroupdriver=cgroupfs",
    "--storage-driver",
    "overlay2",
    "--log-level",
    "error",
];
const PATIENCE: Duration = Duration::from_secs(60);
