use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{DuplexStream, duplex};
use tokio::time::{Instant, sleep};

use super::client_hello::CLIENT_HELLO_MAX_BYTES;
use super::*;

/// What a real client sends first.
fn hello(server_name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(server_name.to_owned()).expect("server name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("hello");
    bytes
}

/// The same hello in records of at most `size` bytes.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    hello[5..]
        .chunks(size)
        .flat_map(|part| {
            let length = u16::try_from(part.len()).expect("length").to_be_bytes();
            [&[0x16, 0x03, 0x01][..], &length, part].concat()
        })
        .collect()
}

fn replaced(hello: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = hello.windows(from.len()).position(|window| window == from).expect("found");
    [&hello[..at], to, &hello[at + to.len()..]].concat()
}

/// Sniffs a connection on which `bytes` come and then nothing more, and returns what was answered as well.
async fn sniff_bytes(bytes: &[u8]) -> (Result<Sniffed<DuplexStream>, SniffError>, Vec<u8>) {
    let (mut agent, gateway) = duplex(1024 * 1024);
    agent.write_all(bytes).await.expect("write");
    agent.shutdown().await.expect("shutdown");
    let outcome = sniff(gateway).await;
    let mut answer = Vec::new();
    if outcome.is_err() {
        agent.read_to_end(&mut answer).await.expect("read");
    }
    (outcome, answer)
}

#[test]
fn a_hello_is_incomplete_at_every_length_but_the_whole() {
    let whole = hello("Api.Example.COM", &[b"h2", b"http/1.1"]);
    for length in 0..whole.len() {
        assert_eq!(client_hello::parse(&whole[..length]), Parsed::Incomplete, "{length} bytes");
    }
    let Parsed::Found(parsed) = client_hello::parse(&whole) else { panic!("not found") };
    assert_eq!(parsed.server_name.expect("name").as_str(), "api.example.com");
    assert_eq!(parsed.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
}

#[test]
fn a_hello_in_records_of_any_size_is_the_same_hello() {
    let whole = hello("api.example.com", &[b"h2"]);
    let expected = client_hello::parse(&whole);
    for size in 1..whole.len() {
        assert_eq!(client_hello::parse(&in_records(&whole, size)), expected, "records of {size}");
    }
}

#[test]
fn a_hello_to_an_address_names_nothing() {
    let Parsed::Found(parsed) = client_hello::parse(&hello("192.0.2.1", &[])) else {
        panic!("not found")
    };
    assert_eq!(parsed.server_name, None);
    assert!(parsed.alpn.is_empty());
}

#[test]
fn damage_at_any_byte_never_panics() {
    let whole = hello("api.example.com", &[b"h2"]);
    for index in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[index] ^= flip;
            if let Parsed::Found(found) = client_hello::parse(&damaged) {
                // Whatever is accepted is canonical.
                let name = found.server_name.map(|name| name.to_string());
                assert!(name.is_none_or(|name| HostName::parse(&name).is_ok()));
            }
        }
    }
}

#[tokio::test]
async fn a_hello_split_at_every_byte_is_found() {
    let whole = hello("api.example.com", &[b"h2"]);
    for cut in 1..whole.len() {
        let stream = tokio_test::io::Builder::new().read(&whole[..cut]).read(&whole[cut..]).build();
        let Ok(Sniffed::Tls(found)) = sniff(stream).await else { panic!("cut at {cut}") };
        assert_eq!(found.server_name.as_ref().expect("name").as_str(), "api.example.com");
        assert_eq!(found.raw(), whole, "cut at {cut}");
    }
}

#[tokio::test]
async fn a_hello_that_comes_byte_by_byte_is_found() {
    let whole = in_records(&hello("api.example.com", &[]), 100);
    let mut builder = tokio_test::io::Builder::new();
    for byte in &whole {
        builder.read(std::slice::from_ref(byte));
    }
    let Ok(Sniffed::Tls(found)) = sniff(builder.build()).await else { panic!("not found") };
    assert_eq!(found.raw(), whole);
}

#[tokio::test]
async fn plain_protocols_are_replayed_whole_wherever_they_are_split() {
    let http1 = b"GET /a?b HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    for (bytes, is_http2) in [(&http1[..], false), (&http2[..], true)] {
        for cut in 1..bytes.len() {
            let stream =
                tokio_test::io::Builder::new().read(&bytes[..cut]).read(&bytes[cut..]).build();
            let mut replay = match sniff(stream).await.expect("sniffed") {
                Sniffed::Http1(replay) if !is_http2 => replay,
                Sniffed::Http2(replay) if is_http2 => replay,
                other => panic!("{other:?}"),
            };
            let mut all = Vec::new();
            replay.read_to_end(&mut all).await.expect("read");
            assert_eq!(all, bytes, "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_closes_too_early_is_closed_at_every_length() {
    let whole = hello("api.example.com", &[]);
    for length in 0..whole.len() {
        let (outcome, answer) = sniff_bytes(&whole[..length]).await;
        let error = outcome.expect_err("closed");
        assert_eq!(error.reason(), Reason::ClientClosed, "{length} bytes: {error}");
        assert!(answer.is_empty());
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_closed() {
    let broken = io::Error::from(io::ErrorKind::ConnectionReset);
    let stream = tokio_test::io::Builder::new().read(b"GE").read_error(broken).build();
    let error = sniff(stream).await.expect_err("broken");
    assert!(matches!(error, SniffError::Broken { received: 2, .. }), "{error:?}");
    assert_eq!(error.reason(), Reason::ClientClosed);
}

#[tokio::test]
async fn other_protocols_are_refused_without_an_answer() {
    for bytes in [
        &b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n"[..],
        b"EHLO a.example\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
    ] {
        let (outcome, answer) = sniff_bytes(bytes).await;
        assert_eq!(outcome.expect_err("refused").reason(), Reason::UnknownProtocol);
        assert!(answer.is_empty());
    }
}

#[tokio::test]
async fn a_bad_hello_is_answered_with_an_alert() {
    let whole = hello("abcdefgh.example", &[]);
    let oversized = [&[0x16, 3, 1, 0x40, 0][..], &[1, 0x01, 0, 0], &[0; 0x4000]].concat();
    let crumbs = in_records(&[&[0; 5][..], &[1, 0, 0xff, 0xff], &[0; 0xffff]].concat(), 1);
    let mut short = whole.clone();
    short[8] -= 1;
    let rows = [
        ("a name with a blank", replaced(&whole, b"abcdefgh.example", b"abcd fgh.example"), 47),
        (
            "a name that some read as an address",
            replaced(&whole, b"abcdefgh.example", b"abcde.0x7f000001"),
            47,
        ),
        ("no null compression", replaced(&whole, &[1, 0, 0, 0x97], &[1, 1, 0, 0x97]), 47),
        ("an inner length that is too short", short, 50),
        ("a hello of 64 KiB and more", oversized, 50),
        ("a hello in 65,535 records", crumbs, 50),
    ];
    for (what, bytes, alert) in rows {
        let (outcome, answer) = sniff_bytes(&bytes).await;
        let error = outcome.map(drop).expect_err(what);
        assert_eq!(error.reason(), Reason::ClientHelloInvalid, "{what}: {error:?}");
        assert_eq!(answer, [21, 3, 3, 0, 2, 2, alert], "{what}: {error:?}");
    }
}

#[tokio::test]
async fn an_address_in_the_server_name_counts_as_none() {
    // RFC 6066 forbids it, some clients do it; the destination is then what the connection was made to.
    let bytes = replaced(&hello("abcd.example", &[]), b"abcd.example", b"192.168.1.10");
    let (Ok(Sniffed::Tls(found)), _answer) = sniff_bytes(&bytes).await else { panic!("not found") };
    assert_eq!(found.server_name, None);
}

#[tokio::test]
async fn the_largest_hello_fits_the_limit_and_no_larger_one() {
    let many: Vec<Vec<u8>> = (0..9_u8).map(|index| vec![b'a' + index; 255]).collect();
    let offered: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    let bytes = hello("api.example.com", &offered);
    assert!(matches!(sniff_bytes(&bytes).await.0, Ok(Sniffed::Tls(_))));
    let endless = in_records(&[&[0; 5][..], &[1, 0, 0xff, 0xff], &[0; 0x20000]].concat(), 0x4000);
    assert!(endless.len() > CLIENT_HELLO_MAX_BYTES);
    assert_eq!(
        sniff_bytes(&endless).await.0.expect_err("refused").reason(),
        Reason::ClientHelloInvalid
    );
}

#[tokio::test(start_paused = true)]
async fn silence_ends_after_the_time_limit() {
    let whole = hello("api.example.com", &[]);
    for bytes in [&b""[..], b"GE", b"PRI * HTTP", &whole[..5], &whole[..whole.len() - 1]] {
        let (mut agent, gateway) = duplex(4096);
        agent.write_all(bytes).await.expect("write");
        let start = Instant::now();
        let error = sniff(gateway).await.expect_err("timeout");
        assert!(
            matches!(error, SniffError::Timeout { received } if received == bytes.len()),
            "{error:?}"
        );
        assert_eq!(error.reason(), Reason::FirstBytesTimeout);
        assert_eq!(start.elapsed(), SNIFF_TIMEOUT);
        drop(agent);
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_trickle_do_not_extend_the_time_limit() {
    let (mut agent, gateway) = duplex(4096);
    let start = Instant::now();
    let sniffing = tokio::spawn(async move { (sniff(gateway).await, start.elapsed()) });
    for byte in hello("api.example.com", &[]) {
        if agent.write_all(&[byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(900)).await;
    }
    let (outcome, elapsed) = sniffing.await.expect("task");
    assert_eq!(outcome.expect_err("timeout").reason(), Reason::FirstBytesTimeout);
    assert!(elapsed < SNIFF_TIMEOUT + Duration::from_secs(1), "{elapsed:?}");
}
