//! Bytes of a request's head → what hyper does not tell about it. Pure.
//!
//! hyper drops a fragment from the target, and of a head that frames its body in two ways it shows only one. Only a
//! head that is not pipelined behind another request is seen here; for those the reading of hyper stands, which is
//! the one that the upstream gets as well.

/// A head as far as it has come.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    /// The request line.
    line: Vec<u8>,
    /// The beginning of the current field line.
    field: Vec<u8>,
    place: Place,
    has_content_length: bool,
}

/// What was seen of a request's head besides what hyper says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sighting {
    /// Its target had a fragment.
    pub(super) has_fragment: bool,
    /// It had a Content-Length, which hyper removes where there is a Transfer-Encoding too.
    pub(super) has_content_length: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    RequestLine,
    Fields,
    End,
}

impl HeadScan {
    /// Takes the next bytes of the connection; those behind the head are left alone.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match self.place {
                Place::RequestLine => self.feed_request_line(*byte),
                Place::Fields => self.feed_field(*byte),
                Place::End => return,
            }
        }
    }

    /// What was seen, of the head that hyper made `target` of. The bytes are let go.
    pub(super) fn take(&mut self, target: &http::Uri) -> Sighting {
        let Self { line, has_content_length, .. } = std::mem::take(self);
        Sighting { has_fragment: names_a_fragment_of(&line, target), has_content_length }
    }

    /// Whether the request line is whole and names a version of HTTP that is not spoken here (RFC 9110 section 15.6.6).
    pub(super) fn names_an_unknown_version(&self) -> bool {
        let Some(line) = self.line.strip_suffix(b"\n") else { return false };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut words = line.split(|byte| *byte == b' ');
        let (Some(_method), Some(_target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return false;
        };
        let Some(number) = version.strip_prefix(b"HTTP/") else { return false };
        matches!(number, [major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit())
            && !matches!(number, b"1.0" | b"1.1")
    }

    fn feed_request_line(&mut self, byte: u8) {
        // Empty lines before a request line are skipped by parsers.
        if self.line.is_empty() && byte.is_ascii_whitespace() {
            return;
        }
        if self.line.len() < REQUEST_LINE_BYTES_MAX {
            self.line.push(byte);
        }
        if byte == b'\n' {
            self.place = Place::Fields;
        }
    }

    fn feed_field(&mut self, byte: u8) {
        if byte != b'\n' {
            if self.field.len() < FIELD_BYTES_MAX {
                self.field.push(byte);
            }
            return;
        }
        if matches!(self.field.as_slice(), b"" | b"\r") {
            self.place = Place::End;
        }
        let name = self.field.split(|byte| *byte == b':').next().unwrap_or_default();
        self.has_content_length |= name.eq_ignore_ascii_case(CONTENT_LENGTH);
        self.field.clear();
    }
}

/// Whether `line` is the request line of `target` with a fragment. Only an exact match counts: the line may
/// be part of a body where an agent pipelines.
fn names_a_fragment_of(line: &[u8], target: &http::Uri) -> bool {
    let mut words = line.split(|b| *b == b' ');
    let (Some(_method), Some(raw)) = (words.next(), words.next()) else { return false };
    let Some(at) = raw.iter().position(|b| *b == b'#') else { return false };
    let before = raw.get(..at).unwrap_or_default();
    let target = target.to_string();
    let target = target.as_bytes();
    // hyper gives an absolute URI without a path one.
    before == target || target.strip_suffix(b"/") == Some(before)
}

/// As much of a request line as is looked at for a fragment; hyper refuses longer targets.
const REQUEST_LINE_BYTES_MAX: usize = 66 * 1024;
/// As much of a field line as is looked at: the name that is looked for, and the colon behind it.
const FIELD_BYTES_MAX: usize = CONTENT_LENGTH.len() + 1;
const CONTENT_LENGTH: &[u8] = b"content-length";

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(head: &str, chunk: usize) -> Sighting {
        let mut scan = HeadScan::default();
        head.as_bytes().chunks(chunk).for_each(|bytes| scan.feed(bytes));
        scan.take(&"/a".parse().unwrap())
    }

    #[test]
    fn a_content_length_is_seen_in_the_head_only_however_it_is_cut() {
        let rows = [
            ("GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n", true),
            ("\r\nGET /a HTTP/1.1\nCONTENT-LENGTH:3\nHost: x\n\n", true),
            ("GET /a HTTP/1.1\r\nHost: x\r\n\r\nContent-Length: 3\r\n\r\n", false),
            ("GET /a HTTP/1.1\r\nX: Content-Length: 3\r\nContent-Lengthy: 3\r\n\r\n", false),
            ("GET /Content-Length: HTTP/1.1\r\nA-Content-Length: 3\r\n\r\n", false),
        ];
        for (head, expected) in rows {
            for chunk in 1..=head.len() {
                assert_eq!(seen(head, chunk).has_content_length, expected, "{chunk}: {head}");
            }
        }
    }

    #[test]
    fn a_fragment_is_seen_when_it_belongs_to_the_target() {
        for (head, expected) in [
            ("GET /a#b HTTP/1.1\r\n\r\n", true),
            ("GET /a HTTP/1.1\r\n\r\n", false),
            ("GET /b#b HTTP/1.1\r\n\r\n", false),
        ] {
            assert_eq!(seen(head, head.len()).has_fragment, expected, "{head}");
        }
    }

    #[test]
    fn nothing_of_one_head_is_seen_in_the_next() {
        let mut scan = HeadScan::default();
        scan.feed(b"GET /a#b HTTP/1.1\r\nContent-Length: 3\r\n\r\n");
        let target = "/a".parse().unwrap();
        let both = Sighting { has_fragment: true, has_content_length: true };
        assert_eq!(scan.take(&target), both);
        scan.feed(b"GET /a HTTP/1.1\r\n\r\n");
        let none = Sighting { has_fragment: false, has_content_length: false };
        assert_eq!(scan.take(&target), none);
    }

    #[test]
    fn a_version_that_is_not_spoken_is_told_from_a_malformed_line() {
        for (line, expected) in [
            ("GET / HTTP/1.2\r\n", true),
            ("GET / HTTP/2.0\n", true),
            ("GET / HTTP/0.9\r\n", true),
            ("GET / HTTP/1.1\r\n", false),
            ("GET / HTTP/1.0\r\n", false),
            ("GET / HTTP/1.2", false),
            ("GET / HTTP/x.y\r\n", false),
            ("GET / HTTP/11\r\n", false),
            ("GET / a HTTP/1.2\r\n", false),
            ("GET /\r\n", false),
        ] {
            let mut scan = HeadScan::default();
            scan.feed(line.as_bytes());
            assert_eq!(scan.names_an_unknown_version(), expected, "{line:?}");
        }
    }
}
