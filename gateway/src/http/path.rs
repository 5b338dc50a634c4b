//! Request target → [`RequestPath`]: normalised once, so that what is matched is what is sent. Pure.
//!
//! It deliberately does not decode reserved characters in what is sent: an upstream may tell `%3A` from `:`.

/// A request path, normalised once: what is matched is what is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPath {
    /// The normalised path that is sent on.
    pub sent: String,
    /// The query as it came, byte for byte, without `?`.
    pub query: Option<String>,
    /// Every way in which an upstream may read the path; `sent` is the first.
    pub readings: Vec<String>,
}

/// A target that is malformed or ambiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No `/` at its start.
    #[error("the path does not start with a slash")]
    NotAbsolute,
    /// A `%` that is not followed by two hexadecimal digits.
    #[error("the path has an invalid percent-encoding")]
    InvalidEncoding,
    /// An encoded slash, backslash or NUL: servers disagree on what it means.
    #[error("the path has an encoded slash, backslash or NUL")]
    AmbiguousEncoding,
    /// `#`: a fragment is never sent.
    #[error("the request target has a fragment")]
    Fragment,
    /// Longer than any server takes.
    #[error("the path is longer than {PATH_BYTES_MAX} bytes")]
    TooLong,
    /// A control character or a space.
    #[error("the request target has a character that no URI has")]
    InvalidCharacter,
}

impl RequestPath {
    /// Normalises an origin-form target (`/a/b?c`).
    ///
    /// # Errors
    /// When it is malformed, or when servers would disagree on where its segments end.
    pub fn parse(target: &str) -> Result<Self, PathError> {
        if target.contains('#') {
            return Err(PathError::Fragment);
        }
        if target.bytes().any(|b| b <= b' ' || b == 0x7F) {
            return Err(PathError::InvalidCharacter);
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        if !path.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        if path.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        let sent = remove_dot_segments(&normalise_encoding(path)?);
        let readings = readings_of(&sent);
        Ok(Self { sent, query, readings })
    }

    /// What is sent: the path, and the query where there is one.
    #[must_use]
    pub fn to_target(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.sent),
            None => self.sent.clone(),
        }
    }
}

/// Common servers take 8 KiB of target, query included. Every reading of a path is matched with every rule, and what is
/// denied stands in the audit log: both must not cost more than the request did. The query is neither read nor kept.
const PATH_BYTES_MAX: usize = 8 * 1024;

/// Decodes unreserved characters, writes all other encodings in upper case and encodes what is not ASCII.
fn normalise_encoding(path: &str) -> Result<String, PathError> {
    let mut out = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            if byte.is_ascii() {
                out.push(char::from(byte));
            } else {
                push_encoded(&mut out, byte);
            }
            continue;
        }
        let decoded = match (bytes.next().and_then(hex_value), bytes.next().and_then(hex_value)) {
            (Some(high), Some(low)) => high << 4 | low,
            _ => return Err(PathError::InvalidEncoding),
        };
        match decoded {
            b'/' | b'\\' | 0 => return Err(PathError::AmbiguousEncoding),
            unreserved if is_unreserved(unreserved) => out.push(char::from(unreserved)),
            other => push_encoded(&mut out, other),
        }
    }
    Ok(out)
}

fn push_encoded(out: &mut String, byte: u8) {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    out.push('%');
    out.extend(DIGITS.get(usize::from(byte >> 4)));
    out.extend(DIGITS.get(usize::from(byte & 0xF)));
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 section 5.2.4, for a path that starts with a slash.
fn remove_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            other => {
                kept.push(other);
                continue;
            }
        }
        // `/a/..` and `/a/.` name a directory: the slash stays.
        if is_last {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

/// What a server may do to a path before it looks at it. Each switch doubles the readings, so their number is
/// bounded by 2 to the power of [`Reading::SWITCHES`].
struct Reading(u8);

impl Reading {
    const SWITCHES: u8 = 6;

    fn all() -> impl Iterator<Item = Self> {
        (0..1 << Self::SWITCHES).map(Self)
    }

    fn has(&self, switch: u8) -> bool {
        self.0 & (1 << switch) != 0
    }

    fn apply(&self, sent: &str) -> String {
        let mut path = if self.has(0) { decode_reserved(sent) } else { sent.to_owned() };
        if self.has(1) {
            path = path.replace('\\', "/");
        }
        if self.has(2) {
            path = map_segments(&path, |segment| segment.split(';').next());
        }
        if self.has(3) {
            let is_directory = path.ends_with('/');
            path = map_segments(&path, |segment| (!segment.is_empty()).then_some(segment));
            if is_directory && path != "/" {
                path.push('/');
            }
        }
        if self.has(4) {
            path = remove_dot_segments(&path);
        }
        if self.has(5) && path.len() > 1 {
            path.truncate(path.strip_suffix('/').unwrap_or(&path).len());
        }
        path
    }
}

fn readings_of(sent: &str) -> Vec<String> {
    let mut readings = vec![sent.to_owned()];
    // Most paths have one reading (plus one where they end in a slash): the switches need these characters.
    if !sent.contains(['%', '\\', ';']) && !sent.contains("//") && !sent.ends_with('/') {
        return readings;
    }
    for reading in Reading::all() {
        let path = reading.apply(sent);
        if !readings.contains(&path) {
            readings.push(path);
        }
    }
    readings
}

fn map_segments(path: &str, map: impl Fn(&str) -> Option<&str>) -> String {
    let segments: Vec<&str> = path.split('/').skip(1).filter_map(map).collect();
    format!("/{}", segments.join("/"))
}

/// Decodes the reserved characters that a path may also have as they are (RFC 3986 section 3.3): most servers do
/// so before they look for a route. What must be encoded has one spelling only, and so one reading.
fn decode_reserved(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let mut digits = after.bytes();
        let decoded = match (digits.next().and_then(hex_value), digits.next().and_then(hex_value)) {
            (Some(high), Some(low)) => Some(high << 4 | low),
            _ => None,
        };
        match decoded {
            Some(byte) if RESERVED_IN_SEGMENTS.contains(&byte) => {
                out.push(char::from(byte));
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                out.push('%');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

const RESERVED_IN_SEGMENTS: &[u8] = b"!$&'()*+,;=:@";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_become_their_normal_form() {
        let rows = [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/%61/%7e", "/a/~"),
            ("/a/./b/../c", "/a/c"),
            ("/../../a", "/a"),
            ("/a/..", "/"),
            ("/a/b/.", "/a/b/"),
            ("/a/%2e%2E/b", "/b"),
            ("/%c3%a9", "/%C3%A9"),
            ("/é", "/%C3%A9"),
            ("/a%3ab:c", "/a%3Ab:c"),
            ("/a//b/", "/a//b/"),
        ];
        for (target, sent) in rows {
            assert_eq!(RequestPath::parse(target).map(|p| p.sent).as_deref(), Ok(sent), "{target}");
        }
    }

    #[test]
    fn ambiguous_targets_are_refused() {
        let too_long = format!("/{}", "a".repeat(PATH_BYTES_MAX));
        let rows = [
            ("/a%2Fb", PathError::AmbiguousEncoding),
            ("/a%2fb", PathError::AmbiguousEncoding),
            ("/a%5cb", PathError::AmbiguousEncoding),
            ("/a%00", PathError::AmbiguousEncoding),
            ("/a%", PathError::InvalidEncoding),
            ("/a%4", PathError::InvalidEncoding),
            ("/a%zz", PathError::InvalidEncoding),
            ("/a#b", PathError::Fragment),
            ("/a?b#c", PathError::Fragment),
            ("/a b", PathError::InvalidCharacter),
            ("a", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("?a", PathError::NotAbsolute),
            ("", PathError::NotAbsolute),
            (too_long.as_str(), PathError::TooLong),
        ];
        for (target, error) in rows {
            assert_eq!(RequestPath::parse(target), Err(error), "{target}");
        }
    }

    #[test]
    fn the_query_stays_byte_identical() {
        let path = RequestPath::parse("/a?b=%2f%zz/../&&c=%61?").unwrap();
        assert_eq!(path.query.as_deref(), Some("b=%2f%zz/../&&c=%61?"));
        assert_eq!(path.to_target(), "/a?b=%2f%zz/../&&c=%61?");
        assert_eq!(RequestPath::parse("/a?").unwrap().query.as_deref(), Some(""));
    }

    #[test]
    fn every_way_an_upstream_may_read_a_path_is_among_the_readings() {
        let rows: [(&str, &[&str]); 9] = [
            ("/a", &["/a"]),
            ("/a/", &["/a/", "/a"]),
            ("/a//b", &["/a//b", "/a/b"]),
            ("/a;x=1/b", &["/a;x=1/b", "/a/b"]),
            ("/a\\b", &["/a\\b", "/a/b"]),
            ("/a/..;/b", &["/a/..;/b", "/a/../b", "/b"]),
            ("/a%3Ab", &["/a%3Ab", "/a:b"]),
            ("/a%20b%25%3F", &["/a%20b%25%3F"]),
            ("/a\\..\\b", &["/a\\..\\b", "/a/../b", "/b"]),
        ];
        for (target, expected) in rows {
            let path = RequestPath::parse(target).unwrap();
            assert_eq!(path.readings.first(), Some(&path.sent), "{target}");
            for reading in expected {
                assert!(path.readings.iter().any(|r| r == reading), "{target}: {reading}");
            }
            if expected.len() <= 2 {
                assert_eq!(path.readings.len(), expected.len(), "{target}: {:?}", path.readings);
            }
        }
    }

    /// Writes some characters of `path` in percent-encoding, as an agent may.
    fn re_encode(path: &str, choice: &[bool]) -> String {
        let mut out = String::new();
        for (byte, encode) in path.bytes().zip(choice.iter().cycle()) {
            if *encode && is_unreserved(byte) {
                out.push_str(&format!("%{byte:02x}"));
            } else {
                out.push(char::from(byte));
            }
        }
        out
    }

    proptest! {
        #[test]
        fn normalisation_is_idempotent(target in "/[a-zA-Z0-9/.;:@%\\\\~é?#-]{0,40}") {
            if let Ok(once) = RequestPath::parse(&target) {
                prop_assert_eq!(RequestPath::parse(&once.to_target()), Ok(once));
            }
        }

        #[test]
        fn re_encoding_unreserved_characters_changes_nothing(
            path in "/[a-z/.;:@\\\\~-]{0,30}",
            choice in proptest::collection::vec(any::<bool>(), 1..40),
        ) {
            prop_assert_eq!(RequestPath::parse(&re_encode(&path, &choice)), RequestPath::parse(&path));
        }

        #[test]
        fn what_is_sent_has_no_dot_segment_and_a_bounded_number_of_readings(target in "/[a.;/\\\\%2eE]{0,40}") {
            if let Ok(path) = RequestPath::parse(&target) {
                prop_assert!(path.sent.split('/').all(|s| s != "." && s != ".."), "{}", path.sent);
                prop_assert!(path.sent.starts_with('/'));
                prop_assert!(path.readings.len() <= 1 << Reading::SWITCHES);
            }
        }
    }
}
