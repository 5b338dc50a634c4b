//! `docker run $(tollgate docker-args --agent NAME)`, as an operator types it.

use crate::common::wait_until;
use crate::engine::Engine;
use crate::governed::{self, LABELLED, SECRET, UPSTREAM, VARIABLE};
use crate::labels::machine;
use crate::slice::wait_for_gate;

/// What is printed for this way in.
fn printed(engine: &Engine, way: &str) -> String {
    let config = engine.world.path("tollgate.toml").display().to_string();
    let tollgate = [env!("CARGO_BIN_EXE_tollgate"), "docker-args", "--agent", LABELLED];
    let how = ["--config", &config, "--way", way];
    engine.start_command(&[tollgate.as_slice(), &how].concat()).wait().ok().to_owned()
}

#[test]
fn a_container_with_the_printed_arguments_is_served_and_its_clients_have_file_and_placeholder() {
    let Some(engine) = governed::engine() else { return };
    wait_for_gate(&engine);
    for way in ["label", "slice"] {
        let words = printed(&engine, way);
        let words: Vec<&str> = words.split_whitespace().collect();
        assert_eq!(words.iter().any(|it| it.starts_with("--cgroup-parent=")), way == "slice");
        let container = machine(&engine, &words);
        let path = format!("/by-docker-args-{way}");
        // A client that has the variable's file for its only roots, as Node adds it to its own.
        let script = format!(
            "curl -sS --max-time 20 --capath /nowhere --cacert \"$NODE_EXTRA_CA_CERTS\" \
             --header \"Authorization: Bearer ${VARIABLE}\" https://{UPSTREAM}{path}"
        );
        wait_until("the container reaches the upstream", || {
            container.exec(&["sh", "-c", &script]).code == Some(0)
        });
        let found = governed::of(&engine).authorizations(&path);
        let expected = format!("Bearer {SECRET}");
        assert!(!found.is_empty() && found.iter().all(|it| *it == expected), "{found:?}");
        let records = engine.world.audit_of("request");
        let mut own = records.iter().filter(|it| it["path"] == path.as_str());
        assert!(own.next_back().is_some_and(|it| it["agent"] == LABELLED), "{records:?}");
        let placeholder = container.exec(&["printenv", VARIABLE]);
        assert!(!placeholder.ok().trim().is_empty() && !placeholder.ok().contains(SECRET));

        // The control: with the label alone there is neither, and the same client distrusts.
        let alone = machine(&engine, &words[..1]);
        governed::of(&engine).wait_for(&alone);
        assert_eq!(alone.exec(&["printenv", VARIABLE]).code, Some(1));
        let script = script.replace("\"$NODE_EXTRA_CA_CERTS\"", "/etc/nsswitch.conf");
        // Bad certificate, or no roots at all.
        wait_until("the client distrusts", || {
            [Some(60), Some(77)].contains(&alone.exec(&["sh", "-c", &script]).code)
        });
        assert_eq!(alone.exec(&["printenv", "NODE_EXTRA_CA_CERTS"]).code, Some(1));
    }
}
