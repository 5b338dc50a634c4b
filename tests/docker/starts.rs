//! What the other tests stand on: the engine of a world starts containers, and leaves nothing.

use crate::engine::Engine;
use crate::images;

#[test]
fn containers_run_in_the_engine_of_this_world_alone() {
    let Some(engine) = Engine::shared() else { return };
    let container = engine.run(&[], images::BARE, &["sleep", "1000"]);
    assert_eq!(container.exec(&["id", "-u"]).ok(), "0\n", "{}", engine.log());
    let pid = container.pid();
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(comm, "sleep\n");
    let mounts = images::machine_mounts();
    let options: Vec<&str> = mounts.iter().map(String::as_str).collect();
    let tools = engine.run(&options, images::MACHINE, &["sleep", "1000"]);
    for program in ["curl", "wget", "git", &images::python()] {
        tools.exec(&[program, "--version"]).ok();
    }
    let names = engine.docker(&["ps", "--format", "{{.Names}}"]);
    assert!(names.ok().lines().any(|name| name == container.name), "{names:?}");
}
