//! Standard streams: the command's own, byte for byte, and a terminal where there is one.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use nix::pty::openpty;

use crate::tollgate::{Host, finish, wait_for};

#[test]
fn a_mebibyte_of_every_byte_comes_through_a_pipe_unchanged() {
    let Some(host) = Host::new("") else { return };
    let input = host.folder().join("input");
    let output = host.folder().join("output");
    // Two periods without a common factor, so that a lost or doubled block shows.
    let bytes: Vec<u8> =
        (0..=255_u8).cycle().zip((0..251_u8).cycle()).map(|(a, b)| a ^ b).take(1 << 20).collect();
    std::fs::write(&input, &bytes).unwrap();
    let mut run = host.run(&["sh", "-c", "exec cat | cat"]);
    let mut child = run
        .stdin(Stdio::piped())
        .stdout(File::create(&output).unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&bytes).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert!(std::fs::read(&output).unwrap() == bytes, "what came out is not what went in");
}

#[test]
fn standard_error_and_standard_output_stay_apart_and_hold_nothing_of_tollgate() {
    let Some(host) = Host::new("") else { return };
    let finished = host.sh("echo out; echo err >&2");
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn a_closed_pipe_ends_the_command_as_it_would_without_tollgate() {
    let Some(host) = Host::new("") else { return };
    let script = format!("{} | head -n 1", host.run_words(&[], &["yes"]).join(" "));
    assert_eq!(finish(&mut host.plain(["sh", "-c", &script])).success(), "y\n");
}

#[test]
fn an_interactive_shell_works_on_a_terminal_and_ctrl_c_reaches_the_command_alone() {
    let Some(host) = Host::new("") else { return };
    let pty = openpty(None, None).unwrap();
    let mut screen = Screen::new(File::from(pty.master));
    // `setsid --ctty` gives the run a session whose terminal this is, as a terminal window does.
    let run = host.run_words(&[], &["bash", "--norc", "-i"]);
    let mut shell = host.plain(["setsid", "--ctty", "--wait"]);
    shell.args(run).env("PS1", "prompt> ").env("TERM", "dumb");
    let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    let mut child = shell
        .stdin(slave(&pty.slave))
        .stdout(slave(&pty.slave))
        .stderr(slave(&pty.slave))
        .spawn()
        .unwrap();
    drop((shell, pty.slave));

    screen.wait_for("prompt> ");
    screen.type_in("test -t 0 && test -t 1 && echo it is a ter''minal\n");
    screen.wait_for("it is a terminal");
    // Job control: the shell owns the terminal and gives it to what it starts.
    screen.type_in("sleep 1000; echo inter''rupted $?\n");
    screen.wait_for("sleep 1000");
    wait_for("sleep in the foreground", || screen.foreground_is("sleep").then_some(()));
    screen.type_in("\u{3}");
    screen.wait_for("prompt> ");
    screen.type_in("cat\n");
    wait_for("cat in the foreground", || screen.foreground_is("cat").then_some(()));
    screen.type_in("\u{1a}");
    screen.wait_for("Stopped");
    screen.type_in("fg\n");
    wait_for("cat in the foreground again", || screen.foreground_is("cat").then_some(()));
    screen.type_in("\u{4}");
    screen.wait_for("prompt> ");
    screen.type_in("exit 4\n");
    assert_eq!(wait_for("the shell's end", || child.try_wait().unwrap()).code(), Some(4));
}

/// The master's side of a terminal, and everything that was written to it.
struct Screen {
    master: File,
    seen: String,
    from: usize,
}

impl Screen {
    fn new(master: File) -> Self {
        Self { master, seen: String::new(), from: 0 }
    }

    fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` appears after what was waited for before.
    fn wait_for(&mut self, text: &str) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd as _;
        wait_for(text, || {
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(50_u8)).unwrap() > 0 {
                let mut bytes = [0; 4096];
                let length = self.master.read(&mut bytes).unwrap();
                self.seen.push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
            let found = self.seen[self.from..].find(text)?;
            self.from += found + text.len();
            Some(())
        });
    }

    /// Whether the terminal's foreground process group is led by a process of this name.
    fn foreground_is(&self, comm: &str) -> bool {
        let group = nix::unistd::tcgetpgrp(&self.master).unwrap();
        std::fs::read_to_string(format!("/proc/{group}/comm"))
            .is_ok_and(|found| found.trim_end() == comm)
    }
}
