//! The rules about single files. What is allowed is data, here at the top.

use super::{Problem, source::Source};

/// Longest file and function, in lines without tests.
const FILE_LINES: usize = 600;
const FUNCTION_LINES: usize = 100;

/// Modules of mesh-agent and what each may use. The proxy reaches the data path through traits of its own; the commands
/// use discovery and net for the preflight.
const EDGES: [(&str, &[&str]); 17] = [
    ("model", &[]),
    ("policy", &["model"]),
    ("route", &["model"]),
    ("balance", &["model"]),
    ("sys", &[]),
    ("net", &["model", "sys"]),
    ("node", &["model", "net", "sys"]),
    ("telemetry", &["model"]),
    ("datapath", &["model", "sys"]),
    ("kubernetes", &["model"]),
    ("discovery", &["balance", "kubernetes", "model", "sys"]),
    ("identity", &["model"]),
    ("ca", &["identity", "kubernetes", "model"]),
    ("proxy", &["balance", "identity", "model", "net", "policy", "route", "sys", "telemetry"]),
    ("explain", &["model", "policy", "proxy", "route"]),
    ("admin", &["model", "telemetry"]),
    (
        "cli",
        &[
            "admin",
            "app",
            "ca",
            "datapath",
            "discovery",
            "explain",
            "kubernetes",
            "model",
            "net",
            "policy",
            "route",
            "telemetry",
        ],
    ),
];

/// Files of mesh-agent/src that may know every module.
const WIRING: [&str; 4] = ["app", "fuzz", "lib", "main"];

/// Crates that stay in the modules named.
const FENCES: [(&str, &[&str]); 9] = [
    ("aya::", &["datapath"]),
    ("aya_log::", &["datapath"]),
    ("hyper::", &["admin", "cli"]),
    ("rustls::", &["app", "ca", "identity", "proxy"]),
    ("aws_lc_rs::", &["ca", "identity", "proxy"]),
    ("rcgen::", &["ca", "identity"]),
    ("x509_parser::", &["ca", "identity"]),
    ("kube::", &["ca", "discovery", "kubernetes"]),
    ("anyhow::", &["app", "cli", "main"]),
];

/// Modules that decide without input or output, and what they must not mention.
const PURE: [&str; 5] = ["model", "policy", "route", "balance", "explain"];
const IMPURE: [&str; 3] = ["tokio::", "Instant::now", "SystemTime::now"];

/// Places where unsafe code is allowed.
const UNSAFE: [&str; 5] =
    ["mesh-agent/src/sys.rs", "mesh-agent/src/sys/", "mesh-common/", "mesh-ebpf/", "tests/src/sys.rs"];

/// Applies all rules to one file.
pub(crate) fn check(source: &Source, problems: &mut Vec<Problem>) {
    sizes(source, problems);
    attributes(source, problems);
    unsafe_code(source, problems);
    if !source.is_test()
        && let Some(module) = source.module()
    {
        edges(source, module, problems);
        fences(source, module, problems);
    }
}

fn report(problems: &mut Vec<Problem>, source: &Source, line: usize, what: String) {
    problems.push(Problem { place: format!("{}:{line}", source.path), what });
}

fn sizes(source: &Source, problems: &mut Vec<Problem>) {
    if source.is_test() {
        return;
    }
    let lines = source.length();
    if lines > FILE_LINES {
        report(problems, source, 1, format!("{lines} lines; split it, {FILE_LINES} is the most"));
    }
    for function in source.functions().iter().filter(|function| function.length > FUNCTION_LINES) {
        let what = format!("a function of {} lines; split it, {FUNCTION_LINES} is the most", function.length);
        report(problems, source, function.line, what);
    }
}

fn attributes(source: &Source, problems: &mut Vec<Problem>) {
    for (index, line) in source.all.iter().enumerate() {
        let attribute = line.trim_start();
        let Some(name) = attribute.strip_prefix("#[").or_else(|| attribute.strip_prefix("#![")) else { continue };
        if name.starts_with("ignore") {
            report(problems, source, index + 1, "an ignored test: mend it, or remove it".to_owned());
        }
        if name.starts_with("allow(") || name.starts_with("expect(") {
            let rest = source.all.iter().skip(index);
            let mut until_end = rest.scan(false, |ended, line| {
                let before = *ended;
                *ended |= line.contains(']');
                (!before).then_some(line)
            });
            if !until_end.any(|line| line.contains("reason = ")) {
                report(problems, source, index + 1, "a lint is silenced without a reason".to_owned());
            }
        }
    }
}

fn unsafe_code(source: &Source, problems: &mut Vec<Problem>) {
    if UNSAFE.iter().any(|place| source.path.starts_with(place)) {
        return;
    }
    for construct in ["{", "fn", "impl", "extern", "trait"] {
        let text = ["unsafe", construct].join(" ");
        for line in source.lines_with(&text) {
            let what = format!("unsafe code belongs in {}", UNSAFE.join(", "));
            report(problems, source, line, what);
        }
    }
}

fn edges(source: &Source, module: &str, problems: &mut Vec<Problem>) {
    if WIRING.contains(&module) {
        return;
    }
    let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == module) else {
        report(problems, source, 1, format!("module {module} has no line in EDGES of xtask/src/tidy/rules.rs"));
        return;
    };
    let is_module = |name: &str| WIRING.contains(&name) || EDGES.iter().any(|(module, _)| *module == name);
    for (line, used) in source.crate_paths() {
        if used != module && is_module(&used) && !allowed.contains(&used.as_str()) {
            report(problems, source, line, format!("{module} must not use {used}"));
        }
    }
}

fn fences(source: &Source, module: &str, problems: &mut Vec<Problem>) {
    for (path, modules) in FENCES {
        if !modules.contains(&module) {
            for line in source.lines_with(path) {
                report(problems, source, line, format!("{path} belongs in {} only", modules.join(", ")));
            }
        }
    }
    if PURE.contains(&module) {
        for path in IMPURE {
            for line in source.lines_with(path) {
                report(problems, source, line, format!("{module} is pure: no {path}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str) -> Vec<String> {
        let mut problems = Vec::new();
        check(&Source::new(path.to_owned(), text), &mut problems);
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_edge_that_is_not_listed_is_found_where_it_is() {
        let text = "use crate::model::Mesh;\nuse crate::{\n    datapath,\n};\n";
        assert_eq!(
            problems("mesh-agent/src/proxy/mod.rs", text),
            ["mesh-agent/src/proxy/mod.rs:2: proxy must not use datapath"]
        );
        assert_eq!(problems("mesh-agent/src/app.rs", text), [] as [&str; 0]);
    }

    #[test]
    fn a_new_module_must_say_what_it_may_use() {
        assert_eq!(problems("mesh-agent/src/cache/mod.rs", "").len(), 1);
    }

    #[test]
    fn vendors_stay_in_their_modules() {
        let text = "use aya::Ebpf;\nuse hyper::Request;\n";
        assert_eq!(problems("mesh-agent/src/datapath/mod.rs", text).len(), 1);
        assert_eq!(problems("mesh-agent/src/admin/server.rs", text).len(), 1);
        assert_eq!(problems("mesh-common/src/lib.rs", text), [] as [&str; 0]);
    }

    #[test]
    fn decisions_take_the_time_as_an_argument() {
        let text = "fn f() -> Instant {\n    Instant::now()\n}\n";
        assert_eq!(problems("mesh-agent/src/balance/mod.rs", text).len(), 1);
        assert_eq!(problems("mesh-agent/src/proxy/mod.rs", text), [] as [&str; 0]);
    }

    #[test]
    fn unsafe_code_has_its_places() {
        let text = "fn f() {\n    unsafe { g() }\n}\n";
        assert_eq!(problems("xtask/src/main.rs", text).len(), 1);
        assert_eq!(problems("mesh-agent/src/sys.rs", text), [] as [&str; 0]);
    }

    #[test]
    fn a_lint_is_silenced_with_a_reason() {
        let with = "#[allow(\n    dead_code,\n    reason = \"x\"\n)]\nfn f() {}\n";
        assert_eq!(problems("xtask/src/main.rs", with), [] as [&str; 0]);
        let without = "#[allow(dead_code)]\nfn f() {}\n// reason = \n";
        assert_eq!(problems("xtask/src/main.rs", without).len(), 1);
    }

    #[test]
    fn tests_are_not_ignored_and_do_not_count_as_length() {
        assert_eq!(problems("tests/tests/direct.rs", "#[test]\n#[ignore]\nfn t() {}\n").len(), 1);
        let body = "    x();\n".repeat(101);
        assert_eq!(problems("xtask/src/main.rs", &format!("fn f() {{\n{body}}}\n")).len(), 1);
        let test = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    fn t() {}\n".repeat(700));
        assert_eq!(problems("xtask/src/main.rs", &test), [] as [&str; 0]);
    }
}
