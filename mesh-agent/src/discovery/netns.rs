//! Which pods of a file have which network namespace, for a look at a machine before an agent runs there.

use std::{path::PathBuf, sync::Arc};

use super::{object::Object, parse};
use crate::model::{ObjectName, Problem};

/// The pods in the text of the file `path` that name their network namespace by annotation, with its path.
///
/// # Errors
/// The text is not YAML.
pub fn network_namespaces(path: PathBuf, text: &str) -> Result<Vec<(ObjectName, PathBuf)>, Problem> {
    let parsed = parse::file(&Arc::new(path), text)?;
    let pods = parsed.entries.into_iter().filter_map(|entry| match entry.object.as_deref() {
        Some(Object::Pod(pod)) => Some((entry.key.name, pod.settings.netns.clone()?)),
        _ => None,
    });
    Ok(pods.collect())
}
