//! `tollgate logs`: the audit log for people and for programs. It reads a file: it needs no kernel, no gateway that
//! runs, and no right but to read that file.

mod line;
mod table;
mod tail;

use std::io::{self, BufWriter, ErrorKind, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::{MISUSE, complain};
use crate::agent::AgentName;
use crate::config::{Config, SourceCheck};
use line::Line;
use tail::Tail;

/// Print the audit log: every request, connection and refusal, oldest first
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file: it says where the audit log is
    #[arg(long, value_name = "FILE", default_value = super::CONFIG)]
    config: PathBuf,
    /// Only what looks like an attempt to get out or to deceive the gateway, and warnings to the operator
    #[arg(long)]
    security: bool,
    /// Only this agent's records
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Only records since then: 30s, 10m, 2h, 7d ago, or a time like 2026-01-31T12:00:00Z
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Go on with what is written from now on, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Print the records as they stand in the log, one JSON object a line
    #[arg(long)]
    json: bool,
}

/// What is asked for makes no sense.
#[derive(Debug, thiserror::Error)]
enum QuestionError {
    /// Not an agent's name.
    #[error(transparent)]
    Agent(#[from] crate::agent::AgentNameError),
    /// Neither a span nor a time.
    #[error(
        "`{when}` is no time: write 30s, 10m, 2h or 7d for so long ago, or a time like 2026-01-31T12:00:00Z"
    )]
    Since {
        /// As it was asked.
        when: String,
    },
}

/// Which records are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    security: bool,
    agent: Option<String>,
    since: Option<OffsetDateTime>,
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    let wanted = match Wanted::parse(arguments, OffsetDateTime::now_utc()) {
        Ok(wanted) => wanted,
        Err(error) => {
            complain(&error.into());
            return ExitCode::from(MISUSE);
        }
    };
    match logs(arguments, &wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn logs(arguments: &Arguments, wanted: &Wanted) -> anyhow::Result<()> {
    let config = Config::load_with(&arguments.config, SourceCheck::Skip)?;
    let mut tail = Tail::open(&config.gateway.audit)?;
    let mut printer = Printer {
        out: BufWriter::new(io::stdout().lock()),
        json: arguments.json,
        has_header: false,
        left_out: 0,
    };
    loop {
        let batch = tail.read(&mut |bytes| printer.line(bytes, wanted));
        let outcome = match batch {
            Ok(ControlFlow::Continue(())) => printer.out.flush(),
            Ok(ControlFlow::Break(error)) => Err(error),
            Err(error) => return Err(error.into()),
        };
        match outcome {
            Ok(()) => {}
            // Whoever reads has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(anyhow::Error::new(error).context("cannot print")),
        }
        printer.say_what_is_left_out(tail.take_skipped());
        if !arguments.follow || !has_reader_after_a_while()? {
            return Ok(());
        }
        tail.follow_rotation()?;
    }
}

/// Waits a little; false when nobody reads the output any more.
fn has_reader_after_a_while() -> nix::Result<bool> {
    let stdout = io::stdout();
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    match poll(&mut fds, PollTimeout::from(FOLLOW_EVERY_MS)) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(error) => return Err(error),
    }
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    Ok(!fds.iter().any(|fd| fd.revents().is_some_and(|events| events.intersects(gone))))
}

/// How soon a new record is printed.
const FOLLOW_EVERY_MS: u8 = 200;

struct Printer<W: Write> {
    out: W,
    json: bool,
    has_header: bool,
    /// Lines that are no records.
    left_out: u64,
}

impl<W: Write> Printer<W> {
    fn line(&mut self, bytes: &[u8], wanted: &Wanted) -> ControlFlow<io::Error> {
        let Some(line) = Line::parse(bytes) else {
            self.left_out = self.left_out.saturating_add(1);
            return ControlFlow::Continue(());
        };
        if !wanted.holds(&line) {
            return ControlFlow::Continue(());
        }
        match self.print(&line, bytes) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }

    fn print(&mut self, line: &Line, bytes: &[u8]) -> io::Result<()> {
        if self.json {
            return writeln!(self.out, "{}", line::as_it_stands(bytes));
        }
        if !self.has_header {
            self.has_header = true;
            writeln!(self.out, "{}", table::header())?;
        }
        writeln!(self.out, "{}", table::row(line))
    }

    #[expect(clippy::print_stderr, reason = "the command line speaks to people")]
    fn say_what_is_left_out(&mut self, skipped: u64) {
        let number = std::mem::take(&mut self.left_out).saturating_add(skipped);
        if number > 0 {
            eprintln!("tollgate: lines of the audit log that are no whole records: {number}");
        }
    }
}

// === impl Wanted ===

impl Wanted {
    fn parse(arguments: &Arguments, now: OffsetDateTime) -> Result<Self, QuestionError> {
        let agent = arguments.agent.as_deref().map(AgentName::parse).transpose()?;
        let since = arguments.since.as_deref().map(|when| since(when, now)).transpose()?;
        Ok(Self { security: arguments.security, agent: agent.map(|name| name.to_string()), since })
    }

    fn holds(&self, line: &Line) -> bool {
        if self.security && !line.is_security() {
            return false;
        }
        if self.agent.as_ref().is_some_and(|agent| *agent != line.agent) {
            return false;
        }
        // What has no readable time is not older than anything.
        self.since.is_none_or(|since| line.time().is_none_or(|time| time >= since))
    }
}

fn since(when: &str, now: OffsetDateTime) -> Result<OffsetDateTime, QuestionError> {
    let wrong = || QuestionError::Since { when: when.to_owned() };
    if let Ok(time) = OffsetDateTime::parse(when, &Rfc3339) {
        return Ok(time);
    }
    let unit = when.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number = when.strip_suffix(unit).ok_or_else(wrong)?;
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: i64 = number.parse().map_err(|_too_large| wrong())?;
    let span = Duration::seconds(number.checked_mul(seconds).ok_or_else(wrong)?);
    now.checked_sub(span).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_counts_back_from_now_and_a_time_is_itself() {
        let now = OffsetDateTime::parse("2026-01-31T12:00:00Z", &Rfc3339).unwrap();
        let rows = [
            ("30s", Some("2026-01-31T11:59:30Z")),
            ("10m", Some("2026-01-31T11:50:00Z")),
            ("2h", Some("2026-01-31T10:00:00Z")),
            ("7d", Some("2026-01-24T12:00:00Z")),
            ("0s", Some("2026-01-31T12:00:00Z")),
            ("2026-01-31T13:00:00+02:00", Some("2026-01-31T11:00:00Z")),
            ("", None),
            ("m", None),
            ("-5m", None),
            ("5", None),
            ("5w", None),
            ("5 m", None),
            ("1ü", None),
            ("99999999999999999999d", None),
            ("9999999999999999d", None),
            ("yesterday", None),
        ];
        for (when, expected) in rows {
            let expected = expected.map(|time| OffsetDateTime::parse(time, &Rfc3339).unwrap());
            assert_eq!(since(when, now).ok(), expected, "{when}");
        }
    }

    #[test]
    fn a_reader_who_goes_away_ends_the_printing() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut printer = Printer { out: Closed, json: true, has_header: false, left_out: 0 };
        let wanted = Wanted { security: false, agent: None, since: None };
        let line = br#"{"ts":"","kind":"dns","agent":"a","reason":"dns_answered"}"#;
        assert!(printer.line(line, &wanted).is_break());
        assert!(printer.line(b"torn", &wanted).is_continue());
        assert_eq!(printer.left_out, 1);
    }
}
