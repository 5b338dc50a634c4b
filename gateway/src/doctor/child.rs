//! The doctor's side of an attempt: starts the child, plays the outside, reads how far it got.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::attempt::{AGENT_V4, ATTEMPT_VERB, READY, Reached};
use super::mark::Mark;
use super::row::{Gift, Poke, Row};
use super::scratch::Scratch;
use crate::capture::NamespaceError;

/// How long an attempt may take; then it is killed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes the attempt of `row` with `program`. The calling thread is in the workload's namespace, where the child starts,
/// and lives longer than it: the kernel kills the child with it.
pub(super) fn run(
    program: &Path,
    scratch: &Scratch,
    row: &Row,
    mark: Mark,
) -> anyhow::Result<Reached> {
    let rights = row.rights.to_possible_value().context("rights without a name")?;
    let stdin = match row.gift {
        None => Stdio::piped(),
        Some(gift) => Stdio::from(foreign_socket(gift)?),
    };
    let mut child = Command::new(program)
        .arg(ATTEMPT_VERB)
        .arg(row.name)
        .arg(format!("--mark={}", mark.port()))
        .arg(format!("--rights={}", rights.get_name()))
        .arg("--procs")
        .arg(scratch.cgroup.path().join("cgroup.procs"))
        .env_clear()
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start an attempt")?;
    let said = converse(&mut child, scratch, row, mark);
    end(&mut child);
    let Some(said) = said? else {
        return Ok(Reached { stopped_at: Some(TOO_LONG.to_owned()), errno: None });
    };
    match said.lines().last().map(serde_json::from_str) {
        Some(Ok(reached)) => Ok(reached),
        _no_report => {
            let mut complaint = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut complaint)?;
            }
            anyhow::bail!("the attempt `{}` ended without a report: {complaint}", row.name)
        }
    }
}

/// What is said of an attempt that was killed.
const TOO_LONG: &str = "takes too long";

/// Reads until the child has closed its output, and does what happens outside when it is ready. `None` when it takes
/// too long.
fn converse(
    child: &mut Child,
    scratch: &Scratch,
    row: &Row,
    mark: Mark,
) -> anyhow::Result<Option<String>> {
    let mut stdout = child.stdout.take().context("no output")?;
    let deadline = Instant::now() + PATIENCE;
    let mut said = Vec::new();
    let mut poke = row.poke;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Err(nix::Error::EINTR) => continue,
            Ok(0) => return Ok(None),
            other => other?,
        };
        let mut bytes = [0; 1024];
        let length = stdout.read(&mut bytes)?;
        if length == 0 {
            return Ok(Some(String::from_utf8_lossy(&said).into_owned()));
        }
        said.extend(bytes.iter().take(length));
        if said.starts_with(READY.as_bytes())
            && let Some(poke) = poke.take()
        {
            from_outside(scratch, poke, mark)?;
            // The end of its input tells the child to go on.
            drop(child.stdin.take());
        }
    }
}

fn end(child: &mut Child) {
    // It has ended already, but for those that take too long.
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        tracing::debug!(%error, "an attempt's process was not waited for");
    }
}

/// Whoever is outside turns to the workload. That it is refused is what is wanted.
fn from_outside(scratch: &Scratch, poke: Poke, mark: Mark) -> Result<(), NamespaceError> {
    let to = SocketAddr::new(AGENT_V4.into(), mark.port()).into();
    scratch.outside.run(|| {
        let send = || -> io::Result<()> {
            match poke {
                Poke::Tcp => {
                    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
                    socket.connect_timeout(&to, POKE_WAIT)
                }
                Poke::Udp => {
                    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
                    socket.send_to(&mark.payload(), &to).map(drop)
                }
            }
        };
        if let Err(error) = send() {
            tracing::trace!(%error, "from outside");
        }
        Ok(())
    })
}

/// Within one machine an answer takes microseconds.
const POKE_WAIT: Duration = Duration::from_millis(100);

/// A socket of the calling thread's namespace and the doctor's own cgroup.
fn foreign_socket(gift: Gift) -> io::Result<OwnedFd> {
    let (kind, protocol) = match gift {
        Gift::Tcp => (Type::STREAM, Protocol::TCP),
        Gift::Udp => (Type::DGRAM, Protocol::UDP),
    };
    Ok(Socket::new(Domain::IPV4, kind, Some(protocol))?.into())
}
