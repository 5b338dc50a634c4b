//! `--runtime tollgate`: governed from the first instruction, or not started.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;

use crate::common::running::{Ended, Running};
use crate::common::wait_until;
use crate::common::wire::{Frame, Wire};
use crate::common::world::{FORBIDDEN_V4, FORBIDDEN_V6};
use crate::engine::Engine;
use crate::images;

const TOLLGATE: &str = env!("CARGO_BIN_EXE_tollgate");
/// The agent; nothing is allowed to it.
const AGENT: &str = "--label=tollgate.agent=first";
const RUNTIME: &str = "--runtime=tollgate";

/// An engine with the runtime, and a daemon. The order of the fields is the order of their end.
struct Scene {
    daemon: Option<Running>,
    engine: Arc<Engine>,
}

impl Scene {
    /// `None` where that is not possible and nobody insists.
    fn new() -> Option<Self> {
        let engine = Engine::with_usual_cgroups()?;
        let secret = engine.world.secret("secret", "the-value");
        engine.world.configure_permitting(
            "[\"cap-sys-ptrace\"]",
            &format!(
                "[[agent]]\nname = \"first\"\n\
                 [[credential]]\nname = \"key\"\nsource = {{ file = \"{secret}\" }}\n\
                 hosts = [\"api.test\"]\nenv = \"API_KEY\"\nagents = [\"first\"]\n\
                 inject = {{ header = \"Authorization\", format = \"Bearer {{value}}\" }}\n"
            ),
        );
        let mut scene = Self { daemon: None, engine };
        scene.start_daemon();
        let installed = scene.runtime("install", &["--reload"]);
        assert!(installed.contains("reads it again"), "{installed}");
        wait_until("the engine knows the runtime", || {
            scene.engine.docker(&["info", "--format", "{{.Runtimes}}"]).ok().contains("tollgate")
        });
        scene.engine.need(images::FIRST);
        Some(scene)
    }

    fn start_daemon(&mut self) {
        let config = self.engine.world.path("tollgate.toml").display().to_string();
        let command = ["env", "TOLLGATE_LOG=info", TOLLGATE, "daemon", "--config", &config];
        let mut daemon = self.engine.start_command(&command);
        wait_until("the daemon answers", || {
            assert!(!daemon.has_ended(), "{}", daemon.stderr());
            let asked = ["curl", "-fsS", "--unix-socket", "/run/tollgate/daemon.sock"];
            let status = [asked.as_slice(), &["http://tollgate/v1/status"]].concat();
            self.engine.start_command(&status).wait().code == Some(0)
        });
        self.daemon = Some(daemon);
    }

    /// `tollgate runtime`, with everything in this world.
    fn runtime(&self, verb: &str, more: &[&str]) -> String {
        let path = |name: &str| self.engine.world.path(name).display().to_string();
        let (configuration, folder) = (path("daemon.json"), path("runtime"));
        let words = ["--engine-config", &configuration, "--folder", &folder];
        let command = [[TOLLGATE, "runtime", verb].as_slice(), &words, more].concat();
        self.engine.start_command(&command).wait().ok().to_owned()
    }

    /// Runs a container of the image to its end.
    fn run(&self, options: &[&str]) -> Ended {
        let all = [["run", "--rm"].as_slice(), options, &[images::FIRST]].concat();
        self.engine.docker(&all)
    }

    /// The containers whose plain request the gateway has answered.
    fn heard(&self) -> BTreeSet<String> {
        let requests = self.engine.world.audit_of("request");
        let own = requests.iter().filter(|it| it["path"] == "/first" && it["agent"] == "first");
        own.map(|it| it["container"]["id"].as_str().unwrap_or_default().to_owned()).collect()
    }

    fn records(&self, reason: &str) -> Vec<Value> {
        let all = self.engine.world.audit_of("operator");
        all.into_iter().filter(|record| record["reason"] == reason).collect()
    }

    fn said(&self) -> String {
        self.daemon.as_ref().map(Running::stderr).unwrap_or_default()
    }
}

/// Frames that a container of the engine's network has sent, whatever they are.
fn is_from_container(frame: &Frame) -> bool {
    let bridge: IpAddr = "172.30.0.1".parse().unwrap();
    matches!(frame.from, IpAddr::V4(from) if from.octets()[..2] == [172, 30])
        && frame.from != bridge
}

fn is_for_nobody(frame: &Frame) -> bool {
    let to = frame.to.to_string();
    to == FORBIDDEN_V4 || to == FORBIDDEN_V6
}

/// How many containers are started, and how many at a time.
const STARTS: usize = 200;
const AT_A_TIME: usize = 8;

#[test]
fn no_frame_leaves_two_hundred_containers_whose_first_instructions_try_to_get_out() {
    let Some(scene) = Scene::new() else { return };
    // Every interface of the host: bridge, wires, the way out.
    let host = scene.engine.world.host.run(Wire::tap);
    let (begun, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while begun.fetch_add(1, Ordering::SeqCst) < STARTS {
                    let ended = scene.run(&[RUNTIME, AGENT]);
                    if ended.code != Some(0) {
                        failed.fetch_add(1, Ordering::SeqCst);
                        eprintln!("{ended:?}");
                    }
                }
            });
        }
    });
    assert_eq!(failed.into_inner(), 0, "{}", scene.said());
    assert_eq!(scene.heard().len(), STARTS, "each container's first connect reached the gateway");
    assert_eq!(scene.engine.world.arrived(is_for_nobody), 0);
    assert_eq!(host.count(is_from_container), 0, "on any interface of the host");
    // The control: what the same image does under the engine's own runtime.
    assert_ne!(scene.run(&[AGENT]).code, Some(0));
    assert!(scene.engine.world.arrived(is_for_nobody) > 0, "the receiver counts");
    assert!(host.count(is_from_container) > 0, "the host's interfaces are counted");
    let kinds = |protocol, port| {
        scene.engine.world.arrived(|frame| {
            is_for_nobody(frame) && frame.protocol == protocol && frame.port == port
        })
    };
    assert!(kinds(17, 9) > 0 && kinds(17, 53) > 0, "datagrams and queries are counted");
    assert!(kinds(6, 80) > 0 && kinds(6, 443) > 0, "connects are counted");
}

#[test]
fn what_cannot_be_governed_is_not_started_and_the_engine_says_why() {
    let Some(scene) = Scene::new() else { return };
    let rows: [(&[&str], &[&str]); 11] = [
        (&["--network=host"], &["host's network namespace", "a network namespace of its own"]),
        (&["--privileged"], &["it has CAP_SYS_ADMIN", "permit = [\"cap-sys-admin\"]"]),
        (&["--cap-add=SYS_ADMIN"], &["it has CAP_SYS_ADMIN", "without this capability"]),
        (&["--cap-add=SYS_MODULE"], &["it has CAP_SYS_MODULE", "permit = [\"cap-sys-module\"]"]),
        (&["--cap-add=NET_ADMIN"], &["it has CAP_NET_ADMIN"]),
        (&["--pid=host", "--cap-add=SYS_PTRACE"], &["host's PID namespace", "\"host-pids\""]),
        (&["--volume=/run/docker.sock:/x"], &["/run/docker.sock is mounted at /x", "is root"]),
        (&["--volume=/run:/x:ro"], &["the socket of an engine", "\"engine-socket\""]),
        (&["--volume=/sys/fs/cgroup:/x"], &["mounted at /x", "\"kernel-mounts\""]),
        (&["--device=/dev/null:/dev/net/tun"], &["/dev/net/tun", "\"packet-devices\""]),
        (&["--volume=/:/x:ro"], &["\"engine-socket\"", "\"kernel-mounts\""]),
    ];
    for (options, expected) in rows {
        let ended = scene.run(&[[RUNTIME, AGENT].as_slice(), options].concat());
        assert!(matches!(ended.code, Some(125..=127)), "{options:?}: {ended:?}");
        for part in expected {
            assert!(ended.stderr.contains(part), "{options:?}, {part}: {}", ended.stderr);
        }
    }
    let ended = scene.run(&[RUNTIME]);
    assert!(ended.stderr.contains("label tollgate.agent=NAME"), "{ended:?}");
    let refused = scene.records("workload_refused");
    assert_eq!(refused.len(), rows.len() + 1, "{refused:#?}");
    let last = refused.last().unwrap();
    assert_eq!(last["container"]["image"], images::FIRST, "{last}");
    assert!(scene.heard().is_empty(), "none of them has run");

    // What the operator waives is governed and said; the rest of it is refused all the same.
    let ended = scene.run(&[RUNTIME, AGENT, "--cap-add=SYS_PTRACE"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let waived = scene.records("objection_waived");
    assert!(waived.len() == 1 && waived[0]["decision"] == "allow", "{waived:#?}");
    assert!(waived[0]["detail"].as_str().unwrap().contains("it has CAP_SYS_PTRACE"), "{waived:?}");
    // The control: without the runtime the engine starts them.
    let ended = scene.run(&["--cap-add=SYS_ADMIN", "--network=none", "--entrypoint=true"]);
    assert!(!ended.stderr.contains("tollgate"), "{ended:?}");
}

#[test]
fn a_governed_container_lives_as_others_do() {
    let Some(scene) = Scene::new() else { return };
    let engine = &scene.engine;
    let host = engine.world.host.run(Wire::tap);
    let health = ["--health-cmd=true", "--health-interval=1s", "--health-timeout=5s"];
    let options = [[RUNTIME, AGENT, "--entrypoint=sleep"].as_slice(), &health].concat();
    let container = engine.run(&options, images::FIRST, &["1000"]);
    let cgroup = engine.in_machine("/sys/fs/cgroup/tollgate.slice").join(&container.id);
    let is_in_slice = |cgroup: PathBuf| engine.world.host.run(move || cgroup.is_dir());
    assert!(is_in_slice(cgroup.clone()), "its cgroup is in the slice");
    let variables = container.exec(&["cat", "/proc/1/environ"]);
    assert!(variables.ok().contains("\0API_KEY=tollgate-placeholder-key\0"), "{variables:?}");
    let extra = "\0NODE_EXTRA_CA_CERTS=/run/tollgate/";
    assert!(variables.ok().contains(extra), "{variables:?}");
    let named = variables.ok().split('\0').find_map(|it| it.strip_prefix("NODE_EXTRA_CA_CERTS="));
    let ca = fs::read_to_string(engine.world.path("state/ca.pem")).unwrap();
    assert_eq!(container.exec(&["cat", named.unwrap()]).ok(), ca);
    for _ in 0..5 {
        let ended = container.exec(&["first"]);
        assert_eq!(ended.code, Some(0), "{ended:?}\n{}", scene.said());
    }
    let is_healthy = || {
        let format = "{{.State.Health.Status}}";
        engine.docker(&["inspect", "--format", format, &container.name]).ok() == "healthy\n"
    };
    wait_until("its health is checked", is_healthy);
    engine.restart(&container);
    assert_eq!(container.exec(&["first"]).code, Some(0), "{}", scene.said());
    wait_until("its health is checked again", is_healthy);
    assert!(is_in_slice(cgroup.clone()));

    // A policy of restarts: each of its lives is governed from its first instruction.
    let restarted = engine.run(&[RUNTIME, AGENT, "--restart=always"], images::FIRST, &[]);
    let lives = || {
        let requests = engine.world.audit_of("request");
        requests.iter().filter(|it| it["container"]["id"] == *restarted.id).count()
    };
    wait_until("it has lived three times", || lives() >= 3);
    drop(restarted);
    assert_eq!(engine.world.arrived(is_for_nobody), 0);
    assert_eq!(host.count(is_from_container), 0);
    drop(container);
    assert!(!is_in_slice(cgroup), "nothing stays");

    // A name that no agent has: governed, everything denied.
    let unknown = scene.run(&[RUNTIME, "--label=tollgate.agent=nobody-knows"]);
    assert_eq!(unknown.code, Some(0), "{unknown:?}");
    let told = scene.records("workload_refused");
    let is_told =
        |it: &Value| it["detail"].as_str().unwrap().contains("names the agent `nobody-knows`");
    assert!(told.iter().any(is_told), "{told:#?}");
}

#[test]
fn without_a_daemon_nothing_starts_and_what_runs_can_be_ended() {
    let Some(mut scene) = Scene::new() else { return };
    let running =
        scene.engine.run(&[RUNTIME, AGENT, "--entrypoint=sleep"], images::FIRST, &["1000"]);
    assert_eq!(running.exec(&["first"]).code, Some(0), "the control: {}", scene.said());
    scene.daemon = None;
    let ended = scene.run(&[RUNTIME, AGENT]);
    assert!(matches!(ended.code, Some(125..=127)), "{ended:?}");
    for part in ["no `tollgate daemon` answers", "start the daemon"] {
        assert!(ended.stderr.contains(part), "{part}: {ended:?}");
    }
    assert_ne!(running.exec(&["first"]).code, Some(0), "closed while nobody governs it");
    assert_eq!(scene.engine.world.arrived(is_for_nobody), 0);
    scene.engine.docker(&["stop", "--time", "0", &running.name]).ok();
    let again = scene.engine.docker(&["start", &running.name]);
    assert!(again.stderr.contains("no `tollgate daemon` answers"), "{again:?}");
    scene.start_daemon();
    scene.engine.docker(&["start", &running.name]).ok();
    assert_eq!(running.exec(&["first"]).code, Some(0), "{}", scene.said());
    drop(running);

    // What the engine knows of the runtime goes as it came.
    let said = scene.runtime("uninstall", &[]);
    assert!(said.contains("when it is restarted"), "{said}");
    assert_eq!(fs::read_to_string(scene.engine.world.path("daemon.json")).unwrap(), "{}\n");
    assert!(!scene.engine.world.path("runtime").exists());
    assert!(matches!(scene.run(&[RUNTIME, AGENT]).code, Some(125..=127)), "until it is restarted");
}
