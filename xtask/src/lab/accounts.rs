//! CPU time by role, from cgroups: what interrupts and the network stack do on behalf of a process is charged with it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// Whose CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The load tool.
    Client,
    /// The applications.
    Server,
    /// What is between them.
    Proxy,
    /// The API server, which would be on another machine.
    Cluster,
    /// Who changes what is in it.
    Changer,
}

impl Role {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Client, Self::Server, Self::Proxy, Self::Cluster, Self::Changer];
    /// Those that a request meets on its way.
    pub(crate) const PATH: [Self; 3] = [Self::Client, Self::Server, Self::Proxy];

    fn folder(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Proxy => "proxy",
            Self::Cluster => "cluster",
            Self::Changer => "changer",
        }
    }
}

/// CPU time spent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// In all.
    pub(crate) total: Duration,
    /// In user mode, to the kernel's clock tick where the kernel counts so.
    pub(crate) user: Duration,
    /// In the kernel, likewise.
    pub(crate) system: Duration,
}

/// A cgroup per role, in the hierarchy that this machine has. Removed on drop, when the processes are gone.
pub(crate) struct Accounts {
    version: Version,
    base: PathBuf,
    /// Gives all measured processes a large share together, so that other work on the machine disturbs them little.
    shares: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    /// Controller `cpuacct`.
    V1,
    V2,
}

impl Accounts {
    /// Makes the groups `name/{client,server,...}`.
    ///
    /// # Errors
    /// There is neither a cpuacct hierarchy nor cgroup v2, or it can't be written.
    pub(crate) fn create(name: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
        let v1 = |controller| mount_point(&mounts, "cgroup", Some(controller));
        let (version, base, shares) = match (v1("cpuacct"), mount_point(&mounts, "cgroup2", None)) {
            (Some(cpuacct), _) => (Version::V1, cpuacct.join(name), v1("cpu").map(|cpu| cpu.join(name))),
            (None, Some(unified)) => (Version::V2, unified.join(name), None),
            (None, None) => bail!("CPU time cannot be told apart: mount cgroup2 or the cpuacct hierarchy"),
        };
        for role in Role::ALL {
            let folder = base.join(role.folder());
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        let shares = shares.filter(|folder| fs::create_dir_all(folder).is_ok());
        // Measurements go on without these, only more disturbed: the noise is measured too.
        let _optional = match (&shares, version) {
            (Some(folder), _) => fs::write(folder.join("cpu.shares"), "51200"),
            (None, _) => fs::write(base.join("cpu.weight"), "10000"),
        };
        Ok(Self { version, base, shares })
    }

    /// Files that a process writes its id to, to be charged to `role`.
    pub(crate) fn doors(&self, role: Role) -> Vec<PathBuf> {
        let mut doors = vec![self.base.join(role.folder()).join("cgroup.procs")];
        doors.extend(self.shares.as_ref().map(|folder| folder.join("cgroup.procs")));
        doors
    }

    /// Charges a process that runs already, and its threads, to `role`.
    ///
    /// # Errors
    /// There is no such process.
    pub(crate) fn adopt(&self, role: Role, pid: u32) -> Result<()> {
        for door in self.doors(role) {
            fs::write(&door, pid.to_string()).with_context(|| format!("process {pid} into {}", door.display()))?;
        }
        Ok(())
    }

    /// Whether any process is charged to `role` now.
    pub(crate) fn is_used(&self, role: Role) -> bool {
        let procs = fs::read_to_string(self.base.join(role.folder()).join("cgroup.procs"));
        procs.is_ok_and(|procs| !procs.is_empty())
    }

    /// CPU time spent so far.
    ///
    /// # Errors
    /// The kernel's files don't look as expected.
    pub(crate) fn spent(&self, role: Role) -> Result<Spent> {
        let folder = self.base.join(role.folder());
        let read =
            |file: &str| fs::read_to_string(folder.join(file)).with_context(|| folder.join(file).display().to_string());
        Ok(match self.version {
            Version::V1 => {
                let total = Duration::from_nanos(read("cpuacct.usage")?.trim().parse()?);
                let stat = read("cpuacct.stat")?;
                let ticks = |key| field(&stat, key).map(|ticks| Duration::from_millis(ticks * 10));
                Spent { total, user: ticks("user")?, system: ticks("system")? }
            }
            Version::V2 => {
                let stat = read("cpu.stat")?;
                let micros = |key| field(&stat, key).map(Duration::from_micros);
                Spent { total: micros("usage_usec")?, user: micros("user_usec")?, system: micros("system_usec")? }
            }
        })
    }
}

impl Drop for Accounts {
    fn drop(&mut self) {
        let groups = Role::ALL.iter().map(|role| self.base.join(role.folder()));
        for folder in groups.chain([self.base.clone()]).chain(self.shares.clone()) {
            remove_group(&folder);
        }
    }
}

/// A group is busy until its last process is reaped.
fn remove_group(folder: &Path) {
    for _ in 0..100 {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                super::pause(Duration::from_millis(10));
            }
            _ => return,
        }
    }
    eprintln!("left behind: {}", folder.display());
}

/// Where the first file system of that kind, with that option, is mounted.
pub(super) fn mount_point(mounts: &str, kind: &str, option: Option<&str>) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (point, found, options) = (words.next()?, words.next()?, words.next()?);
        let fits = option.is_none_or(|option| options.split(',').any(|word| word == option));
        (found == kind && fits).then(|| PathBuf::from(point))
    })
}

fn field(stat: &str, key: &str) -> Result<u64> {
    let found = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    found.with_context(|| format!("no {key} in CPU statistics"))?.trim().parse().context(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
proc /proc proc rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
";

    #[test]
    fn hierarchies_are_told_apart() {
        let at = |kind, option| mount_point(HYBRID, kind, option);
        assert_eq!(at("cgroup", Some("cpuacct")), Some("/sys/fs/cgroup/cpu,cpuacct".into()));
        assert_eq!(at("cgroup", Some("cpu")), Some("/sys/fs/cgroup/cpu,cpuacct".into()));
        assert_eq!(at("cgroup", Some("memory")), None);
        assert_eq!(at("cgroup2", None), Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let stat = "usage_usec 7\nuser_usec 5\nsystem_usec 2\n";
        assert_eq!(field(stat, "user_usec").unwrap(), 5);
        assert!(field(stat, "user").is_err());
    }
}
