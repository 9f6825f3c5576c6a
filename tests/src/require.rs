//! The skip policy: a test may not pass by not running where its tier is required.

/// Whether a test of `tier` can run here. When `check` says why not, prints `SKIP why` and returns false, unless the
/// environment variable `MESH_REQUIRE` (tiers, separated by commas) names the tier.
///
/// # Panics
/// When the tier is required and cannot run.
pub fn require(tier: &str, check: impl FnOnce() -> Result<(), String>) -> bool {
    let Err(why) = check() else { return true };
    let required = std::env::var("MESH_REQUIRE").unwrap_or_default();
    assert!(!is_named(&required, tier), "the {tier} tier is required (MESH_REQUIRE={required}) and cannot run: {why}");
    // Straight to the descriptor: the test harness captures what goes through `eprintln!`, and a skip must be seen.
    let line = format!("SKIP {why}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    false
}

/// Whether a list separated by commas has the tier in it.
fn is_named(list: &str, tier: &str) -> bool {
    list.split(',').any(|name| name.trim() == tier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_that_can_run_does() {
        assert!(require("no-such-tier", || Ok(())));
    }

    #[test]
    fn tiers_are_named_whole_and_with_spaces_or_without() {
        assert!(is_named("netns, kernel", "kernel"));
        assert!(!is_named("netns,kernel", "net"));
        assert!(!is_named("", "kernel"));
    }
}
