//! A configuration: every text is a configuration or a list of mistakes.
#![no_main]

use std::path::Path;

use gateway::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(errors) = Config::parse(Path::new("tollgate.toml"), text) {
        assert!(!errors.to_string().is_empty());
    }
});
