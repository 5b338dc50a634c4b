//! Files → text: the configuration file and the parts in `policy.d` beside it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::ConfigErrors;

/// One file and what it may contain.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) file: PathBuf,
    pub(super) text: String,
    pub(super) kind: DocumentKind,
}

/// What a file may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DocumentKind {
    /// Everything.
    Main,
    /// `[[agent]]`, `[[credential]]` and `[[rule]]`.
    Part,
}

impl Document {
    /// Where relative paths in the document begin.
    pub(super) fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }
}

/// Reads `path` and every `policy.d/*.toml` beside it, these in the order of their names.
pub(super) fn read_all(path: &Path) -> Result<Vec<Document>, ConfigErrors> {
    let mut documents = vec![read(path.to_owned(), DocumentKind::Main)?];
    let folder = path.parent().unwrap_or(Path::new("")).join(PARTS_FOLDER);
    let unreadable = |error: io::Error| {
        ConfigErrors::of_file(
            &folder,
            format!("cannot be read: {error}"),
            "make the folder readable, or remove it",
        )
    };
    let entries = match folder.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(documents),
        Err(error) => return Err(unreadable(error)),
    };
    let mut parts = Vec::new();
    for entry in entries {
        let file = entry.map_err(unreadable)?.path();
        let hidden = file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && file.extension().is_some_and(|extension| extension == "toml") {
            parts.push(file);
        }
    }
    parts.sort();
    for part in parts {
        documents.push(read(part, DocumentKind::Part)?);
    }
    Ok(documents)
}

fn read(file: PathBuf, kind: DocumentKind) -> Result<Document, ConfigErrors> {
    let fails = |error: &dyn std::fmt::Display| {
        let help = "name a readable TOML file";
        ConfigErrors::of_file(&file, format!("cannot be read: {error}"), help)
    };
    let opened = File::open(&file).map_err(|error| fails(&error))?;
    let mut text = String::new();
    opened.take(DOCUMENT_MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| fails(&error))?;
    if text.len() as u64 > DOCUMENT_MAX_BYTES {
        return Err(fails(&format!("it is larger than {DOCUMENT_MAX_BYTES} bytes")));
    }
    Ok(Document { file, text, kind })
}

/// The folder beside the configuration file with further agents, credentials and rules.
const PARTS_FOLDER: &str = "policy.d";

/// Largest configuration file: some ten thousand rules. What is larger is most likely not meant.
const DOCUMENT_MAX_BYTES: u64 = 4 * 1024 * 1024;
