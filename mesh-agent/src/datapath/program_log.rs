//! What the programs themselves log (aya-log), forwarded to tracing.

use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};

use crate::sys;

/// The reading end.
pub struct ProgramLog(EbpfLogger<ToTracing>);

impl ProgramLog {
    pub(super) fn open(ebpf: &mut Ebpf) -> Option<Self> {
        match EbpfLogger::init_with_logger(ebpf, ToTracing) {
            Ok(logger) => Some(Self(logger)),
            Err(error) => {
                tracing::debug!(%error, "the programs have no log");
                None
            }
        }
    }

    /// Forwards until the descriptor fails.
    pub async fn run(self) -> io::Result<()> {
        let mut logger = sys::async_fd(self.0)?;
        loop {
            let mut guard = logger.readable_mut().await?;
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    }
}

struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        match record.level() {
            Level::Error => tracing::error!(target: "ebpf", "{}", record.args()),
            Level::Warn => tracing::warn!(target: "ebpf", "{}", record.args()),
            Level::Info => tracing::info!(target: "ebpf", "{}", record.args()),
            Level::Debug | Level::Trace => tracing::debug!(target: "ebpf", "{}", record.args()),
        }
    }

    fn flush(&self) {}
}
