//! Running the binary in a host of its own: own mounts, own `/run`, own BPF file system, a network with no way out.
//!
//! Whatever a test does there, another test's runs are not swept by it, and nothing leaves the machine.
#![allow(dead_code, unreachable_pub, reason = "every test uses a part of it")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use serde_json::Value;
use tempfile::TempDir;

#[path = "waivers.rs"]
mod waivers;
pub(crate) use waivers::permit_everything;

/// The binary under test.
pub const TOLLGATE: &str = env!("CARGO_BIN_EXE_tollgate");
/// The agent that every configuration here has; by default everything is denied to it.
pub const AGENT: &str = "tester";
/// How long anything may take on a busy machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A host for one test. Its namespaces go away with it.
pub struct Host {
    keeper: Child,
    // Dropped before anything is waited for: the keeper ends when its standard input does.
    stdin: Option<ChildStdin>,
    folder: TempDir,
}

/// What makes a host out of two new namespaces.
const SET_UP: &str = "
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
if mountpoint -q /sys/fs/bpf; then umount -l /sys/fs/bpf; fi
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
echo ready
exec cat
";

impl Host {
    /// A host with a configuration of its own, to which `rest` is added. `None` at a desk where namespaces cannot be
    /// made or the binary has no kernel programs; in CI that is a failure.
    pub fn new(rest: &str) -> Option<Self> {
        if let Some(missing) = missing() {
            assert!(std::env::var_os("CI").is_none(), "a privileged test cannot run: {missing}");
            println!("SKIPPED: {missing}");
            return None;
        }
        let mut keeper = Command::new("unshare")
            .args(["--mount", "--net", "--", "sh", "-c", SET_UP])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is there (util-linux)");
        let mut line = String::new();
        BufReader::new(keeper.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the host could not be set up");
        let stdin = keeper.stdin.take();
        let host = Self { keeper, stdin, folder: tempfile::tempdir().unwrap() };
        host.configure(rest);
        Some(host)
    }

    /// Writes the configuration anew.
    pub fn configure(&self, rest: &str) {
        self.configure_permitting(&permit_everything(), rest);
    }

    /// The same with waivers of one's own.
    pub fn configure_permitting(&self, permit: &str, rest: &str) {
        let folder = self.folder().display();
        let text = format!(
            "[gateway]\nstate_dir = \"{folder}/state\"\naudit = \"{folder}/audit.jsonl\"\n\
             [discover]\npermit = {permit}\n\
             [[agent]]\nname = \"{AGENT}\"\ndefault = \"deny\"\n{rest}"
        );
        fs::write(self.config(), text).unwrap();
    }

    /// Lets connections come as fast as they can, so that they reach what stands behind their rate.
    pub fn configure_without_rate(&self) {
        let text = fs::read_to_string(self.config()).unwrap();
        let (before, after) = ("[gateway]\n", "[gateway]\nconnects_per_second = 1000000\n");
        fs::write(self.config(), text.replace(before, after)).unwrap();
    }

    /// A folder of this host's own, removed with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn config(&self) -> PathBuf {
        self.folder().join("tollgate.toml")
    }

    /// A path as processes of this host see it.
    pub fn seen(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.keeper.id()))
    }

    /// A process that lives in this host's namespaces as long as the host does.
    pub fn keeper(&self) -> u32 {
        self.keeper.id()
    }

    /// A command on this host, not governed by anything. Its process is the command itself.
    pub fn plain<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Command {
        let mut enter = Command::new("nsenter");
        enter
            .args(["--mount", "--net", "--target", &self.keeper.id().to_string()])
            .arg("--")
            .args(command);
        enter
    }

    /// The words of `tollgate run` with these options, for this command.
    pub fn run_words(&self, options: &[&str], command: &[&str]) -> Vec<String> {
        let config = self.config();
        let before = [TOLLGATE, "run", "--agent", AGENT, "--config", config.to_str().unwrap()];
        [&before, options, &["--"], command].concat().into_iter().map(str::to_owned).collect()
    }

    /// `tollgate run` with these options, for this command. Its process is Tollgate itself.
    pub fn run_with(&self, options: &[&str], command: &[&str]) -> Command {
        let mut run = self.plain(self.run_words(options, command));
        // Whoever runs the tests may have come by sudo; the tests decide that themselves.
        for name in ["SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_COMMAND"] {
            run.env_remove(name);
        }
        run
    }

    pub fn run(&self, command: &[&str]) -> Command {
        self.run_with(&[], command)
    }

    /// Runs a shell script as the agent and returns how it ended.
    pub fn sh(&self, script: &str) -> Finished {
        finish(&mut self.run(&["sh", "-c", script]))
    }

    /// Runs Python as the agent and returns what it printed; a probe that fails fails the test.
    pub fn python(&self, probe: &str) -> String {
        finish(&mut self.run(&["python3", "-c", probe])).success()
    }

    /// Runs Python in a network namespace like a workload's, without Tollgate: the control of a probe.
    pub fn ungoverned_python(&self, probe: &str) -> String {
        finish(&mut self.plain(["python3", "-c", probe])).success()
    }

    /// The audit log so far.
    pub fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder().join("audit.jsonl")).unwrap_or_default();
        // A line that is being written is not there yet.
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The records with this reason.
    pub fn records_of(&self, reason: &str) -> Vec<Value> {
        self.records().into_iter().filter(|record| record["reason"] == reason).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if let Err(error) = self.keeper.wait() {
            println!("the host's keeper: {error}");
        }
    }
}

fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        Some("not root, so no namespaces and no kernel programs")
    } else if !gateway::capture::object_is_built_in() {
        Some("built without the kernel programs (`cargo xtask ebpf`)")
    } else {
        None
    }
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// What it printed; anything but success fails the test.
    pub fn success(self) -> String {
        assert!(self.status.success(), "{self:#?}");
        self.stdout
    }
}

/// A started process, ended when it is dropped.
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Drop for Running {
    /// Of a test that failed: a Tollgate that is asked to end cleans up, one that is killed cannot.
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.has_ended() && Instant::now() < deadline {
            pause();
        }
        if !self.has_ended() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

impl Running {
    /// Starts a command with its output collected; its standard input is what the command says, else nothing.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Self { child, stdout, stderr }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end, and fails the test when that does not come.
    pub fn finish(mut self) -> Finished {
        let deadline = Instant::now() + PATIENCE;
        let mut late = false;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline && !late {
                late = true;
                self.child.kill().unwrap();
            }
            pause();
        };
        let text = |bytes: Option<JoinHandle<Vec<u8>>>| {
            String::from_utf8_lossy(&bytes.unwrap().join().unwrap()).into_owned()
        };
        let (stdout, stderr) = (text(self.stdout.take()), text(self.stderr.take()));
        let finished = Finished { status, stdout, stderr };
        assert!(!late, "did not end within {PATIENCE:?}: {finished:#?}");
        finished
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Runs a command without input to its end.
pub fn finish(command: &mut Command) -> Finished {
    Running::start(command.stdin(Stdio::null())).finish()
}

/// Waits until `condition` gives something, and fails the test when it does not.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for: {what}");
        pause();
    }
}

/// Between two looks at a condition.
fn pause() {
    poll(&mut [], PollTimeout::from(5_u8)).unwrap();
}

/// The name of the run that the Tollgate process `pid` is about: it holds the lock in the run's directory.
pub fn run_name(pid: u32) -> String {
    wait_for("a run directory", || {
        fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().find_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let run = target.to_str()?.strip_prefix("/run/tollgate/")?.strip_suffix("/lock")?;
            run.starts_with("run-").then(|| run.to_owned())
        })
    })
}

/// The cgroup of the run `name`.
pub fn cgroup_of(name: &str) -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2");
    Path::new(mount.split(' ').nth(4).unwrap()).join("tollgate-run").join(name)
}

/// Processes in a cgroup and below it, as the host numbers them.
pub fn processes_in(cgroup: &Path) -> Vec<u32> {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    procs.lines().map(|line| line.parse().unwrap()).collect()
}

/// The namespace of a process, as a file: it stays comparable when the process is gone.
pub fn namespace_of(pid: u32, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// Whether a file exists and holds something.
pub fn is_full(path: &Path) -> bool {
    File::open(path).and_then(|file| file.metadata()).is_ok_and(|metadata| metadata.len() > 0)
}
