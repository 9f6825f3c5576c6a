//! Attaching programs by pinned links, and replacing the programs of links that an earlier agent left.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSockAddr, ProgramFd, SkLookup, SockOps,
        links::{FdLink, PinnedLink},
    },
};

use super::{Error, pins::unpin};
use crate::sys;

/// A sock_addr program on a cgroup.
pub(super) fn sock_addr(ebpf: &mut Ebpf, name: &'static str, cgroup: &File, pin: &Path) -> Result<(), Error> {
    let program: &mut CgroupSockAddr = ebpf.program_mut(name).ok_or(Error::NoProgram { name })?.try_into()?;
    put(name, pin, program.fd()?.try_clone(), || {
        let id = program.attach(cgroup, CgroupAttachMode::default())?;
        Ok(FdLink::try_from(program.take_link(id)?)?)
    })
}

/// A sock_ops program on a cgroup.
pub(super) fn sock_ops(ebpf: &mut Ebpf, name: &'static str, cgroup: &File, pin: &Path) -> Result<(), Error> {
    let program: &mut SockOps = ebpf.program_mut(name).ok_or(Error::NoProgram { name })?.try_into()?;
    put(name, pin, program.fd()?.try_clone(), || {
        let id = program.attach(cgroup, CgroupAttachMode::default())?;
        Ok(FdLink::try_from(program.take_link(id)?)?)
    })
}

/// The sk_lookup program on a network namespace.
pub(super) fn sk_lookup(ebpf: &mut Ebpf, name: &'static str, netns: impl AsFd, pin: &Path) -> Result<(), Error> {
    let program: &mut SkLookup = ebpf.program_mut(name).ok_or(Error::NoProgram { name })?.try_into()?;
    put(name, pin, program.fd()?.try_clone(), || {
        let id = program.attach(netns)?;
        Ok(program.take_link(id)?.into())
    })
}

/// Takes over the link at `pin`, or makes one and pins it there.
fn put(
    program: &'static str,
    pin: &Path,
    own: io::Result<ProgramFd>,
    attach: impl FnOnce() -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>>,
) -> Result<(), Error> {
    let fail = |source| Error::Attach { program, source };
    if adopt(pin, own.map_err(|source| fail(source.into()))?.as_fd()) {
        return Ok(());
    }
    unpin(pin)?;
    attach().map_err(fail)?.pin(pin).map(drop).map_err(|source| fail(source.into()))
}

/// Puts our program into the link at `pin`, atomically. False if there is none, or a dead one.
fn adopt(pin: &Path, program: BorrowedFd<'_>) -> bool {
    let Ok(link) = sys::bpf_obj_get(pin) else { return false };
    match sys::bpf_link_update(link.as_fd(), program) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(pin = %pin.display(), %error, "a pinned link is dead; attaching anew");
            false
        }
    }
}

/// Whether the link at `pin` lives and runs this very program.
pub(super) fn is_attached(ebpf: &Ebpf, name: &str, pin: &Path) -> bool {
    let own = ebpf.program(name).and_then(|program| program.info().ok()).map(|info| info.id());
    own.is_some() && own == program_of(pin)
}

/// Id of the program in the link at `pin`.
pub(super) fn program_of(pin: &Path) -> Option<u32> {
    let link = FdLink::from(PinnedLink::from_pin(pin).ok()?);
    Some(link.info().ok()?.program_id())
}
