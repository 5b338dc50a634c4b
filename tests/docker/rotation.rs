//! Another CA, without a restart of anything; and who must not be told of it. The daemon is in a mount namespace of its
//! own, as services are, and the engine is no other test's.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use nix::unistd::Pid;

use crate::common::running::Running;
use crate::common::{wait_for, wait_until};
use crate::engine::{CGROUPS, Container, Engine};
use crate::governed::{Governed, SECRET, TRUST_MOUNT, UPSTREAM};
use crate::trust::machine;

fn engine() -> Option<Arc<Engine>> {
    let engine = Engine::alone()?;
    engine.governed.get_or_init(|| Governed::start_with(&engine, &["unshare", "--mount"]));
    Some(engine)
}

fn governed(engine: &Engine) -> &Governed {
    engine.governed.get().unwrap()
}

/// Whether curl reaches the upstream with these roots, or with the system's.
fn reaches(container: &Container, roots: Option<&str>) -> bool {
    let url = format!("https://{UPSTREAM}/rotation");
    let mut command = vec!["curl", "-sS", "--max-time", "20"];
    if let Some(roots) = roots {
        command.extend(["--cacert", roots, "--capath", "/nowhere"]);
    }
    command.push(&url);
    let ended = container.exec(&command);
    // 60: the certificate is not trusted.
    assert!(matches!(ended.code, Some(0 | 60)), "{ended:#?}");
    ended.code == Some(0)
}

#[test]
fn a_successor_is_trusted_in_running_containers_before_it_signs_and_alone_afterwards() {
    let Some(engine) = engine() else { return };
    let cas = engine.world.path("cas");
    fs::create_dir(&cas).unwrap();
    let container = machine(&engine, &[&format!("--volume={}:/cas:ro", cas.display())]);
    governed(&engine).wait_for(&container);
    governed(&engine).wait_until_told(&container);
    let state = engine.world.path("state");
    let read = |name: &str| fs::read_to_string(state.join(name)).unwrap();
    let old = read("ca.pem");
    fs::write(cas.join("old.pem"), &old).unwrap();
    assert!(reaches(&container, None));

    let program = env!("CARGO_BIN_EXE_tollgate");
    let config = engine.world.path("tollgate.toml").display().to_string();
    engine.start_command(&[program, "ca", "rotate", "--config", &config]).wait().ok();
    let new = read("ca.next.pem");
    fs::write(cas.join("new.pem"), &new).unwrap();
    let bundle = || {
        let path = format!("/proc/{}/root/etc/ssl/certs/ca-certificates.crt", container.pid());
        fs::read_to_string(path).unwrap_or_default()
    };
    wait_until("both are trusted", || bundle().contains(&new));
    assert!(bundle().contains(&old));
    let handed = [old.as_str(), &new].concat();
    assert_eq!(read("trust/ca.pem"), handed, "new containers are handed both");
    let signed_by = || ["/cas/old.pem", "/cas/new.pem"].map(|ca| reaches(&container, Some(ca)));
    assert_eq!(signed_by(), [true, false], "the old one signs");
    assert!(reaches(&container, None));

    fs::write(state.join("ca.next.from"), "1").unwrap();
    // The time is read when the CA is opened, which a changed file brings about.
    fs::write(state.join("ca.next.pem.part"), &new).unwrap();
    fs::rename(state.join("ca.next.pem.part"), state.join("ca.next.pem")).unwrap();
    wait_until("the successor signs", || signed_by() == [false, true]);
    assert!(reaches(&container, None), "its certificates were trusted already");
    wait_until("the old one is trusted no more", || !bundle().contains(&old));
    assert!(bundle().contains(&new) && reaches(&container, None));
    assert_eq!((read("ca.pem"), read("trust/ca.pem")), (new.clone(), new));
    let seen = governed(&engine).authorizations("/rotation");
    assert!(seen.iter().all(|value| *value == format!("Bearer {SECRET}")), "{seen:?}");
}

/// A process in a cgroup of its own that the daemon governs; `how` gives it namespaces.
fn in_cgroup(engine: &Engine, name: &str, how: &[&str]) -> (Running, Pid) {
    let cgroup = engine.cgroup_folder().join(name);
    let folder = format!("{CGROUPS}/{name}");
    let script = format!("mkdir -p {folder} && echo 0 > {folder}/cgroup.procs && exec \"$@\"");
    let mut command = vec!["sh", "-c", &script, "sh", "unshare"];
    command.extend(how);
    command.extend(["sleep", "1000"]);
    let running = engine.start_command(&command);
    let listed = cgroup.clone();
    wait_until("its cgroup is there", || {
        let cgroup = listed.clone();
        engine.world.host.run(move || cgroup.join("cgroup.procs").exists())
    });
    (running, engine.first_process(&cgroup))
}

fn mounts(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap()
}

#[test]
fn a_cgroup_with_mounts_of_its_own_trusts_the_ca_and_the_hosts_mounts_are_not_touched() {
    let Some(engine) = engine() else { return };
    let (_hosts, hosts) = in_cgroup(&engine, "hosts-mounts", &["--net"]);
    let (_own, own) = in_cgroup(&engine, "own-mounts", &["--net", "--mount"]);
    let port = |pid: Pid| fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    wait_until("both are governed", || {
        [hosts, own].iter().all(|pid| port(*pid).contains("0100007F:280F"))
    });
    wait_for("the one is told", || mounts(own).contains(TRUST_MOUNT).then_some(()));
    let bundle = format!("/proc/{own}/root/etc/ssl/certs/ca-certificates.crt");
    let ca = governed(&engine).ca(&engine).to_owned();
    assert!(fs::read_to_string(bundle).unwrap().contains(&ca));
    // The same files, in the namespace that the machine's first process is in.
    assert_eq!(Path::new(&format!("/proc/{hosts}/root")).canonicalize().ok(), Some("/".into()));
    assert!(!mounts(hosts).contains(TRUST_MOUNT));
    let bundle = format!("/proc/{hosts}/root/etc/ssl/certs/ca-certificates.crt");
    assert!(!fs::read_to_string(bundle).unwrap().contains(&ca));
}
