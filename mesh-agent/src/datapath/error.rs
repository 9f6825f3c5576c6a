//! What can go wrong with the kernel.

use std::{io, path::PathBuf};

/// An error of the datapath.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The binary was built without the eBPF toolchain.
    #[error(
        "this binary has no eBPF programs in it: it was built without the eBPF toolchain; \
         run ./xtask/run dist, or pass --ebpf-object PATH"
    )]
    NotBuilt,
    /// The object file cannot be read.
    #[error("cannot read the eBPF object {path}: {source}")]
    Object {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The object lacks a program.
    #[error("the eBPF object has no program {name}: it is of another version")]
    NoProgram {
        /// Its name.
        name: &'static str,
    },
    /// bpffs is not there and cannot be mounted.
    #[error("no BPF file system at {path}: {source}; mount one (mount -t bpf bpf {path}) or name another with --bpffs")]
    Bpffs {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else has the pins.
    #[error(
        "another agent is running: the pins in {path} are in its hands; stop it first, or give this one its own --bpffs and --run-dir"
    )]
    Held {
        /// The folder of the pins.
        path: PathBuf,
    },
    /// The cgroup cannot be opened.
    #[error("cannot open the cgroup v2 root {path}: {source}; name it with --cgroup")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a program.
    #[error("the kernel refused to load {what}: {why}")]
    Load {
        /// The program, or the object.
        what: &'static str,
        /// Why, with the end of the verifier's log.
        why: String,
    },
    /// A program cannot be attached.
    #[error("cannot attach {program}: {source}")]
    Attach {
        /// The program.
        program: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A pin cannot be made, read or removed.
    #[error("pin {path}: {source}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A map operation failed.
    #[error("map: {0}")]
    Map(#[from] aya::maps::MapError),
    /// A program is not what it should be.
    #[error("program: {0}")]
    Program(#[from] aya::programs::ProgramError),
    /// No slot is left for a workload.
    #[error("all {0} workload slots are taken")]
    NoSlot(u32),
}

/// Lines of a verifier's log that are worth showing: it ends with what is wrong.
const LOG_LINES: usize = 12;

impl Error {
    pub(super) fn load(what: &'static str, error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        tracing::debug!(what, "{text}");
        let lines: Vec<&str> = text.lines().collect();
        let why = match (lines.first(), lines.len().checked_sub(LOG_LINES)) {
            (Some(first), Some(skipped)) if skipped > 0 => {
                let first: String = first.chars().take(200).collect();
                let last = lines.get(skipped..).unwrap_or_default().join("\n");
                format!("{first} ...\n{last}")
            }
            _ => text,
        };
        Self::Load { what, why }
    }
}
