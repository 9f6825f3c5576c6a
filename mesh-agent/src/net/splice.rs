//! Moving bytes from socket to socket through a pipe, without copying them to user space (splice(2)).

use std::{cell::RefCell, io, os::fd::OwnedFd};

use nix::{
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::pipe2,
};
use tokio::{io::Interest, net::TcpStream};

/// Bytes that a pipe is asked to hold. Unprivileged limit is 1 MiB (`fs.pipe-max-size`).
const PIPE_BYTES: i32 = 512 * 1024;
/// Idle pipes that a worker keeps.
const POOLED: usize = 64;

/// A pipe and what is in it.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
    capacity: usize,
}

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

impl Pipe {
    /// One of the worker's idle pipes, or a new one.
    pub fn take() -> io::Result<Self> {
        if let Some(pipe) = POOL.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // A smaller pipe, where the limit is lower, works as well.
        let capacity = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES))
            .or_else(|_| fcntl(&write, FcntlArg::F_GETPIPE_SZ))
            .map_or(65_536, |bytes| bytes as usize);
        Ok(Self { read, write, held: 0, capacity })
    }

    /// Gives an empty pipe back; one with bytes in it is closed.
    pub fn give_back(self) {
        if self.held == 0 {
            POOL.with_borrow_mut(|pool| {
                if pool.len() < POOLED {
                    pool.push(self);
                }
            });
        }
    }

    /// Bytes in the pipe.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes what the socket has received, at most what the pipe can hold. 0 is the end of the stream.
    pub fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let moved =
            from.try_io(Interest::READABLE, || Ok(splice(from, None, &self.write, None, self.capacity, flags())?))?;
        self.held += moved;
        Ok(moved)
    }

    /// Sends what is in the pipe, as far as the socket takes it.
    pub fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let moved = to.try_io(Interest::WRITABLE, || Ok(splice(&self.read, None, to, None, self.held, flags())?))?;
        self.held -= moved;
        Ok(moved)
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}
