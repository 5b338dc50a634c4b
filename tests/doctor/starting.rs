//! The daemon tries its kernel when it starts.

use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};

use super::common::running::Running;
use super::common::world::World;
use super::common::{wait_for, wait_until};

const TOLLGATE: &str = env!("CARGO_BIN_EXE_tollgate");

fn start(world: &World, more: &[&str]) -> Running {
    world.configure("[[agent]]\nname = \"nobody\"\n");
    let config = world.path("tollgate.toml");
    let own =
        ["env", "TOLLGATE_LOG=info", TOLLGATE, "daemon", "--config", config.to_str().unwrap()];
    world.start_ungoverned(&[], &[&own[..], more].concat())
}

/// Takes connect4 from the scratch workload of this daemon whenever it is attached: a kernel without that hook. Until
/// the daemon has printed `text` or has ended.
fn weaken(world: &World, daemon: &mut Running, text: &str) {
    let prefix = format!("doctor-{}-", daemon.pid());
    wait_for(text, || {
        let prefix = prefix.clone();
        world.host.run(move || {
            let pins = std::fs::read_dir("/sys/fs/bpf/tollgate").into_iter().flatten().flatten();
            let own = pins.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
            let links: Vec<PathBuf> =
                own.map(|entry| entry.path().join("tollgate_connect4")).collect();
            // Not there yet, or gone with the run.
            links.iter().filter_map(|link| std::fs::remove_file(link).ok()).count()
        });
        (daemon.stderr().contains(text) || daemon.has_ended()).then_some(())
    });
}

#[test]
fn the_daemon_stays_on_a_kernel_that_holds() {
    let Some(world) = World::new() else { return };
    let mut daemon = start(&world, &[]);
    wait_until("the kernel is tried", || {
        daemon.stderr().contains("this kernel closes what was tried") || daemon.has_ended()
    });
    assert!(!daemon.has_ended(), "{}", daemon.stderr());
    kill(daemon.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(daemon.wait().code, Some(0));
}

#[test]
fn the_daemon_refuses_a_weak_kernel_and_says_what_is_open() {
    let Some(world) = World::new() else { return };
    let mut daemon = start(&world, &[]);
    weaken(&world, &mut daemon, "nothing is printed that ends the wait");
    let ended = daemon.wait();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for text in ["this kernel does not hold workloads", "vector 1 ", "--accept-weak"] {
        assert!(ended.stderr.contains(text), "{}", ended.stderr);
    }
}

#[test]
fn with_accept_weak_the_daemon_names_what_is_open_and_goes_on() {
    let Some(world) = World::new() else { return };
    let mut daemon = start(&world, &["--accept-weak"]);
    weaken(&world, &mut daemon, "accepted: vector 1 ");
    assert!(!daemon.has_ended(), "{}", daemon.stderr());
    kill(daemon.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(daemon.wait().code, Some(0));
}
