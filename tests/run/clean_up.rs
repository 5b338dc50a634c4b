//! What a run leaves behind: nothing, however it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::tollgate::{
    Host, Running, cgroup_of, finish, namespace_of, processes_in, run_name, wait_for,
};

/// What exists because of one run while it lives.
struct Traces {
    name: String,
    cgroup: PathBuf,
    namespaces: Vec<PathBuf>,
    processes: Vec<u32>,
}

impl Traces {
    /// Of a run whose command is up: every trace is there, or a later absence would prove nothing.
    fn of(host: &Host, run: &Running) -> Self {
        let name = run_name(run.pid());
        let cgroup = cgroup_of(&name);
        let processes = processes_in(&cgroup);
        let first = *processes.first().expect("the workload's first process");
        let namespaces = ["net", "mnt", "pid"].map(|kind| namespace_of(first, kind));
        let own = ["net", "mnt", "pid"].map(|kind| namespace_of(run.pid(), kind));
        assert!(namespaces.iter().all(|namespace| !own.contains(namespace)), "{namespaces:?}");
        let traces = Self { name, cgroup, namespaces: namespaces.into(), processes };
        assert_eq!(traces.left(host).len(), 6, "{:?}", traces.left(host));
        let pinned = |prefix: &str| {
            let names = fs::read_dir(traces.pins(host)).unwrap().flatten();
            names.filter(|pin| pin.file_name().to_str().unwrap().starts_with(prefix)).count()
        };
        assert_eq!(
            (pinned("tollgate_"), pinned(&format!("map-v{}-", gateway_ebpf::abi::VERSION))),
            (14, 14),
            "one pin per program and map"
        );
        traces
    }

    fn directory(&self, host: &Host) -> PathBuf {
        host.seen("/run/tollgate").join(&self.name)
    }

    fn pins(&self, host: &Host) -> PathBuf {
        host.seen("/sys/fs/bpf/tollgate").join(&self.name)
    }

    /// What of it is still there.
    fn left(&self, host: &Host) -> Vec<String> {
        let mut left = Vec::new();
        for path in [self.cgroup.clone(), self.directory(host), self.pins(host)] {
            if path.exists() {
                left.push(path.display().to_string());
            }
        }
        let suspects = suspects(host, &self.name);
        for namespace in &self.namespaces {
            if suspects.iter().any(|process| holds(process, namespace)) {
                left.push(namespace.display().to_string());
            }
        }
        left
    }

    /// Whether a process of the run lives. Its number may be in use again, for another process in another cgroup.
    fn lives(&self, pid: u32) -> bool {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        cgroup.contains(&self.name) && !is_zombie(&process)
    }

    fn assert_gone(&self, host: &Host) {
        assert_eq!(self.left(host), Vec::<String>::new());
        for pid in &self.processes {
            assert!(!self.lives(*pid), "{pid} lives");
        }
        assert_nothing_of_any_run(host);
    }
}

/// The processes that could hold something of a run of `host`: those that share its mounts, as Tollgate does, and
/// those of the run. Another test's may have a namespace of the same number by now.
fn suspects(host: &Host, name: &str) -> Vec<PathBuf> {
    let shared = namespace_of(host.keeper(), "mnt");
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|process| process.path())
        .filter(|process| !is_zombie(process))
        .filter(|process| {
            fs::read_link(process.join("ns/mnt")).is_ok_and(|mounts| mounts == shared)
                || fs::read_to_string(process.join("cgroup")).is_ok_and(|path| path.contains(name))
        })
        .collect()
}

/// Whether it has ended and only waits for its parent, which is the machine's first process when Tollgate was killed.
fn is_zombie(process: &Path) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_comm, rest)| rest.starts_with(['Z', 'X']))
}

/// Whether a process, or a descriptor of it, holds this namespace.
fn holds(process: &Path, namespace: &Path) -> bool {
    let is = |path: PathBuf| fs::read_link(path).is_ok_and(|target| target == namespace);
    let own = ["net", "mnt", "pid", "pid_for_children"];
    own.iter().any(|kind| is(process.join("ns").join(kind)))
        || fs::read_dir(process.join("fd"))
            .is_ok_and(|fds| fds.flatten().any(|descriptor| is(descriptor.path())))
}

/// The host is as it was: no directory, no pin, no mount of ours.
fn assert_nothing_of_any_run(host: &Host) {
    for path in ["/run/tollgate", "/sys/fs/bpf/tollgate"] {
        assert!(!host.seen(path).exists(), "{path} is left");
    }
    let mounts = finish(&mut host.plain(["cat", "/proc/self/mountinfo"])).success();
    assert!(!mounts.contains("tollgate"), "{mounts}");
}

/// Starts a command that says when it is up, and goes on until it is ended.
fn started(host: &Host, script: &str) -> (Running, Traces) {
    let up = host.folder().join("up");
    let script = format!("{script}\n: > {}; exec sleep 1000", up.display());
    let run = Running::start(host.run(&["sh", "-c", &script]).stdin(Stdio::null()));
    wait_for("the command", || up.exists().then_some(()));
    fs::remove_file(up).unwrap();
    let traces = Traces::of(host, &run);
    (run, traces)
}

/// The process in the run's cgroup whose command line is `sleep SECONDS`.
fn sleeper(traces: &Traces, seconds: &str) -> Pid {
    let pid = wait_for("the sleeper", || {
        processes_in(&traces.cgroup).into_iter().find(|pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|words| words == format!("sleep\0{seconds}\0").as_bytes())
        })
    });
    Pid::from_raw(i32::try_from(pid).unwrap())
}

#[test]
fn nothing_is_left_after_a_normal_end() {
    let Some(host) = Host::new("") else { return };
    let (run, traces) = started(&host, "");
    run.signal(Signal::SIGTERM);
    run.finish();
    traces.assert_gone(&host);
}

#[test]
fn nothing_is_left_after_the_command_was_killed() {
    let Some(host) = Host::new("") else { return };
    let (run, traces) = started(&host, "");
    kill(sleeper(&traces, "1000"), Signal::SIGKILL).unwrap();
    let finished = run.finish();
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(finished.status.signal(), Some(9));
    traces.assert_gone(&host);
}

#[test]
fn nothing_is_left_when_the_workload_s_first_process_was_killed() {
    let Some(host) = Host::new("") else { return };
    let (run, traces) = started(&host, "");
    let first = i32::try_from(traces.processes[0]).unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    assert_eq!(run.finish().status.code(), Some(125));
    traces.assert_gone(&host);
}

#[test]
fn grandchildren_in_sessions_of_their_own_end_with_the_command() {
    let Some(host) = Host::new("") else { return };
    let (run, traces) = started(
        &host,
        "setsid sleep 1001 & (setsid sh -c 'sleep 1002 & sleep 1003 &' &); nohup sleep 1004 >/dev/null 2>&1 &",
    );
    let background = ["1001", "1002", "1003", "1004"].map(|seconds| sleeper(&traces, seconds));
    kill(sleeper(&traces, "1000"), Signal::SIGTERM).unwrap();
    run.finish();
    traces.assert_gone(&host);
    for pid in background {
        assert!(!traces.lives(u32::try_from(pid.as_raw()).unwrap()), "{pid} lives");
    }
}

#[test]
fn a_cgroup_that_the_command_made_below_its_own_does_not_hold_up_the_end() {
    let Some(host) = Host::new("") else { return };
    let (run, traces) = started(&host, "");
    // As a host process, since the command sees no cgroups; a container engine inside would do it like this.
    let nested = traces.cgroup.join("nested/deeper");
    fs::create_dir_all(&nested).unwrap();
    fs::write(nested.join("cgroup.procs"), sleeper(&traces, "1000").to_string()).unwrap();
    run.signal(Signal::SIGTERM);
    run.finish();
    traces.assert_gone(&host);
}

#[test]
fn killing_tollgate_ends_the_workload_and_the_next_start_sweeps_the_rest() {
    let Some(host) = Host::new("") else { return };
    let (run, traces) = started(&host, "setsid sleep 1001 &");
    sleeper(&traces, "1001");
    run.signal(Signal::SIGKILL);
    run.finish();
    wait_for("the workload's end", || processes_in(&traces.cgroup).is_empty().then_some(()));
    assert!(traces.cgroup.exists(), "the control: without a sweep the cgroup stays");
    assert!(traces.directory(&host).exists() && traces.pins(&host).exists());
    finish(&mut host.run(&["true"])).success();
    traces.assert_gone(&host);
}

#[test]
fn what_outlives_a_killed_tollgate_stays_governed_until_it_is_swept() {
    let Some(host) = Host::new("") else { return };
    let (run, traces) = started(&host, "");
    run.signal(Signal::SIGKILL);
    run.finish();
    // The programs are still attached: a process that got into the cgroup by any way reaches nothing.
    let join = format!(
        "echo $$ > {}/cgroup.procs; exec python3 -c \"import socket\ntry: socket.create_connection(('127.0.0.1', 9))\n\
         except OSError as error: print(error.strerror)\"",
        traces.cgroup.display()
    );
    let refused = finish(&mut host.plain(["sh", "-c", &join])).success();
    assert_eq!(refused, "Connection refused\n");
    let raw = join.replace(
        "socket.create_connection(('127.0.0.1', 9))",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    );
    assert_eq!(finish(&mut host.plain(["sh", "-c", &raw])).success(), "Protocol not supported\n");
    let outside = raw.replace(&traces.cgroup.display().to_string(), "/no/such");
    assert_eq!(finish(&mut host.plain(["sh", "-c", &outside])).stdout, "", "the control");
    finish(&mut host.run(&["true"])).success();
    traces.assert_gone(&host);
}

#[test]
fn two_runs_side_by_side_do_not_disturb_each_other() {
    let Some(host) = Host::new("") else { return };
    let (first, first_traces) = started(&host, "");
    // Each start sweeps; what lives is left alone.
    let (second, second_traces) = started(&host, "");
    assert_eq!(first_traces.left(&host).len(), 6);
    assert_ne!(first_traces.name, second_traces.name);
    first.signal(Signal::SIGTERM);
    first.finish();
    assert_eq!(first_traces.left(&host), Vec::<String>::new());
    assert_eq!(second_traces.left(&host).len(), 6);
    second.signal(Signal::SIGTERM);
    second.finish();
    second_traces.assert_gone(&host);
}

#[test]
fn many_runs_that_start_and_end_at_once_all_succeed() {
    let Some(host) = Host::new("") else { return };
    let runs: Vec<Running> = (0..6)
        .map(|code| {
            let script = format!("exit {code}");
            Running::start(host.run(&["sh", "-c", &script]).stdin(Stdio::null()))
        })
        .collect();
    for (code, run) in runs.into_iter().enumerate() {
        let finished = run.finish();
        assert_eq!(finished.status.code(), i32::try_from(code).ok(), "{finished:?}");
    }
    assert_nothing_of_any_run(&host);
}

#[test]
fn a_command_that_could_not_be_executed_leaves_nothing() {
    let Some(host) = Host::new("") else { return };
    let finished = finish(&mut host.run(&["/no/such/command"]));
    assert_eq!(finished.status.code(), Some(127));
    assert_nothing_of_any_run(&host);
}
