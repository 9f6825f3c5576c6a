//! What the targets have in common: nearly everything. The work is in `mesh_agent::fuzz`, which unit tests call as well.

/// A program that feeds libFuzzer's inputs to `mesh_agent::fuzz::$function`.
#[macro_export]
macro_rules! target {
    ($function:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|input: &[u8]| mesh_agent::fuzz::$function(input));

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            eprintln!("compiled without libFuzzer: cargo xtask fuzz {}", stringify!($function));
            std::process::ExitCode::FAILURE
        }
    };
}
