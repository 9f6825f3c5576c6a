//! How things are shown: tables, units, colours, YAML.

pub(super) mod table;
pub(super) mod text;
pub(super) mod time;
pub(super) mod units;
pub(super) mod yaml;

use clap::ValueEnum;

/// A format for people or programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For 120 columns.
    Table,
    /// Every column.
    Wide,
    /// The admin socket's answer.
    Json,
    /// The same as YAML.
    Yaml,
}
