//! The kernel side: load, attach, pin, maps. The only user of aya.

mod agents;
mod attach;
mod attempts;
mod cleanup;
mod counters;
mod error;
mod foreign;
mod left;
mod maps;
mod object;
mod pending;
mod pins;
mod program_log;
mod workload;

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupSockAddr, SkLookup, SockOps},
};
use mesh_common::Address;

pub use attempts::{Attempt, Attempts};
pub use cleanup::{cleanup, unmount};
pub use error::Error;
pub use foreign::{Foreign, foreign};
pub use left::Armed;
pub use maps::{CachedBackend, CachedWay, OriginalFlow, WorkerMaps, is_direct};
pub use object::object_built;
pub use pins::Pins;
pub use workload::{Listeners, Slot, WorkloadConfig};

use self::{maps::ControlMaps, pins::PinLock};
use crate::{model::HookStatus, sys};

/// Programs on the cgroup root, in the order in which they are attached: who only answers first, who captures last.
const SOCK_ADDR: [&str; 6] = ["getpeername4", "getpeername6", "getsockname4", "getsockname6", "connect4", "connect6"];
const SOCK_OPS: &str = "established";
const SK_LOOKUP: &str = "inbound";

/// Where things are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Mount point of bpffs.
    pub bpffs: PathBuf,
    /// Root of cgroup v2.
    pub cgroup: PathBuf,
    /// Another object than the embedded one.
    pub object: Option<PathBuf>,
}

/// The loaded programs and their maps. Dropping it changes nothing in the kernel: links and maps are pinned.
pub struct Datapath {
    ebpf: Ebpf,
    maps: ControlMaps,
    pins: Pins,
    /// Keeps other agents off the pins; `None` while they are another's.
    lock: Option<PinLock>,
    bpffs: PathBuf,
    cgroup: PathBuf,
    /// Keys of `ADDRESSES`, by whose they are: the map is not looked through for every pod.
    addresses: HashMap<Slot, Vec<Address>>,
    /// Keys of `PENDING`.
    pending: BTreeSet<u64>,
    /// Whether maps of an earlier agent were found and taken over.
    adopted: bool,
    /// Whether bpffs was not mounted before.
    mounted: bool,
}

impl Datapath {
    /// Loads the programs; maps that are pinned by an agent of the same ABI are adopted, with what is in them.
    pub fn load(options: &Options) -> Result<Self, Error> {
        Self::load_with(options, |bpffs| PinLock::acquire(bpffs).map(Some))
    }

    /// The same beside a running agent: the maps are that one's until [`Datapath::own`].
    pub fn load_beside(options: &Options) -> Result<Self, Error> {
        Self::load_with(options, |_| Ok(None))
    }

    fn load_with(options: &Options, lock: impl FnOnce(&Path) -> Result<Option<PinLock>, Error>) -> Result<Self, Error> {
        let mounted = Pins::mount(&options.bpffs)?;
        let lock = lock(&options.bpffs)?;
        let pins = Pins::prepare(&options.bpffs)?;
        let adopted = pins.map("WORKLOADS").exists();
        let mut loader = EbpfLoader::new();
        for name in mesh_common::maps::NAMES {
            loader.map_pin_path(name, pins.map(name));
        }
        let object = object::read(options.object.as_deref())?;
        let mut ebpf = loader.load(&object).map_err(|error| Error::load("the eBPF object", &error))?;
        for name in SOCK_ADDR {
            load_program::<CgroupSockAddr>(&mut ebpf, name, CgroupSockAddr::load)?;
        }
        load_program::<SockOps>(&mut ebpf, SOCK_OPS, SockOps::load)?;
        load_program::<SkLookup>(&mut ebpf, SK_LOOKUP, SkLookup::load)?;
        let maps = ControlMaps::open(&pins)?;
        let Options { bpffs, cgroup, .. } = options.clone();
        let (addresses, pending) = (HashMap::new(), BTreeSet::new());
        let mut datapath = Self { ebpf, maps, pins, lock, bpffs, cgroup, addresses, pending, adopted, mounted };
        datapath.read_keys();
        Ok(datapath)
    }

    /// Keeps other agents off the pins, and learns what is in the maps: from now on nobody else writes them.
    ///
    /// # Errors
    /// [`Error::Held`]: another agent has them.
    pub fn own(&mut self) -> Result<(), Error> {
        self.lock = Some(PinLock::acquire(&self.bpffs)?);
        self.read_keys();
        Ok(())
    }

    /// The opposite: another agent may have the pins.
    pub fn disown(&mut self) {
        self.lock = None;
    }

    fn read_keys(&mut self) {
        self.addresses.clear();
        for (address, inbound) in self.maps.addresses.iter().filter_map(Result::ok) {
            self.addresses.entry(Slot(inbound.slot)).or_default().push(address);
        }
        self.pending = self.maps.pending.keys().filter_map(Result::ok).collect();
    }

    /// Whether an earlier agent's state was adopted.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Whether bpffs was mounted by this agent: then it is for `cleanup` to unmount.
    pub fn mounted_bpffs(&self) -> bool {
        self.mounted
    }

    /// Attaches the cgroup programs, or replaces the programs of the links that are there. Nothing is captured before
    /// a workload is armed.
    pub fn attach(&mut self) -> Result<(), Error> {
        let cgroup = File::open(&self.cgroup).map_err(|source| Error::Cgroup { path: self.cgroup.clone(), source })?;
        attach::sock_ops(&mut self.ebpf, SOCK_OPS, &cgroup, &self.pins.link(SOCK_OPS))?;
        for name in SOCK_ADDR {
            attach::sock_addr(&mut self.ebpf, name, &cgroup, &self.pins.link(name))?;
        }
        Ok(())
    }

    /// Attaches `sk_lookup` to a namespace, or replaces the program of the link that is there.
    fn attach_netns(&mut self, netns: impl AsFd, cookie: u64) -> Result<(), Error> {
        attach::sk_lookup(&mut self.ebpf, SK_LOOKUP, netns, &self.pins.netns_link(cookie))
    }

    /// The cgroup hooks, and whether the kernel says that they are attached.
    pub fn hooks(&self) -> Vec<HookStatus> {
        let at = self.cgroup.display().to_string();
        std::iter::once(SOCK_OPS)
            .chain(SOCK_ADDR)
            .map(|program| HookStatus {
                program: program.to_owned(),
                at: at.clone(),
                armed: attach::is_attached(&self.ebpf, program, &self.pins.link(program)),
            })
            .collect()
    }

    /// Whether `sk_lookup` is attached to the namespace with this cookie.
    pub fn is_netns_attached(&self, cookie: u64) -> bool {
        attach::is_attached(&self.ebpf, SK_LOOKUP, &self.pins.netns_link(cookie))
    }

    /// Where the pins are.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Handles of the maps for one worker.
    pub fn worker_maps(&self) -> Result<WorkerMaps, Error> {
        WorkerMaps::open(&self.pins)
    }

    /// The storage of sockets, in which the connect hook leaves what it did with them ([`is_direct`]).
    pub fn flows(&self) -> Result<OwnedFd, Error> {
        let path = self.pins.map("FLOWS");
        sys::bpf_obj_get(&path).map_err(|source| Error::Pin { path, source })
    }

    /// Connections that wait for the agent. Needs a tokio runtime.
    pub fn attempts(&self) -> Result<Attempts, Error> {
        Attempts::open(&self.pins)
    }

    /// What the programs log, for a task that forwards it to tracing.
    pub fn program_log(&mut self) -> Option<program_log::ProgramLog> {
        program_log::ProgramLog::open(&mut self.ebpf)
    }
}

fn load_program<'a, P: 'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    load: impl FnOnce(&mut P) -> Result<(), aya::programs::ProgramError>,
) -> Result<(), Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program: &mut P = ebpf.program_mut(name).ok_or(Error::NoProgram { name })?.try_into()?;
    load(program).map_err(|error| Error::load(name, &error))
}
