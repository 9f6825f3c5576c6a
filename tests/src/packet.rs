//! What is in an IP packet, as far as TCP goes: RFC 791, RFC 8200, RFC 9293.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const TCP: u8 = 6;
const SYN: u8 = 2;

/// A TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Who sent it.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// Number of its first byte.
    pub sequence: u32,
    /// Whether it opens the connection: its first byte of data then has the number after `sequence`.
    pub is_syn: bool,
    /// Its data.
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Of a packet that begins with its IP header. `None` if it is none, or cut short, or IPv6 with extension headers.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let (source, destination, tcp): (IpAddr, IpAddr, _) = match packet.first()? >> 4 {
            4 => {
                let (header, length) = (usize::from(packet.first()? & 15) * 4, usize::from(number(packet, 2)?));
                if *packet.get(9)? != TCP {
                    return None;
                }
                let address = |at| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
                (address(12)?.into(), address(16)?.into(), packet.get(header..length)?)
            }
            6 => {
                let length = usize::from(number(packet, 4)?);
                if *packet.get(6)? != TCP {
                    return None;
                }
                let address = |at| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?));
                (address(8)?.into(), address(24)?.into(), packet.get(40..40 + length)?)
            }
            _ => return None,
        };
        Some(Self {
            source: (source, number(tcp, 0)?).into(),
            destination: (destination, number(tcp, 2)?).into(),
            sequence: u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?),
            is_syn: tcp.get(13)? & SYN != 0,
            payload: tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?,
        })
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// One direction of a connection.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Who sent it.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// Number of the first byte of `data`.
    start: u32,
    /// What was sent, in order; zeros where segments are missing.
    pub data: Vec<u8>,
}

/// A gap of more than this is another connection with the same 4-tuple.
const WINDOW: usize = 64 << 20;

/// The streams of many connections, put together from their segments.
#[derive(Debug, Default)]
pub struct Streams(Vec<Stream>);

impl Streams {
    /// Puts a segment where it belongs, whatever the order they come in.
    pub fn add(&mut self, segment: &Segment<'_>) {
        let Segment { source, destination, sequence, is_syn, payload } = *segment;
        let start = if is_syn { sequence.wrapping_add(1) } else { sequence };
        let of_this = |stream: &&mut Stream| stream.source == source && stream.destination == destination;
        let known = self.0.iter_mut().rev().find(of_this).filter(|stream| {
            let offset = start.wrapping_sub(stream.start) as usize;
            if is_syn { offset == 0 } else { offset <= stream.data.len() + WINDOW || payload.is_empty() }
        });
        let Some(stream) = known else {
            return self.0.push(Stream { source, destination, start, data: payload.to_vec() });
        };
        if payload.is_empty() {
            return;
        }
        let offset = start.wrapping_sub(stream.start) as usize;
        let end = offset + payload.len();
        if stream.data.len() < end {
            stream.data.resize(end, 0);
        }
        stream.data.get_mut(offset..end).expect("it was made long enough").copy_from_slice(payload);
    }

    /// All of them, in the order in which they began.
    pub fn all(&self) -> &[Stream] {
        &self.0
    }
}

/// Whether `needle` is in `hay`.
pub fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet with a TCP header without options.
    fn packet(is_v6: bool, flags: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = (20 + payload.len()) as u16;
        let mut packet = if is_v6 {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([TCP, 64]);
            header.extend(Ipv6Addr::LOCALHOST.octets());
            header.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
            header
        } else {
            let mut header = vec![0x45, 0];
            header.extend((length + 20).to_be_bytes());
            header.extend([0, 0, 0, 0, 64, TCP, 0, 0, 127, 0, 0, 1, 10, 0, 0, 1]);
            header
        };
        packet.extend([0x12, 0x34, 0x00, 0x50]);
        packet.extend(sequence.to_be_bytes());
        packet.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        packet.extend(payload);
        packet
    }

    #[test]
    fn segments_of_both_families_are_read_and_padding_is_none_of_them() {
        for (is_v6, source, destination) in
            [(false, "127.0.0.1:4660", "10.0.0.1:80"), (true, "[::1]:4660", "[fd00::1]:80")]
        {
            let mut bytes = packet(is_v6, SYN, 7, b"hello");
            bytes.extend([0; 6]);
            let segment = Segment::parse(&bytes).unwrap();
            assert_eq!(
                (segment.source.to_string(), segment.destination.to_string()),
                (source.into(), destination.into())
            );
            assert_eq!((segment.sequence, segment.is_syn, segment.payload), (7, true, b"hello".as_slice()));
            assert_eq!(Segment::parse(&bytes[..bytes.len() - 7]), None, "cut short");
        }
        let mut udp = packet(false, 0, 0, b"");
        udp[9] = 17;
        assert_eq!(Segment::parse(&udp), None);
    }

    #[test]
    fn streams_are_put_together_across_segments_repetitions_and_the_end_of_numbers() {
        let mut streams = Streams::default();
        let first = u32::MAX - 2;
        for (flags, sequence, payload) in [
            (SYN, first, b"".as_slice()),
            (0, first.wrapping_add(4), b"ret"),
            (0, first.wrapping_add(1), b"sec"),
            (0, first.wrapping_add(1), b"sec"),
            (SYN, 1000, b""),
            (0, 1001, b"another"),
        ] {
            streams.add(&Segment::parse(&packet(false, flags, sequence, payload)).unwrap());
        }
        let data: Vec<&[u8]> = streams.all().iter().map(|stream| stream.data.as_slice()).collect();
        assert_eq!(data, [b"secret".as_slice(), b"another"]);
        assert!(contains(data[0], b"cre") && !contains(data[0], b"crf") && !contains(b"", b"x"));
    }
}
