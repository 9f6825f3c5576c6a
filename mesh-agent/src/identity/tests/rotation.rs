//! Fetching and rotating, on a clock that jumps ahead.

use std::io::{Read as _, Write as _};

use super::*;
use crate::model::{CertificateState, CertificateStatus};

fn refusal(is_transient: bool) -> Refusal {
    Refusal { reason: Reason::CaUnreachable, message: "away".to_owned(), is_transient }
}

fn status(identities: &Identities, name: &str) -> CertificateStatus {
    let all = identities.certificates();
    all.into_iter().find(|status| status.identity == identity(name)).unwrap()
}

fn scene() -> (Clock, Arc<Authority>) {
    let clock = Clock::new();
    let authority = Authority::new(&clock, &Arc::new(Signer::root("root")));
    (clock, authority)
}

#[tokio::test(start_paused = true)]
async fn who_is_wanted_has_a_certificate_and_who_is_not_has_none() {
    let (_, authority) = scene();
    let identities = identities(&authority, &["cart", "db"]).await;
    assert_eq!(identities.client(&identity("other")).unwrap_err(), Reason::CertificateMissing);
    identities.want(&BTreeSet::from([identity("cart"), identity("other")]));
    // At once, not when somebody gets round to it.
    assert_eq!(identities.server(&identity("db")).unwrap_err(), Reason::CertificateMissing);
    assert!(identities.server(&identity("cart")).is_ok());
    until(&identities, |store| store.server(&identity("other")).is_ok()).await;
    assert_eq!(authority.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_first_certificate_is_awaited_until_it_is_there_or_refused() {
    let (_, authority) = scene();
    let identities = identities(&authority, &[]).await;
    let (cart, db) = (identity("cart"), identity("db"));
    assert!(identities.awaited(&cart).is_none(), "nobody wants it");
    identities.want(&BTreeSet::from([cart.clone()]));
    let mut changes = identities.awaited(&cart).unwrap();
    while identities.client(&cart).is_err() {
        changes.changed().await.unwrap();
    }
    assert!(identities.awaited(&cart).is_none(), "it is there");

    authority.mood.send_replace(Mood::Refuses(refusal(true)));
    identities.want(&BTreeSet::from([db.clone()]));
    assert!(identities.awaited(&db).is_some());
    until(&identities, |store| store.awaited(&db).is_none()).await;
    assert_eq!(identities.client(&db).unwrap_err(), Reason::CertificateMissing, "nobody waits for a second attempt");
}

#[tokio::test(start_paused = true)]
async fn a_key_goes_with_its_workload() {
    let (_, authority) = scene();
    let identities = identities(&authority, &["cart"]).await;
    let key = Arc::downgrade(&identities.read().slots[&identity("cart")].held.as_ref().unwrap().certified);
    let server = identities.server(&identity("cart")).unwrap();
    identities.want(&BTreeSet::new());
    // A connection may still need it.
    assert!(key.upgrade().is_some());
    drop(server);
    assert!(key.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_rotated_around_half_of_its_life() {
    let (clock, authority) = scene();
    let identities = identities(&authority, &["cart"]).await;
    let first = status(&identities, "cart");
    assert_eq!(first.state, CertificateState::Valid);
    assert_eq!(first.expires.unwrap() - first.issued.unwrap(), DAY.as_secs());
    assert_eq!(first.chain.len(), 1);
    assert_eq!(first.chain[0].subject, identity("cart").to_string());
    assert_eq!(first.chain[0].fingerprint.len(), 64);

    until(&identities, |store| status(store, "cart").serial != first.serial).await;
    let after = clock.seconds() - first.issued.unwrap();
    assert!((DAY.as_secs() * 45 / 100..=DAY.as_secs() * 55 / 100 + 2).contains(&after), "{after}");
    assert_eq!(clock.seconds(), first.next_rotation);
}

#[tokio::test(start_paused = true)]
async fn rotation_leaves_open_connections_alone() {
    let (_, authority) = scene();
    let identities = identities(&authority, &["cart", "db"]).await;
    let (client, server) = (identities.client(&identity("cart")).unwrap(), identities.server(&identity("db")).unwrap());
    let mut open = Connection::new(&client, &server);
    open.run().unwrap();
    let mut begun = Connection::new(&client, &server);
    drop((client, server));
    let serials = |store: &Identities| ["cart", "db"].map(|name| status(store, name).serial);
    let before = serials(&identities);
    until(&identities, |store| serials(store).iter().zip(&before).all(|(now, before)| now != before)).await;

    open.client.writer().write_all(b"still here").unwrap();
    open.run().unwrap();
    let mut read = [0; 10];
    open.server.reader().read_exact(&mut read).unwrap();
    assert_eq!(&read, b"still here");
    // So is a handshake that had begun; only its session is not resumed by later ones.
    begun.run().unwrap();
    assert_eq!(connect(&identities, "cart", "db"), Ok(HandshakeKind::Full));
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_used_while_the_authority_is_away_and_until_it_expires() {
    let (clock, authority) = scene();
    let identities = identities(&authority, &["cart", "db"]).await;
    let first = status(&identities, "cart");
    authority.mood.send_replace(Mood::Refuses(refusal(true)));
    let expires = first.expires.unwrap().min(status(&identities, "db").expires.unwrap());
    let attempts = |store: &Identities| status(store, "cart").refusal.map_or(0, |refusal| refusal.attempts);
    until(&identities, |store| attempts(store) >= 3).await;
    assert!(clock.seconds() < expires);
    connect(&identities, "cart", "db").unwrap();
    let said = status(&identities, "cart");
    assert_eq!((said.state, said.serial), (CertificateState::Valid, first.serial.clone()));
    assert_eq!(said.refusal.unwrap().reason, Reason::CaUnreachable);

    until(&identities, |_| clock.seconds() > expires + 100).await;
    assert_eq!(identities.client(&identity("cart")).unwrap_err(), Reason::CertificateExpired);
    assert_eq!(identities.server(&identity("db")).unwrap_err(), Reason::CertificateExpired);
    assert_eq!(status(&identities, "cart").state, CertificateState::Expired);
    // From half of the lifetime to its end, in pauses of a minute at most and half a minute at least.
    let (minutes, asked) = (DAY.as_secs() as usize / 60, authority.asked());
    assert!((2 * minutes * 45 / 100..=2 * 2 * minutes * 55 / 100 + 20).contains(&asked), "{asked} in {minutes} min");

    authority.mood.send_replace(Mood::Gives(DAY));
    let back = clock.seconds();
    until(&identities, |store| ["cart", "db"].iter().all(|name| store.client(&identity(name)).is_ok())).await;
    assert!(clock.seconds() - back <= 61, "found within a minute");
    assert_eq!(status(&identities, "cart").refusal, None);
    connect(&identities, "cart", "db").unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_does_not_answer_is_given_up() {
    let (clock, authority) = scene();
    authority.mood.send_replace(Mood::Ignores);
    let identities = Identities::with(authority.clone(), settings(&clock));
    let running = identities.clone();
    tokio::spawn(async move { running.run().await });
    let start = clock.seconds();
    identities.want(&BTreeSet::from([identity("cart")]));
    until(&identities, |store| status(store, "cart").refusal.is_some()).await;
    assert_eq!(clock.seconds() - start, 30);
    let said = status(&identities, "cart");
    assert_eq!((said.state, said.refusal.unwrap().reason), (CertificateState::Missing, Reason::CaUnreachable));
    authority.mood.send_replace(Mood::Gives(DAY));
    until(&identities, |store| store.client(&identity("cart")).is_ok()).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_get_better_is_asked_for_slowly() {
    let (clock, authority) = scene();
    authority.mood.send_replace(Mood::Refuses(refusal(false)));
    let identities = Identities::with(authority.clone(), settings(&clock));
    let running = identities.clone();
    tokio::spawn(async move { running.run().await });
    let start = clock.seconds();
    identities.want(&BTreeSet::from([identity("cart")]));
    until(&identities, |store| status(store, "cart").refusal.is_some_and(|refusal| refusal.attempts == 10)).await;
    assert!(clock.seconds() - start >= 9 * 30);
}

#[tokio::test(start_paused = true)]
async fn many_identities_are_fetched_a_few_at_a_time_and_rotate_apart() {
    const MANY: usize = 100;
    let clock = Clock::new();
    let authority = Authority::slow(&clock, &Arc::new(Signer::root("root")), Duration::from_secs(1));
    let names: Vec<_> = (0..MANY).map(|number| format!("sa-{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let start = clock.seconds();
    let identities = identities(&authority, &names).await;
    assert_eq!(authority.most_asking.load(Ordering::Relaxed), 8);
    assert!(clock.seconds() - start <= MANY as u64 / 8 + 2);
    let mut rotations: Vec<_> = identities.certificates().iter().map(|status| status.next_rotation).collect();
    rotations.sort_unstable();
    // Uniform over a tenth of a day: no tenth of that has more than a third.
    let tenth = DAY.as_secs() / 100;
    let densest =
        rotations.iter().map(|from| rotations.iter().filter(|at| (*from..*from + tenth).contains(at)).count());
    assert!(densest.max().unwrap() < MANY / 3);
    assert!(rotations[MANY - 1] - rotations[0] > DAY.as_secs() / 20);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_used_is_refused_and_the_old_one_kept() {
    let (clock, authority) = scene();
    let identities = identities(&authority, &["cart"]).await;
    let first = status(&identities, "cart").serial;
    // Signed by somebody whom nobody trusts.
    let trusted = std::mem::replace(&mut *authority.signer.lock().unwrap(), Arc::new(Signer::root("rogue")));
    until(&identities, |store| status(store, "cart").refusal.is_some()).await;
    let said = status(&identities, "cart");
    assert_eq!(said.refusal.unwrap().reason, Reason::CertificateUnusable);
    assert_eq!((said.serial, said.state), (first.clone(), CertificateState::Valid));
    assert!(identities.client(&identity("cart")).is_ok());
    *authority.signer.lock().unwrap() = trusted;
    until(&identities, |store| status(store, "cart").serial != first).await;

    // Somebody else's, one that is not valid yet, and one that is over.
    let (maker, now) = (&identities.maker, clock.current_time().unwrap());
    let table = identities.read();
    let signer = authority.signer.lock().unwrap().clone();
    let try_out = |svid: &mut Svid| {
        super::super::held::Held::new(svid, &identity("cart"), &table.trust, maker, now).err().map(|why| why.reason)
    };
    let own = identity("cart");
    assert_eq!(try_out(&mut signer.sign(&own, &clock, |_| ())), None);
    assert_eq!(try_out(&mut signer.sign(&identity("db"), &clock, |_| ())), Some(Reason::CertificateUnusable));
    for (from, until) in [(now.as_secs() + 60, now.as_secs() + 600), (now.as_secs() - 600, now.as_secs() - 60)] {
        let mut svid = signer.sign(&own, &clock, |leaf| valid(leaf, from, until));
        assert_eq!(try_out(&mut svid), Some(Reason::CertificateUnusable));
    }
    let mut mixed = signer.sign(&own, &clock, |_| ());
    mixed.key = signer.sign(&own, &clock, |_| ()).key.clone_key();
    assert_eq!(try_out(&mut mixed), Some(Reason::CertificateUnusable));
    let mut empty = signer.sign(&own, &clock, |_| ());
    empty.chain.clear();
    assert_eq!(try_out(&mut empty), Some(Reason::CertificateUnusable));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_verified_without_roots() {
    let (clock, authority) = scene();
    let roots = authority.bundle.send_replace(Arc::default());
    let identities = Identities::with(authority.clone(), settings(&clock));
    let running = identities.clone();
    tokio::spawn(async move { running.run().await });
    identities.want(&BTreeSet::from([identity("cart")]));
    until(&identities, |store| status(store, "cart").state == CertificateState::TrustUnknown).await;
    assert_eq!(identities.client(&identity("cart")).unwrap_err(), Reason::TrustUnknown);
    authority.bundle.send_replace(roots);
    until(&identities, |store| store.client(&identity("cart")).is_ok()).await;
    assert_eq!(authority.asked(), 1, "the certificate was not the problem");
    assert_eq!(identities.roots()[0].subject, "CN=root");
}

#[tokio::test(start_paused = true)]
async fn a_root_that_ends_is_believed_no_longer() {
    let clock = Clock::new();
    let now = clock.seconds();
    let root = Arc::new(Signer::made("root", None, |params| valid(params, now - 1, now + 3600)));
    let authority = Authority::new(&clock, &root);
    let identities = identities(&authority, &["cart", "db"]).await;
    connect(&identities, "cart", "db").unwrap();
    until(&identities, |store| store.client(&identity("cart")).is_err()).await;
    assert_eq!(identities.client(&identity("cart")).unwrap_err(), Reason::TrustUnknown);
    assert_eq!(clock.seconds(), now + 3601);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_is_followed() {
    let (clock, authority) = scene();
    let identities = identities(&authority, &["cart"]).await;
    let first = status(&identities, "cart").serial;
    clock.advance(14 * HOUR);
    let set = clock.seconds();
    until(&identities, |store| status(store, "cart").serial != first).await;
    assert!(clock.seconds() - set <= 30);
}
