//! The exchange of the programs under traffic.
//!
//! In the test's own process, against the capture stage itself: each exchange is what a daemon of another version does
//! first when it starts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use gateway::capture::{BpfFs, Captured, CgroupRoot, Closed, HeldProcess, Pins, Way};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;

use crate::land::Land;
use crate::tollgate::{Running, wait_for};

/// Runs `work` on a thread that is on the land's host: its mounts, its network.
fn on_host<T: Send>(land: &Land, work: impl FnOnce() -> T + Send) -> T {
    let keeper = format!("/proc/{}/ns", land.host.keeper());
    let open = |kind: &str| OwnedFd::from(File::open(format!("{keeper}/{kind}")).unwrap());
    let (mounts, network) = (open("mnt"), open("net"));
    std::thread::scope(|scope| {
        let on_host = || {
            // A thread that shares its working directory with others may not change its mounts.
            nix::sched::unshare(CloneFlags::CLONE_FS).unwrap();
            setns(mounts.as_fd(), CloneFlags::CLONE_NEWNS).unwrap();
            setns(network.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(on_host).join().unwrap()
    })
}

/// Which links run which programs.
fn programs(pins: &Pins) -> BTreeMap<String, (u32, u32)> {
    pins.links().unwrap().into_iter().map(|pin| (pin.name, (pin.link, pin.program))).collect()
}

/// Accepts and closes whatever comes, until the listeners are closed with the process.
fn answer(captured: Captured) -> gateway::capture::KernelFlows {
    for listener in captured.listeners.tcp {
        listener.set_nonblocking(false).unwrap();
        std::thread::spawn(move || {
            while let Ok((mut connection, _)) = listener.accept() {
                // The other end may be gone.
                if connection.write_all(b"x").is_err() {
                    continue;
                }
            }
        });
    }
    captured.flows
}

/// Sockets that were made before anything was closed send on, new ones are tried, all as fast as they can, and every
/// outcome is counted.
const HAMMER: &str = r#"
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 200)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'out0')
out = ('203.0.113.66', 9)
def connect():
    with socket.create_connection(('203.0.113.9', 80), 10) as s:
        if s.recv(1) != b'x': raise OSError(errno.EPIPE, '')
calls = {
    'connect': connect,
    'old raw': lambda: raw.sendto(b'raw', ('203.0.113.66', 0)),
    'new raw': lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 200).sendto(b'raw', ('203.0.113.66', 0)),
    'old udp': lambda: udp.sendto(b'udp', out),
    'new udp': lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'udp', out),
    'device': lambda: bound.sendto(b'udp', out),
}
free = {name: error_of(call) for name, call in calls.items() if name != 'connect'}
print(free, flush=True)
sys.stdin.readline()
seen = {name: {} for name in calls}
open('PATH/hammering', 'w').close()
while not os.path.exists('PATH/enough'):
    for name, call in calls.items():
        outcome = error_of(call)
        seen[name][outcome] = seen[name].get(outcome, 0) + 1
print({name: list(outcomes) for name, outcomes in seen.items()}, flush=True)
print(sum(sum(outcomes.values()) for outcomes in seen.values()), flush=True)
"#;

const EXCHANGES: usize = 50;

#[test]
fn fifty_exchanges_of_the_programs_leave_no_moment_without_one_and_none_with_two() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let agent = land.agent(&cgroup);
    land.give_device(&agent);
    let folder = land.host.folder().display().to_string();
    let mut hammer = land.start_python(&agent, &HAMMER.replace("PATH", &folder));
    wait_for("the control's frames", || (land.frames() == 5).then_some(()));

    let exchanged = on_host(&land, || {
        let (root, bpf) = (CgroupRoot::find().unwrap(), BpfFs::find_or_mount().unwrap());
        let cgroup = root.open(&cgroup).unwrap();
        let pins = bpf.create(&format!("cg-{}", cgroup.id())).unwrap();
        let pid = Pid::from_raw(i32::try_from(agent.pid()).unwrap());
        let namespace = HeldProcess::of(pid).unwrap().network().unwrap().unwrap();
        let mut closed = Closed::close(&cgroup, &pins, 0).unwrap();
        // The prober connects as fast as it can: no refusal may come of its rate.
        let way = Way { connects_per_second: 1_000_000.try_into().unwrap(), ..Way::by(10255) };
        let _flows = answer(closed.open(&namespace, way).unwrap());
        let first = programs(&pins);
        assert_eq!(first.len(), 14, "{first:?}");
        hammer.stdin().write_all(b"go\n").unwrap();
        let hammering = land.host.folder().join("hammering");
        wait_for("the hammer", || hammering.exists().then_some(()));
        let mut last = first.clone();
        for _ in 0..EXCHANGES {
            drop(std::mem::replace(&mut closed, Closed::close(&cgroup, &pins, 0).unwrap()));
            let now = programs(&pins);
            for (name, (link, program)) in &now {
                assert_eq!(*link, first[name].0, "{name}: the link stays");
                assert_ne!(*program, last[name].1, "{name}: the program is another one");
            }
            assert_eq!(now.len(), first.len());
            closed.verify(&cgroup).unwrap();
            last = now;
        }
        fs::write(land.host.folder().join("enough"), "").unwrap();
        hammer.finish().success()
    });
    let lines: Vec<&str> = exchanged.lines().collect();
    assert!(
        lines[0].matches("'done'").count() == 5,
        "the control: everything leaves: {}",
        lines[0]
    );
    assert_eq!(
        lines[1],
        "{'connect': ['done'], 'old raw': ['EPERM'], 'new raw': ['EPROTONOSUPPORT'], \
         'old udp': ['ECONNREFUSED'], 'new udp': ['ECONNREFUSED'], 'device': ['EPERM']}",
    );
    println!("{EXCHANGES} exchanges under {} calls", lines[2]);
    assert_eq!(land.frames(), 5, "frames left while the programs were exchanged");
}

#[test]
fn programs_of_two_owners_are_never_put_over_the_same_sockets() {
    let Some(land) = Land::new() else { return };
    let outer = land.cgroup("outer");
    let inner = land.cgroup("outer/inner");
    on_host(&land, || {
        let (root, bpf) = (CgroupRoot::find().unwrap(), BpfFs::find_or_mount().unwrap());
        let open = |path, name| (root.open(path).unwrap(), bpf.create(name).unwrap());
        for (first, second) in [(&outer, &inner), (&inner, &outer), (&inner, &inner)] {
            let (first, first_pins) = open(first, "cg-first");
            // The kernel takes programs off some time after the last name of their link is gone.
            let closed = wait_for("nothing is left of the last round", || {
                Closed::close(&first, &first_pins, 0).ok()
            });
            let (second, second_pins) = open(second, "cg-second");
            let error = Closed::close(&second, &second_pins, 0).map(drop).unwrap_err().to_string();
            assert!(error.contains("is governed by Tollgate already"), "{error}");
            assert!(second_pins.links().unwrap().is_empty(), "nothing of the second is attached");
            closed.verify(&first).unwrap();
            drop(closed);
            first_pins.remove().unwrap();
            wait_for("the control: alone, the second is fine", || {
                Closed::close(&second, &second_pins, 0).ok()
            });
            second_pins.remove().unwrap();
        }
    });
}

#[test]
fn what_was_closed_stays_closed_when_closing_fails_halfway() {
    let Some(land) = Land::new().filter(|_| knows_bpf()) else { return };
    let outer = land.cgroup("outer");
    let cgroup = land.cgroup("outer/agent");
    let agent = land.agent(&cgroup);
    land.give_device(&agent);
    let mut foreign = exclusive(&land, &outer, SOCK_OPS);
    on_host(&land, || {
        let (root, bpf) = (CgroupRoot::find().unwrap(), BpfFs::find_or_mount().unwrap());
        let opened = root.open(&cgroup).unwrap();
        let pins = bpf.create(&format!("cg-{}", opened.id())).unwrap();
        Closed::close(&opened, &pins, 0).map(drop).unwrap_err();
        let attached = programs(&pins);
        assert!((1..14).contains(&attached.len()), "{attached:?}");
        let device = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                      print(error_of(lambda: s.sendto(b'x', ('203.0.113.66', 9))))";
        assert_eq!(land.python(&agent, device).trim(), "EPERM", "the fence is there");
        assert_eq!(land.frames(), 0);
        foreign.stdin().write_all(b"\n").unwrap();
        foreign.finish().success();
        Closed::close(&opened, &pins, 0).unwrap().verify(&opened).unwrap();
        let after = programs(&pins);
        for (name, (link, _)) in attached {
            assert_eq!(after[&name].0, link, "{name}: what was there stayed");
        }
    });
}

/// Puts a program on a hook of a cgroup until it reads a line: without a flag, nothing may be attached below it.
const EXCLUSIVE: &str = r#"
import ctypes, ctypes.util, struct
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, attributes):
    result = libc.syscall(321, command, attributes, len(attributes))
    if result < 0: raise OSError(ctypes.get_errno(), 'bpf')
    return result
# r0 = 1; exit
code = ctypes.create_string_buffer(struct.pack('<BBhi', 0xb7, 0, 0, 1) + struct.pack('<BBhi', 0x95, 0, 0, 0))
license = ctypes.create_string_buffer(b'GPL')
program = bpf(5, struct.pack('<IIQQIIQIIQQI', TYPE, 2, ctypes.addressof(code), ctypes.addressof(license), 0, 0, 0, 0, 0, 0, 0, 0))
cgroup = os.open('CGROUP', os.O_RDONLY)
bpf(8, struct.pack('<IIII', cgroup, program, HOOK, 0))
open('PATH/attached', 'w').close()
sys.stdin.readline()
bpf(9, struct.pack('<IIII', cgroup, program, HOOK, 0))
"#;

/// Type of program and hook, as in linux/bpf.h.
const EGRESS: (u32, u32) = (8, 1);
const SOCK_OPS: (u32, u32) = (13, 3);

fn exclusive(land: &Land, cgroup: &Path, (kind, hook): (u32, u32)) -> Running {
    let code = EXCLUSIVE
        .replace("CGROUP", cgroup.to_str().unwrap())
        .replace("PATH", land.host.folder().to_str().unwrap())
        .replace("TYPE", &kind.to_string())
        .replace("HOOK", &hook.to_string());
    let code = format!("import os, sys\n{code}");
    let mut foreign =
        Running::start(Command::new("python3").args(["-c", &code]).stdin(Stdio::piped()));
    let attached = land.host.folder().join("attached");
    wait_for("the foreign program", || (attached.exists() || foreign.has_ended()).then_some(()));
    foreign
}

/// Says so where the probe cannot run.
fn knows_bpf() -> bool {
    let knows = cfg!(target_arch = "x86_64");
    if !knows {
        println!("SKIPPED: the probe knows the system call's number on x86-64 only");
    }
    knows
}

#[test]
fn a_program_above_that_allows_no_other_is_named() {
    let Some(land) = Land::new().filter(|_| knows_bpf()) else { return };
    let outer = land.cgroup("outer");
    let inner = land.cgroup("outer/inner");
    let mut foreign = exclusive(&land, &outer, EGRESS);
    on_host(&land, || {
        let (root, bpf) = (CgroupRoot::find().unwrap(), BpfFs::find_or_mount().unwrap());
        let cgroup = root.open(&inner).unwrap();
        let pins = bpf.create("cg-inner").unwrap();
        let error = Closed::close(&cgroup, &pins, 0).map(drop).unwrap_err().to_string();
        let expected =
            format!("{} has a program on the hook of `tollgate_egress`", outer.display());
        assert!(error.starts_with(&expected), "{error}");
        foreign.stdin().write_all(b"\n").unwrap();
        foreign.finish().success();
        Closed::close(&cgroup, &pins, 0).expect("the control: it is gone");
    });
}
