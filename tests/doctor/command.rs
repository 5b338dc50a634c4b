//! The verb from outside: what it prints, its exit codes, and that it leaves nothing behind however it ends.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::common::{is_privileged, wait_for, wait_until};

const TOLLGATE: &str = env!("CARGO_BIN_EXE_tollgate");

/// A doctor at work, and the end of one that a test did not wait for.
struct Doctor(Child);

impl Drop for Doctor {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("a doctor was not stopped: {error}");
        }
    }
}

impl Doctor {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(TOLLGATE);
        command.arg("doctor").args(arguments).stdin(Stdio::null());
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }

    /// What it has made so far: scratch cgroup and pins.
    fn traces(&self) -> Vec<PathBuf> {
        traces_of(self.pid())
    }

    /// Waits for its end: exit code, output, errors.
    fn wait(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (self.0.wait().unwrap().code(), out, err)
    }
}

fn traces_of(pid: Pid) -> Vec<PathBuf> {
    let cgroups = gateway::capture::CgroupRoot::find().unwrap();
    let runs = cgroups.mount().join(gateway::capture::RUNS);
    let prefix = format!("doctor-{pid}-");
    [runs, PathBuf::from("/sys/fs/bpf/tollgate")]
        .into_iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix))
        .collect()
}

/// The pin of connect4, once it is there.
fn redirect_of(pid: Pid) -> Option<PathBuf> {
    let pins = traces_of(pid).into_iter().find(|path| path.starts_with("/sys/fs/bpf"))?;
    let pin = pins.join("tollgate_connect4");
    pin.exists().then_some(pin)
}

#[test]
fn the_table_and_the_json_have_every_row_and_nothing_is_left_behind() {
    if !is_privileged() {
        return;
    }
    let doctor = Doctor::start(&["--json"]);
    let pid = doctor.pid();
    let (code, out, err) = doctor.wait();
    assert_eq!(code, Some(0), "{out}{err}");
    assert_eq!(traces_of(pid), [] as [PathBuf; 0]);
    let said: Value = serde_json::from_str(&out).unwrap();
    let rows = said["conformance"]["rows"].as_array().unwrap();
    // What the specification asks to be tried, but for 33, which needs a module that ordinary kernels load on request.
    let expected = (1..=32).chain([38]).chain(42..=46).chain([56]);
    for vector in expected {
        assert!(rows.iter().any(|row| row["vector"] == vector), "{vector} is not tried");
    }
    for row in rows {
        let verdict = row["verdict"].as_str().unwrap();
        assert!(["closed", "unproven"].contains(&verdict), "{row:#}");
        assert_eq!(row["all"]["frames_outside"], 0, "{row:#}");
    }
    // What the wire holds has reached it: the zero is not that of an attempt that was never made.
    for row in rows.iter().filter(|row| row["name"].as_str().unwrap().starts_with("packet")) {
        assert!(row["all"]["frames_at_the_fence"].as_u64().unwrap() > 0, "{row:#}");
    }
    assert!(said["problems"].is_array() && said["features"].as_array().unwrap().len() >= 4);

    let (code, table, err) = Doctor::start(&[]).wait();
    assert_eq!(code, Some(0), "{table}{err}");
    for row in rows {
        assert!(table.contains(row["attempt"].as_str().unwrap()), "{row:#}\n{table}");
    }
    assert!(table.contains("\nPASS: "), "{table}");
}

#[test]
fn a_kernel_whose_hook_is_gone_fails_with_code_1_and_the_row_is_named() {
    if !is_privileged() {
        return;
    }
    let doctor = Doctor::start(&["--quick"]);
    let pid = doctor.pid();
    // The kernel detaches a program whose link nobody holds.
    let pin = wait_for("the hooks are attached", || redirect_of(pid));
    fs::remove_file(pin).unwrap();
    let (code, out, err) = doctor.wait();
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("FAIL (quick form)"), "{out}");
    assert!(out.contains("vector 1 (TCP connect over IPv4) is open"), "{out}");
    assert_eq!(traces_of(pid), [] as [PathBuf; 0]);
}

#[test]
fn an_interrupted_doctor_leaves_nothing_behind() {
    if !is_privileged() {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let doctor = Doctor::start(&[]);
        let pid = doctor.pid();
        wait_until("it is at work", || redirect_of(pid).is_some());
        kill(pid, signal).unwrap();
        let (code, out, err) = doctor.wait();
        assert_eq!(code, Some(3), "{out}{err}");
        assert!(err.contains("interrupted"), "{err}");
        assert_eq!(traces_of(pid), [] as [PathBuf; 0]);
    }
}

#[test]
fn what_a_killed_doctor_leaves_is_swept_by_the_next_and_a_living_ones_is_not() {
    if !is_privileged() {
        return;
    }
    let living = Doctor::start(&[]);
    let killed = Doctor::start(&[]);
    let (living_pid, killed_pid) = (living.pid(), killed.pid());
    for pid in [living_pid, killed_pid] {
        wait_until("it is at work", || redirect_of(pid).is_some());
    }
    // Frozen, it is certain to be at work while the next one sweeps.
    kill(living_pid, Signal::SIGSTOP).unwrap();
    kill(killed_pid, Signal::SIGKILL).unwrap();
    let (code, ..) = killed.wait();
    assert_eq!(code, None);
    assert_eq!(traces_of(killed_pid).len(), 2, "the control: a killed one leaves something");

    let (code, out, err) = Doctor::start(&["--quick"]).wait();
    assert_eq!(code, Some(0), "{out}{err}");
    assert_eq!(traces_of(killed_pid), [] as [PathBuf; 0]);
    assert!(!living.traces().is_empty(), "the living one's are not swept");
    kill(living_pid, Signal::SIGCONT).unwrap();
    living.wait();
    assert_eq!(traces_of(living_pid), [] as [PathBuf; 0]);
}

#[test]
fn misuse_and_missing_rights_have_codes_of_their_own() {
    let (code, ..) = Doctor::start(&["--nonsense"]).wait();
    assert_eq!(code, Some(2));
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // The folder of the binary may be closed to others: it is run from a copy.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("tollgate");
    fs::copy(TOLLGATE, &copy).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), open).unwrap();
    let output = Command::new(&copy).arg("doctor").uid(65_534).gid(65_534).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("run it as root"), "{said}");
}
