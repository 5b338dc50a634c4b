//! JSON on its way through: a few numbers and the length of some texts are taken out of it, and nothing is held. Pure.
//!
//! It takes every document of RFC 8259 and does not complain about all that are none: what it reads is what a model
//! provider says of itself, not what an agent says.

/// What a value means by the place where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A number in a `usage` object.
    Usage {
        /// Of which kind.
        field: Field,
        /// How much.
        tokens: u64,
        /// Whether it stands where the final usage does, not in the announcement of an answer.
        is_final: bool,
    },
    /// Some bytes of text that a model has written.
    Text {
        /// How many.
        bytes: u64,
    },
}

/// Numbers of a `usage` object. What is in objects below it is contained in these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Input,
    CacheCreation,
    CacheRead,
    Output,
    Prompt,
    Completion,
    Total,
}

/// Where a document stands between two of its bytes.
#[derive(Debug)]
pub(super) struct JsonScan {
    /// Objects with their present key, and arrays.
    path: Vec<Key>,
    expects_key: bool,
    token: Token,
    key: KeyText,
    /// Whether the present text is a model's, and how much of it there was.
    counts_text: bool,
    text: u64,
    is_broken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// An array, or an object before its first key.
    None,
    Usage,
    Message,
    Response,
    Choices,
    Delta,
    ContentBlock,
    Field(Field),
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    None,
    Text {
        is_key: bool,
        is_escaped: bool,
    },
    /// None where it is not a whole number, or too large for one.
    Number(Option<u64>),
}

/// The beginning of a key; longer ones are none that mean anything.
#[derive(Debug, Default)]
struct KeyText {
    bytes: [u8; KEY_BYTES_MAX],
    length: usize,
}

impl JsonScan {
    pub(super) fn new() -> Self {
        Self {
            path: Vec::new(),
            expects_key: false,
            token: Token::None,
            key: KeyText::default(),
            counts_text: false,
            text: 0,
            is_broken: false,
        }
    }

    /// Begins with a new document.
    pub(super) fn reset(&mut self) {
        let mut path = std::mem::take(&mut self.path);
        path.clear();
        *self = Self { path, ..Self::new() };
    }

    /// Takes the next byte; says what ended with it.
    pub(super) fn push(&mut self, byte: u8) -> Option<Found> {
        if self.is_broken {
            return None;
        }
        match self.token {
            Token::None => {
                self.structure(byte);
                None
            }
            Token::Text { is_key, is_escaped } => self.text(byte, is_key, is_escaped),
            Token::Number(number) => self.number(byte, number),
        }
    }

    fn structure(&mut self, byte: u8) {
        match byte {
            b'{' | b'[' => {
                if self.path.len() == DEPTH_MAX {
                    self.is_broken = true;
                    return;
                }
                self.path.push(Key::None);
                self.expects_key = byte == b'{';
            }
            b'}' | b']' => {
                self.path.pop();
                self.expects_key = false;
            }
            b',' => {
                // In an object there was a key before it.
                self.expects_key = self.path.last().is_some_and(|key| *key != Key::None);
            }
            b'"' => {
                let is_key = std::mem::take(&mut self.expects_key);
                if is_key {
                    self.key.length = 0;
                }
                self.counts_text = !is_key && self.is_written_by_a_model();
                self.token = Token::Text { is_key, is_escaped: false };
            }
            b'0'..=b'9' => self.token = Token::Number(Some(u64::from(byte - b'0'))),
            b'-' => self.token = Token::Number(None),
            _ => {}
        }
    }

    fn text(&mut self, byte: u8, is_key: bool, is_escaped: bool) -> Option<Found> {
        if byte == b'"' && !is_escaped {
            self.token = Token::None;
            if is_key {
                let key = Key::of(self.key.text());
                if let Some(last) = self.path.last_mut() {
                    *last = key;
                }
            }
            let bytes = std::mem::take(&mut self.text);
            return (bytes > 0).then_some(Found::Text { bytes });
        }
        if is_key {
            self.key.push(byte);
        } else if self.counts_text {
            self.text += 1;
        }
        self.token = Token::Text { is_key, is_escaped: byte == b'\\' && !is_escaped };
        None
    }

    fn number(&mut self, byte: u8, number: Option<u64>) -> Option<Found> {
        match byte {
            b'0'..=b'9' => {
                let digit = u64::from(byte - b'0');
                let longer = number.and_then(|n| n.checked_mul(10)?.checked_add(digit));
                self.token = Token::Number(longer);
                None
            }
            b'.' | b'e' | b'E' | b'+' | b'-' => {
                self.token = Token::Number(None);
                None
            }
            _ => {
                self.token = Token::None;
                let found = number.and_then(|tokens| self.usage(tokens));
                self.structure(byte);
                found
            }
        }
    }

    fn usage(&self, tokens: u64) -> Option<Found> {
        let (field, is_final) = match self.path.as_slice() {
            [Key::Usage, Key::Field(field)] | [Key::Response, Key::Usage, Key::Field(field)] => {
                (*field, true)
            }
            [Key::Message, Key::Usage, Key::Field(field)] => (*field, false),
            _ => return None,
        };
        Some(Found::Usage { field, tokens, is_final })
    }

    fn is_written_by_a_model(&self) -> bool {
        matches!(self.path.first(), Some(Key::Choices | Key::Delta | Key::ContentBlock))
    }
}

// === impl Key, KeyText ===

impl Key {
    fn of(text: &[u8]) -> Self {
        match text {
            b"usage" => Self::Usage,
            b"message" => Self::Message,
            b"response" => Self::Response,
            b"choices" => Self::Choices,
            b"delta" => Self::Delta,
            b"content_block" => Self::ContentBlock,
            b"input_tokens" => Self::Field(Field::Input),
            b"cache_creation_input_tokens" => Self::Field(Field::CacheCreation),
            b"cache_read_input_tokens" => Self::Field(Field::CacheRead),
            b"output_tokens" => Self::Field(Field::Output),
            b"prompt_tokens" => Self::Field(Field::Prompt),
            b"completion_tokens" => Self::Field(Field::Completion),
            b"total_tokens" => Self::Field(Field::Total),
            _ => Self::Other,
        }
    }
}

impl KeyText {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte;
        }
        self.length = self.length.saturating_add(1);
    }

    fn text(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// The longest key that means something has 27 bytes.
const KEY_BYTES_MAX: usize = 32;

/// Deeper documents are not read: no answer of a model is.
const DEPTH_MAX: usize = 512;
