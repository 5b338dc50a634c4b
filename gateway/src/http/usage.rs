//! A response of a model provider → the tokens that it cost. Pure, and nothing of the body is held.
//!
//! Read are the answers of Anthropic's Messages API and of OpenAI's Chat Completions, Completions, Responses and
//! Embeddings APIs, and of whoever answers like them: the `usage` object of a JSON document, or of the events of a
//! stream (`text/event-stream`, WHATWG HTML, section 9.2), where numbers are totals so far, so that the largest counts.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};

use super::json_scan::{Field, Found, JsonScan};

/// Reads one response's body.
#[derive(Debug)]
pub(super) struct UsageReader {
    format: Format,
    /// Whether the last byte of a stream of events was a carriage return.
    after_return: bool,
    scan: JsonScan,
    usage: Usage,
    /// Bytes of text that a model has written into events.
    text_bytes: u64,
    body_bytes: u64,
}

#[derive(Debug)]
enum Format {
    Json,
    Events(Line),
    /// Compressed, or neither JSON nor events.
    Unreadable,
}

/// Where a line of a stream of events stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// In the name of the field: so many bytes of `data` have come.
    Name(usize),
    /// In the value of `data`.
    Data,
    /// In a line without meaning.
    Ignored,
}

/// The largest numbers that were reported.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Usage {
    input: Option<u64>,
    cache_creation: u64,
    cache_read: u64,
    output: u64,
    prompt: Option<u64>,
    completion: u64,
    total: u64,
    is_final: bool,
}

impl UsageReader {
    /// A reader for the body that these fields announce.
    pub(super) fn new(headers: &HeaderMap) -> Self {
        let is_plain = headers
            .get_all(CONTENT_ENCODING)
            .iter()
            .all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
        let format = match headers.get(CONTENT_TYPE).and_then(media_type) {
            Some(kind) if is_plain && kind == "text/event-stream" => Format::Events(Line::Name(0)),
            Some(kind) if is_plain && (kind == "application/json" || kind.ends_with("+json")) => {
                Format::Json
            }
            _ => Format::Unreadable,
        };
        let (scan, usage) = (JsonScan::new(), Usage::default());
        Self { format, after_return: false, scan, usage, text_bytes: 0, body_bytes: 0 }
    }

    /// Takes the next part of the body.
    pub(super) fn push(&mut self, data: &[u8]) {
        self.body_bytes =
            self.body_bytes.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        match self.format {
            Format::Unreadable => {}
            Format::Json => {
                for byte in data {
                    let found = self.scan.push(*byte);
                    self.note(found);
                }
            }
            Format::Events(mut line) => {
                for byte in data {
                    line = self.push_event(line, *byte);
                }
                self.format = Format::Events(line);
            }
        }
    }

    fn push_event(&mut self, line: Line, byte: u8) -> Line {
        let is_second_half = byte == b'\n' && std::mem::take(&mut self.after_return);
        self.after_return = byte == b'\r';
        if is_second_half {
            return line;
        }
        match (line, byte) {
            // A line without anything ends the event.
            (Line::Name(0), b'\n' | b'\r') => {
                self.scan.reset();
                Line::Name(0)
            }
            (Line::Data, b'\n' | b'\r') => {
                let found = self.scan.push(b'\n');
                self.note(found);
                Line::Name(0)
            }
            (_, b'\n' | b'\r') => Line::Name(0),
            (Line::Data, _) => {
                let found = self.scan.push(byte);
                self.note(found);
                Line::Data
            }
            (Line::Name(0), _) if BYTE_ORDER_MARK.contains(&byte) => Line::Name(0),
            (Line::Name(4), b':') => Line::Data,
            (Line::Name(known), _) if DATA.get(known) == Some(&byte) => Line::Name(known + 1),
            (Line::Name(_) | Line::Ignored, _) => Line::Ignored,
        }
    }

    fn note(&mut self, found: Option<Found>) {
        match found {
            Some(Found::Usage { field, tokens, is_final }) => {
                self.usage.note(field, tokens);
                self.usage.is_final |= is_final;
            }
            Some(Found::Text { bytes }) => {
                self.text_bytes = self.text_bytes.saturating_add(bytes);
            }
            None => {}
        }
    }

    /// The tokens that were reported so far. It never gets less.
    pub(super) fn reported(&self) -> u64 {
        self.usage.sum()
    }

    /// What the response cost when it ended, or was given up, here; the request had so many bytes.
    ///
    /// Where no final usage was reported it is reckoned so that it is rather too much: a token has at least one byte
    /// of text, so a byte of what the model has written is a token; so is a byte of the request unless the
    /// prompt's tokens are known, and where nothing can be read, a byte of the body.
    pub(super) fn cost(&self, request_bytes: u64) -> u64 {
        let reported = self.usage.sum();
        if self.usage.is_final {
            return reported;
        }
        let input = self.usage.input();
        let worst = match self.format {
            Format::Events(_) if input.is_some() || self.text_bytes > 0 => {
                let input = input.unwrap_or(request_bytes);
                input.saturating_add(self.usage.output().max(self.text_bytes))
            }
            Format::Events(_) | Format::Json | Format::Unreadable => {
                request_bytes.saturating_add(self.body_bytes)
            }
        };
        reported.max(worst)
    }
}

fn media_type(value: &HeaderValue) -> Option<String> {
    let kind = value.to_str().ok()?.split(';').next()?;
    Some(kind.trim().to_ascii_lowercase())
}

// === impl Usage ===

impl Usage {
    fn note(&mut self, field: Field, tokens: u64) {
        let known = match field {
            Field::Input => self.input.get_or_insert(0),
            Field::Prompt => self.prompt.get_or_insert(0),
            Field::CacheCreation => &mut self.cache_creation,
            Field::CacheRead => &mut self.cache_read,
            Field::Output => &mut self.output,
            Field::Completion => &mut self.completion,
            Field::Total => &mut self.total,
        };
        *known = tokens.max(*known);
    }

    /// Tokens that went in, what was read from and written to a cache included. Anthropic's `input_tokens` are without
    /// these, OpenAI has them in `prompt_tokens` or `input_tokens`.
    fn input(&self) -> Option<u64> {
        let parts = self.cache_creation.saturating_add(self.cache_read);
        let input = self.input.map(|input| input.saturating_add(parts));
        input.max(self.prompt)
    }

    fn output(&self) -> u64 {
        self.output.max(self.completion)
    }

    fn sum(&self) -> u64 {
        self.input().unwrap_or(0).saturating_add(self.output()).max(self.total)
    }
}

const DATA: &[u8; 4] = b"data";

/// A stream may begin with it.
const BYTE_ORDER_MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

#[cfg(test)]
mod tests;
