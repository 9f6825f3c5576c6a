//! Logs: to standard error, as text or JSON, with a filter that can be replaced while running.

use std::{io::IsTerminal, sync::Arc};

use anyhow::Context;
use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, Layer, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::app::SetLogFilter;

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// Installs the log of this process. The returned function replaces the filter.
pub fn init(format: LogFormat, filter: &str) -> anyhow::Result<SetLogFilter> {
    let filter = parse(filter).map_err(anyhow::Error::msg).context("--log")?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    Registry::default().with(lines.with_filter(filter)).try_init().context("cannot install the log")?;
    Ok(Arc::new(move |text| handle.reload(parse(text)?).map_err(|error| error.to_string())))
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(filter).map_err(|error| {
        format!(
            "{filter:?} is not a log filter ({error}): write it like info or mesh_agent=debug,mesh_agent::proxy=trace"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked_and_the_error_shows_how_to_write_one() {
        assert!(parse("info,mesh_agent::proxy=trace").is_ok());
        let error = parse("mesh_agent=loud").unwrap_err();
        assert!(error.starts_with("\"mesh_agent=loud\" is not a log filter"), "{error}");
        assert!(error.contains("write it like info"), "{error}");
    }
}
