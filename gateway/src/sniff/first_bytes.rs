//! The first bytes of a connection → [`Protocol`]. Pure.
//!
//! A protocol is found only when its first bytes cannot be those of another one: a TLS handshake record that
//! begins with a ClientHello, the HTTP/2 preface, or the beginning of an HTTP/1 request line. Whatever begins
//! with a well-known HTTP method counts as HTTP/1, even where the rest is wrong: then there is somebody who
//! understands a 400.

use super::Parsed;

/// What the agent speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A TLS record with the beginning of a ClientHello.
    Tls,
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 connection preface.
    Http2,
}

/// Tells the protocol from the first bytes. Never [`Parsed::Incomplete`] from [`FIRST_BYTES_MAX`] bytes on.
#[must_use]
pub fn classify(bytes: &[u8]) -> Parsed<Protocol> {
    if bytes.first() == Some(&CONTENT_TYPE_HANDSHAKE) {
        return tls(bytes);
    }
    if bytes.starts_with(HTTP2_PREFACE) {
        return Parsed::Found(Protocol::Http2);
    }
    if HTTP2_PREFACE.starts_with(bytes) {
        return Parsed::Incomplete;
    }
    http1(bytes)
}

/// No protocol needs more bytes than these: one empty line, the longest method, a blank and a scheme.
pub const FIRST_BYTES_MAX: usize = 2 + METHOD_MAX_BYTES + 1 + 8;

fn tls(bytes: &[u8]) -> Parsed<Protocol> {
    for (index, is_expected) in TLS_RECORD_HEAD.iter().enumerate() {
        match bytes.get(index) {
            None => return Parsed::Incomplete,
            Some(byte) if is_expected(*byte) => {}
            Some(_other) => return Parsed::Not,
        }
    }
    Parsed::Found(Protocol::Tls)
}

/// Record type, version 3.0 to 3.4, length of at most 2^14 + 256 bytes (the record layer checks it exactly), and the
/// type of the handshake message. An SSL 2.0 hello has another form and is not TLS.
const TLS_RECORD_HEAD: [fn(u8) -> bool; 6] = [
    |content_type| content_type == CONTENT_TYPE_HANDSHAKE,
    |major| major == 3,
    |minor| minor <= 4,
    |length_high| length_high <= 0x41,
    |_length_low| true,
    |handshake_type| handshake_type == HANDSHAKE_TYPE_CLIENT_HELLO,
];

const CONTENT_TYPE_HANDSHAKE: u8 = 0x16;
const HANDSHAKE_TYPE_CLIENT_HELLO: u8 = 0x01;

fn http1(bytes: &[u8]) -> Parsed<Protocol> {
    // RFC 9112 section 2.2: a server should ignore one empty line before the request line.
    let line = match bytes.strip_prefix(b"\r\n") {
        Some(rest) => rest,
        None if bytes == b"\r" => return Parsed::Incomplete,
        None => bytes,
    };
    let method_end = line.iter().take(METHOD_MAX_BYTES + 1).position(|byte| !is_token_byte(*byte));
    let Some(method_end) = method_end else {
        return if line.len() > METHOD_MAX_BYTES { Parsed::Not } else { Parsed::Incomplete };
    };
    let (method, rest) = line.split_at(method_end);
    let Some(target) = rest.strip_prefix(b" ") else { return Parsed::Not };
    if method.is_empty() {
        return Parsed::Not;
    }
    if KNOWN_METHODS.iter().any(|known| known.eq_ignore_ascii_case(method)) {
        return Parsed::Found(Protocol::Http1);
    }
    http1_target(target)
}

/// A word and a blank begin many a line of text (`EHLO host`, `USER name`), so an unknown method counts only with
/// a target that is a path, `*` or a URL.
fn http1_target(target: &[u8]) -> Parsed<Protocol> {
    if matches!(target.first(), Some(b'/' | b'*')) {
        return Parsed::Found(Protocol::Http1);
    }
    let mut outcome = Parsed::Not;
    for scheme in SCHEMES {
        let compared = target.len().min(scheme.len());
        let agrees = match (target.get(..compared), scheme.get(..compared)) {
            (Some(left), Some(right)) => left.eq_ignore_ascii_case(right),
            _out_of_range => false,
        };
        if agrees && compared == scheme.len() {
            return Parsed::Found(Protocol::Http1);
        }
        if agrees {
            outcome = Parsed::Incomplete;
        }
    }
    outcome
}

/// RFC 9110 section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The longest registered method is `UPDATEREDIRECTREF` with 17 bytes.
const METHOD_MAX_BYTES: usize = 32;

const KNOWN_METHODS: [&[u8]; 9] =
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];

const SCHEMES: [&[u8]; 2] = [b"http://", b"https://"];

/// RFC 9113 section 3.4.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_prefix_is_incomplete_until_the_protocol_is_certain() {
        // (bytes, how many of them are needed, outcome)
        let rows: [(&[u8], usize, Parsed<Protocol>); 22] = [
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 6, Parsed::Found(Protocol::Tls)),
            (b"\x16\x03\x03\x00\x05\x01", 6, Parsed::Found(Protocol::Tls)),
            (b"\x16\x03\x01\x02\x00\x02", 6, Parsed::Not),
            (b"\x16\x02\x01", 2, Parsed::Not),
            (b"\x16\x03\x05", 3, Parsed::Not),
            (b"\x16\x03\x01\xff\xff", 4, Parsed::Not),
            (b"\x15\x03\x01\x00\x02\x02\x28", 1, Parsed::Not),
            (b"\x80\x2e\x01\x03\x01", 1, Parsed::Not),
            (HTTP2_PREFACE, 24, Parsed::Found(Protocol::Http2)),
            // RFC 9113 reserves `PRI`; that it is refused is the business of the HTTP stage.
            (b"PRI * HTTP/1.1\r\n", 12, Parsed::Found(Protocol::Http1)),
            (b"GET / HTTP/1.1\r\n", 4, Parsed::Found(Protocol::Http1)),
            (b"get / HTTP/1.1\r\n", 4, Parsed::Found(Protocol::Http1)),
            (b"\r\nPOST /a HTTP/1.1\r\n", 7, Parsed::Found(Protocol::Http1)),
            (b"CONNECT a.example:443 HTTP/1.1", 8, Parsed::Found(Protocol::Http1)),
            (b"PROPFIND /a HTTP/1.1", 10, Parsed::Found(Protocol::Http1)),
            (b"MKCOL HTTPS://a.example/", 14, Parsed::Found(Protocol::Http1)),
            (b"REPORT http://a.example/", 14, Parsed::Found(Protocol::Http1)),
            (b"EHLO mail.example\r\n", 6, Parsed::Not),
            (b"HELO https.example\r\n", 11, Parsed::Not),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", 22, Parsed::Not),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", 1, Parsed::Not),
            (b" / HTTP/1.1", 1, Parsed::Not),
        ];
        for (bytes, needed, outcome) in rows {
            let text = bytes.escape_ascii().to_string();
            for length in 0..=bytes.len() {
                let expected = if length < needed { Parsed::Incomplete } else { outcome };
                assert_eq!(classify(&bytes[..length]), expected, "{length} bytes of {text}");
            }
        }
    }

    #[test]
    fn a_method_without_end_is_no_http() {
        assert_eq!(classify(&[b'A'; METHOD_MAX_BYTES]), Parsed::Incomplete);
        assert_eq!(classify(&[b'A'; METHOD_MAX_BYTES + 1]), Parsed::Not);
    }

    proptest! {
        #[test]
        fn what_is_decided_stays_decided(bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0_usize..64) {
            let prefix = classify(&bytes[..cut.min(bytes.len())]);
            if prefix != Parsed::Incomplete {
                prop_assert_eq!(classify(&bytes), prefix);
            }
        }

        #[test]
        fn every_text_is_decided_by_its_first_bytes(text in "(\r\n)?[A-Z]{0,40}[ -~]{0,40}") {
            if text.len() >= FIRST_BYTES_MAX {
                prop_assert_ne!(classify(text.as_bytes()), Parsed::Incomplete);
            }
        }
    }
}
