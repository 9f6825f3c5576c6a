//! System calls that no library of ours wraps: the only `unsafe` of the tests.
#![allow(unsafe_code, reason = "this is the file for it")]

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use socket2::{Domain, SockAddr, Socket, Type};

/// Disconnects a socket: connect() to AF_UNSPEC.
///
/// # Errors
/// What the kernel says.
pub fn disconnect(socket: &impl AsFd) -> io::Result<()> {
    let address = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address lives during the call and is as long as said.
    let result = unsafe { libc::connect(socket.as_fd().as_raw_fd(), &raw const address, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Offsets in a ring, as io_uring_setup(2) tells them; `struct io_sqring_offsets` and `io_cqring_offsets`.
#[repr(C)]
#[derive(Default)]
struct Offsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    /// Of the submission ring: flags, dropped, array; of the completion ring: overflow, cqes, flags.
    rest: [u32; 3],
    reserved: u32,
    user_address: u64,
}

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    sq: Offsets,
    cq: Offsets,
}

/// `struct io_uring_sqe`, as far as a connect uses it.
#[repr(C)]
struct Submission {
    opcode: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    offset: u64,
    address: u64,
    length: u32,
    op_flags: u32,
    user_data: u64,
    unused: [u64; 3],
}

/// `struct io_uring_cqe`.
#[repr(C)]
struct Completion {
    user_data: u64,
    result: i32,
    flags: u32,
}

const IORING_OP_CONNECT: u8 = 16;
const IORING_OFF_SQ_RING: i64 = 0;
const IORING_OFF_CQ_RING: i64 = 0x0800_0000;
const IORING_OFF_SQES: i64 = 0x1000_0000;
const IORING_ENTER_GETEVENTS: u32 = 1;

/// Connects a socket by way of io_uring and waits for the end of it.
///
/// # Errors
/// `Unsupported` or `PermissionDenied` where there is no io_uring, otherwise what the connect ended with.
pub fn connect_by_io_uring(socket: &impl AsFd, to: SocketAddr) -> io::Result<()> {
    let mut params = Params::default();
    // SAFETY: io_uring_setup(2) writes `params`, whose layout is the kernel's.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut params) };
    if ring < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just given us, and nobody else.
    let ring = unsafe { OwnedFd::from_raw_fd(ring as i32) };
    let address = SockAddr::from(to);
    // The page that holds the one submission, the two rings with their indices.
    let sqes = Mapping::new(&ring, IORING_OFF_SQES, size_of::<Submission>())?;
    let sq = Mapping::new(&ring, IORING_OFF_SQ_RING, params.sq.rest[2] as usize + 4)?;
    let completions = size_of::<Completion>() * params.cq_entries as usize;
    let cq = Mapping::new(&ring, IORING_OFF_CQ_RING, params.cq.rest[1] as usize + completions)?;
    let submission = Submission {
        opcode: IORING_OP_CONNECT,
        flags: 0,
        priority: 0,
        fd: socket.as_fd().as_raw_fd(),
        offset: u64::from(address.len()),
        address: address.as_ptr() as u64,
        length: 0,
        op_flags: 0,
        user_data: 7,
        unused: [0; 3],
    };
    // SAFETY: the mappings are as long as the kernel said these places are; the ring is ours alone; the address lives
    // until the completion has come.
    unsafe {
        ptr::write(sqes.at(0), submission);
        ptr::write(sq.at::<u32>(params.sq.rest[2]), 0);
        (*sq.at::<AtomicU32>(params.sq.tail)).store(1, Ordering::Release);
        let entered = libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            1,
            1,
            IORING_ENTER_GETEVENTS,
            ptr::null::<libc::sigset_t>(),
            0,
        );
        if entered < 0 {
            return Err(io::Error::last_os_error());
        }
        if (*cq.at::<AtomicU32>(params.cq.tail)).load(Ordering::Acquire) != 1 {
            return Err(io::Error::other("io_uring_enter returned without a completion"));
        }
        match (*cq.at::<Completion>(params.cq.rest[1])).result {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }
}

/// A part of the ring in memory.
struct Mapping {
    start: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    fn new(ring: &OwnedFd, offset: i64, length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping, anywhere.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, ring.as_raw_fd(), offset) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { start, length }) }
    }

    /// The place `offset` bytes in.
    fn at<T>(&self, offset: u32) -> *mut T {
        assert!(offset as usize + size_of::<T>() <= self.length);
        self.start.wrapping_byte_add(offset as usize).cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what mmap gave us; nothing points into it any more.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// A socket that is given a copy of every packet of an interface of this thread's namespace, IP header first.
///
/// # Errors
/// There is no such interface; what the kernel says.
pub fn packet_socket(interface: &str) -> io::Result<Socket> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // With no protocol yet: nothing comes in before the socket is bound to its interface.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
    // SAFETY: all zeros is a valid address of any family.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index.cast_signed();
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address lives during the call and is as long as said.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Lets the kernel keep this many bytes for the socket, whatever `net.core.rmem_max` is.
///
/// # Errors
/// Not root.
pub fn set_large_buffer(socket: &Socket, bytes: i32) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads the four bytes of `bytes`.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const bytes).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Packets that a packet socket had no room for since this was last asked.
///
/// # Errors
/// It is no packet socket.
pub fn lost_packets(socket: &Socket) -> io::Result<u32> {
    // struct tpacket_stats: packets, drops.
    let mut stats = [0_u32; 2];
    let mut length = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `stats`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            stats.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(stats[1]) } else { Err(io::Error::last_os_error()) }
}

/// Names of capabilities as Kubernetes writes them, each at its number (include/uapi/linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What this thread starts from now on has no other capabilities than these, and gets none (`no_new_privs`), as in a
/// container. For a thread that ends soon.
///
/// # Panics
/// When one is not known, or the kernel does not allow it.
pub fn keep_capabilities(kept: &[&str]) {
    for name in kept {
        assert!(CAPABILITIES.contains(name), "{name} is no capability");
    }
    for (number, name) in CAPABILITIES.iter().enumerate() {
        if !kept.contains(name) {
            // SAFETY: prctl(2) of these operations takes numbers, and touches no memory.
            let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
            assert_eq!(result, 0, "{name}: {}", io::Error::last_os_error());
        }
    }
    // SAFETY: as above.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// A thread of another process that stands still until this is dropped, by the thread that made this. All others of its process
/// go on.
#[derive(Debug)]
pub struct StoppedThread {
    thread: libc::pid_t,
}

impl StoppedThread {
    /// Stops it (ptrace(2), `PTRACE_SEIZE` and `PTRACE_INTERRUPT`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(thread: u32) -> io::Result<Self> {
        let thread = thread.cast_signed();
        trace(libc::PTRACE_SEIZE, thread)?;
        let stopped = Self { thread };
        trace(libc::PTRACE_INTERRUPT, thread)?;
        // SAFETY: the status may be null. The thread is none of ours: __WALL.
        let waited = unsafe { libc::waitpid(thread, ptr::null_mut(), libc::__WALL) };
        if waited == thread { Ok(stopped) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        let _ = trace(libc::PTRACE_DETACH, self.thread);
    }
}

fn trace(request: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    let none = ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests take neither an address nor data.
    let result = unsafe { libc::ptrace(request, thread, none, none) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
