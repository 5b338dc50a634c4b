//! What the command may, and what it sees of the machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd as _;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::tollgate::{Host, finish};

/// Docker's default capabilities without NET_RAW's neighbours: the bits that a root command may still have, as
/// numbers of capabilities(7).
const KEPT: [u32; 12] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 31];

/// `/proc/self/status` of a command, as the command reads it.
fn status(host: &Host, options: &[&str]) -> BTreeMap<String, String> {
    finish(&mut host.run_with(options, &["cat", "/proc/self/status"]))
        .success()
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| {
            (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" "))
        })
        .collect()
}

#[test]
fn a_named_user_gets_its_ids_and_groups_and_no_rights() {
    let Some(host) = Host::new("") else { return };
    let status = status(&host, &["--user", "nobody"]);
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    assert_eq!(status["Uid"], vec![nobody.uid.to_string(); 4].join(" "));
    assert_eq!(status["Gid"], vec![nobody.gid.to_string(); 4].join(" "));
    assert_eq!(status["Groups"], nobody.gid.to_string());
    assert_eq!(status["NoNewPrivs"], "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    let home = finish(&mut host.run_with(&["--user", "nobody"], &["sh", "-c", "echo $USER $HOME"]));
    assert_eq!(home.success(), format!("nobody {}\n", nobody.dir.display()));
}

#[test]
fn a_root_command_keeps_what_its_own_files_and_processes_need_and_nothing_beyond() {
    let Some(host) = Host::new("") else { return };
    let status = status(&host, &[]);
    let kept: u64 = KEPT.iter().map(|number| 1 << number).sum();
    let set = |name: &str| u64::from_str_radix(&status[name], 16).unwrap();
    assert_eq!(set("CapBnd") & !kept, 0, "{:x}", set("CapBnd"));
    assert_eq!(set("CapEff") & !kept, 0, "{:x}", set("CapEff"));
    assert_eq!((set("CapInh"), set("CapAmb")), (0, 0));
    assert_eq!(status["NoNewPrivs"], "1");
    // The control: without Tollgate the same caller has more.
    let ungoverned = finish(&mut host.plain(["cat", "/proc/self/status"])).success();
    let line = ungoverned.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    assert_ne!(u64::from_str_radix(line, 16).unwrap() & !kept, 0);
}

#[test]
fn who_called_sudo_is_whom_the_command_runs_as() {
    let Some(host) = Host::new("") else { return };
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let mut by_sudo = host.run(&["id", "-u"]);
    by_sudo.env("SUDO_UID", nobody.uid.to_string());
    assert_eq!(finish(&mut by_sudo).success(), format!("{}\n", nobody.uid));
    let mut named = host.run_with(&["--user", "root"], &["id", "-u"]);
    named.env("SUDO_UID", nobody.uid.to_string());
    assert_eq!(finish(&mut named).success(), "0\n");
    assert_eq!(host.sh("id -u").success(), "0\n");
}

#[test]
fn the_only_interface_is_lo_and_it_is_up() {
    let Some(host) = Host::new("") else { return };
    let interfaces = host.sh("ls /sys/class/net; cut -d: -f1 /proc/net/dev | tail -n +3");
    assert_eq!(interfaces.success().split_whitespace().collect::<Vec<_>>(), ["lo", "lo"]);
    assert_eq!(host.sh("cat /sys/class/net/lo/flags").success(), "0x9\n");
    // The control: an interface beside a workload is seen by those who share its namespace, and by them only.
    finish(&mut host.plain("ip link add witness type veth peer name twin".split(' '))).success();
    let look = ["cat", "/proc/net/dev"];
    assert!(finish(&mut host.plain(look)).success().contains("witness"));
    assert!(!finish(&mut host.run(&look)).success().contains("witness"));
}

#[test]
fn the_host_s_processes_cannot_be_seen_or_signalled() {
    let Some(host) = Host::new("") else { return };
    let own = std::process::id();
    let listed = host.sh("cd /proc && ls -d [0-9]*").success();
    let mut pids: Vec<u32> = listed.lines().map(|line| line.parse().unwrap()).collect();
    pids.sort_unstable();
    // The first process, the shell, ls.
    assert_eq!(pids.first(), Some(&1));
    assert!(pids.len() <= 3, "{pids:?}");
    let probe = format!("kill -0 {own} 2>&1; echo $?");
    assert!(host.sh(&probe).success().ends_with("1\n"));
    assert!(finish(&mut host.plain(["sh", "-c", &probe])).success().ends_with("0\n"));
}

#[test]
fn the_command_cannot_trace_or_kill_its_first_process() {
    let Some(host) = Host::new("") else { return };
    let probe = "import ctypes, os\n\
                 libc = ctypes.CDLL(None, use_errno=True)\n\
                 PTRACE_SEIZE = 0x4206\n\
                 print(libc.ptrace(PTRACE_SEIZE, 1, 0, 0), os.strerror(ctypes.get_errno()))\n\
                 os.kill(1, 9)\n\
                 print(open('/proc/1/comm').read())\n\
                 for fd in os.listdir('/proc/1/fd'):\n  try: print(os.open('/proc/1/fd/' + fd, 0))\n  \
                 except PermissionError: pass\n\
                 try: print(open('/proc/1/mem', 'rb'))\n\
                 except PermissionError: print('no memory')\n";
    let said = host.python(probe);
    assert_eq!(said, "-1 Operation not permitted\nexe\n\nno memory\n");
}

#[test]
fn descriptors_that_the_caller_left_open_do_not_reach_the_command() {
    let Some(host) = Host::new("") else { return };
    let secret = File::open("/etc/passwd").unwrap();
    fcntl(&secret, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let script = "import os\nfor fd in range(3, 1024):\n  try: os.fstat(fd); print(fd)\n  except OSError: pass";
    let list = ["python3", "-c", script];
    let inherited = finish(&mut host.plain(list)).success();
    let number = secret.as_raw_fd().to_string();
    assert!(inherited.lines().any(|line| line == number), "the control: {inherited}");
    assert_eq!(finish(&mut host.run(&list)).success(), "");
}

#[test]
fn the_machine_s_settings_are_read_only_and_its_control_file_systems_absent() {
    let Some(host) = Host::new("") else { return };
    for path in
        ["/proc/sys/kernel/core_pattern", "/proc/irq/default_smp_affinity", "/sys/class/net/lo/mtu"]
    {
        let finished = host.sh(&format!("echo x > {path}"));
        assert!(finished.stderr.contains("Read-only file system"), "{path}: {finished:?}");
    }
    let listed = host.sh("ls -A /sys/fs/cgroup /sys/fs/bpf /sys/kernel/debug").stdout;
    let entries: Vec<&str> =
        listed.lines().filter(|line| !line.is_empty() && !line.ends_with(':')).collect();
    assert_eq!(entries, Vec::<&str>::new());
}
