//! temporary
fn main() {
    let out = std::env::var("OUT_DIR").unwrap();
    let object = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/tollgate-bpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    std::fs::copy(object, std::path::Path::new(&out).join("tollgate-bpf.o")).unwrap();
}
