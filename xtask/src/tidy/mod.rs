//! `cargo xtask tidy`: the rules that no compiler checks. Also a unit test, so `cargo test` holds them too.

mod docs;
mod rules;
mod source;

use std::{fmt, fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::command::root;
use source::Source;

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    /// Path from the root, with a line if one is to blame.
    place: String,
    what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Packages of the workspace.
const MEMBERS: [&str; 6] = ["fuzz", "mesh-agent", "mesh-common", "mesh-ebpf", "tests", "xtask"];

/// Checks the repository and prints what is wrong.
pub(crate) fn run() -> Result<()> {
    let problems = check(&root())?;
    for problem in &problems {
        println!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} rules are broken; they are listed in xtask/src/tidy/rules.rs", problems.len());
    }
    println!("tidy");
    Ok(())
}

fn check(root: &Path) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for member in MEMBERS {
        let manifest = root.join(member).join("Cargo.toml");
        let text = fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
        if !inherits_lints(&text) {
            let place = format!("{member}/Cargo.toml");
            problems.push(Problem { place, what: "does not inherit the workspace's lints".to_owned() });
        }
        for path in rust_files(&root.join(member))? {
            let text = fs::read_to_string(root.join(&path))?;
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            rules::check(&Source::new(name, &text), &mut problems);
        }
    }
    docs::check(root, &mut problems)?;
    Ok(problems)
}

fn inherits_lints(manifest: &str) -> bool {
    let section = manifest.split("\n[").find_map(|section| section.strip_prefix("lints]"));
    section.is_some_and(|section| section.lines().any(|line| line.trim() == "workspace = true"))
}

/// All `.rs` files below a folder, build output left out.
fn rust_files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_repository_is_tidy() {
        let problems = check(&root()).unwrap();
        assert!(problems.is_empty(), "{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn lints_must_be_inherited_in_their_own_section() {
        assert!(inherits_lints("[package]\nname = \"x\"\n\n[lints]\nworkspace = true\n"));
        assert!(!inherits_lints("[package]\nname = \"x\"\n"));
        assert!(!inherits_lints("[lints]\n[dependencies.x]\nworkspace = true\n"));
    }
}
