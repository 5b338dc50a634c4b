//! How a run ends: as the command did, or with a code that says who failed.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::tollgate::{AGENT, Host, Running, cgroup_of, finish, processes_in, run_name, wait_for};

#[test]
fn the_exit_code_of_the_command_is_passed_through() {
    let Some(host) = Host::new("") else { return };
    for code in [0, 1, 3, 125, 255] {
        let finished = host.sh(&format!("exit {code}"));
        assert_eq!((finished.status.code(), finished.stderr.as_str()), (Some(code), ""));
    }
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_cannot_be_executed_is_126() {
    let Some(host) = Host::new("") else { return };
    for (command, code) in [("/no/such/command", 127), ("no-such-command", 127), ("/etc", 126)] {
        let finished = finish(&mut host.run(&[command]));
        assert_eq!(finished.status.code(), Some(code), "{finished:?}");
        let start = format!("tollgate: cannot execute `{command}`: ");
        assert!(finished.stderr.starts_with(&start), "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
    }
}

#[test]
fn an_agent_that_is_not_configured_is_refused_and_the_command_not_started() {
    let Some(host) = Host::new("") else { return };
    let witness = host.folder().join("started");
    let config = host.config();
    let command = format!("touch {}", witness.display());
    let mut words = host.run_words(&[], &["sh", "-c", &command]);
    let agent = words.iter_mut().find(|word| *word == AGENT).unwrap();
    "nobody-knows".clone_into(agent);
    let finished = finish(&mut host.plain(words));
    assert_eq!(finished.status.code(), Some(125));
    assert_eq!(
        finished.stderr,
        format!(
            "tollgate: {}: there is no agent `nobody-knows`; add an [[agent]] with this name\n",
            config.display()
        )
    );
    assert!(!witness.exists());
    // The control: the same command as an agent that is configured.
    finish(&mut host.run(&["sh", "-c", &command])).success();
    assert!(witness.exists());
}

#[test]
fn a_credential_file_that_is_missing_is_named_with_its_remedy_and_nothing_starts() {
    let rest = "[[credential]]\nname = \"mail-key\"\nsource = { file = \"/no/such/secret\" }\n\
                hosts = [\"mail.example.com\"]\nagents = [\"tester\"]\n\
                inject = { header = \"Authorization\", format = \"Bearer {value}\" }\n";
    let Some(host) = Host::new(rest) else { return };
    let finished = host.sh("echo started");
    assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(125), ""));
    for part in ["mail-key", "/no/such/secret", "No such file or directory"] {
        assert!(finished.stderr.contains(part), "{part} is not in {finished:?}");
    }
}

#[test]
fn the_signal_that_kills_the_command_is_what_a_waiter_sees() {
    let Some(host) = Host::new("") else { return };
    // SIGSEGV, SIGBUS and SIGPIPE are those that Rust's runtime has its own mind about.
    for signal in [
        Signal::SIGTERM,
        Signal::SIGKILL,
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGPIPE,
        Signal::SIGUSR1,
    ] {
        let finished = host.sh(&format!("kill -{} $$", signal as i32));
        assert_eq!(finished.status.signal(), Some(signal as i32), "{finished:?}");
    }
}

#[test]
fn a_real_time_signal_ends_whom_it_hits_and_nobody_else() {
    let Some(host) = Host::new("") else { return };
    let orphan = host.sh("(sh -c 'kill -40 $$' &); sleep 0.3; exit 3");
    assert_eq!(orphan.status.code(), Some(3), "{orphan:?}");
    let command = host.sh("kill -40 $$");
    assert_eq!(command.status.code(), Some(128 + 34), "{command:?}");
}

#[test]
fn tollgate_leaves_no_core_with_what_it_knows() {
    let Some(host) = Host::new("") else { return };
    let up = host.folder().join("up");
    let script = format!(": > {}; exec sleep 1000", up.display());
    let command = ["sh", "-c", &script];
    let aborted = |words: Vec<String>| {
        let in_folder = ["env", "--chdir", host.folder().to_str().unwrap(), "sh", "-c"];
        let unlimited = ["ulimit -c unlimited && exec \"$@\"", "sh"];
        let before = [&in_folder[..], &unlimited].concat().into_iter().map(str::to_owned);
        let run = Running::start(host.plain(before.chain(words)).stdin(Stdio::null()));
        wait_for("the command", || up.exists().then_some(()));
        std::fs::remove_file(&up).unwrap();
        run.signal(Signal::SIGABRT);
        let status = run.finish().status;
        assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
        status.core_dumped()
    };
    if !aborted(command.map(str::to_owned).into()) {
        println!("SKIPPED: this machine writes no cores at all");
        return;
    }
    assert!(!aborted(host.run_words(&[], &command)));
    // The next start sweeps what the aborted one has left.
    host.sh("true").success();
}

#[test]
fn a_signal_to_tollgate_reaches_the_command() {
    let Some(host) = Host::new("") else { return };
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGHUP] {
        let name = signal.as_str().trim_start_matches("SIG");
        let ready = host.folder().join(format!("ready-{name}"));
        let script = format!(
            "trap 'echo got {name}; exit 7' {name}; : > {}; while :; do sleep 0.05; done",
            ready.display()
        );
        let run = Running::start(host.run(&["sh", "-c", &script]).stdin(Stdio::null()));
        wait_for("the trap", || ready.exists().then_some(()));
        run.signal(signal);
        let finished = run.finish();
        assert_eq!(finished.status.code(), Some(7), "{finished:?}");
        assert_eq!(finished.stdout, format!("got {name}\n"));
    }
}

#[test]
fn a_command_that_is_stopped_stops_tollgate_and_both_go_on_together() {
    let Some(host) = Host::new("") else { return };
    let ready = host.folder().join("ready");
    let go = host.folder().join("go");
    let script = format!(
        ": > {}; while [ ! -e {} ]; do sleep 0.05; done; exit 9",
        ready.display(),
        go.display()
    );
    let run = Running::start(host.run(&["sh", "-c", &script]).stdin(Stdio::null()));
    wait_for("the command", || ready.exists().then_some(()));
    run.signal(Signal::SIGTSTP);
    wait_for("Tollgate to stop", || (state_of(run.pid()) == 'T').then_some(()));
    let cgroup = cgroup_of(&run_name(run.pid()));
    let command = command_in(&cgroup);
    wait_for("the command to be stopped", || (state_of(command) == 'T').then_some(()));

    run.signal(Signal::SIGCONT);
    wait_for("Tollgate to go on", || (state_of(run.pid()) != 'T').then_some(()));
    wait_for("the command to go on", || (state_of(command) != 'T').then_some(()));
    std::fs::write(&go, "").unwrap();
    assert_eq!(run.finish().status.code(), Some(9));
}

/// The shell in the cgroup: the process whose parent is the workload's first process.
fn command_in(cgroup: &std::path::Path) -> u32 {
    wait_for("the shell", || {
        processes_in(cgroup).into_iter().find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sh\n")
        })
    })
}

/// The state letter of a process (proc(5)).
fn state_of(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let (_comm, rest) = stat.rsplit_once(") ").unwrap_or(("", "?"));
    rest.chars().next().unwrap_or('?')
}
