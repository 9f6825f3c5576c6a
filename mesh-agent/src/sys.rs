//! System calls that no library wraps: the only `unsafe` of this crate.
#![allow(unsafe_code, reason = "each block wraps one system call and says why it is sound")]

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_UPDATE: libc::c_long = 29;

/// `union bpf_attr` of BPF_OBJ_GET (include/uapi/linux/bpf.h).
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr` of BPF_LINK_UPDATE.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// `union bpf_attr` of BPF_PROG_QUERY, as far as it is needed.
#[repr(C)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    reserved: u32,
}

/// `union bpf_attr` of BPF_PROG_LOAD, as far as it is needed.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

/// `union bpf_attr` of BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: bpf(2) reads `size` bytes of the attribute, which lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens a pinned object.
pub fn bpf_obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = bpf(BPF_OBJ_GET, &ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 })?;
    // SAFETY: a descriptor that the kernel has just given us, and nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Our process id as programs see it: that of the initial pid namespace, which is another one where the node is a
/// container itself. Nobody but the kernel knows it there, so a program is run that returns it.
pub fn initial_tgid() -> io::Result<u32> {
    const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
    // r0 = bpf_get_current_pid_tgid(); r0 >>= 32; return r0. In bytes, since the order of bits is the machine's.
    let program: [[u8; 8]; 3] = if cfg!(target_endian = "little") {
        [[0x85, 0, 0, 0, 14, 0, 0, 0], [0x77, 0, 0, 0, 32, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]]
    } else {
        [[0x85, 0, 0, 0, 0, 0, 0, 14], [0x77, 0, 0, 0, 0, 0, 0, 32], [0x95, 0, 0, 0, 0, 0, 0, 0]]
    };
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_RAW_TRACEPOINT,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
    };
    let fd = bpf(BPF_PROG_LOAD, &load)?;
    // SAFETY: a descriptor that the kernel has just given us, and nobody else.
    let program = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut run = TestRun { prog_fd: program.as_raw_fd() as u32, ..TestRun::default() };
    let (attr, size) = (&raw mut run, size_of::<TestRun>());
    // SAFETY: bpf(2) reads `size` bytes of the attribute and writes `retval` into it, and it lives through the call.
    if unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, attr, size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(run.retval)
}

/// Replaces the program of a link, at once for every later event. aya has no such call for cgroup and netns links.
pub fn bpf_link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

/// Ids of the programs of an attach type (`enum bpf_attach_type`) on a cgroup, in the order in which they run.
pub fn bpf_prog_query(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    // More than 64 are not allowed on one cgroup (BPF_CGROUP_MAX_PROGS).
    let mut ids = vec![0_u32; 64];
    let attr = ProgQuery {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        reserved: 0,
    };
    bpf(BPF_PROG_QUERY, &attr)?;
    // The kernel has written the count back, where the compiler does not expect it: what was not written is 0.
    ids.retain(|id| *id != 0);
    Ok(ids)
}

/// Cookie of the network namespace that the socket lives in (SO_NETNS_COOKIE, Linux 5.14).
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// What has a descriptor but does not say its number, such as nix's inotify, for [`async_fd`].
pub struct Readable<T>(pub T);

impl<T: AsFd> AsFd for Readable<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<T: AsFd> AsRawFd for Readable<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Waits for a descriptor to become readable. Must be called within a tokio runtime.
pub fn async_fd<T: AsFd + AsRawFd>(inner: T) -> io::Result<tokio::io::unix::AsyncFd<T>> {
    // SAFETY: `inner` owns or borrows an open descriptor for as long as it lives (AsFd), AsyncFd owns `inner`, and
    // dropping the descriptor's owner is what closes it.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(inner, tokio::io::Interest::READABLE) }
        .map_err(io::Error::from)
}

/// Gives the kernel back what was allocated and freed again. It waits for no other thread's allocations for long, but goes
/// through the whole heap: nothing for a worker.
pub fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
