//! A container engine in a world: one for all tests that run at the same time, gone with the last of them.
//!
//! ```text
//! world's host ── machine (process namespace) ── dockerd, containers, `tollgate daemon`
//!      wan ═══ veth ═══ internet
//! ```
//!
//! Everything that the engine starts lives in one process namespace: whatever becomes of the tests, it ends with
//! its first process, and that one ends with the thread of the world. It lives in one cgroup as well, which is the root
//! of the hierarchy to it: Tollgate's slice in there is nobody else's.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::running::{Ended, Running};
use crate::common::world::World;
use crate::common::{has_program, wait_for, wait_until};
use crate::governed::Governed;
use crate::images;

/// See the module. The order of the fields is the order of their end.
pub(crate) struct Engine {
    pub(crate) governed: OnceLock<Governed>,
    dockerd: Running,
    machine: Machine,
    /// The cgroup below the root of the hierarchy that is the machine's root.
    cgroup_root: String,
    containers: AtomicUsize,
    /// Images that exist, or are being made by whoever holds the lock.
    images: Mutex<Vec<&'static str>>,
    pub(crate) world: World,
}

/// The first process of the namespace that everything of the engine is in.
struct Machine {
    unshare: Running,
    first: Pid,
}

/// A container that runs. It is removed when this value is dropped.
pub(crate) struct Container {
    engine: Arc<Engine>,
    pub(crate) name: String,
    pub(crate) id: String,
    /// The cgroup that its own is in, below the machine's root.
    cgroup_parent: String,
}

impl Engine {
    /// The engine that the running tests share; `None` where that is not possible and nobody insists.
    pub(crate) fn shared() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Engine>> = Mutex::new(Weak::new());
        let mut shared = locked(&SHARED);
        if let Some(engine) = shared.upgrade() {
            return Some(engine);
        }
        let engine = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&engine);
        Some(engine)
    }

    /// One for a single test, whose containers are where an engine puts them by itself. `None` as above.
    pub(crate) fn with_usual_cgroups() -> Option<Arc<Self>> {
        Self::start_with(&[]).map(Arc::new)
    }

    /// One that no other test uses.
    pub(crate) fn alone() -> Option<Arc<Self>> {
        Self::start().map(Arc::new)
    }

    fn start() -> Option<Self> {
        Self::start_with(&["--cgroup-parent", CGROUP_PARENT])
    }

    fn start_with(more: &[&'static str]) -> Option<Self> {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let world = World::new()?;
        for program in ["dockerd", "docker", "runc", "iptables", "busybox", "nsenter"] {
            has_program(program).then_some(())?;
        }
        world.host.run(mount_unified_hierarchy);
        world.host.run(sweep);
        let number = STARTED.fetch_add(1, Ordering::SeqCst);
        let cgroup_root = format!("{CGROUP_PREFIX}{}-{number}", std::process::id());
        let machine = Machine::start(&world, &cgroup_root);
        let dockerd = start_dockerd(&world, &machine, more);
        let (containers, images) = (AtomicUsize::new(0), Mutex::default());
        let governed = OnceLock::new();
        Some(Self { governed, dockerd, machine, cgroup_root, containers, images, world })
    }

    /// Starts a command on the machine; it sees the processes of the engine under the numbers that the engine says.
    pub(crate) fn start_command(&self, command: &[&str]) -> Running {
        self.machine.start_in(&self.world, command)
    }

    /// A path as the machine's processes see it.
    pub(crate) fn in_machine(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.machine.first))
    }

    /// Runs `docker` to its end.
    pub(crate) fn docker(&self, arguments: &[&str]) -> Ended {
        let command: Vec<&str> = ["docker"].into_iter().chain(arguments.iter().copied()).collect();
        self.start_command(&command).wait()
    }

    /// The first process of a cgroup, by the number that it has for the tests.
    pub(crate) fn first_process(&self, cgroup: &Path) -> Pid {
        let list = cgroup.join("cgroup.procs");
        wait_for("the cgroup has a process", || {
            let list = list.clone();
            let text = self.world.host.run(move || fs::read_to_string(list)).ok()?;
            text.lines().next()?.parse().ok().map(Pid::from_raw)
        })
    }

    /// Ends the engine's own processes, as a crash does; its containers live on.
    pub(crate) fn kill_dockerd(&self) {
        // What it has started for itself ends with it.
        let kill = "kill -KILL $(cat /run/docker.pid)";
        self.start_command(&["sh", "-c", kill]).wait().ok();
        wait_until("the engine is gone", || self.docker(&["version"]).code != Some(0));
        let stale = "rm -f /run/docker.pid /run/docker/containerd/containerd.pid";
        self.start_command(&["sh", "-c", stale]).wait().ok();
    }

    /// Starts it again; it takes its containers over (`--live-restore`).
    pub(crate) fn start_dockerd_again(&self) -> Running {
        start_dockerd(&self.world, &self.machine, &["--live-restore"])
    }

    /// A container that somebody else has made.
    pub(crate) fn adopt(self: &Arc<Self>, id: &str) -> Container {
        let cgroup_parent = CGROUP_PARENT.to_owned();
        Container {
            engine: Arc::clone(self),
            name: id.to_owned(),
            id: id.to_owned(),
            cgroup_parent,
        }
    }

    /// A name that no other container has.
    pub(crate) fn container_name(&self) -> String {
        format!("c{}", self.containers.fetch_add(1, Ordering::SeqCst))
    }

    /// Starts a container in the background: `options` of `docker run`, an image, a command.
    #[track_caller]
    pub(crate) fn run(
        self: &Arc<Self>,
        options: &[&str],
        image: &'static str,
        command: &[&str],
    ) -> Container {
        self.need(image);
        let name = self.container_name();
        let mut arguments = vec!["run", "--detach", "--name", &name];
        arguments.extend(options);
        arguments.push(image);
        arguments.extend(command);
        let started = self.docker(&arguments);
        let id = started.ok().trim().to_owned();
        let parent = options.iter().find_map(|option| option.strip_prefix("--cgroup-parent="));
        let cgroup_parent = parent.unwrap_or(CGROUP_PARENT).to_owned();
        Container { engine: Arc::clone(self), name, id, cgroup_parent }
    }

    /// Starts a stopped or running container anew.
    pub(crate) fn restart(&self, container: &Container) {
        self.docker(&["restart", "--time", "0", &container.name]).ok();
    }

    /// Where its containers' cgroups are, for who looks from the world.
    pub(crate) fn cgroup_folder(&self) -> PathBuf {
        Path::new(UNIFIED).join(&self.cgroup_root).join(CGROUP_PARENT.trim_start_matches('/'))
    }

    /// What the engine has said so far.
    pub(crate) fn log(&self) -> String {
        self.dockerd.stderr()
    }

    /// Makes an image once.
    pub(crate) fn need(&self, image: &'static str) {
        let mut made = locked(&self.images);
        if made.contains(&image) {
            return;
        }
        let folder = self.world.path(&format!("image-{image}"));
        let change = images::furnish(image, &folder, &self.world);
        let archive = self.world.path(&format!("image-{image}.tar"));
        let (from, to) = (folder.display().to_string(), archive.display().to_string());
        self.world.start_ungoverned(&[], &["tar", "-C", &from, "-cf", &to, "."]).wait().ok();
        let mut arguments = vec!["import"];
        for line in &change {
            arguments.extend(["--change", line]);
        }
        arguments.extend([to.as_str(), image]);
        self.docker(&arguments).ok();
        fs::remove_file(archive).unwrap();
        fs::remove_dir_all(folder).unwrap();
        made.push(image);
    }
}

/// Starts the engine and waits until it answers.
fn start_dockerd(world: &World, machine: &Machine, more: &[&str]) -> Running {
    let data = world.path("docker").display().to_string();
    let configuration = world.path("daemon.json").display().to_string();
    fs::write(&configuration, "{}\n").unwrap();
    let mut command = vec!["dockerd", "--data-root", &data, "--config-file", &configuration];
    command.extend(DOCKERD.iter().chain(more));
    let mut dockerd = machine.start_in(world, &command);
    let is_up = || machine.start_in(world, &["docker", "version"]).wait().code == Some(0);
    wait_until("the engine answers", || {
        assert!(!dockerd.has_ended(), "{}", dockerd.stderr());
        is_up()
    });
    dockerd
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The first process takes everything in its namespace with it.
        self.machine.end();
        let parent = Path::new(UNIFIED).join(&self.cgroup_root);
        self.world.host.run(move || {
            wait_until("the engine's cgroups are gone", || remove_cgroups(&parent));
        });
    }
}

impl Machine {
    fn start(world: &World, cgroup_root: &str) -> Self {
        let script = MACHINE.replace("ROOT", &format!("{UNIFIED}/{cgroup_root}"));
        let unshare = world.start_ungoverned(&[], &["sh", "-c", &script]);
        let children = format!("/proc/{0}/task/{0}/children", unshare.pid());
        let first = wait_for("the machine's first process", || {
            let child = fs::read_to_string(&children).ok()?.trim().parse().ok()?;
            let is_ready = Path::new(&format!("/proc/{child}/root{UNIFIED}/machine")).exists();
            is_ready.then_some(Pid::from_raw(child))
        });
        Self { unshare, first }
    }

    fn start_in(&self, world: &World, command: &[&str]) -> Running {
        let first = self.first.to_string();
        let enter = ["nsenter", "--target", &first, "--pid", "--mount", "--cgroup", "--"];
        let enter = enter.into_iter().chain(["sh", "-c", JOIN, "sh"]);
        let with_parent = ["setpriv", "--pdeathsig", "KILL"];
        let all: Vec<&str> = enter.chain(with_parent).chain(command.iter().copied()).collect();
        world.start_ungoverned(&[("DOCKER_HOST", SOCKET)], &all)
    }

    fn end(&mut self) {
        if let Err(error) = kill(self.first, Signal::SIGKILL) {
            eprintln!("the machine's first process is not ended: {error}");
        }
        wait_until("the machine ends", || self.unshare.has_ended());
    }
}

impl Container {
    /// Runs a command in it, as `docker exec` does.
    pub(crate) fn exec(&self, command: &[&str]) -> Ended {
        self.exec_with(&[], command)
    }

    /// The same with options of `docker exec`.
    pub(crate) fn exec_with(&self, options: &[&str], command: &[&str]) -> Ended {
        let mut arguments = vec!["exec"];
        arguments.extend(options);
        arguments.push(&self.name);
        arguments.extend(command);
        self.engine.docker(&arguments)
    }

    /// Its cgroup, below the mount of the hierarchy outside the machine.
    fn cgroup(&self) -> PathBuf {
        let parent = self.cgroup_parent.trim_start_matches('/');
        Path::new(&self.engine.cgroup_root).join(parent).join(&self.id)
    }

    /// Its first process, by the number that it has for the tests.
    pub(crate) fn pid(&self) -> Pid {
        self.engine.first_process(&Path::new(UNIFIED).join(self.cgroup()))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let removed = self.engine.docker(&["rm", "--force", &self.name]);
        if removed.code != Some(0) && !std::thread::panicking() {
            eprintln!("a container stays: {removed:?}");
        }
    }
}

/// A test that fails while it holds the lock does not fail the others.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In the world's mounts alone, the hierarchy is where ordinary machines have it.
fn mount_unified_hierarchy() {
    umount2(UNIFIED, MntFlags::MNT_DETACH).unwrap();
    let none = MsFlags::empty();
    mount(Some("none"), UNIFIED, Some("cgroup2"), none, None::<&str>).unwrap();
}

/// Removes what tests left that were killed; their containers have ended with them.
fn sweep() {
    let Ok(entries) = fs::read_dir(UNIFIED) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let owner = name.strip_prefix(CGROUP_PREFIX).and_then(|rest| rest.split('-').next());
        if let Some(owner) = owner
            && !Path::new("/proc").join(owner).exists()
            && !remove_cgroups(&entry.path())
        {
            eprintln!("cgroups of a test that ended stay: {name}");
        }
    }
}

/// Whether nothing of it is left.
fn remove_cgroups(folder: &Path) -> bool {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !remove_cgroups(&entry.path()) {
            return false;
        }
    }
    fs::remove_dir(folder).is_ok() || !folder.exists()
}

const UNIFIED: &str = "/sys/fs/cgroup";
const CGROUP_PREFIX: &str = "tollgate-test-docker-";
/// Where the engine puts containers, below the machine's root.
const CGROUP_PARENT: &str = "/agents";
/// The same place as the machine's processes see it.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup/agents";
/// What agents' `match` has to say to govern every container that is not put elsewhere.
pub(crate) const CGROUP_GLOB: &str = "/agents/*";
/// Makes a cgroup the root of the hierarchy, and stands by as the first process of the machine: a shell, because that
/// has to take leave of orphans. No process stays in the root itself.
const MACHINE: &str =
    "mkdir -p ROOT/machine && echo 0 > ROOT/cgroup.procs && exec unshare --cgroup sh -c '
echo 0 > ROOT/machine/cgroup.procs
exec unshare --pid --mount-proc --fork --kill-child=KILL sh -c \"
umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup || exit 1
while :; do sleep 1000 & wait \\$!; done\"'";
/// Lets a command that comes in live in the machine's cgroup too.
const JOIN: &str = "echo 0 > /sys/fs/cgroup/machine/cgroup.procs && exec \"$@\"";
const SOCKET: &str = "unix:///run/docker.sock";

const DOCKERD: [&str; 14] = [
    "--host",
    SOCKET,
    "--exec-root",
    "/run/docker",
    "--pidfile",
    "/run/docker.pid",
    "--bip",
    "172.30.0.1/24",
    "--exec-opt",
    "native.cgroupdriver=cgroupfs",
    "--storage-driver",
    "overlay2",
    "--log-level",
    "warn",
];
