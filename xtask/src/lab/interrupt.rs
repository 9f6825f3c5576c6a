//! Ctrl-C: noted, so that what was made is unmade on the way out.

use std::{
    fmt, io,
    process::{Child, Command},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The error of everything that ctrl-C ended.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// From now on SIGINT, SIGTERM and SIGHUP are noted; a second one ends the process at once. To be called before any
/// other thread is made. Children would be deaf to these signals: [`spawn`] those that live long.
///
/// # Errors
/// The system refuses.
pub(crate) fn watch() -> Result<()> {
    let signals = signals();
    signals.thread_block().context("cannot block signals")?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            eprintln!("\nstopping; once more to stop without cleaning up");
        }
        if signals.wait().is_ok() {
            std::process::exit(130);
        }
    })?;
    Ok(())
}

/// Starts a child that hears signals: it inherits which ones are blocked. A signal that comes to us in the moment of the
/// start ends us at once; the next run removes what is left.
///
/// # Errors
/// It can't be started.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    signals().thread_unblock()?;
    let child = command.spawn();
    signals().thread_block()?;
    child
}

fn signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// Fails once a signal has come.
///
/// # Errors
/// [`Interrupted`].
pub(crate) fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
}
