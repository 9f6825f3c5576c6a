//! The inputs that are kept, through the targets as they are.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::*;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 8] = [
    ("cgroups", cgroups),
    ("csr", csr),
    ("grpc", grpc),
    ("hbone_headers", hbone_headers),
    ("hbone_server", hbone_server),
    ("manifests", manifests),
    ("tls_handshake", tls_handshake),
    ("tls_records", tls_records),
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(name)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().path()).collect());
    entries.unwrap_or_default()
}

fn stems(folder: &Path) -> BTreeSet<String> {
    files(folder).iter().map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_target_has_its_program_and_its_seeds() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(stems(&folder("src/bin")), targets);
    assert_eq!(stems(&folder("seeds")), targets);
    assert!(stems(&folder("regressions")).is_subset(&targets));
}

#[test]
fn kept_inputs_do_no_harm() {
    for (name, target) in TARGETS {
        for kind in ["seeds", "regressions"] {
            for path in files(&folder(kind).join(name)) {
                let input = fs::read(&path).unwrap();
                assert!(std::panic::catch_unwind(|| target(&input)).is_ok(), "{}", path.display());
            }
        }
    }
}
