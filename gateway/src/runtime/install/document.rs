//! The text of an engine's configuration, and one member of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::bail;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// A `daemon.json` (dockerd(8)), as far as runtimes are concerned.
pub(super) struct Document<'a> {
    text: &'a str,
    runtimes: Option<Member<'a>>,
    pub(super) default_runtime: Option<String>,
}

/// A member whose value is an object.
struct Member<'a> {
    value: &'a RawValue,
    entries: BTreeMap<String, &'a RawValue>,
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    runtimes: Option<&'a RawValue>,
    #[serde(rename = "default-runtime")]
    default_runtime: Option<String>,
}

impl<'a> Document<'a> {
    /// # Errors
    /// When it is no JSON object, or its runtimes are none; the error names line and column.
    pub(super) fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        // Objects only: a struct would also be read out of an array.
        let _object: BTreeMap<String, &RawValue> = serde_json::from_str(text)?;
        let raw: Raw<'a> = serde_json::from_str(text)?;
        let member = |value: &'a RawValue| -> Result<Member<'a>, serde_json::Error> {
            Ok(Member { value, entries: serde_json::from_str(value.get())? })
        };
        let runtimes = raw.runtimes.map(member).transpose()?;
        Ok(Self { text, runtimes, default_runtime: raw.default_runtime })
    }

    /// The text with a runtime of this name. `None` when it has it.
    ///
    /// # Errors
    /// When it has another one of this name.
    pub(super) fn with_runtime(
        &self,
        name: &str,
        program: &Path,
    ) -> anyhow::Result<Option<String>> {
        let entry = json!({ "path": program });
        let Some(runtimes) = &self.runtimes else {
            let at = self.text.find('{').unwrap_or_default();
            let member = format!("\n    \"runtimes\": {{\n        \"{name}\": {entry}\n    }}");
            return Ok(Some(self.with_first_member(at, &member)));
        };
        if let Some(known) = runtimes.entries.get(name) {
            if is(known, program) {
                return Ok(None);
            }
            bail!(
                "it has another runtime `{name}` already: {}; remove it, or give it another name",
                known.get()
            );
        }
        let at = self.span(runtimes.value).start;
        Ok(Some(self.with_first_member(at, &format!("\n        \"{name}\": {entry}"))))
    }

    /// The text without the runtime that `with_runtime` has put in, and without the object that it was put in when
    /// nothing else is there. `None` when there is none.
    pub(super) fn without_runtime(&self, name: &str, program: &Path) -> Option<String> {
        let runtimes = self.runtimes.as_ref()?;
        let entry = runtimes.entries.get(name).filter(|entry| is(entry, program))?;
        let (name, value) =
            if runtimes.entries.len() == 1 { ("runtimes", runtimes.value) } else { (name, *entry) };
        let cut = self.member(name, self.span(value))?;
        Some(format!("{}{}", self.text.get(..cut.start)?, self.text.get(cut.end..)?))
    }

    /// Puts a member in front of the others of the object that begins at `at`.
    fn with_first_member(&self, at: usize, member: &str) -> String {
        let (before, after) = self.text.split_at_checked(at + 1).unwrap_or((self.text, ""));
        let is_first = after.trim_start().starts_with('}');
        let (end, after) = match (is_first, after.trim_start_matches([' ', '\t'])) {
            // On a line of its own, as the first member is.
            (true, rest) if rest.starts_with('}') => ("\n", rest),
            (true, _) => ("", after),
            (false, _) => (",", after),
        };
        format!("{before}{member}{end}{after}")
    }

    /// Where a value of this document stands in its text: it is a part of it.
    fn span(&self, value: &RawValue) -> Range<usize> {
        let start = value.get().as_ptr().addr().saturating_sub(self.text.as_ptr().addr());
        start..start + value.get().len()
    }

    /// The whole member with this value: the white space before its name, name, value, and one comma.
    fn member(&self, name: &str, value: Range<usize>) -> Option<Range<usize>> {
        let before = self.text.get(..value.start)?.trim_end().strip_suffix(':')?.trim_end();
        let before = before.strip_suffix(&format!("\"{name}\""))?.trim_end();
        let after = self.text.get(value.end..)?;
        let rest = after.trim_start();
        if let Some(rest) = rest.strip_prefix(',') {
            return Some(before.len()..self.text.len() - rest.len());
        }
        // The last one takes the comma before it.
        let before = before.strip_suffix(',').unwrap_or(before);
        Some(before.len()..value.end)
    }
}

/// Whether an entry names this program and nothing else.
fn is(entry: &RawValue, program: &Path) -> bool {
    serde_json::from_str::<Value>(entry.get())
        .is_ok_and(|entry| entry == json!({ "path": program }))
}
