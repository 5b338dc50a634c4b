//! What a command under `tollgate run` can reach past its network: files, devices, other sockets, the terminal, and
//! what is left when something fails. Privileged.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::{Command, Stdio};

    const SECRET: &str = "the-value-of-the-secret";

    /// A host of a test's own: private mounts, no network, its own run directories and pins.
    struct Host {
        folder: tempfile::TempDir,
    }

    /// What a script printed on both streams, and how it ended.
    struct Said {
        text: String,
        code: Option<i32>,
    }

    impl Host {
        /// Nothing, after saying so, where namespaces and programs cannot be made; a failure where `CI` is set.
        fn new() -> Option<Self> {
            if !nix::unistd::geteuid().is_root() {
                assert!(std::env::var_os("CI").is_none(), "these tests need root");
                println!("skipped: needs root");
                return None;
            }
            let folder = tempfile::tempdir().unwrap();
            let at = folder.path().display();
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
            fs::create_dir(folder.path().join("secrets")).unwrap();
            fs::write(folder.path().join("secrets/mail"), SECRET).unwrap();
            let config = format!(
                r#"
                [gateway]
                state_dir = "{at}/state"
                audit = "{at}/audit.jsonl"
                [[agent]]
                name = "worker"
                [[credential]]
                name = "mail"
                source = {{ file = "{at}/secrets/mail" }}
                hosts = ["mail.test"]
                inject = {{ header = "Authorization", format = "Bearer {{value}}" }}
                agents = ["worker"]
                "#
            );
            fs::write(folder.path().join("tollgate.toml"), config).unwrap();
            Some(Self { folder })
        }

        fn path(&self) -> &Path {
            self.folder.path()
        }

        /// `script` as the host, in the host's folder; `$GOVERNED` before a command governs it.
        fn command(&self, script: &str) -> Command {
            let prelude = "set -e; mount --make-rprivate /; ip link set lo up; mount -t tmpfs run /run; \
                 mount -t bpf bpf /sys/fs/bpf; set +e; cd \"$FOLDER\";";
            let governed = format!(
                "{} run --agent worker --config {}/tollgate.toml --",
                env!("CARGO_BIN_EXE_tollgate"),
                self.path().display()
            );
            let mut command = Command::new("timeout");
            command
                .args(["--kill-after=1", "100", "unshare", "--mount", "--net", "sh", "-c"])
                .arg(format!("{prelude} {script}"))
                .env("FOLDER", self.path())
                .env("GOVERNED", governed)
                .stdin(Stdio::null());
            command
        }

        fn sh(&self, script: &str) -> Said {
            said(&mut self.command(script))
        }

        /// `script` inside a governed command.
        fn governed(&self, script: &str) -> Said {
            fs::write(self.path().join("inside.sh"), script).unwrap();
            self.sh("$GOVERNED sh inside.sh")
        }
    }

    fn said(command: &mut Command) -> Said {
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        Said { text: String::from_utf8_lossy(&text).into_owned(), code: output.status.code() }
    }

    #[test]
    fn a_secret_is_hidden_under_every_mount_of_its_file_and_refused_with_a_second_name() {
        let Some(host) = Host::new() else { return };
        let mounts = "mkdir -p again part; mount --bind secrets again; touch part/one; \
             mount --bind secrets/mail part/one; mount --bind / /mnt;";
        let look = "cat secrets/mail again/mail part/one \"/mnt$FOLDER/secrets/mail\"";
        let control = host.sh(&format!("{mounts} {look}"));
        assert_eq!(control.text.matches(SECRET).count(), 4, "the control: {}", control.text);
        let inside = host.sh(&format!("{mounts} $GOVERNED sh -c '{look}; echo looked'"));
        assert!(!inside.text.contains(SECRET) && inside.text.contains("looked"), "{}", inside.text);

        let linked = host.sh("ln secrets/mail other; $GOVERNED cat other");
        assert!(!linked.text.contains(SECRET), "{}", linked.text);
        assert!(linked.text.contains("has another name"), "{}", linked.text);
        assert_eq!(linked.code, Some(125));
    }

    #[test]
    fn a_user_namespace_does_not_uncover_what_is_hidden() {
        let Some(host) = Host::new() else { return };
        let tricks = "umount secrets/mail; mkdir -p copy; mount --bind secrets copy; cat copy/mail; \
             mount --rbind . copy; cat copy/secrets/mail; mount -t overlay o -o lowerdir=secrets:state copy; \
             cat copy/mail secrets/mail; umount -l secrets/mail; cat secrets/mail; \
             mount -t sysfs s /sys; ls /sys/fs/cgroup; mount -t cgroup2 c copy && echo CGROUPS; echo tried";
        fs::write(host.path().join("tricks.sh"), tricks).unwrap();
        let control = host.sh("mount --bind /dev/null secrets/mail; sh tricks.sh");
        assert!(control.text.contains(SECRET), "the control: {}", control.text);
        let inside = host.sh("$GOVERNED unshare --user --map-root-user --mount sh tricks.sh");
        assert!(!inside.text.contains(SECRET), "{}", inside.text);
        assert!(!inside.text.contains("CGROUPS"), "{}", inside.text);
        assert!(inside.text.contains("tried"), "{}", inside.text);
        let cgroups = host.sh("$GOVERNED unshare --user --map-root-user --cgroup true");
        assert_ne!(cgroups.code, Some(0), "{}", cgroups.text);
    }

    #[test]
    fn devices_that_hold_files_or_memory_are_not_there_and_those_that_programs_need_are() {
        let Some(host) = Host::new() else { return };
        let disk = "mknod /dev/tollgate-test-disk b 7 200;";
        let look = "find /dev -type b -o -name kmsg -o -name mem | grep . && echo FOUND";
        let control = host.sh(&format!("{disk} {look}; rm /dev/tollgate-test-disk"));
        assert!(control.text.contains("FOUND"), "the control: {}", control.text);
        let inside =
            host.sh(&format!("{disk} $GOVERNED sh -c '{look}'; rm /dev/tollgate-test-disk"));
        assert!(!inside.text.contains("FOUND"), "{}", inside.text);
        let needed = host.governed(
            "python3 -c 'import os,pty,multiprocessing; pty.openpty(); multiprocessing.Lock(); os.urandom(1)' &&
             echo x > /dev/null && head -c 4 /dev/zero | wc -c && test -d /dev/fd && echo usable",
        );
        assert!(needed.text.contains("usable"), "{}", needed.text);
    }

    #[test]
    fn views_of_the_host_are_empty_wherever_they_are_mounted() {
        let Some(host) = Host::new() else { return };
        let mounts = "mkdir -p processes groups pins; mount -t proc p processes; mount -t cgroup2 c groups; \
             mount --bind /sys/fs/bpf pins; mkdir pins/some;";
        let look = "ls processes groups pins | grep -E \"cgroup.procs|^1$|some\"";
        let control = host.sh(&format!("{mounts} {look} | sort | uniq | wc -l"));
        assert_eq!(control.text.trim(), "3", "the control");
        let inside = host.sh(&format!("{mounts} $GOVERNED sh -c '{look}; echo looked'"));
        assert_eq!(inside.text.trim(), "looked");
    }

    #[test]
    fn sockets_past_the_hooks_keyrings_and_typing_into_the_terminal_are_refused() {
        let Some(host) = Host::new() else { return };
        let attempts = r#"
import ctypes, fcntl, os, platform, pty, socket, termios
def attempt(name, work):
    try: work(); print(name, "WORKED")
    except OSError as error: print(name, error.errno)
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*arguments) < 0: raise OSError(ctypes.get_errno(), "refused")
keyctl, uring = (250, 425) if platform.machine() == "x86_64" else (219, 425)
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
attempt("old packet", lambda: socket.socket(socket.AF_INET, 10, 0x300))
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
attempt("keyring", lambda: call(keyctl, 0, -2, 1))
attempt("uring", lambda: call(uring, 4, ctypes.create_string_buffer(120)))
attempt("unix", lambda: socket.socketpair())
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
pid, terminal = pty.fork()
if pid == 0:
    attempt("typing", lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"))
    os._exit(0)
text = b""
try:
    while chunk := os.read(terminal, 4096): text += chunk
except OSError: pass
print(text.decode())
"#;
        fs::write(host.path().join("attempts.py"), attempts).unwrap();
        let control = host.sh("python3 attempts.py").text;
        for name in ["packet", "old packet", "keyring", "unix", "netlink"] {
            assert!(control.contains(&format!("{name} WORKED")), "the control: {control}");
        }
        let inside = host.sh("$GOVERNED python3 attempts.py").text;
        for (name, errno) in [
            ("packet", 97),
            ("old packet", 97),
            ("vsock", 97),
            ("keyring", 38),
            ("uring", 38),
            ("typing", 1),
        ] {
            assert!(inside.contains(&format!("{name} {errno}")), "{inside}");
        }
        for name in ["unix", "netlink"] {
            assert!(inside.contains(&format!("{name} WORKED")), "{inside}");
        }
    }

    #[test]
    fn shared_memory_of_the_host_is_not_the_commands() {
        let Some(host) = Host::new() else { return };
        let made = "id=$(ipcmk -M 4096 | grep -o '[0-9]*$');";
        let script = |look: &str| format!("{made} {look} ipcs -m -i $id; ipcrm -m $id");
        let control = host.sh(&script(""));
        assert!(control.text.contains("bytes=4096"), "the control: {}", control.text);
        let inside = host.sh(&script("$GOVERNED"));
        assert!(!inside.text.contains("bytes=4096"), "{}", inside.text);
    }

    #[test]
    fn a_network_socket_as_standard_stream_is_refused_and_would_be_a_way_out() {
        let Some(host) = Host::new() else { return };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let received = |script: &str| {
            let ours = TcpStream::connect_timeout(
                &listener.local_addr().unwrap(),
                std::time::Duration::from_secs(10),
            )
            .unwrap();
            let (mut theirs, _) = listener.accept().unwrap();
            let said = said(host.command(script).stdin(OwnedFd::from(ours)));
            let mut text = String::new();
            theirs.read_to_string(&mut text).unwrap();
            (text, said)
        };
        // Without Tollgate, out of a network namespace that has no way out.
        let (leaked, _) = received("unshare --net sh -c 'echo leaked >&0'");
        assert_eq!(leaked, "leaked\n", "the control");
        let (nothing, said) = received("$GOVERNED sh -c 'echo leaked >&0'");
        assert_eq!(nothing, "");
        assert!(said.text.contains("standard input is a network socket"), "{}", said.text);
        assert_eq!(said.code, Some(125));
    }

    #[test]
    fn a_directory_as_standard_stream_is_refused_and_a_local_socket_is_not() {
        let Some(host) = Host::new() else { return };
        let directory = fs::File::open(host.path().join("secrets")).unwrap();
        let refused = said(host.command("$GOVERNED cat /proc/self/fd/0/mail").stdin(directory));
        assert!(!refused.text.contains(SECRET), "{}", refused.text);
        assert!(refused.text.contains("standard input is a directory"), "{}", refused.text);

        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.write_all(b"through a local socket\n").unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let passed = said(host.command("$GOVERNED cat").stdin(OwnedFd::from(theirs)));
        assert_eq!(passed.text, "through a local socket\n");
    }

    #[test]
    fn every_step_that_runs_out_of_descriptors_refuses_and_leaves_nothing() {
        let Some(host) = Host::new() else { return };
        let script = "for n in $(seq 14 3 48); do \
             prlimit --nofile=$n:$n $GOVERNED echo STARTED; echo \"code $?\"; \
             ls -A /run/tollgate /sys/fs/bpf/tollgate 2>/dev/null; done; $GOVERNED echo control";
        let said = host.sh(script);
        assert!(said.text.contains("control"), "{}", said.text);
        assert!(said.text.contains("code 125"), "{}", said.text);
        assert!(!said.text.contains("run-"), "{}", said.text);
        // Each refusal is before the command, never half of one.
        let refused = said.text.matches("code 125").count();
        let started = said.text.matches("STARTED").count();
        assert_eq!(refused + started, 12, "{}", said.text);
    }

    #[test]
    fn a_full_run_directory_and_a_foreign_pin_directory_refuse_and_leave_nothing() {
        let Some(host) = Host::new() else { return };
        let full = host.sh("mount -t tmpfs -o size=4k run /run; $GOVERNED echo STARTED; \
             echo \"code $?\"; ls -A /run /sys/fs/bpf | grep -E 'run-|tollgate'");
        assert!(full.text.contains("code 125") && !full.text.contains("STARTED"), "{}", full.text);
        assert!(!full.text.contains("run-"), "{}", full.text);

        let foreign = host.sh("mkdir /sys/fs/bpf/tollgate; chown nobody /sys/fs/bpf/tollgate; \
             $GOVERNED echo STARTED; echo \"code $?\"; ls -A /run/tollgate 2>/dev/null");
        assert!(foreign.text.contains("belongs to somebody else"), "{}", foreign.text);
        assert!(!foreign.text.contains("run-") && !foreign.text.contains("STARTED"));
    }

    #[test]
    fn a_real_time_signal_ends_its_process_and_not_the_workload() {
        let Some(host) = Host::new() else { return };
        // The orphan is gone when init has reaped it.
        let orphan = host.governed(
            "(sh -c 'echo $$ > pid; kill -36 $$' &); until test -s pid; do :; done; \
             while test -d /proc/$(cat pid); do :; done; echo lived on",
        );
        assert!(orphan.text.contains("lived on"), "{}", orphan.text);
        assert_eq!(orphan.code, Some(0));
        let itself = host.governed("kill -36 $$");
        assert_eq!(itself.code, Some(128 + 34), "{}", itself.text);
    }
}
