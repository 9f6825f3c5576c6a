//! Addresses that must not be mixed up, each its own type.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

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

/// The address as the kernel's maps write it: four words in network byte order, IPv4 v4-mapped.
pub fn words(address: IpAddr) -> mesh_common::Address {
    match address {
        IpAddr::V4(v4) => mesh_common::v4_mapped(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = v6.octets();
            [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
        }
    }
}

/// The inverse of [`words`]; never v4-mapped.
pub fn ip(words: &mesh_common::Address) -> IpAddr {
    let [a, b, c, d] = words.map(u32::from_be);
    let bits = u128::from(a) << 96 | u128::from(b) << 64 | u128::from(c) << 32 | u128::from(d);
    Ipv6Addr::from_bits(bits).to_canonical()
}
