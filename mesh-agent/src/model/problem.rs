//! What is wrong with an object or with the agent, told so that it can be mended.

use std::{fmt, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Reason;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Works, but not as written. Does not make `status` unhealthy.
    Warning,
    /// Something that should work does not.
    Error,
}

/// Where an object was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The file, if it came from one.
    pub file: Option<Arc<PathBuf>>,
    /// Line in it, from 1; 0 if unknown.
    pub line: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) if self.line == 0 => write!(f, "{}", file.display()),
            Some(file) => write!(f, "{}:{}", file.display(), self.line),
            None => f.write_str("-"),
        }
    }
}

/// A problem, its place and its remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable code.
    pub reason: Reason,
    /// How bad.
    pub severity: Severity,
    /// Where.
    pub location: Location,
    /// `Kind namespace/name`, or empty.
    pub object: String,
    /// Path of the field, e.g. `metadata.annotations[mesh-agent.io/mesh]`, or empty.
    pub field: String,
    /// What is wrong, naming the offending value.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason.code())?;
        if self.location.file.is_some() {
            write!(f, " {}", self.location)?;
        }
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, " {part}")?;
            }
        }
        write!(f, ": {} ({})", self.message, self.remedy)
    }
}
