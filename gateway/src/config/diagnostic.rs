//! Mistakes, each with its place, collected until there is nothing more to find.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use super::document::Document;

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file it is in.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong. Never quotes a value that could be a secret.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// Everything that is wrong with a configuration. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    diagnostics: Vec<Diagnostic>,
}

/// Where something stands: which document, and how many bytes into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) document: usize,
    pub(super) offset: usize,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// What has been found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    found: Vec<Finding>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    place: Place,
    message: String,
    help: Option<String>,
    /// The text is no TOML there: what else is found on that line is a consequence.
    syntax: bool,
}

// === impl ConfigErrors ===

impl ConfigErrors {
    /// The mistakes, in the order of files and lines.
    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    pub(super) fn unreadable(diagnostics: Vec<Diagnostic>) -> Self {
        Self { diagnostics }
    }
}

impl Diagnostic {
    /// One that concerns a whole file.
    pub(super) fn at_start(file: &Path, message: String, help: &str) -> Self {
        Self { file: file.to_owned(), line: 1, column: 1, message, help: Some(help.to_owned()) }
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, diagnostic) in self.diagnostics.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file.display(), self.line, self.column, self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

// === impl Findings ===

impl Findings {
    /// Notes a mistake with its remedy.
    pub(super) fn add(
        &mut self,
        place: Place,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.found.push(Finding {
            place,
            message: message.into(),
            help: Some(help.into()),
            syntax: false,
        });
    }

    /// Notes that the text is no TOML at `place`.
    pub(super) fn add_syntax(&mut self, place: Place, message: &str) {
        let message = format!("not valid TOML: {message}");
        self.found.push(Finding { place, message, help: None, syntax: true });
    }

    /// All of them in the order of the text, or nothing if nothing was found.
    pub(super) fn into_result(mut self, documents: &[Document]) -> Result<(), ConfigErrors> {
        self.found.sort();
        self.found.dedup();
        let lines: Vec<_> = documents.iter().map(|document| Lines::of(&document.text)).collect();
        let place_of = |place: Place| {
            lines.get(place.document).map_or((1, 1), |lines| lines.place(place.offset))
        };
        let syntax_lines: HashSet<_> = self
            .found
            .iter()
            .filter(|finding| finding.syntax)
            .map(|finding| (finding.place.document, place_of(finding.place).0))
            .collect();
        let mut diagnostics = Vec::new();
        for finding in self.found {
            let (line, column) = place_of(finding.place);
            if !finding.syntax && syntax_lines.contains(&(finding.place.document, line)) {
                continue;
            }
            let file = documents.get(finding.place.document).map(|document| document.file.clone());
            diagnostics.push(Diagnostic {
                file: file.unwrap_or_default(),
                line,
                column,
                message: finding.message,
                help: finding.help,
            });
        }
        if diagnostics.is_empty() { Ok(()) } else { Err(ConfigErrors { diagnostics }) }
    }
}

/// Where the lines of a text begin, so that a file full of mistakes is not read again for each of them.
struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(newline, _)| newline + 1);
        Self { text, starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// Line and column, both from 1, the column in characters.
    fn place(&self, offset: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count());
        (line.max(1), column + 1)
    }
}

/// Line and column of a byte, both from 1, the column in characters.
pub(super) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    Lines::of(text).place(offset)
}
