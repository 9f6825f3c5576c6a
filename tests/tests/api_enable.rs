//! `mesh-agent enable` and `disable`, the tool itself on the test server; the tests say what agents would.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agents;

use agents::{ARMED, Fixture, end, eventually, status, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

const FAILED: &str = r#"{"state":"failed","mode":"permissive","since":"2026-11-22T10:00:00Z","reason":"arm_failed","message":"no slot"}"#;

/// What a pod's network says at the n-th question, if so many of 100 connections between two questions fail.
fn network(number: u64, failing: u64) -> Value {
    json!([{
        "name": {"namespace": "shop", "name": "web"}, "active_opens": 100 * number, "passive_opens": 0,
        "attempt_fails": failing * number, "established_resets": 0, "retransmitted_segments": 0, "sent_segments": 0,
        "round_trips_us": 400, "round_trips": 2,
    }])
}

#[test]
fn namespaces_are_annotated_and_nothing_else_of_them_changes() {
    let fixture = Fixture::new(&["a"]);
    let done = fixture.run(&["enable", "shop"]);
    assert_eq!((done.code, fixture.mesh().as_deref()), (Some(0), Some("enabled")), "{done:?}");
    let done = fixture.run(&["disable", "shop"]);
    assert_eq!((done.code, fixture.mesh().as_deref()), (Some(0), Some("disabled")), "{done:?}");
    let done = fixture.run(&["enable", "shop", "nowhere"]);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert_eq!(done.err.matches("not found").count(), 1, "what the server said is said once: {done:?}");
    assert_eq!(fixture.mesh().as_deref(), Some("disabled"), "all must be there before one is changed");
}

#[test]
fn it_waits_until_every_pod_confirms() {
    let fixture = Fixture::new(&["a", "b"]);
    fixture.pod("web-0", "a", None);
    fixture.pod("web-1", "b", None);
    let mut enabling = fixture.start(&["enable", "shop", "--wait"]);
    until(&mut enabling, "0 of 2 pods confirmed; not yet: shop/web-0 shop/web-1");
    assert_eq!(fixture.mesh().as_deref(), Some("enabled"));
    fixture.pod("web-0", "a", Some(ARMED));
    until(&mut enabling, "1 of 2 pods confirmed; not yet: shop/web-1");
    fixture.pod("web-1", "b", Some(ARMED));
    let done = end(enabling);
    assert!(done.code == Some(0) && done.err.contains("2 of 2"), "{done:?}");

    let mut disabling = fixture.start(&["disable", "shop", "--wait"]);
    until(&mut disabling, "0 of 2 pods confirmed");
    fixture.pod("web-0", "a", None);
    fixture.pod("web-1", "b", None);
    assert_eq!(end(disabling).code, Some(0));
}

#[test]
fn those_that_do_not_confirm_are_named_with_the_reason() {
    let fixture = Fixture::new(&["a", "b"]);
    fixture.pod("web-0", "a", Some(FAILED));
    fixture.pod("web-1", "b", None);
    let done = fixture.run(&["enable", "shop", "--wait", "--timeout", "1s"]);
    assert_eq!((done.code, fixture.mesh().as_deref()), (Some(1), Some("enabled")), "{done:?}");
    for line in [
        "shop/web-0 on a: arm_failed: no slot",
        "shop/web-1 on b: no word",
        "shop stays enabled",
        "mesh-agent disable shop",
    ] {
        assert!(done.err.contains(line), "{line}: {}", done.err);
    }
}

#[test]
fn when_it_gets_worse_it_is_rolled_back_to_what_it_was() {
    let fixture = Fixture::new(&["a"]);
    fixture.pod("web", "a", Some(ARMED));
    let agent = fixture.agent("a", status("0.1.0", &[]));
    let guarded = ["enable", "shop", "--auto-rollback", "--observe", "100ms", "--max-error-increase", "5"];
    // Two of a hundred fail; after the change (the first five questions are about before) eight.
    *agent.networks.lock().unwrap() = Some(Box::new(|asked| network(asked, if asked > 5 { 8 } else { 2 })));
    let done = fixture.run(&guarded);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.err.contains("rolled back: shop as before"), "{}", done.err);
    assert_eq!(fixture.mesh(), None, "there was no annotation before");

    // As bad as it was: it stays. And what it was may have been another value.
    assert_eq!(fixture.run(&["disable", "shop"]).code, Some(0));
    *agent.networks.lock().unwrap() = Some(Box::new(|asked| network(asked, 2)));
    let done = fixture.run(&guarded);
    assert_eq!((done.code, fixture.mesh().as_deref()), (Some(0), Some("enabled")), "{done:?}");
    assert!(done.err.contains("2.00 % failed"), "{}", done.err);
}

#[test]
fn what_cannot_be_compared_is_not_begun() {
    let fixture = Fixture::new(&["a"]);
    fixture.pod("web", "a", None);
    let done = fixture.run(&["enable", "shop", "--auto-rollback", "--observe", "100ms"]);
    assert!(done.code == Some(1) && done.err.contains("no agent"), "{done:?}");
    fixture.silent_agent("a");
    let done = fixture.run(&["enable", "shop", "--auto-rollback", "--observe", "100ms"]);
    assert!(done.code == Some(1) && done.err.contains("nothing was changed"), "{done:?}");
    assert_eq!(fixture.mesh(), None);
}

#[test]
fn an_interruption_leaves_a_state_that_it_names() {
    let fixture = Fixture::new(&["a"]);
    fixture.pod("web", "a", None);
    let agent = fixture.agent("a", status("0.1.0", &[]));
    *agent.networks.lock().unwrap() = Some(Box::new(|asked| network(asked, 2)));
    let interrupt =
        |child: &std::process::Child| kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();

    // While it waits: it stays as it is, and says how to undo it.
    let mut waiting = fixture.start(&["enable", "shop", "--wait"]);
    until(&mut waiting, "0 of 1 pods confirmed");
    interrupt(&waiting);
    let done = end(waiting);
    assert!(done.code == Some(1) && done.err.contains("interrupted; shop stays enabled"), "{done:?}");
    assert_eq!(fixture.mesh().as_deref(), Some("enabled"));
    assert_eq!(fixture.run(&["disable", "shop"]).code, Some(0));

    // With a guard: back to what it was.
    let mut guarded = fixture.start(&["enable", "shop", "--auto-rollback", "--observe", "100ms"]);
    until(&mut guarded, "0 of 1 pods confirmed");
    interrupt(&guarded);
    let done = end(guarded);
    assert!(done.code == Some(1) && done.err.contains("rolled back"), "{done:?}");
    eventually("it is as it was", || fixture.mesh().as_deref() == Some("disabled"));

    // Before anything was changed.
    let mut early = fixture.start(&["enable", "shop", "--auto-rollback", "--observe", "1h"]);
    until(&mut early, "looking at what is");
    interrupt(&early);
    let done = end(early);
    assert!(done.code == Some(1) && done.err.contains("nothing was changed"), "{done:?}");
    assert_eq!(fixture.mesh().as_deref(), Some("disabled"));
}
