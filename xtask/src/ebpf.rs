//! `cargo xtask ebpf`, and what other verbs ask about the eBPF object.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::{cargo, output, root, run};

#[path = "../../mesh-agent/build/toolchain.rs"]
mod toolchain;

/// The environment variable that says how mesh-agent/build.rs gets the object.
pub(crate) const MESH_EBPF: &str = "MESH_EBPF";

/// Sections of an object that are programs start with one of these.
const PROGRAM_SECTIONS: [&str; 5] = ["cgroup/", "sockops", "sk_lookup", "sk_reuseport", "tp_btf"];

/// Options of the verb.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fail if the programs compile with warnings
    #[arg(long)]
    deny_warnings: bool,
}

/// Builds the object and prints its path and its programs.
pub(crate) fn run_verb(args: &Args) -> Result<()> {
    let object = build(args.deny_warnings)?;
    println!("{}", object.display());
    for program in programs(&object)? {
        println!("  {program}");
    }
    Ok(())
}

/// Builds the object alone, with the toolchain that the build script would choose, and returns its path.
///
/// # Errors
/// There is no toolchain, the programs do not build, or they do with warnings where those are denied.
pub(crate) fn build(deny_warnings: bool) -> Result<PathBuf> {
    let toolchain = find()?;
    let target_dir = target_folder()?.join("ebpf");
    let mut cargo = toolchain.cargo_build(std::env::consts::ARCH);
    cargo.args(["--package", "mesh-ebpf", "--bin", "mesh-ebpf", "--release", "--target-dir"]).arg(&target_dir);
    cargo.current_dir(root());
    if deny_warnings {
        // Cargo repeats the warnings of what it need not compile again.
        let told = cargo.output().context("cannot start cargo")?;
        let messages = String::from_utf8_lossy(&told.stderr);
        eprint!("{messages}");
        if !told.status.success() || messages.lines().any(|line| line.starts_with("warning: ")) {
            bail!("the eBPF programs do not build without warnings");
        }
    } else {
        run(&mut cargo)?;
    }
    Ok(target_dir.join(toolchain::TARGET).join("release/mesh-ebpf"))
}

/// The toolchain, or what is lacking and how to get it.
fn find() -> Result<toolchain::Toolchain> {
    toolchain::Toolchain::find().map_err(|lacking| anyhow::anyhow!("{lacking}: {}", toolchain::HOW_TO))
}

/// Why the object cannot be built here, if it cannot.
pub(crate) fn lacking() -> Option<String> {
    find().err().map(|error| format!("{error:#}"))
}

/// The project's cache of this user.
///
/// # Errors
/// Neither `XDG_CACHE_HOME` nor `HOME` is set.
pub(crate) fn cache() -> Result<PathBuf> {
    toolchain::cache().context("neither XDG_CACHE_HOME nor HOME is set")
}

/// Cargo's target folder.
///
/// # Errors
/// `cargo metadata` fails.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let metadata: serde_json::Value =
        serde_json::from_str(&output(&mut cargo(&["metadata", "--no-deps", "--format-version=1"]))?)?;
    let folder = metadata.get("target_directory").and_then(|folder| folder.as_str());
    Ok(folder.context("cargo metadata names no target folder")?.into())
}

/// The programs in an object: `SECTION NAME`, sorted.
///
/// # Errors
/// The file cannot be read, is not a 64-bit little-endian ELF object, or has no program.
pub(crate) fn programs(object: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let elf = Elf::new(&bytes).with_context(|| format!("{} is not an eBPF object", object.display()))?;
    let mut programs = elf.functions().unwrap_or_default();
    programs.retain(|program| PROGRAM_SECTIONS.iter().any(|section| program.starts_with(section)));
    programs.sort();
    if programs.is_empty() {
        bail!("{} has no program", object.display());
    }
    Ok(programs)
}

/// Just enough of ELF to list functions by section.
struct Elf<'a> {
    bytes: &'a [u8],
    sections: Vec<Section>,
    names: usize,
}

#[derive(Clone, Copy)]
struct Section {
    name: usize,
    kind: u32,
    offset: usize,
    size: usize,
    link: usize,
}

impl<'a> Elf<'a> {
    const SYMBOLS: u32 = 2;
    const SYMBOL_SIZE: usize = 24;
    const FUNCTION: u8 = 2;

    fn new(bytes: &'a [u8]) -> Option<Self> {
        if !bytes.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let table = number::<8>(bytes, 40)? as usize;
        let entry = number::<2>(bytes, 58)? as usize;
        let count = number::<2>(bytes, 60)? as usize;
        let names = number::<2>(bytes, 62)? as usize;
        let section = |index: usize| {
            let at = table + index * entry;
            Some(Section {
                name: number::<4>(bytes, at)? as usize,
                kind: number::<4>(bytes, at + 4)? as u32,
                offset: number::<8>(bytes, at + 24)? as usize,
                size: number::<8>(bytes, at + 32)? as usize,
                link: number::<4>(bytes, at + 40)? as usize,
            })
        };
        let sections = (0..count).map(section).collect::<Option<_>>()?;
        Some(Self { bytes, sections, names })
    }

    fn functions(&self) -> Option<Vec<String>> {
        let symbols = *self.sections.iter().find(|section| section.kind == Self::SYMBOLS)?;
        let mut found = Vec::new();
        for at in (symbols.offset..symbols.offset + symbols.size).step_by(Self::SYMBOL_SIZE) {
            let kind = number::<1>(self.bytes, at + 4)? as u8 & 0xf;
            let section = self.sections.get(number::<2>(self.bytes, at + 6)? as usize);
            if let (Self::FUNCTION, Some(section)) = (kind, section) {
                let name = self.string(symbols.link, number::<4>(self.bytes, at)? as usize)?;
                found.push(format!("{} {name}", self.string(self.names, section.name)?));
            }
        }
        Some(found)
    }

    /// The string at `offset` of a string table.
    fn string(&self, table: usize, offset: usize) -> Option<&'a str> {
        let text = self.bytes.get(self.sections.get(table)?.offset + offset..)?;
        std::str::from_utf8(text.split(|byte| *byte == 0).next()?).ok()
    }
}

/// The little-endian number of `N` bytes at `offset`.
fn number<const N: usize>(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..offset + N)?;
    Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_is_not_taken_for_an_object() {
        let file = std::env::temp_dir().join(format!("mesh-xtask-stub-{}", std::process::id()));
        std::fs::write(&file, []).unwrap();
        let error = programs(&file).unwrap_err();
        std::fs::remove_file(&file).unwrap();
        assert!(format!("{error:#}").contains("not an eBPF object"), "{error:#}");
    }

    #[test]
    fn functions_of_an_elf_file_are_found() {
        // Our own executable is one, with symbols.
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let functions = Elf::new(&bytes).unwrap().functions().unwrap();
        assert!(functions.iter().any(|function| function == ".text main"), "{} functions", functions.len());
    }
}
