//! The executable of a process that did something a moment ago, unless its number is somebody else's by now.

use std::fs;

/// The path of the executable of the process `pid`, which lived at `at_ns` on `CLOCK_BOOTTIME`.
///
/// None when it has ended. A process that began later has taken over the number and is not meant. What cannot be told
/// is that the process itself has become another program since.
pub(super) fn executable_of(pid: u32, at_ns: u64) -> Option<String> {
    let process = format!("/proc/{pid}");
    let started = start_ticks(&process)?;
    if nanoseconds(started)? > at_ns {
        return None;
    }
    let path = fs::read_link(format!("{process}/exe")).ok()?;
    // Read between two looks at one and the same start: the link was that process's.
    (start_ticks(&process)? == started).then(|| path.to_string_lossy().into_owned())
}

/// When the process began, in clock ticks since boot: field 22 of its stat (proc(5)). Its name, which may hold anything,
/// ends at the last parenthesis.
fn start_ticks(process: &str) -> Option<u64> {
    const FIELD: usize = 22 - 3;
    let stat = fs::read(format!("{process}/stat")).ok()?;
    let name_ends = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_ends..)?.get(2..)?).ok()?;
    rest.split(' ').nth(FIELD)?.parse().ok()
}

fn nanoseconds(ticks: u64) -> Option<u64> {
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let per_second = u64::try_from(per_second).ok().filter(|per_second| *per_second > 0)?;
    ticks.checked_mul(1_000_000_000 / per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now_ns() -> u64 {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
        u64::try_from(std::time::Duration::from(now).as_nanos()).unwrap()
    }

    #[test]
    fn a_process_that_was_there_has_its_executable_and_one_that_came_later_has_none() {
        let own = std::env::current_exe().unwrap().to_string_lossy().into_owned();
        assert_eq!(executable_of(std::process::id(), now_ns()), Some(own));
        // Somebody did something before this process began, under its number.
        let begun = nanoseconds(start_ticks("/proc/self").unwrap()).unwrap();
        assert_eq!(executable_of(std::process::id(), begun - 1), None);
    }

    #[test]
    fn a_process_that_has_ended_has_none() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert_eq!(executable_of(pid, now_ns()), None);
    }
}
