//! One run of a virtual machine: a script goes in, a console comes out.

use std::fs;
use std::process::Stdio;

use anyhow::{Context as _, Result};

use super::image::Image;
use super::{Outcome, Program};
use crate::{paths, run};

/// What the machine does when its root is there. No test may reach past it: it has no network card.
const PRELUDE: &str = r"
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root CI=1 TERM=dumb
ip link set lo up
ulimit -n 65536
";

/// Power off by the kernel: there is no init to ask.
const END: &str = "echo o > /proc/sysrq-trigger\nwhile :; do :; done\n";

/// Memory of the machine, in MiB.
const MEMORY: &str = "4096";

/// Boots `image`, runs `programs` one after the other, and tells how each ended.
pub(super) fn run(image: &Image, programs: &[Program], patience: u64) -> Result<Vec<Outcome>> {
    let folder = paths::target().join("kernels");
    let script_path = folder.join(format!("{}.sh", image.release()));
    let gateway = paths::root().join("gateway");
    let mut script = format!("{PRELUDE}cd {}\n", gateway.display());
    for Program { name, command } in programs {
        script += &format!("echo \"{BEGIN}{name}\"\n{command} 2>&1\necho \"{ENDED}$?\"\n");
    }
    fs::write(&script_path, script + END)?;
    let archive = image.initial_file_system(&script_path)?;
    fs::create_dir_all(paths::logs())?;
    let console = paths::logs().join(format!("kernel-{}.log", image.release()));
    let mut machine = run::command("timeout");
    machine.args(["--kill-after=5", &patience.to_string(), "qemu-system-x86_64"]);
    machine.args(["-M", "q35", "-cpu", "max", "-smp", "2", "-m", MEMORY, "-nographic"]);
    machine.args(["-no-reboot", "-nic", "none", "-append"]);
    machine.arg("console=ttyS0 quiet panic=-1 rdinit=/init");
    machine.arg("-kernel").arg(image.kernel()).arg("-initrd").arg(archive);
    machine
        .args(["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]);
    machine.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
    machine.stdin(Stdio::null()).stdout(fs::File::create(&console)?);
    // That it was cut off shows in the console, as programs without an end.
    machine.status().context("cannot start qemu-system-x86_64")?;
    let text = fs::read(&console)?;
    Ok(outcomes(&String::from_utf8_lossy(&text), programs))
}

const BEGIN: &str = "=== begin ";
const ENDED: &str = "=== ended ";

/// Reads a console: libtest's lines between the marks of each program.
fn outcomes(console: &str, programs: &[Program]) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = programs
        .iter()
        .map(|program| Outcome {
            name: program.name.clone(),
            passed: 0,
            failed: Vec::new(),
            code: None,
        })
        .collect();
    let mut current = None;
    for line in console.lines().map(str::trim) {
        if let Some(name) = line.split_once(BEGIN).map(|(_, name)| name) {
            current = outcomes.iter().position(|outcome| outcome.name == name);
        }
        let Some(outcome) = current.and_then(|position| outcomes.get_mut(position)) else {
            continue;
        };
        if let Some((_, code)) = line.split_once(ENDED) {
            outcome.code = code.parse().ok();
            current = None;
        } else if let Some(test) = line.strip_prefix("test ") {
            match test.rsplit_once(" ... ") {
                Some((_, "ok")) => outcome.passed += 1,
                Some((name, "FAILED")) => outcome.failed.push(name.to_owned()),
                _ => {}
            }
        }
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_tells_what_passed_what_failed_and_what_never_ended() {
        let program = |name: &str| Program { name: name.to_owned(), command: String::new() };
        let console = "boot\r\n=== begin redirect\r\ntest tcp::a ... ok\r\ntest tcp::b ... FAILED\r\n\
             test result: FAILED\r\n=== ended 101\r\n=== begin escapes\r\ntest c ... ok\r\npanic";
        let found = outcomes(console, &[program("redirect"), program("escapes"), program("wire")]);
        let shown: Vec<_> = found.iter().map(|o| (o.passed, o.failed.clone(), o.code)).collect();
        assert_eq!(
            shown,
            [(1, vec!["tcp::b".to_owned()], Some(101)), (1, vec![], None), (0, vec![], None)]
        );
    }
}
