//! The first bytes of a connection: neither parser panics, and what either has decided stays decided.
#![no_main]

use gateway::net::HostName;
use gateway::sniff::{Parsed, client_hello, first_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, Vec<u8>)| {
    let (cut, bytes) = input;
    let prefix = &bytes[..usize::from(cut).min(bytes.len())];

    let early = first_bytes::classify(prefix);
    if early != Parsed::Incomplete {
        assert_eq!(first_bytes::classify(&bytes), early);
    }
    if bytes.len() >= first_bytes::FIRST_BYTES_MAX {
        assert_ne!(first_bytes::classify(&bytes), Parsed::Incomplete);
    }

    let early = client_hello::parse(prefix);
    let late = client_hello::parse(&bytes);
    if let Parsed::Found(hello) = &early {
        // More bytes behind a hello may spoil the handshake, but never change what the hello says.
        assert!(matches!(&late, Parsed::Not) || late == early);
        if let Some(name) = &hello.server_name {
            assert_eq!(HostName::parse(name.as_str()).as_ref(), Ok(name));
        }
    }
    if early == Parsed::Not {
        assert_eq!(late, Parsed::Not);
    }
});
