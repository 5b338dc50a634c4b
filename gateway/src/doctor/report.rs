//! What the doctor says, to people and to programs.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::passes::{ALL, CONTROL, Observed, SOCKETS, Seen};
use super::row::Row;
use super::verdict::{is_open, judge};
use super::{Form, Verdict};

/// The outcome of a conformance run.
#[derive(Debug)]
pub struct Report {
    rows: Vec<RowReport>,
    /// Frames that no attempt has sent and that passed everything.
    unmarked: usize,
    form: Form,
    took: Duration,
}

/// The outcome of one row.
#[derive(Debug)]
pub struct RowReport {
    row: &'static Row,
    seen: [Seen; 3],
    verdict: Verdict,
}

impl Report {
    pub(super) fn new(observed: &Observed, form: Form, took: Duration) -> Self {
        let report = |(row, seen): &(&'static Row, [Seen; 3])| RowReport {
            row,
            seen: seen.clone(),
            verdict: judge(row, seen),
        };
        Self {
            rows: observed.rows.iter().map(report).collect(),
            unmarked: observed.unmarked,
            form,
            took,
        }
    }

    /// Whether this kernel closes everything that was tried, and the trying was proven to work.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.failures().is_empty()
    }

    /// Everything that is open or makes the run worthless, one line each.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self.rows.iter().filter_map(RowReport::failure).collect();
        if self.unmarked > 0 {
            failures.push(format!(
                "{} frames that no attempt has sent are outside with everything armed",
                self.unmarked
            ));
        }
        failures
    }

    /// Every row.
    #[must_use]
    pub fn rows(&self) -> &[RowReport] {
        &self.rows
    }

    /// How long it took.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.took
    }

    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:>2}  {:<46} {:<26} {:>7} {:>7} {:>4}  {}\n",
            "#", "attempt", "closed by", "control", "sockets", "all", "verdict"
        );
        for report in &self.rows {
            report.line(&mut text);
        }
        let count = |word: &str| self.rows.iter().filter(|row| row.verdict.word() == word).count();
        let form = if self.form == Form::Quick { " (quick form)" } else { "" };
        let outcome = if self.passes() { "PASS" } else { "FAIL" };
        append(
            &mut text,
            format_args!(
                "\n{outcome}{form}: {} closed, {} open, {} unproven, in {:.1} s\n",
                count("closed"),
                count("open"),
                count("unproven"),
                self.took.as_secs_f64()
            ),
        );
        for failure in self.failures() {
            append(&mut text, format_args!("  {failure}\n"));
        }
        text
    }

    /// The same for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "passes": self.passes(),
            "form": if self.form == Form::Quick { "quick" } else { "full" },
            "seconds": self.took.as_secs_f64(),
            "unmarked_frames_outside": self.unmarked,
            "failures": self.failures(),
            "rows": self.rows.iter().map(RowReport::json).collect::<Vec<_>>(),
        })
    }
}

impl RowReport {
    /// Number of the vector.
    #[must_use]
    pub fn vector(&self) -> u8 {
        self.row.vector
    }

    /// Name of the attempt, unique.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.row.name
    }

    /// What is known of it.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Open, or unproven where that makes the whole run worthless.
    fn failure(&self) -> Option<String> {
        let Row { vector, what, is_vital, .. } = self.row;
        match &self.verdict {
            Verdict::Open(why) => Some(format!("vector {vector} ({what}) is open: {why}")),
            Verdict::Unproven(why) if *is_vital => {
                Some(format!("the run proves nothing: vector {vector} ({what}): {why}"))
            }
            Verdict::Closed | Verdict::Unproven(_) => None,
        }
    }

    fn line(&self, text: &mut String) {
        let [control, sockets, all] = [CONTROL, SOCKETS, ALL].map(|pass| self.mark_of(pass));
        let why = self.verdict.why().map(|why| format!(": {why}")).unwrap_or_default();
        append(
            text,
            format_args!(
                "{:>2}  {:<46} {:<26} {control:>7} {sockets:>7} {all:>4}  {}{why}\n",
                self.row.vector,
                self.row.what,
                self.row.closer.name(),
                self.verdict.word(),
            ),
        );
    }

    /// Whether the attempt got through in a pass, in one character.
    fn mark_of(&self, pass: usize) -> &'static str {
        let is_open = self.seen.get(pass).is_some_and(|seen| is_open(self.row.closer, seen));
        if is_open { "seen" } else { "-" }
    }

    fn json(&self) -> Value {
        let [control, sockets, all] = &self.seen;
        let pass = |seen: &Seen| {
            json!({
                "seen": is_open(self.row.closer, seen),
                "frames_outside": seen.outside,
                "frames_at_the_fence": seen.at_the_fence,
                "reached_the_gateway": seen.is_served,
                "stopped_at": seen.reached.stopped_at,
                "errno": seen.reached.errno,
            })
        };
        json!({
            "vector": self.row.vector,
            "name": self.row.name,
            "attempt": self.row.what,
            "closed_by": self.row.closer.name(),
            "verdict": self.verdict.word(),
            "why": self.verdict.why(),
            "control": pass(control),
            "sockets_only": pass(sockets),
            "all": pass(all),
        })
    }
}

fn append(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    if text.write_fmt(arguments).is_err() {
        tracing::error!("a line of the report is lost");
    }
}
