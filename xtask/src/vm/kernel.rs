//! Debian's kernels: found, fetched and unpacked by the distribution's own tools, into the cache.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::command::{command, output, run};

/// A series of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 12's; the oldest we support
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's, packaged for 12 too
    #[value(name = "6.12")]
    V6_12,
}

/// An unpacked kernel.
pub(crate) struct Unpacked {
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`, with `modules.dep` in it.
    pub(crate) modules: PathBuf,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.series())
    }
}

impl Kernel {
    /// Every series.
    pub(crate) const ALL: &'static [Self] = &[Self::V6_1, Self::V6_12];

    const fn series(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// Unpacks the newest kernel of the series that Debian's lists offer, unless the cache has it.
    ///
    /// # Errors
    /// The lists offer none, or it cannot be fetched or unpacked.
    pub(crate) fn unpack(self, cache: &Path) -> Result<Unpacked> {
        fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
        if self.newest()?.is_none() {
            run(&mut command("apt-get", &["update", "-qq"]))?;
        }
        let package = self.newest()?.with_context(|| format!("Debian's package lists have no cloud kernel {self}"))?;
        let folder = cache.join(&package);
        if !folder.exists() {
            println!("fetching {package}");
            fetch(&package, cache, &folder)?;
        }
        let release = package.trim_start_matches("linux-image-");
        let unpacked = Unpacked {
            image: folder.join("boot").join(format!("vmlinuz-{release}")),
            modules: folder.join("lib/modules").join(release),
        };
        if !unpacked.image.exists() || !unpacked.modules.join("modules.dep").exists() {
            bail!("{} is not a whole kernel: remove it and try again", folder.display());
        }
        println!("kernel {package}");
        Ok(unpacked)
    }

    fn newest(self) -> Result<Option<String>> {
        let pattern = format!("^linux-image-{}\\.[0-9].*-cloud-amd64$", self.series().replace('.', "\\."));
        let found = output(&mut command("apt-cache", &["search", "--names-only", &pattern]))?;
        let names = found.lines().filter_map(|line| line.split(' ').next());
        Ok(names.max_by_key(|name| numbers(name)).map(str::to_owned))
    }
}

fn fetch(package: &str, cache: &Path, folder: &Path) -> Result<()> {
    // Unpacked beside its place and moved there whole, so that an interrupted run leaves nothing that looks finished.
    let partial = cache.join(format!("{package}.partial-{}", std::process::id()));
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    // As root, apt would fetch as its own user, who may not write here.
    let arguments = ["download", "-q", "-o", "APT::Sandbox::User=root", package];
    run(command("apt-get", &arguments).current_dir(&partial))?;
    let archive =
        fs::read_dir(&partial)?.flatten().map(|entry| entry.path()).next().context("apt-get fetched nothing")?;
    run(command("dpkg", &["-x"]).arg(&archive).arg(&partial))?;
    fs::remove_file(&archive)?;
    let release = package.trim_start_matches("linux-image-");
    // Not in the PATH of ordinary users.
    run(command("/sbin/depmod", &["-b"]).arg(&partial).arg(release))?;
    fs::rename(&partial, folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// The numbers in a name, to order versions by.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_releases_of_a_series_are_newer() {
        let names =
            ["linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-47-cloud-amd64"];
        assert_eq!(names.into_iter().max_by_key(|name| numbers(name)), Some("linux-image-6.1.0-56-cloud-amd64"));
    }
}
