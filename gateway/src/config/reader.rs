//! A TOML table read key by key: wrong types, missing and unknown keys become findings, and reading goes on.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Findings, Located, Place};

/// A table whose keys are taken one after the other; [`Table::finish`] reports those that nobody took.
pub(super) struct Table<'d> {
    /// What it is called in messages: `[[rule]]`, `inject`.
    pub(super) label: &'static str,
    pub(super) place: Place,
    entries: &'d DeTable<'d>,
    known: Vec<&'static str>,
}

impl<'d> Table<'d> {
    pub(super) fn new(label: &'static str, entries: &'d DeTable<'d>, place: Place) -> Self {
        Self { label, place, entries, known: Vec::new() }
    }

    /// The value of `key`, of whatever type.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Located<&'d DeValue<'d>>> {
        self.known.push(key);
        self.entries.get(key).map(|value| self.locate(value))
    }

    /// A table in this one.
    pub(super) fn table(
        &mut self,
        findings: &mut Findings,
        key: &'static str,
        label: &'static str,
    ) -> Option<Self> {
        let value = self.take(key)?;
        match value.value {
            DeValue::Table(entries) => Some(Self::new(label, entries, value.place)),
            other => {
                wrong_type(findings, value.place, key, "a table", other);
                None
            }
        }
    }

    /// `[[key]]`: every table of the list.
    pub(super) fn tables(
        &mut self,
        findings: &mut Findings,
        key: &'static str,
        label: &'static str,
    ) -> Vec<Self> {
        let Some(list) = self.take(key) else { return Vec::new() };
        let DeValue::Array(items) = list.value else {
            let help = format!("write `{label}`, with two brackets");
            findings.add(list.place, format!("`{key}` must be a list of tables"), help);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items {
            let place = self.locate(item).place;
            match item.get_ref() {
                DeValue::Table(entries) => tables.push(Self::new(label, entries, place)),
                other => wrong_type(findings, place, key, "a table", other),
            }
        }
        tables
    }

    /// A string.
    pub(super) fn string(
        &mut self,
        findings: &mut Findings,
        key: &'static str,
    ) -> Option<Located<&'d str>> {
        let value = self.take(key)?;
        as_string(findings, key, &value)
    }

    /// A string that must be there.
    pub(super) fn required_string(
        &mut self,
        findings: &mut Findings,
        key: &'static str,
        help: &str,
    ) -> Option<Located<&'d str>> {
        if !self.has(key) {
            findings.add(self.place, format!("{} has no `{key}`", self.label), help);
        }
        self.string(findings, key)
    }

    /// A list of strings with at least one of them, unless `empty_help` is none.
    pub(super) fn strings(
        &mut self,
        findings: &mut Findings,
        key: &'static str,
        empty_help: Option<&str>,
    ) -> Option<Vec<Located<&'d str>>> {
        let items = self.list(findings, key, empty_help)?;
        Some(items.iter().filter_map(|item| as_string(findings, key, item)).collect())
    }

    /// A list of TCP ports with at least one of them.
    pub(super) fn ports(&mut self, findings: &mut Findings, key: &'static str) -> Option<Vec<u16>> {
        let help = format!("leave `{key}` out for the usual ones");
        let items = self.list(findings, key, Some(&help))?;
        let mut ports = Vec::new();
        for item in items {
            let number = as_integer(findings, key, &item);
            match number.map(u16::try_from) {
                Some(Ok(port)) if port > 0 => ports.push(port),
                Some(_) => findings.add(
                    item.place,
                    "a port is between 1 and 65535",
                    format!("for example `{key} = [443]`"),
                ),
                None => {}
            }
        }
        Some(ports)
    }

    /// A boolean.
    pub(super) fn boolean(
        &mut self,
        findings: &mut Findings,
        key: &'static str,
    ) -> Option<Located<bool>> {
        let value = self.take(key)?;
        match value.value {
            DeValue::Boolean(boolean) => Some(Located { value: *boolean, place: value.place }),
            other => {
                wrong_type(findings, value.place, key, "true or false", other);
                None
            }
        }
    }

    /// An integer.
    pub(super) fn integer(
        &mut self,
        findings: &mut Findings,
        key: &'static str,
    ) -> Option<Located<i64>> {
        let value = self.take(key)?;
        let number = as_integer(findings, key, &value)?;
        Some(Located { value: number, place: value.place })
    }

    /// Every entry, for tables whose keys are data.
    pub(super) fn entries(
        &self,
    ) -> impl Iterator<Item = (Located<&'d str>, Located<&'d DeValue<'d>>)> + use<'_, 'd> {
        self.entries.iter().map(|(key, value)| {
            let place = Place { document: self.place.document, offset: key.span().start };
            (Located { value: key.get_ref().as_ref(), place }, self.locate(value))
        })
    }

    /// Refuses keys that are decided but not built.
    pub(super) fn not_yet(&mut self, findings: &mut Findings, keys: &[&'static str]) {
        for key in keys {
            self.known.push(key);
            if let Some(place) = self.place_of(key) {
                let message = format!("`{key}` of {} is not supported yet", self.label);
                findings.add(place, message, "remove it: what it asks for would not be enforced");
            }
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Where `key` stands.
    pub(super) fn place_of(&self, key: &str) -> Option<Place> {
        let (key, _value) = self.entries.get_key_value(key)?;
        Some(Place { document: self.place.document, offset: key.span().start })
    }

    /// Reports every key that was not taken.
    pub(super) fn finish(self, findings: &mut Findings) {
        for key in self.entries.keys() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let place = Place { document: self.place.document, offset: key.span().start };
            let help = match nearest(name, self.known.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            findings.add(place, format!("unknown key `{}` in {}", shown(name), self.label), help);
        }
    }

    fn list(
        &mut self,
        findings: &mut Findings,
        key: &'static str,
        empty_help: Option<&str>,
    ) -> Option<Vec<Located<&'d DeValue<'d>>>> {
        let list = self.take(key)?;
        let DeValue::Array(items) = list.value else {
            wrong_type(findings, list.place, key, "a list", list.value);
            return None;
        };
        if let Some(help) = empty_help
            && items.is_empty()
        {
            findings.add(list.place, format!("`{key}` is empty and would match nothing"), help);
        }
        Some(items.iter().map(|item| self.locate(item)).collect())
    }

    fn locate(&self, value: &'d Spanned<DeValue<'d>>) -> Located<&'d DeValue<'d>> {
        let place = Place { document: self.place.document, offset: value.span().start };
        Located { value: value.get_ref(), place }
    }
}

pub(super) fn as_string<'d>(
    findings: &mut Findings,
    key: &str,
    value: &Located<&'d DeValue<'d>>,
) -> Option<Located<&'d str>> {
    match value.value {
        DeValue::String(text) => Some(Located { value: text.as_ref(), place: value.place }),
        other => {
            wrong_type(findings, value.place, key, "a string", other);
            None
        }
    }
}

fn as_integer(findings: &mut Findings, key: &str, value: &Located<&DeValue<'_>>) -> Option<i64> {
    let DeValue::Integer(integer) = value.value else {
        wrong_type(findings, value.place, key, "an integer", value.value);
        return None;
    };
    // Digits beyond 64 bits are out of every range that is asked for.
    Some(i64::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i64::MAX))
}

pub(super) fn wrong_type(
    findings: &mut Findings,
    place: Place,
    key: &str,
    wanted: &str,
    found: &DeValue<'_>,
) {
    // The value itself is not quoted: it may be a secret at a wrong place.
    let help = format!("write `{key} = …` with {wanted}");
    findings.add(place, format!("`{key}` must be {wanted}, not {}", described(found)), help);
}

fn described(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The candidate that `text` most likely means, if one is near enough.
pub(super) fn nearest<'c>(
    text: &str,
    candidates: impl Iterator<Item = &'c str>,
) -> Option<&'c str> {
    if text.len() > SUGGESTION_MAX_BYTES {
        return None;
    }
    let tolerated = (text.chars().count() / 3).clamp(1, 3);
    candidates
        .map(|candidate| (distance(text, candidate), candidate))
        .filter(|(distance, _candidate)| *distance <= tolerated)
        .min()
        .map(|(_distance, candidate)| candidate)
}

/// How many characters must be inserted, removed, replaced or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut previous_a = None;
    for (row, x) in a.chars().enumerate() {
        let mut current = vec![row + 1];
        let mut previous_b = None;
        for (column, y) in b.iter().enumerate() {
            let at = |line: &[usize], position: usize| {
                line.get(position).copied().unwrap_or(usize::MAX - 1)
            };
            let mut best = at(&last, column) + usize::from(x != *y);
            best = best.min(at(&last, column + 1) + 1).min(at(&current, column) + 1);
            if previous_a == Some(*y) && previous_b == Some(x) {
                best = best.min(at(&before_last, column.saturating_sub(1)) + 1);
            }
            current.push(best);
            previous_b = Some(*y);
        }
        before_last = std::mem::replace(&mut last, current);
        previous_a = Some(x);
    }
    last.last().copied().unwrap_or(usize::MAX)
}

/// A key or name as it stands in a message: bounded, and in one line.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX_CHARS).flat_map(char::escape_debug).collect()
}

/// Longest text for which a suggestion is sought: all keys and agent names are shorter.
const SUGGESTION_MAX_BYTES: usize = 64;

/// How much of a wrong key or name stands in a message.
const SHOWN_MAX_CHARS: usize = 80;
