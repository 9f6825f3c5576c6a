//! Puts the eBPF object at `$OUT_DIR/mesh-ebpf`, for the agent to embed.
//!
//! `MESH_EBPF` says how: `auto` (the default) builds it where the toolchain is there and otherwise leaves an empty stub
//! and a warning; `build` fails without the toolchain; `stub` never builds; `prebuilt:PATH` copies a finished object.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};

#[path = "build/toolchain.rs"]
mod toolchain;

use toolchain::Toolchain;

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    for line in format!("{error:#}").lines() {
        println!("cargo::error={line}");
    }
    ExitCode::FAILURE
}

fn run() -> Result<()> {
    for path in ["build.rs", "build/toolchain.rs", "../mesh-ebpf", "../mesh-common"] {
        println!("cargo::rerun-if-changed={path}");
    }
    for name in ["MESH_EBPF", "BPF_LINKER_ROOT"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rustc-check-cfg=cfg(mesh_ebpf_stub)");

    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let object = out_dir.join("mesh-ebpf");
    let how = env::var("MESH_EBPF").unwrap_or_else(|_| "auto".to_owned());
    match how.as_str() {
        "auto" => match Toolchain::find() {
            Ok(toolchain) => build(&toolchain, &out_dir, &object),
            Err(lacking) => {
                println!(
                    "cargo::warning=mesh-agent is built without its eBPF programs: {lacking}. To get them, {}",
                    toolchain::HOW_TO
                );
                stub(&object)
            }
        },
        "build" => match Toolchain::find() {
            Ok(toolchain) => build(&toolchain, &out_dir, &object),
            Err(lacking) => bail!("MESH_EBPF=build, but {lacking}: {}", toolchain::HOW_TO),
        },
        "stub" => stub(&object),
        other => match other.strip_prefix("prebuilt:") {
            Some(path) => prebuilt(Path::new(path), &object),
            None => bail!("MESH_EBPF is {other:?}; it can be auto, build, stub or prebuilt:PATH"),
        },
    }
}

fn build(toolchain: &Toolchain, out_dir: &Path, object: &Path) -> Result<()> {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH is not set")?;
    // Not the target folder of the outer cargo, which holds its lock; but one for all of its profiles: the programs
    // are the same in each. OUT_DIR is TARGET/PROFILE/build/PACKAGE/out.
    let target_dir = out_dir.ancestors().nth(4).unwrap_or(out_dir).join("ebpf");
    let mut cargo = toolchain.cargo_build(&architecture);
    cargo
        .args(["--quiet", "--package", "mesh-ebpf", "--bin", "mesh-ebpf", "--release", "--target-dir"])
        .arg(&target_dir);
    let output = cargo.output().context("cannot start cargo for the eBPF programs")?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("the eBPF programs do not build:\n{messages}");
    }
    if let Some(summary) = messages.lines().find(|line| line.contains(" generated ")) {
        println!("cargo::warning={summary}; cargo xtask ebpf shows them");
    }
    copy(&target_dir.join(toolchain::TARGET).join("release/mesh-ebpf"), object)
}

fn prebuilt(path: &Path, object: &Path) -> Result<()> {
    // Cargo runs this script in the package's folder; a relative path is meant from the workspace's.
    let path = Path::new("..").join(path);
    println!("cargo::rerun-if-changed={}", path.display());
    copy(&path, object)
}

fn stub(object: &Path) -> Result<()> {
    println!("cargo::rustc-cfg=mesh_ebpf_stub");
    fs::write(object, []).with_context(|| format!("cannot write {}", object.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
