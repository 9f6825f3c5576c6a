use std::{fs, time::Duration};

use super::*;

const UID: &str = "0f974531-63b9-45c0-b5ed-377d4e981b72";

/// Folders that look like cgroups, which the kernel tells about in the same way.
struct Fixture {
    root: tempfile::TempDir,
    tree: Tree,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let tree = Tree::new(root.path()).unwrap();
        Self { root, tree }
    }

    fn make(&self, path: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("cgroup.events"), "populated 0\n").unwrap();
    }

    fn remove(&self, path: &str) {
        fs::remove_dir_all(self.root.path().join(path)).unwrap();
    }

    /// The changes until nothing more comes.
    async fn changes(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        while tokio::time::timeout(Duration::from_millis(20), self.tree.wait()).await.is_ok() {
            all.extend(self.tree.changes());
        }
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().chars().take(5).collect::<String>();
        all.into_iter()
            .map(|change| match change {
                Change::Came(path, _) => format!("+{}", name(path)),
                Change::Went(path, _) => format!("-{}", name(path)),
                Change::Stirred(path, _) => format!("~{}", name(path)),
            })
            .collect()
    }
}

#[tokio::test]
async fn what_comes_and_goes_is_told_once_and_in_order() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.changes().await, [""; 0]);
    let pod = format!("kubepods/burstable/pod{UID}");
    // All of it may be there before the first event is read.
    fixture.make(&format!("{pod}/aaaaa"));
    fixture.make(&format!("{pod}/bbbbb"));
    assert_eq!(fixture.changes().await, ["+pod0f", "+aaaaa", "+bbbbb"]);
    fs::write(fixture.root.path().join(&pod).join("aaaaa/cgroup.events"), "populated 1\n").unwrap();
    assert!(fixture.changes().await.contains(&"~aaaaa".to_owned()));
    fixture.remove(&format!("{pod}/aaaaa"));
    assert_eq!(fixture.changes().await, ["-aaaaa"]);
    fixture.remove(&pod);
    assert_eq!(fixture.changes().await, ["-bbbbb", "-pod0f"]);
    // Another one in the place of the former, with nothing read in between.
    fixture.make(&pod);
    fixture.remove(&pod);
    fixture.make(&format!("{pod}/ccccc"));
    let changes = fixture.changes().await;
    assert_eq!(changes.iter().rev().take(2).collect::<Vec<_>>(), ["+ccccc", "+pod0f"], "{changes:?}");
    let (came, went): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.starts_with('+'));
    assert_eq!(came.len(), went.len() + 2, "{changes:?}");
}

#[tokio::test]
async fn lost_events_are_made_up_for() {
    let mut fixture = Fixture::new();
    let pod = format!("kubepods.slice/kubepods-pod{}.slice", UID.replace('-', "_"));
    fixture.make(&format!("{pod}/aaaaa"));
    assert_eq!(fixture.changes().await, ["+kubep", "+aaaaa"]);
    fixture.remove(&format!("{pod}/aaaaa"));
    fixture.make(&format!("{pod}/bbbbb"));
    fixture.make("kubepods/pode6484ad60ee4a4f8f9ac017dc410c5b8");
    // As if the queue had overflowed: what is in it is thrown away.
    while fixture.tree.inotify.get_ref().0.read_events().is_ok() {}
    fixture.tree.rescan();
    let mut changes: Vec<_> = fixture.tree.changes().into_iter().collect();
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert!(matches!(changes.remove(0), Change::Went(path, _) if path.ends_with("aaaaa")));
    // And what comes afterwards is seen.
    fixture.make(&format!("{pod}/ccccc"));
    assert_eq!(fixture.changes().await, ["+ccccc"]);
}

#[tokio::test]
async fn a_tree_that_is_not_there_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    assert!(matches!(Tree::new(&root.path().join("absent")), Err(Error::Tree { .. })));
}
