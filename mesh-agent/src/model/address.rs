//! Addresses that must not be mixed up, each its own type.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use mesh_common::Address;

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

/// The address as the kernel side writes it: four words in network byte order, IPv4 as v4-mapped.
pub fn words(address: IpAddr) -> Address {
    let bits = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
    .to_bits();
    [bits >> 96, bits >> 64, bits >> 32, bits].map(|word| (word as u32).to_be())
}

/// The address in what [`words`] made; a v4-mapped one comes back as IPv4.
pub fn from_words(words: Address) -> IpAddr {
    let bits = words.into_iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(word)));
    IpAddr::V6(Ipv6Addr::from_bits(bits)).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_in_network_byte_order() {
        let v4: std::net::Ipv4Addr = "10.1.2.3".parse().unwrap();
        assert_eq!(words(v4.into()), mesh_common::v4_mapped(u32::from_ne_bytes(v4.octets())));
        assert!(mesh_common::is_v4_mapped(&words(v4.into())));
        let v6 = words("2001:db8::1".parse().unwrap());
        assert_eq!(v6[0].to_ne_bytes(), [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(v6[3].to_ne_bytes(), [0, 0, 0, 1]);
        assert!(mesh_common::is_loopback(&words("::1".parse().unwrap())));
        assert!(mesh_common::is_loopback(&words("127.0.0.9".parse().unwrap())));
    }

    #[test]
    fn words_come_back_as_the_canonical_address() {
        for (given, back) in [
            ("10.1.2.3", "10.1.2.3"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("2001:db8::1:2", "2001:db8::1:2"),
            ("::", "::"),
            ("0.0.0.0", "0.0.0.0"),
            ("255.255.255.255", "255.255.255.255"),
        ] {
            let given: IpAddr = given.parse().unwrap();
            assert_eq!(from_words(words(given)), back.parse::<IpAddr>().unwrap());
        }
    }
}
