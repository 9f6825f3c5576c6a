//! Who is let in and who is not, in both roles.

use std::io::Read as _;

use rustls::{NamedGroup, ProtocolVersion, sign::CertifiedKey};

use super::*;
use crate::identity::{
    config::{Configs, Maker},
    verify::Trust,
};

/// An honest end, and what is needed to be a dishonest one.
struct Scene {
    clock: Clock,
    root: Arc<Signer>,
    maker: Maker,
    trust: Trust,
    honest: Configs,
}

impl Scene {
    fn new() -> Self {
        let (clock, root) = (Clock::new(), Arc::new(Signer::root("root")));
        let settings = settings(&clock);
        let now = clock.current_time().unwrap();
        let trust = Trust::new(bundle(&[&root]), &settings.trust_domain, &settings.provider, now);
        let maker = Maker::new(settings);
        let honest = configs(&maker, &trust, &root.sign(&identity("honest"), &clock, |_| ()));
        Self { clock, root, maker, trust, honest }
    }

    /// How the honest end refuses who shows `svid`: as a server, as a client.
    fn refusals(&self, svid: &Svid) -> [Option<Reason>; 2] {
        let stranger = configs(&self.maker, &self.trust, svid);
        let as_client = Connection::new(&stranger.client, &self.honest.server).run();
        let as_server = Connection::new(&self.honest.client, &stranger.server).run();
        [as_client.err().and_then(|[_, server]| server), as_server.err().and_then(|[client, _]| client)]
    }

    fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> Svid {
        self.root.sign(&identity("stranger"), &self.clock, change)
    }
}

fn configs(maker: &Maker, trust: &Trust, svid: &Svid) -> Configs {
    let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&svid.key).unwrap();
    let certified = CertifiedKey::new(svid.chain.clone(), key);
    maker.make(&Arc::new(certified), trust.peers.as_ref().unwrap()).unwrap()
}

#[test]
fn a_member_of_the_trust_domain_is_let_in() {
    let scene = Scene::new();
    let honest = &scene.honest;
    let mut connection = Connection::new(&honest.client, &honest.server);
    connection.run().unwrap();
    assert_eq!(connection.kind(), HandshakeKind::Full);
    assert_eq!(connection.server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let group = connection.client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    assert_eq!(connection.client.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(connection.server.server_name(), None);
    assert_eq!(scene.refusals(&scene.sign(|_| ())), [None, None]);
}

#[test]
fn an_intermediate_leads_to_the_root() {
    let scene = Scene::new();
    let intermediate = Signer::made("intermediate", Some(&scene.root), |_| ());
    let mut svid = intermediate.sign(&identity("stranger"), &scene.clock, |_| ());
    assert_eq!(scene.refusals(&svid), [Some(Reason::PeerNotTrusted); 2], "without the intermediate");
    svid.chain.push(intermediate.der);
    assert_eq!(scene.refusals(&svid), [None, None]);
    // More than will be looked at.
    let filler = svid.chain[1].clone();
    svid.chain.resize(9, filler);
    assert_eq!(scene.refusals(&svid), [Some(Reason::PeerNotTrusted); 2]);
}

#[test]
fn another_authority_is_not_trusted() {
    let scene = Scene::new();
    for name in ["other", "root"] {
        let svid = Signer::root(name).sign(&identity("stranger"), &scene.clock, |_| ());
        assert_eq!(scene.refusals(&svid), [Some(Reason::PeerNotTrusted); 2], "{name}");
    }
}

#[test]
fn who_may_not_sign_vouches_for_nobody() {
    let scene = Scene::new();
    let member = Signer::made("member", Some(&scene.root), |leaf| {
        leaf.is_ca = IsCa::NoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    });
    let mut svid = member.sign(&identity("stranger"), &scene.clock, |_| ());
    svid.chain.push(member.der);
    assert_eq!(scene.refusals(&svid), [Some(Reason::PeerNotTrusted); 2]);
}

#[test]
fn a_certificate_counts_from_its_first_to_its_last_second() {
    let scene = Scene::new();
    let now = scene.clock.seconds();
    let margin = 60; // The clock of the test goes.
    let refused = |from, until| scene.refusals(&scene.sign(|leaf| valid(leaf, from, until)));
    assert_eq!(refused(now, now + margin), [None, None]);
    assert_eq!(refused(now - 2, now - 1), [Some(Reason::PeerCertificateExpired); 2]);
    assert_eq!(refused(now + margin, now + 2 * margin), [Some(Reason::PeerCertificateExpired); 2]);
}

#[test]
fn an_intermediate_that_is_over_leads_nowhere() {
    let scene = Scene::new();
    let now = scene.clock.seconds();
    let intermediate = Signer::made("old", Some(&scene.root), |params| valid(params, now - 10, now - 1));
    let mut svid = intermediate.sign(&identity("stranger"), &scene.clock, |_| ());
    svid.chain.push(intermediate.der);
    assert_eq!(scene.refusals(&svid), [Some(Reason::PeerCertificateExpired); 2]);
}

#[test]
fn who_was_believed_once_is_not_believed_when_its_chain_is_over() {
    for (leaf_lasts, intermediate_lasts) in [(600, 6000), (6000, 600)] {
        let scene = Scene::new();
        let now = scene.clock.seconds();
        let intermediate =
            Signer::made("i", Some(&scene.root), |params| valid(params, now - 1, now + intermediate_lasts));
        let until = now + leaf_lasts;
        let mut svid = intermediate.sign(&identity("stranger"), &scene.clock, |leaf| valid(leaf, now - 1, until));
        svid.chain.push(intermediate.der);
        for _ in 0..2 {
            assert_eq!(scene.refusals(&svid), [None, None]);
        }
        scene.clock.advance(Duration::from_secs(601));
        assert_eq!(scene.refusals(&svid), [Some(Reason::PeerCertificateExpired); 2], "{leaf_lasts}");
    }
}

#[test]
fn who_was_believed_once_is_believed_by_every_byte_and_in_that_role() {
    let scene = Scene::new();
    let client = scene.sign(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    for _ in 0..2 {
        assert_eq!(scene.refusals(&client), [None, Some(Reason::PeerNotTrusted)]);
    }
    let mut changed = scene.sign(|_| ());
    assert_eq!(scene.refusals(&changed), [None, None]);
    let mut der = changed.chain[0].to_vec();
    *der.last_mut().unwrap() ^= 1;
    changed.chain[0] = der.into();
    assert_eq!(scene.refusals(&changed), [Some(Reason::PeerNotTrusted); 2], "its signature is another");
    // A chain that is known, without its key.
    let (mut stolen, own) = (scene.sign(|_| ()), scene.sign(|_| ()));
    assert_eq!(scene.refusals(&stolen), [None, None]);
    stolen.key = own.key.clone_key();
    assert_eq!(scene.refusals(&stolen), [Some(Reason::PeerNotTrusted); 2]);
}

#[test]
fn an_svid_has_one_uri_which_is_a_service_account_of_the_trust_domain() {
    let scene = Scene::new();
    let name = || uri("spiffe://cluster.local/ns/shop/sa/stranger");
    let dns = || SanType::DnsName("stranger.shop".try_into().unwrap());
    for (names, is_let_in) in [
        (vec![name()], true),
        (vec![dns(), name()], true),
        (vec![], false),
        (vec![dns()], false),
        (vec![name(), uri("spiffe://cluster.local/ns/shop/sa/cart")], false),
        (vec![name(), name()], false),
        (vec![uri("spiffe://cluster.local/ns/shop")], false),
        (vec![uri("spiffe://cluster.local")], false),
        (vec![uri("https://cluster.local/ns/shop/sa/stranger")], false),
        (vec![uri("spiffe://other.domain/ns/shop/sa/stranger")], false),
        (vec![uri("spiffe://cluster.local.evil/ns/shop/sa/stranger")], false),
    ] {
        let svid = scene.sign(|leaf| leaf.subject_alt_names.clone_from(&names));
        let expected = if is_let_in { None } else { Some(Reason::PeerUnidentified) };
        assert_eq!(scene.refusals(&svid), [expected; 2], "{names:?}");
    }
}

#[test]
fn a_certificate_of_an_authority_is_not_one_of_a_workload() {
    let scene = Scene::new();
    let ca = scene.sign(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(scene.refusals(&ca), [Some(Reason::PeerNotTrusted); 2]);
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let signs = scene.sign(|leaf| leaf.key_usages.push(usage));
        assert_eq!(scene.refusals(&signs), [Some(Reason::PeerUnidentified); 2], "{usage:?}");
    }
}

#[test]
fn a_certificate_is_used_for_its_purposes_only() {
    let scene = Scene::new();
    for (usages, expected) in [
        (vec![], [None, None]),
        (vec![ExtendedKeyUsagePurpose::ClientAuth], [None, Some(Reason::PeerNotTrusted)]),
        (vec![ExtendedKeyUsagePurpose::ServerAuth], [Some(Reason::PeerNotTrusted), None]),
        (vec![ExtendedKeyUsagePurpose::CodeSigning], [Some(Reason::PeerNotTrusted); 2]),
    ] {
        let svid = scene.sign(|leaf| leaf.extended_key_usages.clone_from(&usages));
        assert_eq!(scene.refusals(&svid), expected, "{usages:?}");
    }
}

#[test]
fn a_certificate_without_its_key_proves_nothing() {
    let scene = Scene::new();
    let (mut stolen, own) = (scene.sign(|_| ()), scene.sign(|_| ()));
    stolen.key = own.key.clone_key();
    assert_eq!(scene.refusals(&stolen), [Some(Reason::PeerNotTrusted); 2]);
}

#[test]
fn who_shows_no_certificate_is_refused() {
    let scene = Scene::new();
    let Settings { provider, .. } = settings(&scene.clock);
    let mut nobody = ClientConfig::builder_with_details(provider, Arc::new(scene.clock.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(scene.trust.peers.clone().unwrap())
        .with_no_client_auth();
    nobody.enable_sni = false;
    let mut connection = Connection::new(&Arc::new(nobody), &scene.honest.server);
    let refused = connection.run().unwrap_err();
    assert_eq!(refused, [Some(Reason::PeerRefusedCertificate), Some(Reason::PeerUnidentified)]);
    // The client has finished its part by then: nothing it sent is taken.
    assert!(connection.server.reader().read(&mut [0; 1]).is_err());
}

#[test]
fn nothing_older_than_tls_1_3_is_spoken() {
    let scene = Scene::new();
    let mut server = ServerConnection::new(scene.honest.server.clone()).unwrap();
    // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, P-256, ecdsa_secp256r1_sha256 and no supported_versions (RFC 5246, 7.4.1.2).
    let extensions: &[&[u8]] =
        &[&[0, 10, 0, 4, 0, 2, 0, 23], &[0, 11, 0, 2, 1, 0], &[0, 13, 0, 4, 0, 2, 4, 3], &[0, 23, 0, 0]];
    let extensions = extensions.concat();
    let hello = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0xc0, 0x2b], &[1, 0], &[0, extensions.len() as u8], &extensions];
    let hello = hello.concat();
    let record = [&[22, 3, 1, 0, hello.len() as u8 + 4, 1, 0, 0, hello.len() as u8][..], &hello].concat();
    assert_eq!(take(&mut server, &record), Some(Reason::TlsIncompatible));
    let mut alert = Vec::new();
    server.write_tls(&mut alert).unwrap();
    assert_eq!(alert, [21, 3, 3, 0, 2, 2, 70], "a fatal alert: protocol_version");
}

#[test]
fn what_is_not_tls_is_refused() {
    let scene = Scene::new();
    let mut server = ServerConnection::new(scene.honest.server.clone()).unwrap();
    assert_eq!(take(&mut server, b"GET / HTTP/1.1\r\n\r\n"), Some(Reason::TlsHandshake));
}

#[test]
fn roots_count_while_they_are_valid() {
    let clock = Clock::new();
    let settings = settings(&clock);
    let now = clock.seconds();
    let root = |from, until| Arc::new(Signer::made("root", None, |params| valid(params, from, until)));
    let (over, current, coming) = (root(1, now - 1), root(now, now + 100), root(now + 50, now + 1000));
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let trust = |roots: &[&Arc<Signer>], seconds| {
        Trust::new(bundle(roots), &settings.trust_domain, &settings.provider, at(seconds))
    };
    assert!(trust(&[&over], now).peers.is_none());
    assert!(trust(&[&coming], now).peers.is_none());
    assert_eq!(trust(&[&over, &current, &coming], now).until, Some(at(now + 50)));
    assert_eq!(trust(&[&over, &current, &coming], now + 50).until, Some(at(now + 101)));
    assert!(trust(&[&coming], now + 50).peers.is_some());
    let nonsense = TrustBundle { roots: vec![CertificateDer::from(vec![1, 2, 3]), current.der.clone()] };
    let trust = Trust::new(Arc::new(nonsense), &settings.trust_domain, &settings.provider, at(now));
    assert_eq!((trust.unreadable.len(), trust.peers.is_some()), (1, true));
}
