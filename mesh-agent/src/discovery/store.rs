//! What is in force of what was read: bad files and bad objects keep their last good version. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

use super::{
    object::{Key, Kind, Loaded, Object},
    parse::{Entry, Parsed},
};
use crate::model::{Problem, Reason, Severity};

#[cfg(test)]
mod tests;

/// The files of the source as last read.
#[derive(Debug, Default)]
pub(super) struct Store {
    files: BTreeMap<Arc<PathBuf>, File>,
    good: HashMap<Key, Loaded>,
}

#[derive(Debug, Default)]
struct File {
    parsed: Parsed,
    /// Objects that were in the file before and may be one of its documents that now do not say what they are.
    retained: Vec<Entry>,
    /// Why it could not be read this time; then all else is what was read before.
    error: Option<Problem>,
    /// It has been known at least once which objects are in it.
    is_known: bool,
}

/// All objects in force, in the order of files and documents, no two of the same key.
#[derive(Debug, Default)]
pub(super) struct InForce {
    pub(super) objects: Vec<Loaded>,
    pub(super) problems: Vec<Problem>,
    pub(super) files: usize,
    pub(super) ignored: usize,
    /// Every file could be read and is YAML.
    pub(super) readable: bool,
    /// There may be pods that are not among the objects: what would say so cannot be read, and never could.
    pub(super) partial: bool,
}

impl Store {
    /// Takes in what came of reading a file.
    pub(super) fn put(&mut self, path: Arc<PathBuf>, read: Result<Parsed, Problem>) {
        let file = self.files.entry(path).or_default();
        match read {
            Err(problem) => file.error = Some(problem),
            Ok(parsed) => {
                let mut retained = Vec::new();
                if parsed.has_nameless {
                    let named: HashSet<&Key> = parsed.entries.iter().map(|entry| &entry.key).collect();
                    let before = file.parsed.entries.drain(..).chain(file.retained.drain(..));
                    retained.extend(before.filter(|entry| !named.contains(&entry.key)));
                }
                let is_known = file.is_known || !parsed.has_nameless;
                *file = File { parsed, retained, error: None, is_known };
            }
        }
    }

    /// Forgets the files for which `keep` does not hold; returns whether there were any.
    pub(super) fn retain(&mut self, keep: impl Fn(&PathBuf) -> bool) -> bool {
        let before = self.files.len();
        self.files.retain(|path, _| keep(path));
        self.files.len() != before
    }

    /// Settles what is in force now, and remembers it as good.
    pub(super) fn in_force(&mut self) -> InForce {
        let mut result = InForce { files: self.files.len(), readable: true, ..InForce::default() };
        let mut versions: HashMap<Key, Vec<Version>> = HashMap::new();
        let mut order = Vec::new();
        for file in self.files.values() {
            // What was wrong before it became unreadable may be mended in it by now.
            let problems = file.error.as_ref().map_or(file.parsed.problems.as_slice(), std::slice::from_ref);
            result.problems.extend_from_slice(problems);
            result.ignored += file.parsed.ignored;
            result.readable &= file.error.is_none();
            result.partial |= !file.is_known;
            for entry in file.parsed.entries.iter().chain(&file.retained) {
                let good = entry.object.as_ref().or_else(|| Some(&self.good.get(&entry.key)?.object));
                let object = good.or(entry.otherwise.as_ref());
                result.partial |= entry.key.kind == Kind::Pod && !object.is_some_and(|object| is_findable(object));
                let Some(object) = object else { continue };
                let loaded =
                    Loaded { key: entry.key.clone(), object: Arc::clone(object), location: entry.location.clone() };
                let versions = versions.entry(entry.key.clone()).or_default();
                if versions.is_empty() {
                    order.push(entry.key.clone());
                }
                versions.push(Version { loaded, is_good: good.is_some() });
            }
        }
        let mut good = HashMap::new();
        for key in order {
            let Some(mut versions) = versions.remove(&key) else { continue };
            // A second definition must not take over from the one in force, wherever its file sorts.
            let origin = self.good.get(&key).map(|good| &good.location.file);
            let at = versions.iter().position(|version| Some(&version.loaded.location.file) == origin).unwrap_or(0);
            let Version { loaded: chosen, is_good } = versions.remove(at);
            result.problems.extend(versions.iter().map(|version| duplicate(&version.loaded, &chosen)));
            if is_good {
                good.insert(key, chosen.clone());
            }
            result.objects.push(chosen);
        }
        self.good = good;
        result
    }
}

/// An object as one of the files has it.
#[derive(Debug)]
struct Version {
    loaded: Loaded,
    /// It is what is written there, or was; not what stands for it.
    is_good: bool,
}

/// Whether it can be told which pod it is, however little else of it.
fn is_findable(object: &Object) -> bool {
    match object {
        Object::Pod(pod) => pod.settings.doubt.is_none() || pod.settings.netns.is_some() || pod.uid.is_some(),
        _ => true,
    }
}

fn duplicate(version: &Loaded, chosen: &Loaded) -> Problem {
    Problem {
        reason: Reason::DuplicateObject,
        severity: Severity::Error,
        location: version.location.clone(),
        object: version.key.to_string(),
        field: "metadata.name".into(),
        message: format!("{:?} is also defined at {}, which is in force", &*version.key.name.name, chosen.location),
        remedy: Reason::DuplicateObject.remedy().into(),
    }
}
