//! Puts the kernel object where `include_bytes!` finds it, or an empty file in its place.
//!
//! The object has its own compiler and linker, so it is not built here: `cargo xtask build` does both in order.
//! A gateway with an empty object compiles and passes its unit tests; it refuses to capture anything.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Names another object, for packagers who build it elsewhere.
const OVERRIDE: &str = "TOLLGATE_BPF_OBJECT";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    println!("cargo::rerun-if-changed=build.rs");
    let object = match env::var_os(OVERRIDE) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(required("CARGO_MANIFEST_DIR")?).join("../target/bpf/tollgate-bpf.o"),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = match fs::read(&object) {
        Ok(bytes) => bytes,
        Err(error) if env::var_os(OVERRIDE).is_some() => {
            return Err(format!("{OVERRIDE} names {}: {error}", object.display()).into());
        }
        Err(_absent) => {
            leave_placeholder(&object)?;
            Vec::new()
        }
    };
    if bytes.is_empty() {
        println!(
            "cargo::warning=built without the kernel programs, so it cannot capture anything; \
             `cargo xtask build` brings them"
        );
    }
    fs::write(PathBuf::from(required("OUT_DIR")?).join("tollgate-bpf.o"), bytes)?;
    Ok(())
}

/// cargo takes a watched file that does not exist for changed, and would build the gateway anew each time.
/// An empty one with an old time stamp is watched as it should be, until the real one takes its place.
fn leave_placeholder(object: &Path) -> std::io::Result<()> {
    if let Some(folder) = object.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::File::create(object)?.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))
}

fn required(name: &str) -> Result<std::ffi::OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}
