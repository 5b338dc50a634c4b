//! Path patterns: a path, a subtree, a prefix, with `*` for one segment or a part of one.

use std::fmt::{self, Write as _};

use percent_encoding::percent_decode_str;

/// Which paths a rule or credential is about.
///
/// A pattern is a list of segments, each a glob that never crosses a slash, and what may come behind them:
/// nothing, or anything. `/a/*` is the segment `a` with anything behind it, `/a*` the segment `a*` with anything
/// behind it.
#[derive(Clone, PartialEq, Eq)]
pub struct PathPattern {
    /// The segments, each with the slash in front of it.
    segments: Segments,
    /// Other spellings of them, where they have any: most have none.
    spellings: Option<Box<Spellings>>,
    open: bool,
}

/// Segments of a pattern in one spelling.
#[derive(Clone, PartialEq, Eq)]
struct Segments {
    text: Box<str>,
    /// How many bytes stand before the first star, or are there.
    literal: u32,
}

#[derive(Clone, PartialEq, Eq)]
struct Spellings {
    /// With blanks instead of `%20`: a request is sent with the one, and one of its readings has the other.
    blank: Option<Segments>,
    /// With all printable characters decoded.
    decoded: Segments,
}

/// Text that is no path pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathPatternError {
    /// Does not begin with a slash.
    #[error("a path pattern begins with `/`")]
    NoLeadingSlash,
    /// Has a query or fragment.
    #[error("a path pattern has no query and no fragment")]
    Query,
    /// `**`.
    #[error("`**` is no wildcard")]
    DoubleStar,
    /// `.` or `..` as a segment: such segments are removed from every request before it is matched.
    #[error("a path pattern with the segment `{segment}` can never match")]
    DotSegment {
        /// The segment.
        segment: String,
    },
    /// A percent sign without two hexadecimal digits, or an encoding that no request may have.
    #[error("`{encoding}` cannot stand in a path")]
    Encoding {
        /// The percent sign and what follows.
        encoding: String,
    },
    /// A control character.
    #[error("a path pattern has no control characters")]
    Control,
}

/// How narrow a path pattern is; the greater, the narrower. If one pattern matches only a part of what another
/// one matches, it is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PathSpecificity {
    literal: bool,
    bytes_before_first_star: usize,
    literal_bytes: usize,
    closed: bool,
}

// === impl PathPattern ===

impl PathPattern {
    /// Parses a pattern as it stands in the configuration, in the normal form that requests have when they are
    /// matched: unreserved characters decoded, others than ASCII encoded.
    ///
    /// # Errors
    /// When it does not begin with a slash, or could never match.
    pub fn parse(text: &str) -> Result<Self, PathPatternError> {
        if !text.starts_with('/') {
            return Err(PathPatternError::NoLeadingSlash);
        }
        if text.contains(['?', '#']) {
            return Err(PathPatternError::Query);
        }
        if text.contains("**") {
            return Err(PathPatternError::DoubleStar);
        }
        let text = normalise(text)?;
        if let Some(segment) = text.split('/').find(|segment| matches!(*segment, "." | "..")) {
            return Err(PathPatternError::DotSegment { segment: segment.to_owned() });
        }
        Ok(Self::from_normal(&text))
    }

    /// `/*`: every path.
    #[must_use]
    pub fn everything() -> Self {
        Self::from_normal("/*")
    }

    fn from_normal(text: &str) -> Self {
        let open = text.ends_with('*');
        // `/a/*` also means `/a`, so that its last segment is `a`; `/a*` keeps its star.
        let segments = text.strip_suffix("/*").unwrap_or(text);
        let spellings = segments.contains('%').then(|| {
            let has_blanks = segments.contains(ENCODED_BLANK);
            Box::new(Spellings {
                blank: has_blanks.then(|| Segments::new(&segments.replace(ENCODED_BLANK, " "))),
                decoded: Segments::new(&decode_printable(segments)),
            })
        });
        Self { segments: Segments::new(segments), spellings, open }
    }

    /// Whether `path` (normal form, without query) is one of those that the pattern means.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let blank = self.spellings.as_ref().and_then(|spellings| spellings.blank.as_ref());
        self.segments.match_path(path, self.open)
            || blank.is_some_and(|segments| segments.match_path(path, self.open))
    }

    /// Whether `path` may mean one of those to some upstream: a pattern with `%40` also covers `@` then. For rules
    /// that forbid.
    #[must_use]
    pub fn may_match(&self, path: &str) -> bool {
        let decoded = self.spellings.as_ref().map(|spellings| &spellings.decoded);
        self.matches(path) || decoded.is_some_and(|segments| segments.match_path(path, self.open))
    }

    /// Whether it means every path there is.
    pub(super) fn is_everything(&self) -> bool {
        self.open && self.segments.text.is_empty()
    }

    /// Its segments, where they have one spelling only.
    pub(super) fn plain_segments(&self) -> Option<impl Iterator<Item = &str>> {
        self.spellings.is_none().then(|| self.segments.iter())
    }

    pub(super) fn specificity(&self) -> PathSpecificity {
        // The star at the end, and the slash before it where there is one, are not among the segments.
        let text = &self.segments.text;
        let slash = usize::from(self.open && !text.ends_with('*'));
        let first_star = text.find('*');
        PathSpecificity {
            literal: !self.open && first_star.is_none(),
            bytes_before_first_star: first_star.unwrap_or_else(|| text.len() + slash),
            literal_bytes: text.bytes().filter(|b| *b != b'*').count() + slash,
            closed: !self.open,
        }
    }

    /// Whether some path is matched by both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (mine, others) = (self.segments.iter().count(), other.segments.iter().count());
        (mine >= others || self.open)
            && (others >= mine || other.open)
            && self
                .segments
                .iter()
                .zip(other.segments.iter())
                .all(|(a, b)| globs_overlap(a.as_bytes(), b.as_bytes()))
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.segments.text;
        f.write_str(text)?;
        if self.open && !text.ends_with('*') { f.write_str("/*") } else { Ok(()) }
    }
}

impl fmt::Debug for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Segments ===

impl Segments {
    fn new(text: &str) -> Self {
        let literal = text.find('*').unwrap_or(text.len());
        // What is longer than that is longer than any path, too.
        Self { text: Box::from(text), literal: u32::try_from(literal).unwrap_or(u32::MAX) }
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        self.text.split('/').skip(1)
    }

    fn match_path(&self, path: &str, open: bool) -> bool {
        let literal = usize::try_from(self.literal).unwrap_or(usize::MAX);
        let bytes = path.as_bytes();
        // Nearly every pattern that does not match differs before its first star.
        let Some(begin) = self.text.as_bytes().get(..literal) else { return false };
        if !path.starts_with('/') || !bytes.starts_with(begin) {
            return false;
        }
        if literal == self.text.len() {
            return match bytes.get(literal) {
                None => true,
                Some(next) => open && *next == b'/',
            };
        }
        match_rest(self.text.as_bytes(), bytes, literal, open)
    }
}

/// Matches `path` against the segments of `pattern`, both of which are the same up to `begin`; `*` stands for any bytes
/// but slashes. Takes time proportional to the product of the lengths of two segments at worst: on a mismatch only the
/// last star of a segment is extended.
fn match_rest(pattern: &[u8], path: &[u8], begin: usize, open: bool) -> bool {
    let (mut p, mut t) = (begin, begin);
    let mut last_star = None;
    loop {
        match (pattern.get(p), path.get(t)) {
            (Some(b'*'), _) => {
                p += 1;
                last_star = Some((p, t));
            }
            (Some(expected), Some(byte)) if expected == byte => {
                if *byte == b'/' {
                    last_star = None;
                }
                p += 1;
                t += 1;
            }
            (None, None) => return true,
            (None, Some(b'/')) if open => return true,
            (Some(_) | None, _) => {
                let Some((behind_star, covered)) = last_star else { return false };
                if path.get(covered).is_none_or(|byte| *byte == b'/') {
                    return false;
                }
                last_star = Some((behind_star, covered + 1));
                (p, t) = (behind_star, covered + 1);
            }
        }
    }
}

/// Decodes what every request has decoded, and encodes what every request has encoded.
fn normalise(text: &str) -> Result<String, PathPatternError> {
    let mut normal = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let width = if first == '%' { ENCODED_BYTE_LEN } else { first.len_utf8() };
        let (token, behind) = rest
            .split_at_checked(width)
            .ok_or_else(|| PathPatternError::Encoding { encoding: rest.to_owned() })?;
        rest = behind;
        if first == '%' {
            push_encoded(token, &mut normal)?;
        } else if first.is_control() {
            return Err(PathPatternError::Control);
        } else if first.is_ascii() && first != ' ' {
            normal.push(first);
        } else {
            token.bytes().for_each(|byte| push_hex(byte, &mut normal));
        }
    }
    Ok(normal)
}

fn push_encoded(token: &str, normal: &mut String) -> Result<(), PathPatternError> {
    let mut decoded = percent_decode_str(token);
    let byte = match (decoded.next(), decoded.next()) {
        // No request has the first three; the last one could not be told from the wildcard.
        (Some(byte), None) if !matches!(byte, b'/' | b'\\' | 0 | b'*') => byte,
        _ => return Err(PathPatternError::Encoding { encoding: token.to_owned() }),
    };
    if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
        normal.push(char::from(byte));
    } else {
        push_hex(byte, normal);
    }
    Ok(())
}

fn decode_printable(normal: &str) -> String {
    let mut decoded = String::with_capacity(normal.len());
    let mut rest = normal;
    while let Some((before, encoded)) = rest.split_once('%') {
        decoded.push_str(before);
        let (digits, behind) =
            encoded.split_at_checked(ENCODED_BYTE_LEN - 1).unwrap_or((encoded, ""));
        match u8::from_str_radix(digits, 16) {
            Ok(byte) if (b' '..=b'~').contains(&byte) => decoded.push(char::from(byte)),
            Ok(_) | Err(_) => {
                decoded.push('%');
                decoded.push_str(digits);
            }
        }
        rest = behind;
    }
    decoded + rest
}

fn push_hex(byte: u8, normal: &mut String) {
    // Writing into a String cannot fail.
    if write!(normal, "%{byte:02X}").is_err() {
        normal.push('%');
    }
}

const ENCODED_BLANK: &str = "%20";

/// Bytes of `%41`.
const ENCODED_BYTE_LEN: usize = 3;

/// Whether some text is matched by both globs.
fn globs_overlap(a: &[u8], b: &[u8]) -> bool {
    // `reachable` holds, for the part of `a` consumed so far, how many bytes of `b` may be consumed with it.
    let star_closure = |reachable: &mut [bool]| {
        for i in 0..b.len() {
            if reachable.get(i) == Some(&true)
                && b.get(i) == Some(&b'*')
                && let Some(next) = reachable.get_mut(i + 1)
            {
                *next = true;
            }
        }
    };
    let mut reachable = vec![false; b.len() + 1];
    if let Some(start) = reachable.first_mut() {
        *start = true;
    }
    star_closure(&mut reachable);
    for byte in a {
        let mut next = vec![false; b.len() + 1];
        let mut from_star = false;
        for (i, slot) in next.iter_mut().enumerate() {
            let here = reachable.get(i) == Some(&true);
            let at_star = here && b.get(i) == Some(&b'*');
            if *byte == b'*' {
                // A star of `a` swallows any run of `b`.
                from_star |= here;
                *slot = from_star;
            } else {
                let advanced =
                    i > 0 && reachable.get(i - 1) == Some(&true) && b.get(i - 1) == Some(byte);
                *slot = at_star || advanced;
            }
        }
        star_closure(&mut next);
        reachable = next;
    }
    reachable.last() == Some(&true)
}
