//! `cargo xtask dist`: the release binary, never with a stub inside.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context, Result, bail};

use crate::{
    command::{cargo, root, run},
    ebpf,
};

/// Programs without which an agent captures nothing.
const REQUIRED: [&str; 4] = ["cgroup/connect4", "cgroup/connect6", "sockops", "sk_lookup"];

/// Builds the release binary with the object inside and copies it to `target/dist`.
pub(crate) fn run_verb() -> Result<()> {
    let object = ebpf::build(false)?;
    let programs = ebpf::programs(&object)?;
    for section in REQUIRED {
        if !programs.iter().any(|program| program.starts_with(section)) {
            bail!("the eBPF object has no {section} program, only: {}", programs.join(", "));
        }
    }
    let release = ["build", "--release", "--locked", "--package", "mesh-agent", "--bin", "mesh-agent"];
    run(cargo(&release).env(ebpf::MESH_EBPF, "build"))?;

    let target = ebpf::target_folder()?;
    let built = target.join("release/mesh-agent");
    let binary = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let embedded = fs::read(&object)?;
    if !contains(&binary, &embedded) {
        bail!("{} does not contain the object {}", built.display(), object.display());
    }
    let dist = target.join("dist");
    fs::create_dir_all(&dist)?;
    let finished = dist.join("mesh-agent");
    fs::copy(&built, &finished).with_context(|| format!("cannot write {}", finished.display()))?;
    plugin(&dist)?;
    let shown = finished.strip_prefix(root()).unwrap_or(&finished);
    println!("{}: {:.1} MB, with {} programs:", shown.display(), binary.len() as f64 / 1e6, programs.len());
    for program in programs {
        println!("  {program}");
    }
    Ok(())
}

/// The name by which kubectl finds it as its plug-in.
fn plugin(dist: &Path) -> Result<()> {
    let plugin = dist.join("kubectl-mesh");
    if plugin.is_symlink() {
        fs::remove_file(&plugin)?;
    }
    symlink("mesh-agent", &plugin).with_context(|| format!("cannot make {}", plugin.display()))
}

/// Whether `inner` is a part of `outer`. Embedded objects are aligned, so only every eighth place is looked at.
fn contains(outer: &[u8], inner: &[u8]) -> bool {
    !inner.is_empty() && outer.windows(inner.len()).step_by(8).any(|window| window == inner)
}
