//! Objects given as texts, put in force by hand: for benches and tests of large meshes, which need no folder.

use std::{path::PathBuf, sync::Arc};

use super::{
    Site,
    index::{Change, Index, Surroundings},
    object::Loaded,
    parse,
};
use crate::model::{Location, Mesh, Problem};

/// Makes snapshots of what it is given.
pub struct Feed {
    index: Index,
    surroundings: Surroundings,
}

/// Objects that were read and are not in force yet.
pub struct Documents(Vec<Change>);

impl Feed {
    /// For an agent that stands there.
    pub fn new(site: Site) -> Self {
        Self { index: Index::new(site), surroundings: Surroundings::default() }
    }

    /// Reads the objects of a text. Like those of an API server, they are of no file.
    ///
    /// # Errors
    /// The text is not YAML.
    pub fn read(text: &str) -> Result<Documents, Problem> {
        let parsed = parse::file(&Arc::new(PathBuf::new()), text)?;
        let objects = parsed.entries.into_iter().filter_map(|entry| {
            let object = entry.object?;
            Some(Change::Put(Loaded { key: entry.key, object, location: Location::default() }))
        });
        Ok(Documents(objects.collect()))
    }

    /// Puts objects in force; returns the next snapshot, if it says anything else than the one before.
    pub fn apply(&mut self, documents: Documents) -> Option<Arc<Mesh>> {
        self.index.apply(documents.0, &self.surroundings)
    }
}
