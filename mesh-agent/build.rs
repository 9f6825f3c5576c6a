//! Placeholder: copies a prebuilt object.
fn main() {
    let out = std::env::var("OUT_DIR").unwrap_or_default();
    let _ = std::fs::copy("../target/ebpf/bpfel-unknown-none/release/mesh-ebpf", format!("{out}/mesh-ebpf"));
    println!("cargo:rerun-if-changed=../target/ebpf/bpfel-unknown-none/release/mesh-ebpf");
}
