//! Sessions are resumed as long as nothing has changed, and not a moment longer.

use super::*;

async fn scene() -> (Clock, Arc<Signer>, Arc<Authority>, Arc<Identities>) {
    let (clock, root) = (Clock::new(), Arc::new(Signer::root("root")));
    let authority = Authority::new(&clock, &root);
    let identities = identities(&authority, &["cart", "db", "other"]).await;
    (clock, root, authority, identities)
}

#[tokio::test(start_paused = true)]
async fn the_second_connection_resumes_the_first() {
    let (_, _, _, identities) = scene().await;
    assert_eq!(connect(&identities, "cart", "db"), Ok(HandshakeKind::Full));
    for _ in 0..5 {
        assert_eq!(connect(&identities, "cart", "db"), Ok(HandshakeKind::Resumed));
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_belongs_to_both_its_identities() {
    let (_, _, _, identities) = scene().await;
    connect(&identities, "cart", "db").unwrap();
    // The name is the same in all of these.
    assert_eq!(connect(&identities, "other", "db"), Ok(HandshakeKind::Full));
    assert_eq!(connect(&identities, "cart", "other"), Ok(HandshakeKind::Full));
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_with_its_hour() {
    let (clock, _, _, identities) = scene().await;
    connect(&identities, "cart", "db").unwrap();
    clock.advance(Duration::from_mins(59));
    assert_eq!(connect(&identities, "cart", "db"), Ok(HandshakeKind::Resumed));
    clock.advance(HOUR + Duration::from_secs(5));
    assert_eq!(connect(&identities, "cart", "db"), Ok(HandshakeKind::Full));
}

#[tokio::test(start_paused = true)]
async fn a_removed_root_ends_sessions_and_lets_nobody_in() {
    let (clock, root, authority, identities) = scene().await;
    let other = Arc::new(Signer::root("other"));
    // Another node, which still has a certificate by the root that is removed here.
    let there = Authority::new(&clock, &root);
    let elsewhere = super::identities(&there, &["cart", "db"]).await;
    let call = || {
        let client = elsewhere.client(&identity("cart")).unwrap();
        let mut connection = Connection::new(&client, &identities.server(&identity("db")).unwrap());
        connection.run().map(|()| connection.kind())
    };
    assert_eq!(call(), Ok(HandshakeKind::Full));
    assert_eq!(call(), Ok(HandshakeKind::Resumed));

    let before = identities.server(&identity("db")).unwrap();
    let away = Refusal { reason: Reason::CaUnreachable, message: "away".to_owned(), is_transient: true };
    authority.mood.send_replace(Mood::Refuses(away));
    *authority.signer.lock().unwrap() = other.clone();
    authority.bundle.send_replace(bundle(&[&other]));
    until(&identities, |store| store.bundle() == bundle(&[&other])).await;
    assert!(!Arc::ptr_eq(&before, &identities.server(&identity("db")).unwrap()));

    // The client has tickets left. They are worth nothing, and its certificate is refused, though this node still uses one
    // by the same root, for those who have not heard.
    let [_, here] = call().unwrap_err();
    assert_eq!(here, Some(Reason::PeerNotTrusted));
    let client = identities.client(&identity("cart")).unwrap();
    let mut connection = Connection::new(&client, &elsewhere.server(&identity("db")).unwrap());
    assert_eq!(connection.run().unwrap_err()[0], Some(Reason::PeerNotTrusted));
    // It asks for certificates by the new root at once, and again as soon as it may.
    authority.mood.send_replace(Mood::Gives(DAY));
    until(&identities, |store| store.certificates().iter().all(|status| status.refusal.is_none())).await;
    assert_eq!(connect(&identities, "cart", "db"), Ok(HandshakeKind::Full));
}

#[tokio::test(start_paused = true)]
async fn a_client_does_not_resume_what_a_removed_root_vouched_for() {
    let (clock, root, authority, identities) = scene().await;
    let elsewhere = super::identities(&Authority::new(&clock, &root), &["db"]).await;
    let call = || {
        let server = elsewhere.server(&identity("db")).unwrap();
        let mut connection = Connection::new(&identities.client(&identity("cart")).unwrap(), &server);
        connection.run().map(|()| connection.kind())
    };
    assert_eq!(call(), Ok(HandshakeKind::Full));
    assert_eq!(call(), Ok(HandshakeKind::Resumed));
    let other = Arc::new(Signer::root("other"));
    authority.bundle.send_replace(bundle(&[&other]));
    until(&identities, |store| store.bundle() == bundle(&[&other])).await;
    assert_eq!(call().unwrap_err()[0], Some(Reason::PeerNotTrusted));
}

#[tokio::test(start_paused = true)]
async fn roots_change_without_a_refusal() {
    let (_, old, authority, identities) = scene().await;
    let new = Arc::new(Signer::root("new"));
    // First both are trusted, then the new one signs, then the old one goes.
    authority.bundle.send_replace(bundle(&[&old, &new]));
    until(&identities, |store| store.bundle() == bundle(&[&old, &new])).await;
    assert_eq!(connect(&identities, "cart", "db"), Ok(HandshakeKind::Full));
    *authority.signer.lock().unwrap() = new.clone();
    let of_new = |name: &str| {
        let certificates = identities.certificates();
        let of = certificates.iter().find(|status| status.identity == identity(name)).unwrap();
        of.issued.unwrap()
    };
    let first = of_new("cart");
    until(&identities, |_| of_new("cart") > first).await;
    assert_eq!(connect(&identities, "cart", "db"), Ok(HandshakeKind::Full));
    until(&identities, |_| of_new("db") > first && of_new("other") > first).await;
    authority.bundle.send_replace(bundle(&[&new]));
    until(&identities, |store| store.bundle() == bundle(&[&new])).await;
    assert_eq!(connect(&identities, "cart", "db"), Ok(HandshakeKind::Full));
    assert_eq!(connect(&identities, "cart", "db"), Ok(HandshakeKind::Resumed));
}

#[tokio::test(start_paused = true)]
async fn who_resumes_with_an_expired_certificate_is_nobody() {
    let (clock, _, authority, identities) = scene().await;
    authority.mood.send_replace(Mood::Gives(Duration::from_mins(10)));
    let short = super::identities(&authority, &["cart"]).await;
    let call = || {
        let (client, server) = (short.client(&identity("cart")), identities.server(&identity("db")).unwrap());
        (client, server)
    };
    let (client, server) = call();
    let client = client.unwrap();
    let mut first = Connection::new(&client, &server);
    first.run().unwrap();
    assert_eq!(identities.peer(first.server.peer_certificates().unwrap()), Some(identity("cart")));
    clock.advance(Duration::from_secs(601));
    // Its configurations are refused to an honest proxy. A dishonest one has kept them.
    assert_eq!(call().0.err(), Some(Reason::CertificateExpired));
    let mut second = Connection::new(&client, &server);
    second.run().unwrap();
    assert_eq!(second.kind(), HandshakeKind::Resumed);
    assert_eq!(identities.peer(second.server.peer_certificates().unwrap()), None);
}

#[tokio::test(start_paused = true)]
async fn a_node_keeps_a_bounded_number_of_sessions() {
    use rustls::client::ClientSessionStore as _;

    use crate::identity::sessions::Sessions;

    let (_, _, _, identities) = scene().await;
    let (client, server) = (identities.client(&identity("cart")).unwrap(), identities.server(&identity("db")).unwrap());
    let sessions = Sessions::new(3);
    let (one, other) = (Arc::new(sessions.store()), Arc::new(sessions.store()));
    let name = |n: u32| ServerName::try_from(format!("n{n}.example")).unwrap();
    // Two tickets each.
    let connect = |store: &Arc<crate::identity::sessions::Store>, n| {
        let mut client = ClientConfig::clone(&client);
        client.resumption = rustls::client::Resumption::store(store.clone());
        let mut connection = Connection {
            client: ClientConnection::new(Arc::new(client), name(n)).unwrap(),
            server: ServerConnection::new(server.clone()).unwrap(),
        };
        connection.run().unwrap();
    };
    connect(&one, 1);
    connect(&one, 2);
    // The older one of the first is gone.
    assert!(one.take_tls13_ticket(&name(1)).is_some());
    assert!(one.take_tls13_ticket(&name(1)).is_none());
    assert!(other.take_tls13_ticket(&name(2)).is_none(), "of another configuration");
    connect(&other, 2);
    drop(one);
    // Room again: what the other keeps stays.
    connect(&other, 3);
    assert!(other.take_tls13_ticket(&name(2)).is_some());
    assert!(other.take_tls13_ticket(&name(3)).is_some());
    assert!(other.take_tls13_ticket(&name(3)).is_some());
    assert!(other.take_tls13_ticket(&name(3)).is_none());
}
