//! Why a connection ended otherwise than its ends wanted.

use std::io;

use crate::model::{Reason, Side};

/// Whether it may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// No byte of it has reached a server: another endpoint may be tried.
    NewConnection,
    /// No.
    Never,
}

/// An error of a relayed connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody captured this connection.
    #[error("no original destination")]
    NoOriginalDestination,
    /// The destination leads nowhere.
    #[error("no route: {0}")]
    Route(Reason),
    /// Not allowed.
    #[error("refused: {0}")]
    Refused(Reason),
    /// The way to the other node: mutual TLS could not be had, or the agent there refuses.
    #[error("mutual TLS: {0}")]
    Tunnel(Reason),
    /// The upstream connection could not be made.
    #[error("connect: {0}")]
    Connect(#[source] io::Error),
    /// The client's end failed.
    #[error("downstream: {0}")]
    Downstream(#[source] io::Error),
    /// The server's end failed.
    #[error("upstream: {0}")]
    Upstream(#[source] io::Error),
}

impl Error {
    /// Whose fault it is.
    pub fn side(&self) -> Side {
        self.reason().side()
    }

    /// Whether it may be tried again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Connect(_) => Retry::NewConnection,
            _ => Retry::Never,
        }
    }

    /// What the app's connect() is to fail with.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Connect(error) => error.raw_os_error().unwrap_or(libc::ECONNREFUSED),
            Self::Tunnel(Reason::UpstreamTimeout) => libc::ETIMEDOUT,
            Self::Tunnel(Reason::UpstreamUnreachable) => libc::EHOSTUNREACH,
            _ => libc::ECONNREFUSED,
        }
    }

    /// The stable code.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoOriginalDestination => Reason::NoOriginalDestination,
            Self::Route(reason) | Self::Refused(reason) | Self::Tunnel(reason) => *reason,
            Self::Connect(error) => of_connect(error),
            Self::Downstream(_) => Reason::DownstreamReset,
            Self::Upstream(_) => Reason::UpstreamReset,
        }
    }
}

fn of_connect(error: &io::Error) -> Reason {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Reason::UpstreamRefused,
        Some(
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN | libc::EACCES | libc::EINVAL,
        ) => Reason::UpstreamUnreachable,
        Some(libc::ETIMEDOUT) => Reason::UpstreamTimeout,
        Some(libc::ECONNRESET) => Reason::UpstreamReset,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Reason::FdLimit,
        Some(libc::EADDRNOTAVAIL) => Reason::NoPorts,
        _ if error.kind() == io::ErrorKind::TimedOut => Reason::UpstreamTimeout,
        _ => Reason::Internal,
    }
}
