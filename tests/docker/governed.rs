//! A daemon that governs every container of the engine, and an upstream that it lets them reach with a credential.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::common::origin::Origin;
use crate::common::running::Running;
use crate::common::wait_until;
use crate::engine::{CGROUP_GLOB, Container, Engine};

/// The upstream's name.
pub(crate) const UPSTREAM: &str = "api.test";
/// The agent of containers with its label, and with nothing else.
pub(crate) const LABELLED: &str = "labelled";
/// Begins the source of the mounts by which containers trust the CA.
pub(crate) const TRUST_MOUNT: &str = "tollgate-trust:";
/// What agents' programs have in place of the secret.
pub(crate) const VARIABLE: &str = "UPSTREAM_KEY";
/// What only the gateway knows.
pub(crate) const SECRET: &str = "the-value-of-the-secret";

/// The gateway's port inside workloads, where the configuration names no other.
const LISTENER: u16 = 10255;

/// A package that the upstream has below `/files`.
pub(crate) const WHEEL: &str = "one-1-py3-none-any.whl";

const MAKE_WHEEL: &str = r"import sys, zipfile
z = zipfile.ZipFile(sys.argv[1], 'w')
z.writestr('one-1.dist-info/METADATA', 'Metadata-Version: 2.1\nName: one\nVersion: 1\n')
z.writestr('one-1.dist-info/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
z.writestr('one-1.dist-info/RECORD', '')";

pub(crate) struct Governed {
    daemon: Running,
    pub(crate) origin: Origin,
    /// The CA's certificate.
    ca: OnceLock<String>,
}

/// An engine whose containers are governed; `None` where that is not possible and nobody insists.
pub(crate) fn engine() -> Option<Arc<Engine>> {
    let engine = Engine::shared()?;
    engine.governed.get_or_init(|| Governed::start(&engine));
    Some(engine)
}

/// The daemon of an engine that has one.
pub(crate) fn of(engine: &Engine) -> &Governed {
    engine.governed.get().unwrap()
}

impl Governed {
    fn start(engine: &Engine) -> Self {
        Self::start_with(engine, &[])
    }

    /// `prefix` starts the daemon, whose command is appended to it.
    pub(crate) fn start_with(engine: &Engine, prefix: &[&str]) -> Self {
        let world = &engine.world;
        let origin = world.origin(UPSTREAM);
        let files = world.path("files");
        fs::create_dir(&files).unwrap();
        make_repository(&files);
        let wheel = files.join(WHEEL).display().to_string();
        world.start_ungoverned(&[], &["python3", "-c", MAKE_WHEEL, &wheel]).wait().ok();
        origin.serve_files(files);
        let secret = world.secret("secret", SECRET);
        world.configure(&format!(
            r#"
[[agent]]
name = "{LABELLED}"
[[agent]]
name = "boxed"
match = {{ cgroup = "{CGROUP_GLOB}" }}
[[credential]]
name = "key"
source = {{ file = "{secret}" }}
hosts = ["{UPSTREAM}"]
env = "{VARIABLE}"
inject = {{ header = "Authorization", format = "Bearer {{value}}" }}
agents = ["boxed", "{LABELLED}"]
[[rule]]
name = "upstream"
hosts = ["{UPSTREAM}"]
action = "allow"
"#
        ));
        let config = world.path("tollgate.toml").display().to_string();
        let log = "TOLLGATE_LOG=info";
        let program = env!("CARGO_BIN_EXE_tollgate");
        let daemon = ["env", log, program, "daemon", "--config", &config];
        let daemon: Vec<&str> = prefix.iter().copied().chain(daemon).collect();
        let daemon = engine.start_command(&daemon);
        Self { daemon, origin, ca: OnceLock::new() }
    }

    /// Waits until the daemon serves the container: until it listens in its network and says so, which is after it has
    /// opened the way there.
    #[track_caller]
    pub(crate) fn wait_for(&self, container: &Container) {
        let _tell = TellOnFailure(self);
        let port = format!("0100007F:{LISTENER:04X} 00000000:0000 0A ");
        wait_until("the container is governed", || {
            let sockets = fs::read_to_string(format!("/proc/{}/net/tcp", container.pid()));
            let is_it = |line: &str| {
                line.contains(": governed agent=") && line.contains(&container.id[..12])
            };
            sockets.is_ok_and(|sockets| sockets.contains(&port))
                && self.daemon.stderr().lines().any(is_it)
        });
    }

    /// What the daemon has said so far.
    pub(crate) fn said(&self) -> String {
        self.daemon.stderr()
    }

    /// Waits until the daemon has told the container of the CA.
    #[track_caller]
    pub(crate) fn wait_until_told(&self, container: &Container) {
        let _tell = TellOnFailure(self);
        wait_until("the container is told of the CA", || {
            // The daemon's numbers are those of the machine, the second of three.
            let status = fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
            let told = format!("process={} ", numbers.split_whitespace().nth(1).unwrap());
            let log = self.daemon.stderr();
            log.lines().any(|line| line.contains("trusts the CA") && line.contains(&told))
        });
    }

    /// The container as it is without trust, which the daemon has installed and will not install again: what the
    /// control of every client needs.
    #[track_caller]
    pub(crate) fn without_trust(&self, container: &Container) {
        self.wait_for(container);
        self.wait_until_told(container);
        let pid = container.pid();
        let thread = std::thread::spawn(move || {
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
            let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt")).unwrap();
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(namespace, CloneFlags::CLONE_NEWNS).unwrap();
            let ours = mounts.lines().filter(|line| line.contains(TRUST_MOUNT));
            for line in ours.collect::<Vec<_>>().into_iter().rev() {
                let path = line.split(' ').nth(4).unwrap();
                umount2(path, MntFlags::MNT_DETACH).unwrap();
            }
        });
        thread.join().unwrap();
        let left = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        assert!(!left.contains(TRUST_MOUNT), "{left}");
    }

    pub(crate) fn ca(&self, engine: &Engine) -> &str {
        self.ca.get_or_init(|| fs::read_to_string(engine.world.path("state/ca.pem")).unwrap())
    }

    /// With which `Authorization` the paths that begin so were asked for.
    pub(crate) fn authorizations(&self, path: &str) -> Vec<String> {
        let seen = self.origin.seen().into_iter().filter(|seen| seen.target.starts_with(path));
        let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
        seen.map(|seen| seen.headers.get("authorization").map_or_else(String::new, text)).collect()
    }
}

/// Prints what the daemon said when a test fails.
struct TellOnFailure<'a>(&'a Governed);

impl Drop for TellOnFailure<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon said: {}", self.0.daemon.stderr());
        }
    }
}

/// A repository with one commit, as files that any server can serve.
fn make_repository(files: &Path) {
    let folder = files.join("one.git");
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_DIR", &folder).args(arguments);
        for who in ["AUTHOR", "COMMITTER"] {
            git.env(format!("GIT_{who}_NAME"), "a").env(format!("GIT_{who}_EMAIL"), "a@a.test");
        }
        let output = git.output().expect("git is there");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    git(&["init", "--quiet", "--bare"]);
    let tree = git(&["hash-object", "-t", "tree", "-w", "/dev/null"]);
    let commit = git(&["commit-tree", &tree, "-m", "one"]);
    git(&["update-ref", "refs/heads/main", &commit]);
    git(&["symbolic-ref", "HEAD", "refs/heads/main"]);
    git(&["update-server-info"]);
}
