use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use rcgen::{CertificateParams, CertificateSigningRequest, KeyPair, PublicKeyData, SanType};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime},
    server::WebPkiClientVerifier,
};
use x509_parser::extensions::GeneralName;

use super::*;
use crate::{
    identity::{CertificateAuthority, TrustBundle},
    model::{Identity, Reason},
};

const HOUR: Duration = Duration::from_hours(1);
const DOMAIN: &str = "cluster.local";

fn cart() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

/// Whether somebody who trusts `roots` accepts a client with this chain.
fn trusts(roots: &[CertificateDer<'_>], chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone().into_owned())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    verifier.verify_client_cert(&chain[0], &chain[1..], now).map(drop)
}

fn open(folder: &Path, lifetimes: Lifetimes, now: SystemTime) -> Authority {
    Authority::open(folder, DOMAIN, lifetimes, now).unwrap()
}

fn roots(authority: &Authority) -> Vec<CertificateDer<'static>> {
    authority.bundle().borrow().roots.clone()
}

fn sign(authority: &Authority, now: SystemTime) -> Vec<CertificateDer<'static>> {
    let (_key, request) = csr::make(&cart()).unwrap();
    authority.sign(&request, &cart(), None, now).unwrap().chain
}

fn request(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> CertificateSigningRequest {
    let mut params = CertificateParams::default();
    change(&mut params);
    params.serialize_request(key).unwrap()
}

#[test]
fn a_leaf_proves_exactly_the_identity() {
    let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let authority = open(folder.path(), Lifetimes::default(), now);
    let chain = sign(&authority, now);
    trusts(&roots(&authority), &chain, now).unwrap();

    let leaf = certificate::read(&chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "the subject is empty");
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/cart")]);
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca());
    let uses = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(uses.server_auth && uses.client_auth && !uses.any && uses.other.is_empty());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());

    let intermediate = certificate::read(&chain[1]).unwrap();
    assert_eq!(intermediate.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));
    assert_eq!(chain.len(), 2, "the root is not part of it");
}

#[test]
fn serial_numbers_are_random_and_positive() {
    let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let authority = open(folder.path(), Lifetimes::default(), now);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..64 {
        let chain = sign(&authority, now);
        let serial = certificate::read(&chain[0]).unwrap().serial.to_bytes_be();
        assert!(serial.len() <= 16 && (serial.len() < 16 || serial[0] < 0x80), "{serial:x?}");
        assert!(serial.len() > 10, "{serial:x?} is not 127 random bits");
        assert!(seen.insert(serial));
    }
}

#[test]
fn lifetimes_are_capped() {
    let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let authority = open(folder.path(), Lifetimes { root: HOUR * 30, ..Lifetimes::default() }, now);
    let (_key, request) = csr::make(&cart()).unwrap();
    let until = |asked, now| {
        let issued = authority.sign(&request, &cart(), asked, now).unwrap();
        let written = certificate::validity_of(&certificate::read(&issued.chain[0]).unwrap());
        assert!(issued.validity.until.duration_since(written.until).unwrap() < Duration::from_secs(1));
        assert!(written.from <= now - SKEW);
        issued.validity.until
    };
    assert_eq!(until(None, now), now + HOUR * 24);
    assert_eq!(until(Some(Duration::ZERO), now), now + HOUR * 24);
    assert_eq!(until(Some(HOUR), now), now + HOUR);
    assert_eq!(until(Some(HOUR * 1000), now), now + HOUR * 24);
    let end = until(None, now + HOUR * 20);
    assert!(end <= now + HOUR * 30, "no leaf outlives its issuer");
    let refusal = authority.sign(&request, &cart(), None, now + HOUR * 31).unwrap_err();
    assert_eq!((refusal.reason, refusal.is_transient), (Reason::CaExpired, true));
}

#[test]
fn the_root_is_made_once_and_its_key_is_private() {
    let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let path = folder.path().join("ca");
    let first = open(&path, Lifetimes::default(), now);
    let mode = |name: &str| fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("root-key.pem"), 0o600);
    assert_eq!(mode(""), 0o700);
    assert_eq!(fs::read(path.join("bundle.pem")).unwrap(), fs::read(path.join("root-cert.pem")).unwrap());
    let chain = sign(&first, now);
    drop(first);
    let second = open(&path, Lifetimes::default(), now);
    trusts(&roots(&second), &chain, now).unwrap();
    let names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
}

#[test]
fn many_processes_make_one_root() {
    let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let found: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| roots(&open(folder.path(), Lifetimes::default(), now)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(found.iter().all(|roots| *roots == found[0]));
}

#[test]
fn a_request_gets_what_it_may_have_and_no_more() {
    let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let authority = open(folder.path(), Lifetimes::default(), now);
    let key = KeyPair::generate().unwrap();
    let greedy = request(&key, |params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names = vec![
            SanType::DnsName("kubernetes.default.svc".try_into().unwrap()),
            SanType::URI(cart().to_string().try_into().unwrap()),
        ];
        params.distinguished_name.push(rcgen::DnType::CommonName, "root");
    });
    let chain = authority.sign(greedy.pem().unwrap().as_bytes(), &cart(), None, now).unwrap().chain;
    let leaf = certificate::read(&chain[0]).unwrap();
    assert!(!leaf.is_ca() && !leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names[..], [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/cart")]);
    assert_eq!(leaf.subject().iter().count(), 0);
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
}

#[test]
fn unusable_requests_are_refused_for_good() {
    let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let authority = open(folder.path(), Lifetimes::default(), now);
    let key = KeyPair::generate().unwrap();
    let good = request(&key, |_| {}).der().to_vec();
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut trailing = good.clone();
    trailing.push(0);
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
    let other = request(&key, |params| params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/other")]);
    let both = request(&key, |params| {
        params.subject_alt_names = vec![uri(&cart().to_string()), uri("spiffe://cluster.local/ns/shop/sa/other")];
    });
    for (what, csr, reason) in [
        ("nothing", Vec::new(), Reason::CaBadRequest),
        ("no DER", b"hello".to_vec(), Reason::CaBadRequest),
        ("a broken PEM", b"-----BEGIN CERTIFICATE REQUEST-----\nMIIB".to_vec(), Reason::CaBadRequest),
        ("a certificate", roots(&authority)[0].to_vec(), Reason::CaBadRequest),
        ("half of one", good[..good.len() / 2].to_vec(), Reason::CaBadRequest),
        ("a forged signature", forged, Reason::CaBadRequest),
        ("trailing bytes", trailing, Reason::CaBadRequest),
        ("too long", vec![0x30; csr::MAX_CSR + 1], Reason::CaBadRequest),
        ("an Ed25519 key", request(&ed25519, |_| {}).der().to_vec(), Reason::CaBadRequest),
        ("an RSA key", request(&rsa, |_| {}).der().to_vec(), Reason::CaBadRequest),
        ("another identity", other.der().to_vec(), Reason::CaWrongIdentity),
        ("two identities", both.der().to_vec(), Reason::CaWrongIdentity),
    ] {
        let refusal = authority.sign(&csr, &cart(), None, now).expect_err(what);
        assert_eq!((refusal.reason, refusal.is_transient), (reason, false), "{what}: {refusal}");
    }
    let foreign: Identity = "spiffe://other.example/ns/shop/sa/cart".parse().unwrap();
    assert_eq!(authority.sign(&good, &foreign, None, now).unwrap_err().reason, Reason::CaWrongIdentity);
    for good in [&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(), &key] {
        authority.sign(request(good, |_| {}).der(), &cart(), None, now).unwrap();
    }
}

proptest! {
    /// Whatever becomes of a request on its way: it is refused, or its own key is what was asked for.
    #[test]
    fn mutated_requests_never_get_another_key(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..8),
        as_pem in any::<bool>(),
    ) {
        static REQUEST: std::sync::LazyLock<(Vec<u8>, CertificateSigningRequest)> = std::sync::LazyLock::new(|| {
            let key = KeyPair::generate().unwrap();
            let made = request(&key, |params| {
                params.subject_alt_names = vec![SanType::URI(cart().to_string().try_into().unwrap())];
            });
            (key.subject_public_key_info(), made)
        });
        let (key, made) = &*REQUEST;
        let mut bytes = if as_pem { made.pem().unwrap().into_bytes() } else { made.der().to_vec() };
        for (at, value, how) in edits {
            if bytes.is_empty() { break }
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes.insert(at, value),
                _ => { bytes.remove(at); }
            }
        }
        match csr::read(&bytes, &cart()) {
            Ok(read) => prop_assert_eq!(&read.subject_public_key_info(), key),
            Err(refusal) => prop_assert!(!refusal.is_transient),
        }
    }

    /// Bytes that were never a request.
    #[test]
    fn noise_is_no_request(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(csr::read(&bytes, &cart()).is_err());
    }
}

#[test]
fn the_intermediate_changes_at_half_its_life_and_nothing_breaks() {
    let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let lifetimes = Lifetimes { intermediate: HOUR * 100, ..Lifetimes::default() };
    let authority = open(folder.path(), lifetimes, now);
    let first = sign(&authority, now);
    authority.refresh(now + HOUR * 49).unwrap();
    let before = sign(&authority, now + HOUR * 49);
    assert_eq!(first[1], before[1]);
    authority.refresh(now + HOUR * 51).unwrap();
    let after = sign(&authority, now + HOUR * 51);
    assert_ne!(before[1], after[1]);
    for chain in [before, after] {
        trusts(&roots(&authority), &chain, now + HOUR * 52).unwrap();
    }
}

#[test]
fn a_root_changes_without_anybody_losing_trust() {
    let (folder, start) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let authority = open(folder.path(), Lifetimes::default(), start);
    let mut bundle = authority.bundle();
    let old = bundle.borrow_and_update().roots.clone();
    authority.replace_root(start).unwrap();
    assert!(bundle.has_changed().unwrap());
    let both = bundle.borrow_and_update().roots.clone();
    assert_eq!(both.len(), 2);
    authority.replace_root(start).unwrap();
    assert_eq!(roots(&authority), both, "it is under way");

    // Announced for a day: the old one signs, so that who has not heard of the next one is not in the dark.
    let announced = start + HOUR * 23;
    authority.refresh(announced).unwrap();
    let last_of_old = sign(&authority, announced);
    trusts(&old, &last_of_old, announced).unwrap();

    // Then the next one signs, after a restart just the same, and both are trusted.
    let switched = start + HOUR * 24 + Duration::from_secs(1);
    let restarted = open(folder.path(), Lifetimes::default(), switched);
    authority.refresh(switched).unwrap();
    for authority in [&authority, &restarted] {
        let chain = sign(authority, switched);
        trusts(&both, &chain, switched).unwrap();
        assert!(trusts(&old, &chain, switched).is_err(), "the next root has signed");
        assert_eq!(roots(authority), both);
    }
    trusts(&roots(&authority), &last_of_old, announced + HOUR * 23).unwrap();

    // When the last leaf of the old root has expired, the old root goes.
    let done = start + HOUR * 49;
    authority.refresh(done).unwrap();
    assert_eq!(roots(&authority), both[1..]);
    assert!(trusts(&both, &last_of_old, done).is_err(), "nothing valid was lost");
    assert_eq!(roots(&open(folder.path(), Lifetimes::default(), done)), both[1..]);
    assert!(!folder.path().join("next-key.pem").exists());
    trusts(&roots(&authority), &sign(&authority, done), done).unwrap();
}

#[test]
fn an_old_root_announces_its_successor_by_itself() {
    let (folder, start) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let authority = open(folder.path(), Lifetimes { root: HOUR * 1000, ..Lifetimes::default() }, start);
    authority.refresh(start + HOUR * 790).unwrap();
    assert_eq!(roots(&authority).len(), 1);
    authority.refresh(start + HOUR * 801).unwrap();
    assert_eq!(roots(&authority).len(), 2);
}

#[test]
fn a_change_of_roots_that_was_cut_short_is_finished() {
    let (folder, start) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let authority = open(folder.path(), Lifetimes::default(), start);
    authority.replace_root(start).unwrap();
    let both = roots(&authority);
    fs::rename(folder.path().join("next-key.pem"), folder.path().join("root-key.pem")).unwrap();
    let restarted = open(folder.path(), Lifetimes::default(), start + HOUR * 100);
    assert_eq!(roots(&restarted), both[1..]);
    assert!(!folder.path().join("next-cert.pem").exists());
}

/// A root and an intermediate as somebody else made them.
fn given(folder: &Path, now: SystemTime) -> CertificateDer<'static> {
    let validity = Validity { from: now - HOUR, until: now + HOUR * 100 };
    let root = certificate::Signer::root(DOMAIN, validity).unwrap();
    let intermediate = root.intermediate(DOMAIN, validity).unwrap();
    fs::write(folder.join("tls.crt"), pem::certificates(std::slice::from_ref(&intermediate.certificate))).unwrap();
    fs::write(folder.join("tls.key"), intermediate.key_pem()).unwrap();
    fs::write(folder.join("ca.crt"), pem::certificates(std::slice::from_ref(&root.certificate))).unwrap();
    root.certificate
}

#[test]
fn a_given_intermediate_is_used_and_followed() {
    let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let root = given(folder.path(), now);
    let authority = open(folder.path(), Lifetimes::default(), now);
    assert_eq!(roots(&authority), [root]);
    trusts(&roots(&authority), &sign(&authority, now), now).unwrap();
    assert!(!folder.path().join("root-key.pem").exists());

    let renewed = given(folder.path(), now);
    authority.refresh(now).unwrap();
    assert_eq!(roots(&authority), std::slice::from_ref(&renewed));
    trusts(&[renewed], &sign(&authority, now), now).unwrap();
}

#[test]
fn unusable_files_are_named_and_change_nothing() {
    let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let authority = open(folder.path(), Lifetimes::default(), now);
    let before = roots(&authority);
    let spare = tempfile::tempdir().unwrap();
    open(spare.path(), Lifetimes::default(), now);
    fs::copy(spare.path().join("root-key.pem"), folder.path().join("root-key.pem")).unwrap();
    let error = authority.refresh(now).unwrap_err().to_string();
    assert!(error.contains("root-cert.pem") && error.contains("do not belong together"), "{error}");
    fs::write(folder.path().join("root-key.pem"), "nonsense").unwrap();
    let error = authority.refresh(now).unwrap_err().to_string();
    assert!(error.contains("root-key.pem") && error.contains("PEM"), "{error}");
    fs::remove_file(folder.path().join("root-key.pem")).unwrap();
    let error = authority.refresh(now).unwrap_err().to_string();
    assert!(error.contains("cannot read") && error.contains("root-key.pem"), "{error}");
    assert_eq!(roots(&authority), before);
    trusts(&before, &sign(&authority, now), now).unwrap();
}

#[tokio::test]
async fn two_agents_with_one_folder_trust_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = [(); 2].map(|()| Embedded::open(folder.path(), DOMAIN, Lifetimes::default()).unwrap());
    let svid = one.fetch(&cart()).await.unwrap();
    assert_eq!(svid.identity, cart());
    let bundle: Arc<TrustBundle> = Arc::clone(&other.bundle().borrow());
    trusts(&bundle.roots, &svid.chain, SystemTime::now()).unwrap();
    let key = KeyPair::try_from(&svid.key).unwrap();
    assert_eq!(certificate::read(&svid.chain[0]).unwrap().public_key().raw, key.subject_public_key_info());
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Embedded::open(elsewhere.path(), DOMAIN, Lifetimes::default()).unwrap();
    let roots = stranger.bundle().borrow().roots.clone();
    assert!(trusts(&roots, &svid.chain, SystemTime::now()).is_err());
}

#[tokio::test(start_paused = true)]
async fn an_agent_hears_of_a_next_root_that_another_made() {
    let folder = tempfile::tempdir().unwrap();
    let agent = Embedded::open(folder.path(), DOMAIN, Lifetimes::default()).unwrap();
    let mut bundle = agent.bundle();
    bundle.borrow_and_update();
    open(folder.path(), Lifetimes::default(), SystemTime::now()).replace_root(SystemTime::now()).unwrap();
    bundle.changed().await.unwrap();
    assert_eq!(bundle.borrow().roots.len(), 2);
}
