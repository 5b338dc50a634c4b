//! The parts of a request that decide: hosts are canonical, and a path that was normalised is its own normal form.
#![no_main]

use gateway::http::RequestPath;
use gateway::net::Host;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str)| {
    let (target, host) = input;
    if let Ok(host) = Host::parse(host) {
        assert_eq!(Host::parse(&host.to_string()).as_ref(), Ok(&host));
    }
    if let Ok(path) = RequestPath::parse(target) {
        assert!(path.sent.starts_with('/'));
        assert_eq!(path.readings.first(), Some(&path.sent));
        let again = RequestPath::parse(&path.sent).expect("what is sent can be read");
        assert_eq!(again.sent, path.sent);
        assert_eq!(again.readings, path.readings);
    }
});
