//! `cargo xtask image`: the container image as a file, without a daemon. The programs, and the libraries of this machine
//! that they are linked to, and nothing else.

mod archive;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use archive::{About, Entry, write_image};

use crate::{
    command::{cargo, command, output, root, run},
    dist, ebpf,
};

/// Programs of `mesh-tests` that go into an image with tests.
const TEST_PROGRAMS: [&str; 2] = ["mesh-test-api", "mesh-test-app"];

/// Options of the image.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to write it [default: target/dist/mesh-agent.tar]
    #[arg(long, value_name = "FILE")]
    tar: Option<PathBuf>,
    /// What it is called
    #[arg(long, value_name = "NAME:TAG", default_value = concat!("docker.io/library/mesh-agent:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// With the programs that the tests on a cluster run in pods
    #[arg(long)]
    with_tests: bool,
    /// Of the debug build: sooner made, slower
    #[arg(long)]
    debug: bool,
}

/// Builds the programs and writes the image.
pub(crate) fn run_verb(args: &Args) -> Result<()> {
    let target = ebpf::target_folder()?;
    let programs = if args.debug { build_debug(args, &target)? } else { build_release(args, &target)? };
    let scratch = target.join("image");
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    fs::create_dir_all(&scratch)?;
    let mut files = Vec::new();
    let mut libraries = BTreeSet::new();
    for program in &programs {
        let name = program.file_name().and_then(|name| name.to_str()).context("a program without a name")?;
        let stripped = scratch.join(name);
        strip(program, &stripped)?;
        libraries.extend(linked(program)?);
        files.push(Entry { path: name.to_owned(), source: stripped, is_program: true });
    }
    for library in libraries {
        let path = library.trim_start_matches('/').to_owned();
        files.push(Entry { path, source: library.into(), is_program: true });
    }
    let about = About {
        name: args.name.clone(),
        architecture: architecture()?.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let tar = args.tar.clone().unwrap_or_else(|| target.join("dist/mesh-agent.tar"));
    if let Some(folder) = tar.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    write_image(&tar, &scratch, &about, &files)?;
    fs::remove_dir_all(&scratch)?;
    println!("{}: {}, {:.1} MB:", tar.display(), about.name, fs::metadata(&tar)?.len() as f64 / 1e6);
    for file in files {
        println!("  /{}", file.path);
    }
    println!("ctr -n k8s.io images import FILE, docker load -i FILE, kind load image-archive FILE");
    Ok(())
}

/// At once: the agent's library is the same for all of them, and compiled once.
fn build_debug(args: &Args, target: &Path) -> Result<Vec<PathBuf>> {
    let mut command = cargo(&["build", "--locked", "--package", "mesh-agent", "--bin", "mesh-agent"]);
    if args.with_tests {
        command.args(["--package", "mesh-tests"]).args(TEST_PROGRAMS.iter().flat_map(|name| ["--bin", name]));
    }
    run(command.env(ebpf::MESH_EBPF, "build"))?;
    let tests = if args.with_tests { &TEST_PROGRAMS[..] } else { &[] };
    Ok(std::iter::once(&"mesh-agent").chain(tests).map(|name| target.join("debug").join(name)).collect())
}

fn build_release(args: &Args, target: &Path) -> Result<Vec<PathBuf>> {
    dist::run_verb()?;
    let mut programs = vec![target.join("dist/mesh-agent")];
    if args.with_tests {
        run(cargo(&["build", "--locked", "--package", "mesh-tests", "--bins", "--release"])
            .env(ebpf::MESH_EBPF, "build"))?;
        programs.extend(TEST_PROGRAMS.iter().map(|name| target.join("release").join(name)));
    }
    Ok(programs)
}

/// Debug information stays behind, where there is a tool for it: it is most of a program.
fn strip(program: &Path, to: &Path) -> Result<()> {
    fs::copy(program, to).with_context(|| program.display().to_string())?;
    if command("strip", &["--version"]).output().is_ok() {
        run(command("strip", &["--strip-debug"]).arg(to))?;
    }
    Ok(())
}

/// The libraries that a program is linked to, and the loader, by their paths here.
fn linked(program: &Path) -> Result<Vec<String>> {
    let listed = output(command("ldd", &[]).arg(program));
    let Ok(listed) = listed else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for line in listed.lines().map(str::trim) {
        if line.contains("not found") {
            bail!("{}: {line}", program.display());
        }
        // NAME => PATH (ADDRESS), or PATH (ADDRESS) for the loader
        let path = line.split("=> ").last().and_then(|rest| rest.split(" (").next()).unwrap_or_default();
        if path.starts_with('/') {
            found.push(path.to_owned());
        }
    }
    Ok(found)
}

/// As Go names it.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image for {other} yet; from {}", root().display()),
    }
}
