use std::{fs, io::Write, os::unix::fs::symlink};

use tokio::time::timeout;

use super::*;
use crate::model::ObjectName;

/// So long that a test which waits for a poll fails.
const NO_POLL: Duration = Duration::from_hours(1);

/// A source of the folder `m` in a folder of its own.
struct Fixture {
    root: tempfile::TempDir,
    mesh: watch::Receiver<Arc<Mesh>>,
}

impl Fixture {
    /// Starts after `prepare` has filled the folder that it is given.
    fn start(poll: Duration, prepare: impl FnOnce(&Path)) -> Self {
        let root = tempfile::tempdir().unwrap();
        prepare(root.path());
        let (publish, mesh) = watch::channel(Arc::default());
        let source = Manifests::with_poll(&root.path().join("m"), Site::here(1), poll);
        tokio::spawn(source.run(publish));
        Self { root, mesh }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Waits for a snapshot in which the pods are these and the problems have these codes.
    async fn until(&mut self, pods: &str, problems: &str) -> Arc<Mesh> {
        let expected = (pods.to_owned(), problems.to_owned());
        let found = timeout(Duration::from_secs(10), self.mesh.wait_for(|mesh| shown(mesh) == expected)).await;
        let mesh = found.map(|mesh| Arc::clone(&mesh.unwrap()));
        mesh.unwrap_or_else(|_| panic!("wanted {expected:?}, have {:?}", shown(&self.mesh.borrow())))
    }
}

/// Names of the pods, enrolled ones in capitals, and codes of the problems.
fn shown(mesh: &Mesh) -> (String, String) {
    let name = |(name, workload): (&ObjectName, &Arc<crate::model::Workload>)| {
        if workload.enrolled { name.name.to_uppercase() } else { name.name.to_string() }
    };
    let pods: Vec<_> = mesh.workloads.iter().map(name).collect();
    let problems: Vec<_> = mesh.problems.iter().map(|problem| problem.reason.code()).collect();
    // Before the first publication nothing may look like an empty folder.
    if mesh.version == 0 { ("-".into(), "-".into()) } else { (pods.join(" "), problems.join(" ")) }
}

fn pod(name: &str) -> String {
    format!("---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}}}\n")
}

fn enrolled(name: &str, netns: &Path) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, annotations: {{mesh-agent.io/mesh: enabled, \
         mesh-agent.io/netns: {}}}}}\n",
        netns.display()
    )
}

fn with_folder(root: &Path) {
    fs::create_dir(root.join("m")).unwrap();
}

#[tokio::test]
async fn files_are_seen_as_they_are_written_renamed_and_deleted() {
    let mut fixture = Fixture::start(NO_POLL, |root| {
        with_folder(root);
        fs::write(root.join("m/a.yaml"), pod("a")).unwrap();
    });
    fixture.until("a", "").await;
    fixture.write("m/a.yaml", &pod("b"));
    fixture.until("b", "").await;
    // Same size, same instant as far as the clock can tell.
    for name in ["c", "d", "e"] {
        fixture.write("m/a.yaml", &pod(name));
        fixture.until(name, "").await;
    }
    fixture.write("x", &pod("renamed"));
    fs::rename(fixture.path("x"), fixture.path("m/a.yaml")).unwrap();
    fixture.until("renamed", "").await;
    fixture.write("m/b.json", "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"json\"}}");
    fixture.until("json renamed", "").await;
    fs::rename(fixture.path("m/a.yaml"), fixture.path("m/a.off")).unwrap();
    fixture.until("json", "").await;
    fs::remove_file(fixture.path("m/b.json")).unwrap();
    let mesh = fixture.until("", "").await;
    assert_eq!(mesh.source.files, 0);
}

#[tokio::test]
async fn a_toggled_namespace_toggles_its_pods() {
    let namespace = |mesh: &str| {
        let annotations = format!("annotations: {{mesh-agent.io/mesh: {mesh}}}");
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: default, {annotations}}}}}")
    };
    let mut fixture = Fixture::start(NO_POLL, |root| {
        with_folder(root);
        symlink("/proc/self/ns/net", root.join("ns")).unwrap();
        let pod = enrolled("a", &root.join("ns")).replace("mesh-agent.io/mesh: enabled, ", "");
        fs::write(root.join("m/pods.yaml"), pod).unwrap();
    });
    fixture.until("a", "").await;
    for _ in 0..3 {
        fixture.write("m/ns.yaml", &namespace("enabled"));
        fixture.until("A", "").await;
        fixture.write("m/ns.yaml", &namespace("disabled"));
        fixture.until("a", "").await;
    }
    fixture.write("m/ns.yaml", &namespace("enabled"));
    fixture.until("A", "").await;
    // Neither nonsense nor broken text turns anything off.
    fixture.write("m/ns.yaml", &namespace("on"));
    fixture.until("A", "unknown_annotation").await;
    fixture.write("m/ns.yaml", "{{");
    fixture.until("A", "bad_yaml").await;
}

#[tokio::test]
async fn a_file_is_not_read_while_it_is_being_written() {
    let mut fixture = Fixture::start(NO_POLL, |root| {
        with_folder(root);
        fs::write(root.join("m/a.yaml"), pod("a1") + &pod("a2")).unwrap();
    });
    fixture.until("a1 a2", "").await;
    let mut half = fs::File::create(fixture.path("m/a.yaml")).unwrap();
    half.write_all(pod("b1").as_bytes()).unwrap();
    // Makes the folder be looked at in the midst of it.
    fixture.write("m/z.yaml", &pod("z"));
    fixture.until("a1 a2 z", "").await;
    half.write_all(pod("b2").as_bytes()).unwrap();
    drop(half);
    fixture.until("b1 b2 z", "").await;
}

#[tokio::test]
async fn a_writer_that_never_closes_is_not_waited_for_for_ever() {
    let mut fixture = Fixture::start(Duration::from_millis(50), with_folder);
    let mut open = fs::File::create(fixture.path("m/a.yaml")).unwrap();
    open.write_all(pod("a").as_bytes()).unwrap();
    fixture.until("a", "").await;
}

#[tokio::test]
async fn a_mounted_config_map_is_swapped_as_one() {
    let mut fixture = Fixture::start(NO_POLL, |root| {
        with_folder(root);
        for (version, pods) in [("1", ["a", "b"]), ("2", ["c", "d"])] {
            let folder = root.join(format!("m/..{version}"));
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("x.yaml"), pod(pods[0])).unwrap();
            fs::write(folder.join("y.yaml"), pod(pods[1])).unwrap();
        }
        symlink("..1", root.join("m/..data")).unwrap();
        symlink("..data/x.yaml", root.join("m/x.yaml")).unwrap();
        symlink("..data/y.yaml", root.join("m/y.yaml")).unwrap();
    });
    fixture.until("a b", "").await;
    symlink("..2", fixture.path("m/..tmp")).unwrap();
    fs::rename(fixture.path("m/..tmp"), fixture.path("m/..data")).unwrap();
    fixture.mesh.changed().await.unwrap();
    assert_eq!(shown(&fixture.mesh.borrow_and_update()).0, "c d");
}

#[tokio::test]
async fn the_folder_may_come_go_and_be_replaced() {
    let mut fixture = Fixture::start(NO_POLL, |_| {});
    let mesh = fixture.until("", "source_unreadable").await;
    assert_eq!(mesh.source.read_at, None);
    with_folder(fixture.root.path());
    let mesh = fixture.until("", "").await;
    assert!(mesh.source.read_at.is_some());
    fixture.write("m/a.yaml", &pod("a"));
    fixture.until("a", "").await;
    // Away: the last good state stays.
    fs::rename(fixture.path("m"), fixture.path("away")).unwrap();
    fixture.until("a", "source_unreadable").await;
    with_folder(fixture.root.path());
    fixture.write("m/b.yaml", &pod("b"));
    fixture.until("b", "").await;
    fs::remove_dir_all(fixture.path("m")).unwrap();
    fixture.mesh.wait_for(|mesh| shown(mesh).1 == "source_unreadable").await.unwrap();
    // Back as a link, and then another link.
    symlink("away", fixture.path("m")).unwrap();
    fixture.until("a", "").await;
    fs::create_dir(fixture.path("other")).unwrap();
    fixture.write("other/c.yaml", &pod("c"));
    symlink("other", fixture.path("link")).unwrap();
    fs::rename(fixture.path("link"), fixture.path("m")).unwrap();
    fixture.until("c", "").await;
    fixture.write("other/c.yaml", &pod("d"));
    fixture.until("d", "").await;
}

#[tokio::test]
async fn what_no_watch_can_see_is_polled() {
    let mut fixture = Fixture::start(Duration::from_millis(50), |root| {
        with_folder(root);
        fs::write(root.join("elsewhere"), pod("a")).unwrap();
        symlink("../elsewhere", root.join("m/a.yaml")).unwrap();
    });
    fixture.until("a", "").await;
    fixture.write("elsewhere", &pod("changed"));
    fixture.until("changed", "").await;
}

#[tokio::test]
async fn files_that_are_none_are_reported_or_passed_over() {
    let mut fixture = Fixture::start(NO_POLL, |root| {
        with_folder(root);
        fs::create_dir(root.join("m/folder.yaml")).unwrap();
        nix::unistd::mkfifo(&root.join("m/pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for name in [".hidden.yaml", "readme.md", "a.yaml~"] {
            fs::write(root.join("m").join(name), "{{").unwrap();
        }
        fs::write(root.join("m/a.yml"), pod("a")).unwrap();
    });
    fixture.until("a", "").await;
    fs::write(fixture.path("m/a.yml"), b"a: b\nc: \xff\n").unwrap();
    let mesh = fixture.until("a", "bad_yaml").await;
    assert_eq!(mesh.problems[0].location.line, 2);
    // Sparse: it takes no room, and must not be read.
    let huge = fs::File::create(fixture.path("m/huge.yaml")).unwrap();
    huge.set_len(100 << 20).unwrap();
    drop(huge);
    fixture.until("a", "bad_yaml source_unreadable").await;
    symlink("nowhere", fixture.path("m/link.yaml")).unwrap();
    let mesh = fixture.until("a", "bad_yaml source_unreadable source_unreadable").await;
    assert!(mesh.problems[1].to_string().contains("104857600 bytes"), "{}", mesh.problems[1]);
    fs::remove_file(fixture.path("m/huge.yaml")).unwrap();
    fs::remove_file(fixture.path("m/link.yaml")).unwrap();
    fixture.until("a", "bad_yaml").await;
}

#[tokio::test]
async fn a_file_that_cannot_be_read_keeps_its_objects() {
    let mut fixture = Fixture::start(NO_POLL, |root| {
        with_folder(root);
        fs::write(root.join("m/a.yaml"), pod("a")).unwrap();
    });
    fixture.until("a", "").await;
    symlink("nowhere", fixture.path("link")).unwrap();
    fs::rename(fixture.path("link"), fixture.path("m/a.yaml")).unwrap();
    let mesh = fixture.until("a", "source_unreadable").await;
    assert!(mesh.source.read_at.is_some());
    fixture.write("nowhere", &pod("b"));
    fs::remove_file(fixture.path("m/a.yaml")).unwrap();
    fixture.until("", "").await;
}

#[tokio::test]
async fn a_namespace_may_come_after_its_pod_and_go_before_it() {
    // Far from the manifests: nothing watched for their sake may help.
    let run = tempfile::tempdir().unwrap();
    let path = |name: &str| run.path().join(name);
    let mut fixture = Fixture::start(NO_POLL, |root| {
        with_folder(root);
        let text = enrolled("a", &path("netns/a")) + &enrolled("b", &path("netns/b"));
        fs::write(root.join("m/a.yaml"), text).unwrap();
    });
    fixture.until("A B", "netns_missing netns_missing").await;
    fs::create_dir(path("netns")).unwrap();
    symlink("/proc/self/ns/net", path("netns/a")).unwrap();
    let mesh = fixture.until("A B", "netns_missing").await;
    assert_eq!(mesh.netns.len(), 1);
    // As `ip netns add` does it: first a plain file, then, without an event, the namespace at its place.
    fs::write(path("netns/plain"), "").unwrap();
    symlink("plain", path("netns/b")).unwrap();
    symlink("/proc/self/ns/net", path("other")).unwrap();
    fs::rename(path("other"), path("netns/plain")).unwrap();
    fixture.until("A B", "").await;
    fs::remove_file(path("netns/a")).unwrap();
    fixture.until("A B", "netns_missing").await;
}

#[tokio::test]
async fn nothing_is_published_when_nothing_changed() {
    let mut fixture = Fixture::start(Duration::from_millis(20), |root| {
        with_folder(root);
        fs::write(root.join("m/a.yaml"), pod("a")).unwrap();
    });
    let first = fixture.until("a", "").await;
    fixture.write("m/a.yaml", &pod("a"));
    let read_at = first.source.read_at;
    // Read again, and nobody is told: so there is no event to wait for.
    let later = async {
        while fixture.mesh.borrow().source.read_at == read_at {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), later).await.unwrap();
    fixture.write("m/b.yaml", &pod("b"));
    assert_eq!(fixture.until("a b", "").await.version, 2);
}

#[tokio::test]
async fn it_ends_when_nobody_listens() {
    let root = tempfile::tempdir().unwrap();
    let (publish, mesh) = watch::channel(Arc::default());
    let run = tokio::spawn(Manifests::new(root.path(), Site::here(1)).run(publish));
    drop(mesh);
    timeout(Duration::from_secs(10), run).await.unwrap().unwrap();
}
