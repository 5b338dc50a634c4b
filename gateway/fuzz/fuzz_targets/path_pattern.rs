//! Patterns and paths: what is normalised once stays as it is, and what forbids covers all that allows.
#![no_main]

use gateway::http::RequestPath;
use gateway::policy::{HostPattern, PathPattern};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str)| {
    let (pattern, target) = input;
    if let Ok(host) = HostPattern::parse(pattern) {
        assert_eq!(HostPattern::parse(&host.to_string()).as_ref(), Ok(&host));
    }
    let Ok(pattern) = PathPattern::parse(pattern) else { return };
    let again = PathPattern::parse(&pattern.to_string()).expect("a pattern can be read again");
    assert_eq!(again, pattern);
    let Ok(path) = RequestPath::parse(target) else { return };
    for reading in &path.readings {
        assert!(!pattern.matches(reading) || pattern.may_match(reading));
        assert!(PathPattern::everything().matches(reading));
    }
});
