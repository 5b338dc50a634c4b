//! What one agent feels of another one's flood. One daemon serves both; `with` is the p99 beside the flood. `without` is
//! the quiet p99, and on a second line the p99 beside a neighbour that only computes and never talks to the gateway.
//!
//! The workloads have equal shares of the processors, as container engines give them: what one takes from another there
//! is the kernel's business, and where processors are few it is most of what is felt. The second line is what the gateway
//! adds to that. So is the third, where each workload has processors of its own and meets the other in the gateway
//! alone. The gateway has the share that its unit gives it, on all processors.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Bench, Line, number};
use crate::demo::agent::{Tollgate, neutral_environment};
use crate::demo::secrets::Secrets;
use crate::demo::world::{Background, tied, wait_until};
use crate::run;

/// What the other agent does: names of the three lines, the load client's word for it, and where it goes.
const FLOODS: &[(&[&str; 3], &str, &str)] = &[
    (
        &[
            "p99 of a request while another agent connects",
            "p99 of a request while another agent connects, to computes",
            "p99 of a request while another agent connects, own processors",
        ],
        "flood-connections",
        "",
    ),
    (
        &[
            "p99 of a request while another agent asks",
            "p99 of a request while another agent asks, to computes",
            "p99 of a request while another agent asks, own processors",
        ],
        "flood-requests",
        "",
    ),
    (
        &[
            "p99 of a request while another agent asks DNS",
            "p99 of a request while another agent asks DNS, to computes",
            "p99 of a request while another agent asks DNS, own processors",
        ],
        "flood-dns",
        "203.0.113.2:53",
    ),
];

/// The neighbour that has nothing to do with the gateway.
const COMPUTES: &str = "p99 of a request while another agent computes";

/// What the workloads of a measurement have of the host's, and the daemon would not govern without a waiver.
pub(super) const PERMIT: &str = "[discover]\npermit = [\"host-mounts\", \"host-pids\", \"engine-socket\", \"kernel-mounts\", \
    \"packet-devices\", \"cap-sys-admin\", \"cap-net-admin\", \"cap-sys-module\", \"cap-sys-rawio\", \
    \"cap-sys-ptrace\", \"cap-dac-read-search\", \"cap-perfmon\", \"cap-bpf\"]\n";

/// What all of them have in their names.
pub(super) const NAME: &str = "p99 of a request while another agent";

/// Who is measured, who floods, and who serves both.
const CALM: &str = "calm";
const FLOOD: &str = "flood";
const GATEWAY: &str = "gateway";
/// The upstreams and this program: they stand for other machines.
const OUTSIDE: &str = "outside";
const MEMBERS: [&str; 4] = [CALM, FLOOD, GATEWAY, OUTSIDE];

/// How many shares of the processors it has to a workload's one: `CPUWeight=1000` of its unit.
const GATEWAY_SHARES: u32 = 10;

/// Measures all floods.
pub(super) fn measure(
    bench: &Bench<'_>,
    folder: &Path,
    binary: &Path,
    rounds: u32,
    lines: &mut Vec<Line>,
) -> Result<()> {
    let folder = folder.join("crowd");
    fs::create_dir(&folder)?;
    // Pins of this measurement alone: they end with this world.
    run::output(Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]))?;
    let groups = Groups::new()?;
    let name = groups.name.clone();
    let rules = format!(
        "[[agent]]\nname = \"{CALM}\"\nmatch = {{ cgroup = \"/{name}/{CALM}\" }}\n\
         [[agent]]\nname = \"{FLOOD}\"\nmatch = {{ cgroup = \"/{name}/{FLOOD}\" }}\n\
         [[rule]]\nname = \"measure\"\nhosts = [\"bench.example\"]\nmethods = [\"GET\"]\naction = \"allow\"\n{PERMIT}"
    );
    Tollgate::new(&folder, binary, bench.world, &Secrets::none(), &rules)?;
    let mut daemon = run::command(binary);
    daemon.arg("daemon").arg("--config").arg(folder.join("tollgate.toml"));
    let _daemon = Background::start(&mut groups.joined(GATEWAY, &tied(&daemon)))?;
    let certificate = folder.join("state/ca.pem");
    wait_until("the daemon's CA", PATIENCE, || certificate.exists())?;
    let crowd =
        Crowd { bench, certificate, calm: groups.workload(CALM)?, flood: groups.workload(FLOOD)? };
    wait_until("the way out of the first agent", PATIENCE, || crowd.calm(SHARED).is_ok())?;
    let processors = std::thread::available_parallelism()?.get();
    ensure!(processors > 1, "floods are measured on two processors at least");
    let halves =
        (format!("0-{}", processors / 2 - 1), format!("{}-{}", processors / 2, processors - 1));
    let own = Some((halves.0.as_str(), halves.1.as_str()));
    let (mut all_quiet, mut all_computing) = (Vec::new(), Vec::new());
    for ([what, to_computes, apart], word, target) in FLOODS {
        run::announce(&format!("{what}, {rounds} rounds"));
        let (mut quiet, mut computing, mut flooded) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            quiet.push(crowd.calm(SHARED)?);
            computing.push(crowd.beside("flood-nothing", "", SHARED)?);
            flooded.push(crowd.beside(word, target, SHARED)?);
        }
        all_quiet.extend_from_slice(&quiet);
        all_computing.extend_from_slice(&computing);
        lines.push(Line::new(what, "µs", quiet, flooded.clone())?);
        lines.push(Line::new(to_computes, "µs", computing, flooded)?);
        let (mut quiet, mut flooded) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            quiet.push(crowd.calm(own)?);
            flooded.push(crowd.beside(word, target, own)?);
        }
        lines.push(Line::new(apart, "µs", quiet, flooded)?);
    }
    lines.push(Line::new(COMPUTES, "µs", all_quiet, all_computing)?);
    Ok(())
}

struct Crowd<'a> {
    bench: &'a Bench<'a>,
    certificate: PathBuf,
    calm: Workload<'a>,
    flood: Workload<'a>,
}

impl Crowd<'_> {
    fn calm(&self, on: Processors<'_>) -> Result<f64> {
        let load = bound(&self.load("latency"), on.map(|(calm, _flood)| calm));
        number(&run::output(&mut self.calm.command(&load))?)
    }

    fn beside(&self, word: &str, target: &str, on: Processors<'_>) -> Result<f64> {
        let mut load = self.load(word);
        if !target.is_empty() {
            load.args(["--connect", target]);
        }
        let load = bound(&load, on.map(|(_calm, flood)| flood));
        let mut flood = self.flood.command(&tied(&load));
        let mut flood = Background::start(flood.stdout(Stdio::null()))?;
        let measured = self.calm(on)?;
        ensure!(!flood.has_ended(), "the flood ended by itself");
        Ok(measured)
    }

    fn load(&self, word: &str) -> Command {
        let mut load = Command::new(self.bench.load);
        let mut arguments = self.bench.arguments(word, "99");
        if word == "flood-dns" {
            // It is told where to send.
            arguments.drain(1..3);
        }
        load.args(arguments).arg("--ca").arg(&self.certificate);
        load
    }
}

/// Lists of processors of the calm workload and of the flood.
type Processors<'a> = Option<(&'a str, &'a str)>;

/// All of them for both.
const SHARED: Processors<'_> = None;

/// `command`, on these processors alone.
fn bound(command: &Command, processors: Option<&str>) -> Command {
    let mut bound = Command::new(if processors.is_some() { "taskset" } else { "env" });
    bound.args(processors.map(|list| ["--cpu-list", list]).iter().flatten());
    bound.arg(command.get_program()).args(command.get_args());
    bound
}

/// The cgroups of the measurement: those that the daemon looks at, and those that share the processors.
struct Groups {
    name: String,
    governed: PathBuf,
    processors: PathBuf,
    /// Where this program is put back at the end.
    host: PathBuf,
}

impl Groups {
    fn new() -> Result<Self> {
        let name = format!("tollgate-bench-{}", std::process::id());
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let unified = mount(&mounts, " - cgroup2 ", "").context("no cgroup v2")?;
        let governed = unified.join(&name);
        // On a host with both hierarchies the processors are in the old one.
        let processors = match mount(&mounts, " - cgroup ", "cpu") {
            Some(old) => old.join(&name),
            None => {
                fs::write(unified.join("cgroup.subtree_control"), "+cpu")?;
                governed.clone()
            }
        };
        let host = processors.parent().context("no hierarchy")?.join("cgroup.procs");
        let groups = Self { name, governed, processors, host };
        for parent in [&groups.governed, &groups.processors] {
            fs::create_dir_all(parent)?;
            if groups.governed == groups.processors {
                fs::write(parent.join("cgroup.subtree_control"), "+cpu")?;
            }
            for member in MEMBERS {
                fs::create_dir_all(parent.join(member))?;
            }
        }
        let (file, one, most) = if groups.governed == groups.processors {
            ("cpu.weight", 100, 10_000)
        } else {
            ("cpu.shares", 1_024, 262_144)
        };
        for member in [GATEWAY, OUTSIDE] {
            let shares = one * GATEWAY_SHARES;
            fs::write(groups.processors.join(member).join(file), shares.to_string())?;
        }
        // What else goes on on the machine disturbs as little as it may.
        fs::write(groups.processors.join(file), most.to_string())?;
        for process in family(std::process::id())? {
            let group = groups.processors.join(OUTSIDE).join("cgroup.procs");
            fs::write(group, process.to_string())?;
        }
        Ok(groups)
    }

    /// `command`, as a member of the groups.
    fn joined(&self, member: &str, command: &Command) -> Command {
        let mut joined = run::command("sh");
        joined.arg("-c").arg("echo $$ > \"$0\"; echo $$ > \"$1\"; shift; exec \"$@\"");
        joined.args(
            [self.governed.join(member), self.processors.join(member)]
                .map(|path| path.join("cgroup.procs")),
        );
        joined.arg(command.get_program()).args(command.get_args());
        neutral_environment(&mut joined);
        joined
    }

    /// A network namespace of its own, kept by a process that is a member.
    fn workload(&self, member: &'static str) -> Result<Workload<'_>> {
        let mut sleep = Command::new("sleep");
        sleep.arg("infinity");
        let member_of = self.joined(member, &sleep);
        // The namespace first: a member in the host's would not be governed.
        let mut keeper = Command::new("unshare");
        keeper.args(["--net", "sh", "-c", "ip link set lo up; exec \"$@\"", "sh"]);
        keeper.arg(member_of.get_program()).args(member_of.get_args());
        let keeper = Background::start(&mut tied(&keeper))?;
        Ok(Workload { groups: self, member, keeper })
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let outside = self.processors.join(OUTSIDE).join("cgroup.procs");
        for process in fs::read_to_string(outside).unwrap_or_default().lines() {
            if let Err(error) = fs::write(&self.host, process) {
                eprintln!("warning: process {process}: {error}");
            }
        }
        for parent in [&self.governed, &self.processors] {
            for member in MEMBERS {
                let group = parent.join(member);
                let is_gone = || !group.exists() || fs::remove_dir(&group).is_ok();
                if let Err(error) = wait_until("the end of a cgroup", PATIENCE, is_gone) {
                    eprintln!("warning: {}: {error}", group.display());
                }
            }
            if parent.exists()
                && let Err(error) = fs::remove_dir(parent)
            {
                eprintln!("warning: {}: {error}", parent.display());
            }
        }
    }
}

/// A network namespace and its groups.
struct Workload<'a> {
    groups: &'a Groups,
    member: &'static str,
    keeper: Background,
}

impl Workload<'_> {
    fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net=/proc/{}/ns/net", self.keeper.id()));
        inside.arg(command.get_program()).args(command.get_args());
        self.groups.joined(self.member, &inside)
    }
}

/// A process and all that it has started.
fn family(process: u32) -> Result<Vec<u32>> {
    let mut family = vec![process];
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        for child in fs::read_to_string(thread?.path().join("children"))?.split_whitespace() {
            family.extend(self::family(child.parse()?)?);
        }
    }
    Ok(family)
}

/// Where the hierarchy with the controller is mounted.
pub(super) fn mount(mounts: &str, kind: &str, controller: &str) -> Option<PathBuf> {
    let is_meant = |line: &&str| {
        let options = line.rsplit(' ').next().unwrap_or_default();
        line.contains(kind)
            && (controller.is_empty() || options.split(',').any(|o| o == controller))
    };
    mounts.lines().find(is_meant)?.split(' ').nth(4).map(PathBuf::from)
}

const PATIENCE: Duration = Duration::from_secs(20);
