//! The kernel's TCP counters of the network namespace that this thread is in (proc_net(5), `snmp`), and the round trip times
//! of its connections.

use std::{collections::HashMap, io};

use super::sock_diag::SockDiag;
use crate::model::NetworkSample;

/// What the namespace's kernel counters and sockets say now.
///
/// # Errors
/// They cannot be read.
pub fn sample() -> io::Result<NetworkSample> {
    let mut sample = parse(&std::fs::read_to_string("/proc/thread-self/net/snmp")?);
    let times = SockDiag::open()?.round_trips()?;
    sample.round_trips_us = times.iter().map(|time| u64::from(*time)).sum();
    sample.round_trips = times.len() as u64;
    Ok(sample)
}

/// Two lines begin with `Tcp:`: names, and values.
fn parse(snmp: &str) -> NetworkSample {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let named: HashMap<&str, u64> =
        names.split(' ').zip(values.split(' ')).filter_map(|(name, value)| Some((name, value.parse().ok()?))).collect();
    let of = |name| named.get(name).copied().unwrap_or(0);
    NetworkSample {
        active_opens: of("ActiveOpens"),
        passive_opens: of("PassiveOpens"),
        attempt_fails: of("AttemptFails"),
        established_resets: of("EstabResets"),
        retransmitted_segments: of("RetransSegs"),
        sent_segments: of("OutSegs"),
        ..NetworkSample::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names() {
        let text = "Ip: Forwarding\nIp: 1\n\
                    Tcp: RtoAlgorithm MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets OutSegs RetransSegs\n\
                    Tcp: 1 -1 9 8 7 6 5 4\nUdp: InDatagrams\nUdp: 3\n";
        let sample = parse(text);
        assert_eq!((sample.active_opens, sample.passive_opens, sample.attempt_fails), (9, 8, 7));
        assert_eq!((sample.established_resets, sample.sent_segments, sample.retransmitted_segments), (6, 5, 4));
        assert_eq!(parse(""), NetworkSample::default());
    }

    #[test]
    fn the_own_namespace_can_be_sampled() {
        let before = sample().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(sample().unwrap().active_opens > before.active_opens);
    }
}
