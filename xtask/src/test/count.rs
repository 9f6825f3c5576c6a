//! What a run of test programs said.

use std::{
    io::{BufRead, BufReader},
    process::Command,
};

use anyhow::{Context, Result};

use crate::command::show;

/// Tests counted from the lines that the test programs print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Tests that passed; those that skipped themselves are not among them.
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Tests that could not run here and said `SKIP`.
    pub(crate) skipped: usize,
}

impl Count {
    /// Runs a program, shows all that it prints and counts. Returns whether it succeeded.
    ///
    /// # Errors
    /// It could not be started or read.
    pub(crate) fn run(&mut self, command: &mut Command) -> Result<bool> {
        let shown = show(command);
        // One pipe for both streams, so that lines keep their order.
        let (reader, writer) = std::io::pipe()?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
        // Our copies of the writing end, which would keep the pipe open.
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        for line in BufReader::new(reader).split(b'\n') {
            let line = line.with_context(|| format!("cannot read from {shown}"))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            self.line(&line);
        }
        Ok(child.wait()?.success())
    }

    /// Takes note of one line.
    pub(crate) fn line(&mut self, line: &str) {
        if line.starts_with("SKIP ") || line.contains(" ... SKIP ") {
            self.skipped += 1;
        }
        let Some((_, result)) = line.split_once("test result: ") else { return };
        let number = |what| {
            let part = result.split([';', '.']).find(|part| part.ends_with(what))?;
            part.trim().split(' ').next()?.parse::<usize>().ok()
        };
        // A skipped test is a passed one to its test program, and says so before the program's result.
        self.passed += number(" passed").unwrap_or_default();
        self.failed += number(" failed").unwrap_or_default();
    }

    /// Tests that passed and did not skip themselves.
    pub(crate) fn settle(&mut self) {
        self.passed = self.passed.saturating_sub(self.skipped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_add_up_and_skips_are_not_passes() {
        let mut count = Count::default();
        for line in [
            "test one ... ok",
            "SKIP no bpffs",
            "test two ... SKIP no root",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            count.line(line);
        }
        count.settle();
        assert_eq!(count, Count { passed: 4, failed: 2, skipped: 2 });
    }

    #[test]
    fn both_streams_are_counted_and_the_exit_code_is_told() {
        let mut count = Count::default();
        let script = "echo 'test result: ok. 3 passed; 0 failed'; echo 'SKIP x' >&2; exit 1";
        assert!(!count.run(Command::new("sh").args(["-c", script])).unwrap());
        assert_eq!(count, Count { passed: 3, failed: 0, skipped: 1 });
    }
}
