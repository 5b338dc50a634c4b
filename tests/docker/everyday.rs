//! What happens to containers every day, to governed ones and to those beside them.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::common::origin::Origin;
use crate::common::running::{Ended, Running};
use crate::common::{has_program, wait_for, wait_until};
use crate::engine::{Container, Engine};
use crate::images;

/// An engine, a daemon with the agents of these tests, and what they reach.
struct Scene {
    _daemon: Running,
    upstream: Origin,
    others: Vec<Origin>,
    engine: Arc<Engine>,
}

/// The upstream's name.
const UPSTREAM: &str = "api.test";
/// What only the gateway knows.
const SECRET: &str = "the-value-of-the-secret";
/// Where a container is that no `match` names by its cgroup.
const ELSEWHERE: &str = "--cgroup-parent=/elsewhere";
/// Makes a container an agent that may reach the upstream.
const PLAIN_AGENT: &str = "--label=tollgate.agent=plain";
const TOLLGATE: &str = env!("CARGO_BIN_EXE_tollgate");

const AGENTS: &str = r#"
[[agent]]
name = "plain"
[[agent]]
name = "family"
match = { labels = { "nanoclaw-group" = "family-*", "nanoclaw-install" = "home" } }
[[agent]]
name = "session"
match = { labels = { "nanoclaw-session" = "s-1" } }
[[agent]]
name = "named"
match = { container = "by-name-*" }
[[agent]]
name = "composed"
match = { labels = { "com.docker.compose.project" = "p", "com.docker.compose.service" = "s" } }
[[agent]]
name = "counted"
[[rule]]
name = "upstream"
hosts = ["api.test"]
action = "allow"
[[rule]]
name = "three a day"
agents = ["counted"]
action = "rate_limit"
limit = 3
window = "day"
"#;

impl Scene {
    /// The scene that the running tests share; `None` where that is not possible and nobody insists.
    fn shared() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Scene>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scene) = shared.upgrade() {
            return Some(scene);
        }
        let engine = Engine::alone()?;
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples/tollgate.toml");
        let mut example = fs::read_to_string(example).unwrap();
        for (name, value) in [("gmail", "mail-token"), ("github", "code-token"), ("key", SECRET)] {
            let file = engine.world.secret(name, value);
            example = example.replace(&format!("/etc/tollgate/secrets/{name}"), &file);
        }
        let key = engine.world.path("key").display().to_string();
        engine.world.configure(&format!(
            "{AGENTS}[[credential]]\nname = \"key\"\nsource = {{ file = \"{key}\" }}\nhosts = [\"{UPSTREAM}\"]\n\
             inject = {{ header = \"Authorization\", format = \"Bearer {{value}}\" }}\nagents = [\"plain\"]\n{example}"
        ));
        let names = ["gmail.googleapis.com", "api.github.com", "slack.com", "any.test"];
        let others = names.map(|name| engine.world.origin(name)).into();
        let upstream = engine.world.origin(UPSTREAM);
        let scene = Self { _daemon: start_daemon(&engine), upstream, others, engine };
        let scene = Arc::new(scene);
        *shared = Arc::downgrade(&scene);
        Some(scene)
    }

    /// A container with the machine's programs that runs until it is dropped.
    fn container(&self, options: &[&str]) -> Container {
        let mounts = images::machine_mounts();
        let options: Vec<&str> = mounts
            .iter()
            .map(String::as_str)
            .chain([ELSEWHERE])
            .chain(options.iter().copied())
            .collect();
        self.engine.run(&options, images::MACHINE, &["sleep", "1000"])
    }

    /// One that is served.
    fn agent(&self, options: &[&str]) -> Container {
        let container = self.container(options);
        self.served(&container);
        container
    }

    fn served(&self, container: &Container) -> Value {
        let _tell = TellOnFailure(&self.engine);
        wait_for("the container is served and told of the CA", || {
            status_of(&self.engine, &container.id)
                .filter(|it| it["state"] == "served" && it["trust"]["state"] != "unknown")
        })
    }

    /// With which `Authorization` a path was asked for.
    fn authorizations(&self, path: &str) -> Vec<String> {
        let seen = self.upstream.seen().into_iter().filter(|seen| seen.target == path);
        let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
        seen.map(|seen| seen.headers.get("authorization").map_or_else(String::new, text)).collect()
    }
}

/// Prints what there is when a test fails.
struct TellOnFailure<'a>(&'a Engine);

impl Drop for TellOnFailure<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.start_command(&[TOLLGATE, "status"]).wait().stdout);
            eprintln!("{}", self.0.docker(&["ps", "--all"]).stdout);
        }
    }
}

fn start_daemon(engine: &Engine) -> Running {
    let config = engine.world.path("tollgate.toml").display().to_string();
    engine.start_command(&["env", "TOLLGATE_LOG=info", TOLLGATE, "daemon", "--config", &config])
}

/// What `tollgate status` says of a container.
fn status_of(engine: &Engine, id: &str) -> Option<Value> {
    let said = engine.start_command(&[TOLLGATE, "status", "--json"]).wait();
    let report: Value = serde_json::from_str(&said.stdout).ok()?;
    let workloads = report["workloads"].as_array().unwrap();
    workloads.iter().find(|workload| workload["container"]["id"] == id).cloned()
}

fn curl(container: &Container, url: &str) -> Ended {
    container.exec(&["curl", "-sS", "--max-time", "20", url])
}

/// The status of the answer; 000 where there was none.
fn code(container: &Container, url: &str) -> String {
    let ask = ["curl", "-s", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}", url];
    container.exec(&ask).stdout
}

#[test]
fn containers_are_agents_by_every_kind_of_label_and_by_name_and_records_say_who_they_were() {
    let Some(scene) = Scene::shared() else { return };
    let rows: [(&str, &str, &[&str]); 5] = [
        ("plain", "label", &[PLAIN_AGENT]),
        (
            "family",
            "label",
            &["--label=nanoclaw-group=family-chat", "--label=nanoclaw-install=home"],
        ),
        ("session", "label", &["--label=nanoclaw-session=s-1"]),
        (
            "composed",
            "label",
            &["--label=com.docker.compose.project=p", "--label=com.docker.compose.service=s"],
        ),
        ("named", "name", &["--name=by-name-1"]),
    ];
    for (agent, way_in, options) in rows {
        let mut container = scene.container(options);
        if agent == "named" {
            container.name = "by-name-1".to_owned();
        }
        let status = scene.served(&container);
        assert_eq!((&status["agent"], &status["way_in"]), (&agent.into(), &way_in.into()));
        assert_eq!(status["network"]["fenced"], 1, "{status}");
        let path = format!("/identity/{agent}");
        curl(&container, &format!("https://{UPSTREAM}{path}")).ok();
        let records = wait_for("the record", || {
            let records = scene.engine.world.audit_of("request");
            let own: Vec<_> = records.into_iter().filter(|it| it["path"] == *path).collect();
            (!own.is_empty()).then_some(own)
        });
        let record = &records[0];
        let container_names = serde_json::json!({
            "id": container.id, "name": container.name, "image": images::MACHINE,
        });
        assert_eq!((&record["agent"], &record["container"]), (&agent.into(), &container_names));
        // The executable is looked for in the machine's processes, and this machine is one inside another.
        let process = &record["process"];
        assert!(process["comm"] == "curl" && process["pid"].as_u64() > Some(1), "{record}");
    }
    // Half of the labels is not enough.
    let half = scene.container(&["--label=nanoclaw-group=family-chat"]);
    let whole = scene.agent(&[PLAIN_AGENT]);
    assert!(status_of(&scene.engine, &half.id).is_none());
    drop(whole);
}

#[test]
fn two_containers_of_one_agent_share_its_counters() {
    let Some(scene) = Scene::shared() else { return };
    let counted = ["--label=tollgate.agent=counted"];
    let (first, second) = (scene.agent(&counted), scene.agent(&counted));
    let url = format!("https://{UPSTREAM}/counted");
    let codes = [&first, &second, &first, &second, &first].map(|it| code(it, &url));
    assert_eq!(codes, ["200", "200", "200", "429", "429"]);
    assert_eq!(code(&scene.agent(&[PLAIN_AGENT]), &url), "200", "the control: another agent");
}

#[test]
fn a_network_is_one_trust_domain_a_second_agent_in_it_is_refused_and_told_why() {
    let Some(scene) = Scene::shared() else { return };
    let first = scene.agent(&[PLAIN_AGENT]);
    let network = format!("--network=container:{}", first.name);
    let second = scene.container(&[PLAIN_AGENT, &network]);
    let why = wait_for("why the second is closed", || {
        let status = status_of(&scene.engine, &second.id)?;
        assert_ne!(status["state"], "served", "{status}");
        status["why"].as_str().filter(|why| why.contains("shares the network")).map(str::to_owned)
    });
    assert!(why.contains(&first.name), "{why}");
    let url = format!("https://{UPSTREAM}/shared");
    assert_eq!(code(&second, &url), "000", "the second reaches nothing");
    assert_eq!(code(&first, &url), "200", "the first is served as before");
    // Who is no agent and joins the network has none: the wire is fenced, and the listener is not theirs.
    let resolve = format!("{UPSTREAM}:443:203.0.113.14");
    let direct = |container: &Container, path: &str| {
        let url = format!("https://{UPSTREAM}{path}");
        let ask =
            ["curl", "-sk", "--max-time", "3", "--resolve", &resolve, "-o", "/dev/null", &url];
        container.exec(&ask).code
    };
    let joined = scene.container(&[&network]);
    assert_ne!(direct(&joined, "/joined"), Some(0));
    let listener = joined.exec(&["curl", "-s", "--max-time", "3", "http://127.0.0.1:10255/"]);
    assert!(listener.code != Some(0) && listener.stdout.is_empty(), "{listener:?}");
    assert_eq!(scene.authorizations("/joined"), [""; 0]);
    // The control, which is also what is promised to containers that are nobody's.
    let plain = scene.container(&[]);
    assert_eq!(direct(&plain, "/unlabelled"), Some(0), "it keeps its network");
    assert_eq!(scene.authorizations("/unlabelled"), [""]);
    assert!(status_of(&scene.engine, &plain.id).is_none());
    // The network falls to the second when the first is gone.
    drop(first);
    wait_until("the second is served", || code(&second, &url) == "200");
}

#[test]
fn exec_health_checks_and_restarts_are_governed_and_a_stopped_container_is_forgotten() {
    let Some(scene) = Scene::shared() else { return };
    let check = format!("--health-cmd=curl -sS --max-time 10 https://{UPSTREAM}/health");
    let container = scene.container(&[
        PLAIN_AGENT,
        "--restart=always",
        "--health-interval=1s",
        "--health-start-period=60s",
        &check,
    ]);
    let health = ["inspect", "--format", "{{.State.Health.Status}}", &container.name];
    wait_until("it is healthy", || scene.engine.docker(&health).ok().trim() == "healthy");
    let bearer = format!("Bearer {SECRET}");
    assert!(scene.authorizations("/health").iter().all(|it| *it == bearer));
    let user = container
        .exec_with(&["--user=1000"], &["curl", "-sS", &format!("https://{UPSTREAM}/exec")]);
    user.ok();
    assert_eq!(scene.authorizations("/exec"), [bearer.as_str()]);
    let first = scene.served(&container)["cgroup_id"].clone();
    let pid = scene.engine.docker(&["inspect", "--format", "{{.State.Pid}}", &container.name]);
    scene.engine.start_command(&["kill", "-KILL", pid.ok().trim()]).wait().ok();
    let again = wait_for("its next life is served", || {
        status_of(&scene.engine, &container.id)
            .filter(|it| it["state"] == "served" && it["cgroup_id"] != first)
    });
    assert_eq!(again["agent"], "plain");
    wait_until("it reaches the upstream again", || {
        code(&container, &format!("https://{UPSTREAM}/again")) == "200"
    });
    assert!(scene.authorizations("/again").iter().all(|it| *it == bearer));
    scene.engine.docker(&["stop", "--time", "0", &container.name]).ok();
    wait_until("it is forgotten", || status_of(&scene.engine, &container.id).is_none());
}

/// Sends frames out of an interface as soon as it is there, and says how many were taken from it.
const SEND: &str = r#"
import socket, sys, time
mark = sys.argv[1].encode()
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
print("ready", flush=True)
end, taken = time.monotonic() + 60, 0
while time.monotonic() < end and taken < 300:
    try:
        s.sendto(b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + mark * 46, ("eth1", 0))
        taken += 1
        time.sleep(0.002)
    except OSError:
        pass
print("taken", taken, flush=True)
"#;

/// Says whose frames arrive.
const LISTEN: &str = r#"
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5))
print("ready", flush=True)
while True:
    print(chr(s.recv(100)[14]), flush=True)
"#;

#[test]
fn an_interface_that_comes_later_is_fenced_before_it_carries_a_frame() {
    let Some(scene) = Scene::shared() else { return };
    let engine = &scene.engine;
    let network = engine.container_name();
    engine.docker(&["network", "create", &network]).ok();
    let peer = scene.container(&[&format!("--network={network}")]);
    let (governed, control) = (scene.agent(&[PLAIN_AGENT]), scene.container(&[]));
    let python = images::python();
    let python = |container: &Container, arguments: &[&str]| {
        let command = ["docker", "exec", &container.name, &python, "-c"];
        let command: Vec<&str> = command.into_iter().chain(arguments.iter().copied()).collect();
        let mut running = engine.start_command(&command);
        running.wait_until_printed("ready");
        running
    };
    let listener = python(&peer, &[LISTEN]);
    for (container, mark) in [(&governed, "g"), (&control, "c")] {
        let sender = python(container, &[SEND, mark]);
        engine.docker(&["network", "connect", &network, &container.name]).ok();
        let said = sender.wait();
        assert!(said.ok().contains("taken 300"), "{said:?}");
    }
    wait_until("the control's frames arrive", || listener.stdout().matches('c').count() >= 100);
    assert_eq!(listener.stdout().matches('g').count(), 0, "frames of the governed one");
    let status = wait_for("both wires are fenced", || {
        status_of(engine, &governed.id).filter(|it| it["network"]["fenced"] == 2)
    });
    assert_eq!(status["state"], "served", "{status}");
    assert_eq!(code(&governed, &format!("https://{UPSTREAM}/connected")), "200");
    engine.docker(&["network", "disconnect", "--force", &network, &governed.name]).ok();
    wait_until("one is gone", || {
        status_of(engine, &governed.id).is_some_and(|it| it["network"]["fenced"] == 1)
    });
    drop((listener, peer, governed, control));
    engine.docker(&["network", "rm", &network]).ok();
}

#[test]
fn containers_stay_governed_while_the_engine_is_away_and_are_found_when_it_comes() {
    let Some(engine) = Engine::alone() else { return };
    engine.world.configure(AGENTS);
    let _upstream = engine.world.origin(UPSTREAM);
    let mounts = images::machine_mounts();
    let options: Vec<&str> = mounts.iter().map(String::as_str).chain([PLAIN_AGENT]).collect();
    let container = engine.run(&options, images::MACHINE, &["sleep", "1000"]);
    let pid = container.pid();
    engine.kill_dockerd();
    // The daemon is there before the engine.
    let _daemon = start_daemon(&engine);
    let status = wait_for("the daemon answers", || {
        let said = engine.start_command(&[TOLLGATE, "status", "--json"]).wait();
        serde_json::from_str::<Value>(&said.stdout).ok()
    });
    assert_eq!(status["workloads"], serde_json::json!([]), "nobody tells of the container");
    let dockerd = engine.start_dockerd_again();
    assert_eq!(container.pid(), pid, "it lives on");
    let found = |what: &str| {
        wait_for(what, || status_of(&engine, &container.id).filter(|it| it["state"] == "served"))
    };
    let first = found("it is governed");
    wait_until("it reaches the upstream", || {
        code(&container, &format!("https://{UPSTREAM}/found")) == "200"
    });
    engine.kill_dockerd();
    drop(dockerd);
    let is_away = |status: &Value| status["engines"][0]["answers"] == false;
    wait_until("the daemon knows that the engine is away", || {
        let said = engine.start_command(&[TOLLGATE, "status", "--json"]).wait();
        is_away(&serde_json::from_str(said.ok()).unwrap())
    });
    let meanwhile = found("it stays served");
    let _dockerd = engine.start_dockerd_again();
    wait_until("it is served through it all", || {
        code(&container, &format!("https://{UPSTREAM}/still")) == "200"
    });
    let last = found("it is still served");
    for status in [&meanwhile, &last] {
        assert_eq!(status["cgroup_id"], first["cgroup_id"]);
        assert_eq!(status["armed_ms"], first["armed_ms"], "it was not begun anew");
    }
    // While there is an engine that removes it.
    drop(container);
}

#[test]
fn three_agents_of_a_compose_file_do_what_their_rules_say() {
    let Some(scene) = Scene::shared() else { return };
    if !has_program("docker-compose") {
        return;
    }
    let engine = &scene.engine;
    engine.need(images::MACHINE);
    let volumes: Vec<String> = images::machine_mounts()
        .iter()
        .map(|mount| mount.trim_start_matches("--volume=").to_owned())
        .collect();
    let services: serde_json::Map<String, Value> = ["email-agent", "code-agent", "research-agent"]
        .into_iter()
        .map(|name| {
            let service = serde_json::json!({
                "image": images::MACHINE, "command": ["sleep", "1000"], "volumes": volumes,
                "cgroup_parent": "/elsewhere",
            });
            (name.to_owned(), service)
        })
        .collect();
    let more = engine.world.path("override.json");
    fs::write(&more, serde_json::json!({ "services": services }).to_string()).unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples/compose.yaml");
    let more = more.display().to_string();
    let compose = |words: &[&str]| {
        let before = ["docker-compose", "--project-name", "three", "-f", example, "-f", &more];
        let command: Vec<&str> = before.into_iter().chain(words.iter().copied()).collect();
        engine.start_command(&command).wait()
    };
    compose(&["up", "--detach"]).ok();
    let container = |service: &str| {
        let id = compose(&["ps", "--quiet", service]).ok().trim().to_owned();
        let container = engine.adopt(&id);
        assert_eq!(scene.served(&container)["agent"], service);
        container
    };
    let (email, coder, research) =
        (container("email-agent"), container("code-agent"), container("research-agent"));
    let mail = "https://gmail.googleapis.com/gmail/v1/messages";
    assert_eq!(code(&email, mail), "200");
    let delete = email.exec(&["curl", "-sS", "-X", "DELETE", mail]);
    assert!(delete.ok().contains("never delete mail"), "{delete:?}");
    assert_eq!(code(&coder, "https://api.github.com/user"), "200");
    assert_eq!(code(&coder, "https://slack.com/api/chat.postMessage"), "403");
    let authorization = |number: usize| {
        let seen = scene.others[number].seen();
        assert_eq!(seen.len(), 1, "{number}");
        seen[0].headers["authorization"].to_str().unwrap().to_owned()
    };
    assert_eq!(
        (authorization(0), authorization(1)),
        ("Bearer mail-token".into(), "Bearer code-token".into())
    );
    assert!(scene.others[2].seen().is_empty(), "nothing came to Slack");
    let hour = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 3600;
    let began = hour();
    let ask = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code} ", "https://any.test/[1-101]"];
    let codes = research.exec(&ask).stdout;
    if hour() == began {
        assert_eq!(codes, format!("{}429 ", "200 ".repeat(100)));
    }
    assert_eq!(code(&email, "https://any.test/mail"), "403", "the control: another agent");
    drop((email, coder, research));
    compose(&["down"]).ok();
}

/// Labelled containers that are started at the same time.
const CROWD: usize = 24;

#[test]
fn many_containers_that_start_at_once_are_all_governed() {
    let Some(scene) = Scene::shared() else { return };
    scene.engine.need(images::BARE);
    let before = resident_kib(&scene);
    let start = || scene.engine.run(&[ELSEWHERE, PLAIN_AGENT], images::BARE, &["sleep", "1000"]);
    let containers: Vec<Container> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..CROWD).map(|_| scope.spawn(start)).collect();
        starting.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut waits: Vec<u64> = containers
        .iter()
        .map(|container| scene.served(container)["armed_ms"].as_u64().unwrap())
        .collect();
    waits.sort_unstable();
    let (middle, last) = (waits[CROWD / 2], waits[CROWD - 1]);
    let each = resident_kib(&scene).saturating_sub(before) / CROWD;
    println!(
        "{CROWD} containers: from found to served {middle} ms (p50), {last} ms (max); {each} KiB of the daemon each"
    );
    // What each of them gets is the gateway's answer.
    for container in &containers {
        let said = container.exec(&["get", "http://203.0.113.250/"]);
        assert!(said.stderr.contains("403 Forbidden"), "{said:?}");
    }
}

/// Memory of the daemon.
fn resident_kib(scene: &Scene) -> usize {
    let report: Value = wait_for("the daemon answers", || {
        let said = scene.engine.start_command(&[TOLLGATE, "status", "--json"]).wait();
        serde_json::from_str(&said.stdout).ok()
    });
    let status = format!("/proc/{}/status", report["pid"]);
    let status = scene.engine.start_command(&["cat", &status]).wait();
    let line = status.ok().lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_labelled_container_of_podman_is_governed_too() {
    let Some(engine) = Engine::alone() else { return };
    if !["podman", "runc", "conmon"].into_iter().all(has_program) {
        return;
    }
    engine.world.configure(AGENTS);
    engine.need(images::BARE);
    let root = engine.world.path("podman").display().to_string();
    let podman = |words: &str| {
        let own = format!(
            "exec podman --root {root} --runroot /run/podman-root --runtime runc --cgroup-manager cgroupfs \
             --storage-driver vfs --events-backend file {words}"
        );
        engine.start_command(&["sh", "-c", &own])
    };
    let copy = format!("docker export $(docker create {} sleep) > {root}.tar", images::BARE);
    engine.start_command(&["sh", "-c", &copy]).wait().ok();
    podman(&format!("import {root}.tar bare")).wait().ok();
    engine.start_command(&["mkdir", "-p", "/run/podman"]).wait().ok();
    let _service = podman("system service --time 0 unix:///run/podman/podman.sock");
    // Neither limits nor networks of its own can be made in a world like this.
    let start = |options: &str| {
        let own = "--cgroup-parent /podman --ulimit host --pids-limit -1 --network none";
        let started = podman(&format!("run --detach {own} {options} bare sleep 1000")).wait();
        started.ok().trim().to_owned()
    };
    let (plain, labelled) =
        (start("--name none"), start("--name one --label tollgate.agent=plain"));
    let _daemon = start_daemon(&engine);
    let status = wait_for("it is served", || {
        status_of(&engine, &labelled).filter(|it| it["state"] == "served")
    });
    assert_eq!((&status["agent"], &status["way_in"]), (&"plain".into(), &"label".into()));
    let names = &status["container"];
    assert_eq!((&names["name"], &names["image"]), (&"one".into(), &"localhost/bare:latest".into()));
    assert_eq!(status["network"]["fenced"], 0, "it has loopback only");
    assert!(status_of(&engine, &plain).is_none(), "the control: no label, no agent");
    podman("rm --all --force --time 0").wait().ok();
    wait_until("it is forgotten", || status_of(&engine, &labelled).is_none());
}
