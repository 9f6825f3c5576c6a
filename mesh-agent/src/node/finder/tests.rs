use std::{fs, process::Child};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

const UID: &str = "0f974531-63b9-45c0-b5ed-377d4e981b72";

/// A tree of folders that look like cgroups, in which the test process itself stands for what runs in pods.
struct Fixture {
    root: tempfile::TempDir,
    events: UnboundedReceiver<Event>,
}

impl Fixture {
    /// `is_on_node`: whether the test process' own namespace is the node's.
    fn start(is_on_node: bool, before: impl FnOnce(&Path)) -> Self {
        let root = tempfile::tempdir().unwrap();
        before(root.path());
        let node = is_on_node.then(|| Netns::of_process("self").unwrap().id());
        let (tell, events) = unbounded_channel();
        let finder = Finder::with_node(root.path(), node.into_iter().collect(), tell).unwrap();
        tokio::spawn(finder.run());
        Self { root, events }
    }

    async fn next(&mut self) -> String {
        let event = tokio::time::timeout(Duration::from_secs(10), self.events.recv()).await.unwrap().unwrap();
        let what = match &event {
            Event::Created { uid, .. } => format!("created {uid}"),
            Event::Found { uid, .. } => format!("found {uid}"),
            Event::OnHost { uid } => format!("on host {uid}"),
            Event::Gone { uid } => format!("gone {uid}"),
            Event::Settled => "settled".to_owned(),
        };
        what.split('-').next().unwrap().to_owned()
    }
}

fn pod(root: &Path) -> PathBuf {
    root.join("kubepods/besteffort").join(format!("pod{UID}"))
}

/// A container with these processes in it.
fn container(root: &Path, name: &str, pids: &[u32]) {
    let folder = pod(root).join(name);
    fs::create_dir_all(&folder).unwrap();
    set(&folder, pids);
}

fn set(folder: &Path, pids: &[u32]) {
    let lines: Vec<_> = pids.iter().map(u32::to_string).collect();
    fs::write(folder.join("cgroup.procs"), lines.join("\n")).unwrap();
    let populated = u8::from(!pids.is_empty());
    fs::write(folder.join("cgroup.events"), format!("populated {populated}\nfrozen 0\n")).unwrap();
}

/// A process id that nobody has.
fn dead() -> u32 {
    let mut child: Child = std::process::Command::new("true").spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    pid
}

#[tokio::test]
async fn a_pod_is_found_by_the_first_process_that_lives() {
    let mut fixture = Fixture::start(false, |_| {});
    assert_eq!(fixture.next().await, "settled");
    container(fixture.root.path(), "sandbox", &[]);
    assert_eq!(fixture.next().await, "created 0f974531");
    set(&pod(fixture.root.path()).join("sandbox"), &[dead(), std::process::id()]);
    assert_eq!(fixture.next().await, "found 0f974531");
    // Containers that come and go change nothing, not even when the sandbox has gone.
    container(fixture.root.path(), "app", &[std::process::id()]);
    fs::remove_dir_all(pod(fixture.root.path()).join("sandbox")).unwrap();
    fs::remove_dir_all(pod(fixture.root.path())).unwrap();
    assert_eq!(fixture.next().await, "gone 0f974531");
}

#[tokio::test]
async fn what_runs_before_the_agent_is_told_before_it_is_settled() {
    let mut fixture = Fixture::start(false, |root| container(root, "sandbox", &[std::process::id()]));
    for expected in ["created 0f974531", "found 0f974531", "settled"] {
        assert_eq!(fixture.next().await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_processes_stay_on_the_node_is_said_to_be_there() {
    let mut fixture = Fixture::start(true, |root| container(root, "sandbox", &[std::process::id()]));
    for expected in ["created 0f974531", "settled", "on host 0f974531"] {
        assert_eq!(fixture.next().await, expected);
    }
}

#[tokio::test]
async fn processes_of_a_folder_below_count_as_the_containers() {
    let mut fixture = Fixture::start(false, |root| {
        container(root, "crio-1.scope", &[]);
        container(root, "crio-1.scope/container", &[std::process::id()]);
    });
    for expected in ["created 0f974531", "found 0f974531", "settled"] {
        assert_eq!(fixture.next().await, expected);
    }
}

#[tokio::test]
async fn a_process_of_another_pid_namespace_is_not_taken_for_ours() {
    let mut fixture = Fixture::start(false, |root| container(root, "sandbox", &[0]));
    for expected in ["created 0f974531", "settled"] {
        assert_eq!(fixture.next().await, expected);
    }
    set(&pod(fixture.root.path()).join("sandbox"), &[std::process::id()]);
    assert_eq!(fixture.next().await, "found 0f974531");
}
