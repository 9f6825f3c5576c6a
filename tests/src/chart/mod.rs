//! The chart in `docs/deploy`, rendered without Helm: for the plain manifests, and for tests that deploy what users deploy.

mod template;
mod yaml;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Kinds in the order in which Helm applies them.
const ORDER: [&str; 13] = [
    "Namespace",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "DaemonSet",
    "Deployment",
    "ValidatingAdmissionPolicy",
    "PodMonitor",
];

/// Where the chart is.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/deploy/chart/mesh-agent")
}

/// The manifests that are checked in: the chart with its defaults, its namespace with it.
pub fn plain_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/deploy/mesh-agent.yaml")
}

/// Values of the manifests that are checked in.
pub fn plain_values() -> Value {
    json!({"createNamespace": true})
}

/// Renders the chart: the defaults, with `values` over them, into `namespace`. Returns the text of each object, in the
/// order in which they are to be applied.
///
/// # Errors
/// What of the chart is not understood.
pub fn documents(namespace: &str, values: &Value) -> Result<Vec<String>> {
    let read = |name: &str| {
        let path = folder().join(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let chart = parse(&read("Chart.yaml")?)?;
    let mut all = parse(&read("values.yaml")?)?;
    lay_over(&mut all, values, "")?;
    let dot = json!({
        "Values": all,
        "Chart": {"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]},
        "Release": {"Name": "mesh-agent", "Namespace": namespace, "Service": "kubectl"},
    });
    let mut defined = template::Defined::new();
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder().join("templates"))? {
        let path = entry?.path();
        let nodes = template::parse(&fs::read_to_string(&path)?, &mut defined);
        files.insert(path.clone(), nodes.with_context(|| path.display().to_string())?);
    }
    let mut documents = Vec::new();
    for (path, nodes) in &files {
        let mut text = String::new();
        template::render(nodes, &dot, &defined, &mut text).with_context(|| path.display().to_string())?;
        for document in text.split("\n---\n").map(str::trim).filter(|document| !document.is_empty()) {
            let object = parse(document).with_context(|| format!("{}:\n{document}", path.display()))?;
            if object.is_null() {
                continue;
            }
            let kind = object["kind"].as_str().unwrap_or_default();
            let place = ORDER.iter().position(|known| *known == kind);
            documents
                .push((place.with_context(|| format!("no place in the order for {kind:?}"))?, document.to_owned()));
        }
    }
    documents.sort_by_key(|(place, _)| *place);
    Ok(documents.into_iter().map(|(_, document)| document).collect())
}

/// As [`documents`], parsed.
///
/// # Errors
/// As [`documents`].
pub fn objects(namespace: &str, values: &Value) -> Result<Vec<Value>> {
    documents(namespace, values)?.iter().map(|document| parse(document)).collect()
}

/// As [`documents`], in one text.
///
/// # Errors
/// As [`documents`].
pub fn manifests(namespace: &str, values: &Value) -> Result<String> {
    let mut text =
        "# Made from the chart beside it: cargo run -p mesh-tests --bin mesh-chart. Do not edit.\n".to_owned();
    for document in documents(namespace, values)? {
        text.push_str("---\n");
        text.push_str(&document);
        text.push('\n');
    }
    Ok(text)
}

/// The definitions of custom resources that come with the chart.
///
/// # Errors
/// They cannot be read.
pub fn definitions() -> Result<Vec<Value>> {
    let mut paths: Vec<_> =
        fs::read_dir(folder().join("crds"))?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    paths.iter().map(|path| parse(&fs::read_to_string(path)?)).collect()
}

/// Parses one YAML document.
///
/// # Errors
/// It is none.
pub fn parse(text: &str) -> Result<Value> {
    Ok(serde_saphyr::from_str(text)?)
}

/// `--set a.b=c`: as values. What reads as a number, a truth value or a list is one.
///
/// # Errors
/// There is no `=`.
pub fn set(values: &mut Value, setting: &str) -> Result<()> {
    let (path, text) = setting.split_once('=').with_context(|| format!("{setting:?} is not KEY=VALUE"))?;
    let leaf = parse(text).unwrap_or_else(|_| text.into());
    let nested = path.rsplit('.').fold(leaf, |value, name| json!({ name: value }));
    merge(values, &nested);
    Ok(())
}

fn merge(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (name, value) in above {
                merge(below.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above.clone(),
    }
}

/// Values over the defaults. A name that the defaults do not have is a slip, and refused.
fn lay_over(defaults: &mut Value, values: &Value, path: &str) -> Result<()> {
    let (Value::Object(fields), Value::Object(over)) = (&mut *defaults, values) else {
        *defaults = values.clone();
        return Ok(());
    };
    // What is empty by default takes anything: annotations, labels.
    let is_free = fields.is_empty();
    for (name, value) in over {
        let path = format!("{path}.{name}");
        match fields.get_mut(name) {
            Some(field) => lay_over(field, value, &path)?,
            None if is_free => _ = fields.insert(name.clone(), value.clone()),
            None => bail!("the chart has no value {path}"),
        }
    }
    ensure!(defaults.is_object(), "{path} has fields");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str, dot: &Value) -> Result<String> {
        let mut defined = template::Defined::new();
        let nodes = template::parse(template, &mut defined)?;
        let mut out = String::new();
        template::render(&nodes, dot, &defined, &mut out)?;
        Ok(out)
    }

    #[test]
    fn templates_as_go_evaluates_them() {
        let dot = json!({"a": {"list": ["x", "y"], "empty": "", "n": 5, "map": {"k": "on", "l": [1, {"m": true}]}}});
        for (template, expected) in [
            ("a {{- .a.n }} b", "a5 b"),
            ("a:\n{{- range .a.list }}\n- {{ . | quote }}\n{{- end }}\n", "a:\n- \"x\"\n- \"y\"\n"),
            ("{{ if .a.empty }}no{{ else }}yes{{ end }}", "yes"),
            ("{{- with .a.map }}{{ toYaml . | nindent 2 }}{{ end }}", "\n  k: \"on\"\n  l:\n  - 1\n  - m: true"),
            ("{{ .a.empty | default (printf \"%s.svc\" \"ns\") }}", "ns.svc"),
            ("{{ add .a.n 15 }}{{ and .a.n .a.empty }}{{ or .a.empty \"z\" }}{{ not (eq .a.n 5) }}", "20zfalse"),
            ("{{ define \"t\" }}<{{ .n }}>{{ end }}{{ include \"t\" .a }}", "<5>"),
            ("{{/* nothing */}}", ""),
        ] {
            assert_eq!(rendered(template, &dot).unwrap(), expected, "{template}");
        }
        for wrong in ["{{ .b }}", "{{ upper .a.n }}", "{{ .a.n", "{{ range .a.n }}{{ end }}", "{{ end }}"] {
            assert!(rendered(wrong, &dot).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_are_set_by_path_and_a_slip_is_refused() {
        let mut values = json!({});
        for setting in ["image.tag=v1", "agent.httpPort=1", "agent.extraArgs=[a, b]", "agent.podAnnotations.x=z"] {
            set(&mut values, setting).unwrap();
        }
        assert_eq!(values["agent"], json!({"httpPort": 1, "extraArgs": ["a", "b"], "podAnnotations": {"x": "z"}}));
        documents("mesh-system", &values).unwrap();
        let error = documents("mesh-system", &json!({"agent": {"prot": 1}})).unwrap_err();
        assert!(error.to_string().contains(".agent.prot"), "{error}");
    }
}
