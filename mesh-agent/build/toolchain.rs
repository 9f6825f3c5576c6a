//! Where the eBPF toolchain is: a compiler with a `core` for `bpfel-unknown-none`, and bpf-linker. Shared by the build
//! script and by xtask; `xtask/run` installs what this looks for.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// The triple of the programs: every architecture the agent runs on is little-endian.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// How to get what [`Toolchain::find`] did not find.
pub(crate) const HOW_TO: &str = "run ./xtask/run ebpf (Debian), or install rustup's nightly with rust-src and \
                                 `cargo install bpf-linker`; then build with MESH_EBPF=build";

/// The distribution's compiler, which may bring a compiled `core` for [`TARGET`].
const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";
const DISTRIBUTION_TARGETS: &str = "/usr/lib/rustlib";

enum Compiler {
    /// rustup's nightly, which compiles `core` from its sources.
    Nightly,
    /// The distribution's stable compiler with its own compiled `core`.
    Distribution,
}

/// A complete eBPF toolchain.
pub(crate) struct Toolchain {
    compiler: Compiler,
    /// The folder with bpf-linker in it.
    linker: PathBuf,
}

impl Toolchain {
    /// Looks for a toolchain.
    ///
    /// # Errors
    /// What is lacking, in words.
    pub(crate) fn find() -> Result<Self, String> {
        let compiler = if nightly_has_core_sources() {
            Compiler::Nightly
        } else if Path::new(DISTRIBUTION_RUSTC).exists() && Path::new(DISTRIBUTION_TARGETS).join(TARGET).exists() {
            Compiler::Distribution
        } else {
            return Err(format!("no compiler with a core library for {TARGET}"));
        };
        let linker = linker_folder().ok_or("no bpf-linker")?;
        Ok(Self { compiler, linker })
    }

    /// `cargo build` for [`TARGET`], without package, profile or target folder. `architecture` is the one that the
    /// programs will run on, as `CARGO_CFG_TARGET_ARCH` has it.
    pub(crate) fn cargo_build(&self, architecture: &str) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = match self.compiler {
            Compiler::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]);
                command
            }
            Compiler::Distribution => {
                let mut command = Command::new(cargo);
                command.arg("build");
                command
            }
        };
        // The outer build's compiler, wrappers (clippy) and flags are for the host.
        for name in ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET"] {
            command.env_remove(name);
        }
        // Set in a build script and not in xtask; aya's own build scripts would run again at every change.
        command.env_remove("HOST");
        if matches!(self.compiler, Compiler::Distribution) {
            // A stable compiler; the one crate named here may use unstable features all the same.
            command.env("RUSTC", DISTRIBUTION_RUSTC).env("RUSTC_BOOTSTRAP", "aya_ebpf");
        }
        let flags = [&format!("--cfg=bpf_target_arch=\"{architecture}\""), "-Cdebuginfo=2", "-Clink-arg=--btf"];
        command
            .args(["--target", TARGET])
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            // bpf-linker optimises the whole program itself and wants plain bitcode.
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("PATH", self.path());
        command
    }

    /// `PATH` with the linker's folder in front; bpf-linker looks for LLVM in `../lib` beside its entries.
    fn path(&self) -> OsString {
        let rest = env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.linker.clone()).chain(env::split_paths(&rest));
        env::join_paths(folders).unwrap_or(rest)
    }
}

fn nightly_has_core_sources() -> bool {
    let output = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
    let Ok(output) = output else { return false };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    output.status.success() && Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}

/// `$BPF_LINKER_ROOT/bin`, else the first of `PATH`, else where `xtask/run` puts it.
fn linker_folder() -> Option<PathBuf> {
    let named = env::var_os("BPF_LINKER_ROOT").map(|root| PathBuf::from(root).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let cached = cache().map(|cache| cache.join("bpf/bin"));
    named.into_iter().chain(env::split_paths(&path)).chain(cached).find(|folder| folder.join("bpf-linker").is_file())
}

/// The project's per-user cache, which outlives `git clean`.
pub(crate) fn cache() -> Option<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    Some(base?.join("mesh-agent"))
}
