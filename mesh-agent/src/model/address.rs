//! Addresses that must not be mixed up, each its own type.

use std::{fmt, net::SocketAddr};

macro_rules! address {
    ($($(#[$doc:meta])* $name:ident;)+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub struct $name(pub SocketAddr);

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.0.fmt(f)
                }
            }
        )+
    };
}

address! {
    /// What the app asked for. Never v4-mapped.
    OrigDst;
    /// The peer of an accepted socket.
    DownstreamAddr;
    /// What the agent connects to.
    UpstreamAddr;
}
