//! Network namespaces of pods.

use std::{
    cell::Cell,
    fs::File,
    io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns},
};

use crate::sys;

/// Identifies a namespace for as long as somebody holds it: device and inode of its nsfs file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

/// An open network namespace. While this lives, so does the namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    id: NetnsId,
    /// Whether the path is a name that it is known by, as opposed to the place where it happened to be found.
    is_named: bool,
}

thread_local! {
    /// The namespace that this thread has entered, if any. A worker makes sockets for many pods and moves only when
    /// the next one is another pod's.
    static ENTERED: Cell<Option<NetnsId>> = const { Cell::new(None) };
}

impl NetnsId {
    /// The inode of its nsfs file, of which there is one.
    pub fn inode(self) -> u64 {
        self.inode
    }
}

impl Netns {
    /// Opens the namespace at a path such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let id = id_of(&file.metadata()?);
        Ok(Self { file, path: path.to_owned(), id, is_named: true })
    }

    /// Opens the namespace that a process is in. It outlives the process.
    ///
    /// # Errors
    /// `NotFound` or ESRCH if there is no such process, `PermissionDenied` if this one may not look at it (ptrace(2),
    /// "Ptrace access mode checking").
    pub fn of_process(pid: &str) -> io::Result<Self> {
        let mut netns = Self::open(&Path::new("/proc").join(pid).join("ns/net"))?;
        netns.is_named = false;
        Ok(netns)
    }

    /// Which one it is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Its file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the name still leads to this very namespace. One that was found at a process has none to lose.
    pub fn is_still_there(&self) -> bool {
        !self.is_named || std::fs::metadata(&self.path).is_ok_and(|metadata| id_of(&metadata) == self.id)
    }

    /// Moves this thread into the namespace, for good. Only for threads that make sockets and nothing else that cares.
    pub fn enter(&self) -> io::Result<()> {
        if ENTERED.get() == Some(self.id) {
            return Ok(());
        }
        // Where it was born, a thread can stay without privileges: the kernel would ask for CAP_SYS_ADMIN even then.
        if ENTERED.get().is_some() || own_id().is_none_or(|own| own != self.id) {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        }
        ENTERED.set(Some(self.id));
        Ok(())
    }

    /// Runs `work` on a thread of its own in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                self.enter()?;
                work()
            })?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread in a network namespace panicked")))
        })
    }
}

/// The namespace that this thread is in.
fn own_id() -> Option<NetnsId> {
    std::fs::metadata("/proc/thread-self/ns/net").ok().map(|metadata| id_of(&metadata))
}

fn id_of(metadata: &std::fs::Metadata) -> NetnsId {
    NetnsId { device: metadata.dev(), inode: metadata.ino() }
}

/// Cookie of the namespace that this thread is in.
pub fn cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    sys::netns_cookie(&socket)
}

/// Unicast addresses of the namespace that this thread is in, without loopback; link-local ones only of IPv4.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for interface in getifaddrs()? {
        let Some(address) = interface.address else { continue };
        let address = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !address.is_loopback() && !link_local && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_entered_without_privileges() {
        let own = Netns::open(Path::new("/proc/self/ns/net")).unwrap();
        assert_eq!(own.run(|| Ok(own_id())).unwrap(), Some(own.id));
        assert!(own.is_still_there());
    }
}
