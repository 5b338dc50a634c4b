//! Where records go: one JSON object a line, appended whole, so that several processes can share one file.

use std::fs::File;
use std::io::{self, Write};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize as _;
use serde_json::ser::Formatter;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::meter::Meter;
use super::place::{self, Place};
use super::{Kind, Reason, Record, Tally};
use crate::agent::Agent;

/// The audit log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the audit log {} (gateway.audit): make its directory, or name another file", path.display())]
pub struct AuditError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A handle for writing records; clones share the file.
#[derive(Clone)]
pub struct Sink {
    shared: Arc<Shared>,
    /// Counts the refusals of one workload, where this is the handle of one.
    meter: Option<Arc<Meter>>,
}

struct Shared {
    out: Mutex<Out>,
    /// Whether the last record could not be written.
    failing: AtomicBool,
    /// Starts of record ids: process start time and pid make them unique among processes.
    prefix: String,
    next_id: AtomicU64,
}

struct Out {
    writer: Box<dyn Write + Send>,
    /// Whether the last record stopped in the middle of its line.
    torn: bool,
    /// Where the file is, if it is one that can be put away.
    place: Option<Place>,
}

/// A record that will be written when this is dropped, unless it is discarded.
pub struct Open {
    record: Record,
    tally: Arc<Tally>,
    sink: Sink,
    opened: Instant,
    /// Whether it was given up.
    discarded: bool,
}

// === impl Sink ===

impl Sink {
    /// Opens `path` for appending, made with mode 0600 when it is not there; its directory is made too.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open_file(path: &Path) -> Result<Self, AuditError> {
        let open = || -> io::Result<(File, Option<Place>)> {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            let file = place::open(path)?;
            let place = Place::of(path, &file)?;
            Ok((file, place))
        };
        let (file, place) =
            open().map_err(|source| AuditError { path: path.to_owned(), source })?;
        Ok(Self::with(Out { writer: Box::new(file), torn: false, place }))
    }

    /// A sink that writes to `out`, one `write_all` per record.
    #[must_use]
    pub fn to_writer(out: Box<dyn Write + Send>) -> Self {
        Self::with(Out { writer: out, torn: false, place: None })
    }

    fn with(out: Out) -> Self {
        let prefix = format!(
            "{:x}-{:x}",
            OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000,
            std::process::id()
        );
        Self {
            shared: Arc::new(Shared {
                out: Mutex::new(out),
                failing: AtomicBool::new(false),
                prefix,
                next_id: AtomicU64::new(1),
            }),
            meter: None,
        }
    }

    /// A handle for the records of one workload, whose refusals are recorded one by one only up to a rate.
    #[must_use]
    pub fn metered(&self, agent: &Arc<Agent>) -> Self {
        let unmetered = Self { shared: Arc::clone(&self.shared), meter: None };
        let meter = Meter::new(Arc::clone(agent), unmetered);
        Self { shared: Arc::clone(&self.shared), meter: Some(Arc::new(meter)) }
    }

    /// Writes how many refusals of the workload were not recorded one by one since the last record that says so.
    pub(crate) fn settle(&self) {
        if let Some(meter) = &self.meter {
            meter.settle();
        }
    }

    /// Opens a record that is written when the guard is dropped.
    #[must_use]
    pub fn open(&self, kind: Kind, agent: &Arc<Agent>, reason: Reason) -> Open {
        Open {
            record: Record::new(kind, agent, reason),
            tally: Arc::clone(&agent.tally),
            sink: self.clone(),
            opened: Instant::now(),
            discarded: false,
        }
    }

    /// An id that no other record of this state directory has.
    #[must_use]
    pub fn next_id(&self) -> String {
        let n = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        format!("{}-{n:x}", self.shared.prefix)
    }

    /// Whether the last record could not be written. Nothing may be forwarded then, as nobody would know of it. The
    /// record of the next refusal tries again.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.shared.failing.load(Ordering::Relaxed)
    }

    /// Writes `record`, which nobody has counted.
    pub(super) fn write(&self, record: &mut Record) {
        record.ts = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        if record.id.is_empty() {
            record.id = self.next_id();
        }
        let written = line_of(record).and_then(|mut line| {
            line.push(b'\n');
            // A panic of another writer leaves the file as it was: each record is one write.
            self.shared.out.lock().unwrap_or_else(PoisonError::into_inner).append(&line)
        });
        self.shared.failing.store(written.is_err(), Ordering::Relaxed);
        if let Err(error) = written {
            tracing::error!(%error, "an audit record could not be written");
        }
    }
}

impl Out {
    /// Writes a line; what a full disk has cut off before stays a line of its own.
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if let Some(file) = self.place.as_mut().and_then(|place| place.another(Instant::now())) {
            self.writer = Box::new(file);
            self.torn = false;
        }
        if self.torn {
            self.writer.write_all(b"\n")?;
            self.torn = false;
        }
        let written = self.writer.write(line)?;
        let rest = line.get(written..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        self.torn = true;
        self.writer.write_all(rest)?;
        self.torn = false;
        Ok(())
    }
}

/// The record as JSON in which no terminal, pager or log shipper finds anything but text.
fn line_of(record: &Record) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    record.serialize(&mut serde_json::Serializer::with_formatter(&mut line, Legible))?;
    Ok(line)
}

/// Compact JSON that escapes more than JSON demands: DEL and the C1 controls, which terminals obey, and the characters
/// that end a line or turn its direction elsewhere. An agent chooses what stands in a record.
struct Legible;

impl Formatter for Legible {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(is_deceptive) {
            let (plain, behind) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut characters = behind.chars();
            if let Some(character) = characters.next() {
                // All of them lie in the basic plane.
                write!(writer, "\\u{:04x}", u32::from(character))?;
            }
            rest = characters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Whether a terminal or a reader would take the character for more than text.
#[must_use]
pub fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

// === impl Open ===

impl Open {
    /// Milliseconds since the record was opened.
    #[must_use]
    pub fn elapsed_ms(&self) -> f64 {
        self.opened.elapsed().as_secs_f64() * 1000.0
    }

    /// Gives the record up without writing it: for a connection whose requests have written theirs.
    pub fn discard(mut self) {
        self.discarded = true;
    }
}

impl Deref for Open {
    type Target = Record;
    fn deref(&self) -> &Record {
        &self.record
    }
}

impl DerefMut for Open {
    fn deref_mut(&mut self) -> &mut Record {
        &mut self.record
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.discarded {
            return;
        }
        self.tally.note(&self.record);
        if let Some(meter) = &self.sink.meter
            && !meter.admits(&mut self.record, Instant::now())
        {
            return;
        }
        self.record.ms_total = self.elapsed_ms();
        self.sink.write(&mut self.record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::AgentName;
    use crate::audit::Process;

    #[test]
    fn a_record_is_one_line_of_text_whatever_an_agent_calls_itself() {
        let agent = Agent {
            name: AgentName::parse("worker").unwrap(),
            workload: "run-1".to_owned(),
            container: None,
            cgroup_id: 1,
            netns_cookie: 1,
            tally: Arc::default(),
        };
        let mut record = Record::new(Kind::Request, &Arc::new(agent), Reason::BadRequest);
        let comm = "a\n\"\u{1b}[2J\u{7f}\u{85}\u{9b}1m\u{2028}\u{202e}\u{2066}é\u{1f600}\\";
        record.process = Some(Process { pid: 1, comm: comm.to_owned(), exe: None });
        let line = String::from_utf8(line_of(&record).unwrap()).unwrap();
        assert!(!line.chars().any(is_deceptive), "{line:?}");
        assert!(line.contains("é\u{1f600}"), "{line:?}");
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["process"]["comm"], comm);
        // The library's own form, which is valid JSON as well, has them.
        assert!(serde_json::to_string(&record).unwrap().chars().any(is_deceptive));
    }

    /// A disk that has room for `room` bytes.
    struct Disk {
        room: Arc<AtomicU64>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = usize::try_from(self.room.load(Ordering::Relaxed)).unwrap();
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(room);
            self.room.fetch_sub(taken as u64, Ordering::Relaxed);
            self.written.lock().unwrap().extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_known_until_a_record_is_written_again_and_tears_no_later_record() {
        let agent = Arc::new(Agent {
            name: AgentName::parse("worker").unwrap(),
            workload: "run-1".to_owned(),
            container: None,
            cgroup_id: 1,
            netns_cookie: 1,
            tally: Arc::default(),
        });
        let room = Arc::new(AtomicU64::new(10));
        let written = Arc::new(Mutex::new(Vec::new()));
        let disk = Disk { room: Arc::clone(&room), written: Arc::clone(&written) };
        let sink = Sink::to_writer(Box::new(disk));
        assert!(!sink.is_failing());
        drop(sink.open(Kind::Request, &agent, Reason::BadRequest));
        assert!(sink.is_failing());
        drop(sink.open(Kind::Request, &agent, Reason::BadRequest));
        assert!(sink.is_failing());
        room.store(1_000_000, Ordering::Relaxed);
        drop(sink.open(Kind::Request, &agent, Reason::BadRequest));
        assert!(!sink.is_failing());
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0].len()), (2, 10));
        let whole: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!(whole["reason"], "bad_request");
    }
}
