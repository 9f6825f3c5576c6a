use std::time::{Duration, Instant};

use super::{bucket::Bucket, *};

const NOW: &str = "2026-11-22T10:00:00Z";
const LATER: &str = "2026-11-22T11:00:00Z";
const UID: &str = "0f3b8f0e-6f8b-4a44-9d8f-3a1f0c9f5a11";

fn report(state: PodState) -> Report {
    Report {
        name: ObjectName::new("shop", "web-0"),
        uid: PodUid::parse(UID),
        enrolled: true,
        state,
        mode: Mode::Permissive,
        problem: None,
    }
}

fn held(uid: &str, annotation: Option<&str>) -> BTreeMap<ObjectName, Held> {
    let held = Held { uid: Some(uid.to_owned()), annotation: annotation.map(str::to_owned) };
    [(ObjectName::new("shop", "web-0"), held)].into()
}

/// What becomes of the annotation.
#[derive(Debug, PartialEq, Eq)]
enum Becomes {
    AsItWas,
    Removed,
    Written(String),
}

impl Becomes {
    fn text(self) -> String {
        match self {
            Self::Written(text) => text,
            other => panic!("{other:?}"),
        }
    }
}

fn change(report: &Report, held: &BTreeMap<ObjectName, Held>, now: &str) -> Becomes {
    match changes(std::slice::from_ref(report), held, now).pop().map(|change| change.annotation) {
        None => Becomes::AsItWas,
        Some(None) => Becomes::Removed,
        Some(Some(text)) => Becomes::Written(text),
    }
}

const ARMED: &str = r#"{"state":"armed","mode":"permissive","since":"2026-11-22T10:00:00Z"}"#;

#[test]
fn what_has_not_changed_is_not_written_again() {
    let armed = report(PodState::Armed);
    assert_eq!(change(&armed, &BTreeMap::new(), NOW), Becomes::Written(ARMED.to_owned()));
    assert_eq!(change(&armed, &held(UID, Some(ARMED)), LATER), Becomes::AsItWas, "since stays what it was");
    let strict = Report { mode: Mode::Strict, ..armed.clone() };
    let text = change(&strict, &held(UID, Some(ARMED)), LATER).text();
    assert!(text.contains("strict") && text.contains(LATER), "{text}");
    assert!(
        matches!(change(&armed, &held(UID, Some("made up")), NOW), Becomes::Written(_)),
        "what others have written is replaced"
    );
}

#[test]
fn what_is_wrong_is_said_with_its_reason() {
    let problem = Some((Reason::HostNetwork, "it uses the node's network".to_owned()));
    let failed = Report { problem, ..report(PodState::Failed) };
    let text = change(&failed, &held(UID, Some(ARMED)), NOW).text();
    let said = PodStatus::parse(&text).unwrap();
    assert_eq!((said.state, said.reason.as_deref()), (PodState::Failed, Some("host_network")));
    let long = Some((Reason::ArmFailed, "ü".repeat(500)));
    let text = change(&Report { problem: long, ..failed }, &BTreeMap::new(), NOW).text();
    assert!(PodStatus::parse(&text).unwrap().message.unwrap().len() <= MAX_MESSAGE);
}

#[test]
fn the_annotation_goes_with_the_enrolment() {
    let off = Report { enrolled: false, ..report(PodState::Off) };
    assert_eq!(change(&off, &held(UID, Some(ARMED)), NOW), Becomes::Removed);
    assert_eq!(change(&off, &held(UID, None), NOW), Becomes::AsItWas);
    assert_eq!(change(&off, &BTreeMap::new(), NOW), Becomes::AsItWas);
    let draining = Report { enrolled: false, ..report(PodState::Draining) };
    assert_eq!(change(&draining, &held(UID, Some(ARMED)), NOW), Becomes::Removed, "nothing new is captured");
}

#[test]
fn of_a_pod_that_is_not_there_yet_nothing_is_said() {
    assert_eq!(change(&report(PodState::Waiting), &BTreeMap::new(), NOW), Becomes::AsItWas);
    assert_eq!(change(&report(PodState::Waiting), &held(UID, Some(ARMED)), NOW), Becomes::AsItWas);
    assert_eq!(changes(&[], &held(UID, Some(ARMED)), NOW), [], "nor of one that nobody knows");
}

#[test]
fn another_pod_of_the_same_name_is_another_pod() {
    let other = "11111111-6f8b-4a44-9d8f-3a1f0c9f5a11";
    assert!(matches!(change(&report(PodState::Armed), &held(other, Some(ARMED)), NOW), Becomes::Written(_)));
    // A static pod is known by its hash, and its object by a UID.
    let mirrored = Report { uid: PodUid::parse(&"a".repeat(32)), ..report(PodState::Armed) };
    assert_eq!(change(&mirrored, &held(other, Some(ARMED)), NOW), Becomes::AsItWas);
}

#[test]
fn a_problem_is_news_once() {
    let problem = Some((Reason::CaptureUnarmed, "3 connections".to_owned()));
    let reports = [Report { problem, ..report(PodState::Armed) }];
    assert_eq!(news(&reports, &|_, _| false).count(), 1);
    assert_eq!(news(&reports, &|_, reason| reason == Reason::CaptureUnarmed).count(), 0);
    assert_eq!(news(&reports, &|_, reason| reason == Reason::HostNetwork).count(), 1, "another one was");
}

#[test]
fn the_bucket_bounds_what_comes_at_once_and_in_the_long_run() {
    let start = Instant::now();
    let mut bucket = Bucket::new(3, Duration::from_secs(10), start);
    assert_eq!((0..100).filter(|_| bucket.take(start)).count(), 3);
    let minute = (1..=60).filter(|second| bucket.take(start + Duration::from_secs(*second))).count();
    assert!((5..=6).contains(&minute), "{minute}");
    assert!(bucket.take(start + Duration::from_hours(1)));
}
