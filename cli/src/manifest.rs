//! From a YAML file to a FanoutCluster, by the same schema and rules as an API server, with every mistake's line.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use fanout_operator::api::{FanoutCluster, GROUP, crd};
use kube::core::cel::{ErrorKind, ValidationErrors};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use sidecar_config::YamlError;

const KIND: &str = "FanoutCluster";
/// What is said of a field that the schema does not list.
const UNKNOWN: &str = "unknown field";

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("failed to read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}:{column}: is not valid YAML: {message}", path.display())]
    Yaml { path: PathBuf, line: usize, column: usize, message: String },
    #[error("{} contains no {KIND} (apiVersion {GROUP}/v1alpha1)", path.display())]
    NoCluster { path: PathBuf },
    #[error("{} contains {count} objects of kind {KIND}, but this command takes only one", path.display())]
    Several { path: PathBuf, count: usize },
    #[error("{} of {}:\n{}", count(mistakes.len()), path.display(), list(mistakes))]
    Mistakes { path: PathBuf, mistakes: Vec<Mistake> },
}

/// One mistake in a FanoutCluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// Line in the file, from 1; `None` when what is wrong stands nowhere in it.
    line: Option<usize>,
    /// As `spec.namespaces[0].publish`.
    field: String,
    message: String,
}

/// Reads the one FanoutCluster of a file.
pub(crate) fn read(path: &Path) -> Result<FanoutCluster, ManifestError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ManifestError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// Reads the one FanoutCluster of `text`; other objects in it are left alone. Its nodes will speak plain HTTP, whatever
/// `hub.tls` says: no certificate is for this machine.
pub(crate) fn parse(path: &Path, text: &str) -> Result<FanoutCluster, ManifestError> {
    let document = the_cluster(path, text)?;
    let wrong = |found: Vec<(Vec<Step>, String)>| {
        let mistakes =
            found.into_iter().map(|(steps, message)| Mistake::new(text, document.at, &steps, message));
        let mut mistakes: Vec<_> = mistakes.collect();
        mistakes.sort_by_key(|mistake| mistake.line);
        Err(ManifestError::Mistakes { path: path.to_owned(), mistakes })
    };
    let found = against_schema(&document.value);
    if !found.is_empty() {
        return wrong(found);
    }
    let mut cluster: FanoutCluster = match serde_json::from_value(document.value.clone()) {
        Ok(cluster) => cluster,
        Err(error) => return wrong(vec![(Vec::new(), error.to_string())]),
    };
    let found = against_rules(kube::core::cel::validate_cel(&cluster));
    if !found.is_empty() {
        return wrong(found);
    }
    cluster.spec.hub.tls = None;
    Ok(cluster)
}

/// What an API server would say to the change of a running cluster, a line for each mistake.
pub(crate) fn check_change(old: &FanoutCluster, new: &FanoutCluster) -> Result<(), String> {
    let found = against_rules(kube::core::cel::validate_cel_update(new, old));
    let lines: Vec<_> =
        found.iter().map(|(steps, message)| format!("{}: {message}", dotted(steps))).collect();
    if lines.is_empty() { Ok(()) } else { Err(lines.join("\n")) }
}

/// The FanoutClusters of `text` as they are written, and the Secrets beside them. Repeated and unknown fields are
/// mistakes; values are left for the API server to judge, for it knows what was there before.
pub(crate) fn objects(path: &Path, text: &str) -> Result<(Vec<Value>, Vec<Value>), ManifestError> {
    let documents = documents(path, text)?;
    let clusters: Vec<_> = documents.iter().filter(|found| found.is_cluster()).collect();
    if clusters.is_empty() {
        return Err(ManifestError::NoCluster { path: path.to_owned() });
    }
    let unknown = clusters.iter().flat_map(|found| {
        let wrong =
            against_schema(&found.value).into_iter().filter(|(_, message)| message.starts_with(UNKNOWN));
        wrong.map(|(steps, message)| Mistake::new(text, found.at, &steps, message))
    });
    let mut mistakes: Vec<_> = unknown.collect();
    if !mistakes.is_empty() {
        mistakes.sort_by_key(|mistake| mistake.line);
        return Err(ManifestError::Mistakes { path: path.to_owned(), mistakes });
    }
    let (clusters, others): (Vec<_>, Vec<_>) = documents.into_iter().partition(Found::is_cluster);
    let is_secret = |value: &Value| value["apiVersion"] == "v1" && value["kind"] == "Secret";
    let values = |found: Vec<Found>| found.into_iter().map(|found| found.value);
    Ok((values(clusters).collect(), values(others).filter(is_secret).collect()))
}

/// A document of a file.
struct Found {
    /// Which document it is, from 0.
    at: usize,
    value: Value,
}

impl Found {
    fn is_cluster(&self) -> bool {
        let version = self.value["apiVersion"].as_str();
        version.is_some_and(|version| version.starts_with(&format!("{GROUP}/"))) && self.value["kind"] == KIND
    }
}

fn the_cluster(path: &Path, text: &str) -> Result<Found, ManifestError> {
    let mut found = documents(path, text)?;
    found.retain(Found::is_cluster);
    match found.len() {
        0 => Err(ManifestError::NoCluster { path: path.to_owned() }),
        1 => Ok(found.remove(0)),
        count => Err(ManifestError::Several { path: path.to_owned(), count }),
    }
}

fn documents(path: &Path, text: &str) -> Result<Vec<Found>, ManifestError> {
    let documents = sidecar_config::strict_yaml(text).map_err(|errors| of_yaml(path, errors))?;
    let merged = documents.into_iter().enumerate().map(|(at, value)| {
        let value = sidecar_config::merged_yaml(value).map_err(|message| {
            let (path, message) = (path.to_owned(), message.to_owned());
            ManifestError::Mistakes {
                path,
                mistakes: vec![Mistake { line: None, field: String::new(), message }],
            }
        })?;
        Ok(Found { at, value })
    });
    merged.collect()
}

/// A key that is repeated in any object of the file is a mistake, as for `kubectl apply`: which of both counts is not
/// for a reader to choose.
fn of_yaml(path: &Path, errors: Vec<YamlError>) -> ManifestError {
    let path = path.to_owned();
    match errors.iter().find(|error| error.path.is_empty()) {
        Some(YamlError { line, column, message, .. }) => {
            let message = without_place(message.trim_start_matches("is not valid YAML: "));
            ManifestError::Yaml { path, line: line.unwrap_or(1), column: column.unwrap_or(1), message }
        }
        None => {
            let mistake = |YamlError { line, path: field, message, .. }| Mistake { line, field, message };
            ManifestError::Mistakes { path, mistakes: errors.into_iter().map(mistake).collect() }
        }
    }
}

static VALIDATOR: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
    let crd = crd::crd();
    let mut schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    for known in ["apiVersion", "kind", "metadata"] {
        schema["properties"][known] = Value::Bool(true);
    }
    close(&mut schema);
    jsonschema::validator_for(&schema).expect("the schema of the CRD is a JSON Schema")
});

/// Unknown fields and wrong values.
fn against_schema(value: &Value) -> Vec<(Vec<Step>, String)> {
    VALIDATOR.iter_errors(value).flat_map(|error| from_schema(&error)).collect()
}

/// `kubectl apply` refuses fields that a schema does not list, and so does this command.
fn close(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    let open = fields.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if fields.remove("x-kubernetes-int-or-string").is_some() {
        fields.remove("type");
    }
    if fields.contains_key("properties") && !open && !fields.contains_key("additionalProperties") {
        fields.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    for (name, part) in fields {
        match (name.as_str(), part) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(close),
            ("items" | "additionalProperties", part) => close(part),
            _ => {}
        }
    }
}

fn from_schema(error: &jsonschema::ValidationError<'_>) -> Vec<(Vec<Step>, String)> {
    use jsonschema::error::ValidationErrorKind as Kind;
    let at = steps(error.instance_path().as_str());
    match error.kind() {
        Kind::AdditionalProperties { unexpected } => unexpected
            .iter()
            .map(|key| {
                ([at.clone(), vec![Step::Key(key.clone())]].concat(), format!("{UNKNOWN}{}", hidden(key)))
            })
            .collect(),
        _ => vec![(at, error.to_string())],
    }
}

/// Why a field is unknown that looks right.
fn hidden(key: &str) -> String {
    let shown = sidecar_config::visible(key);
    if shown == key { String::new() } else { format!(": it is spelt `{shown}`") }
}

fn against_rules(result: Result<(), ValidationErrors>) -> Vec<(Vec<Step>, String)> {
    let Err(errors) = result else { return Vec::new() };
    errors
        .into_vec()
        .into_iter()
        // A few rules use words of CEL that only an API server knows.
        .filter(|error| error.kind != ErrorKind::UnsupportedReference)
        .map(|error| (steps(&error.field_path.replace('.', "/")), error.message))
        .collect()
}

// === Paths and lines ===

/// A step into a document.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Item(usize),
}

/// `/spec/namespaces/0/name`, or `spec/namespaces[0]/name`, step by step.
fn steps(pointer: &str) -> Vec<Step> {
    let parts = pointer.split(['/', '[', ']']).filter(|part| !part.is_empty());
    parts
        .map(|part| match part.parse() {
            Ok(at) => Step::Item(at),
            Err(_) => Step::Key(part.replace("~1", "/").replace("~0", "~")),
        })
        .collect()
}

fn dotted(steps: &[Step]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Item(at) => path.push_str(&format!("[{at}]")),
            Step::Key(key) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
        }
    }
    path
}

/// Line of the value at `path` in the document `at` of `text`, or of the nearest one above that stands there.
///
/// The parser tells a place only in its errors: so the document is read by a reader that fails on purpose there.
fn line_of(text: &str, at: usize, path: &[Step]) -> Option<usize> {
    (0..=path.len()).rev().find_map(|len| {
        let document = serde_yaml::Deserializer::from_str(text).nth(at)?;
        let error = Seek(&path[..len]).deserialize(document).err()?;
        error.to_string().contains(FOUND).then(|| error.location().map(|place| place.line()))?
    })
}

/// What a [`Seek`] says when it is there.
const FOUND: &str = "the value that was sought";

/// Reads a document up to a path and fails there.
struct Seek<'a>(&'a [Step]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Seek<'_> {
    fn here<E: serde::de::Error>(&self) -> Result<(), E> {
        if self.0.is_empty() { Err(E::custom(FOUND)) } else { Ok(()) }
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.0.split_first() else { return Err(A::Error::custom(FOUND)) };
        while let Some(key) = map.next_key::<String>()? {
            if matches!(first, Step::Key(wanted) if *wanted == key) {
                return map.next_value_seed(Seek(rest));
            }
            map.next_value::<serde::de::IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.0.split_first() else { return Err(A::Error::custom(FOUND)) };
        let mut at = 0;
        loop {
            if matches!(first, Step::Item(wanted) if *wanted == at) {
                return items.next_element_seed(Seek(rest)).map(|_| ());
            }
            if items.next_element::<serde::de::IgnoredAny>()?.is_none() {
                return Ok(());
            }
            at += 1;
        }
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.here()
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.here()
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.here()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.here()
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.here()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.here()
    }
}

/// The parser's message without the place at its end, which is told apart.
fn without_place(message: &str) -> String {
    message.split(" at line ").next().unwrap_or(message).to_owned()
}

// === impl Mistake ===

impl Mistake {
    fn new(text: &str, at: usize, steps: &[Step], message: String) -> Self {
        Self { line: line_of(text, at, steps), field: dotted(steps), message }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, field, message } = self;
        if let Some(line) = line {
            write!(f, "line {line}: ")?;
        }
        if field.is_empty() { f.write_str(message) } else { write!(f, "{field}: {message}") }
    }
}

fn count(mistakes: usize) -> String {
    if mistakes == 1 {
        "1 mistake in the FanoutCluster".to_owned()
    } else {
        format!("{mistakes} mistakes in the FanoutCluster")
    }
}

fn list(mistakes: &[Mistake]) -> String {
    let lines: Vec<_> = mistakes.iter().map(|mistake| format!("  {mistake}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: fanout.dev/v1alpha1\nkind: FanoutCluster\nmetadata:\n  name: demo\n";

    fn mistakes_of(spec: &str) -> Vec<String> {
        match parse(Path::new("demo.yaml"), &format!("{HEAD}{spec}")) {
            Err(ManifestError::Mistakes { mistakes, .. }) => {
                mistakes.iter().map(Mistake::to_string).collect()
            }
            other => panic!("expected mistakes, got {other:?}"),
        }
    }

    #[test]
    fn a_cluster_among_other_objects_is_found_with_its_defaults() {
        let text = format!("kind: Secret\napiVersion: v1\n---\n{HEAD}spec: {{replicas: 2}}\n");
        let cluster = parse(Path::new("demo.yaml"), &text).unwrap();
        assert_eq!((cluster.name(), cluster.spec.replicas, cluster.spec.hub.ports.client), ("demo", 2, 8000));
    }

    #[test]
    fn no_certificate_is_for_this_machine_whichever_way_the_cluster_was_read() {
        let text = format!("{HEAD}spec: {{hub: {{tls: {{secretRef: {{name: chat-tls}}}}}}}}\n");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        for cluster in [read(file.path()).unwrap(), parse(file.path(), &text).unwrap()] {
            assert_eq!(cluster.spec.hub.tls, None);
        }
    }

    #[test]
    fn an_unknown_field_is_told_with_its_line() {
        let spec = "spec:\n  replicas: 2\n  hub:\n    pingIntervalSecond: 5\n";
        assert_eq!(mistakes_of(spec), ["line 8: spec.hub.pingIntervalSecond: unknown field"]);
    }

    #[test]
    fn every_wrong_value_is_told_with_its_line_and_field() {
        let spec = "spec:\n  replicas: many\n  namespaces:\n  - name: default\n    publish: everyone\n";
        let mistakes = mistakes_of(spec);
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(mistakes[0].starts_with("line 6: spec.replicas: "), "{mistakes:?}");
        assert!(mistakes[1].starts_with("line 9: spec.namespaces[0].publish: "), "{mistakes:?}");
    }

    #[test]
    fn a_broken_rule_of_the_resource_is_told_with_what_to_do() {
        let mistakes = mistakes_of("spec:\n  replicas: 3\n  redis:\n    memory: {}\n");
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert!(
            mistakes[0].starts_with("line 6: spec.replicas: redis.memory cannot connect several nodes"),
            "{mistakes:?}"
        );
    }

    #[test]
    fn a_second_document_counts_lines_from_the_top_of_the_file() {
        let text = format!("kind: Secret\napiVersion: v1\n---\n{HEAD}spec:\n  replica: 2\n");
        let error = parse(Path::new("demo.yaml"), &text).unwrap_err().to_string();
        assert_eq!(
            error,
            "1 mistake in the FanoutCluster of demo.yaml:\n  line 9: spec.replica: unknown field"
        );
    }

    #[test]
    fn a_repeated_key_is_told_with_its_line_wherever_it_is() {
        let mistakes =
            mistakes_of("spec:\n  replicas: 2\n  hub:\n    ports: {client: 1, client: 2}\n  replicas: 3\n");
        assert_eq!(
            mistakes,
            [
                "line 8: spec.hub.ports.client: duplicate key: keep only one of them",
                "line 9: spec.replicas: duplicate key: keep only one of them",
            ]
        );
    }

    #[test]
    fn what_a_merge_key_brings_gives_way_to_what_is_there() {
        let base = "kind: ConfigMap\napiVersion: v1\n---\n";
        let spec = "spec:\n  resources: &r {limits: {cpu: \"1\"}, requests: {cpu: \"1\"}}\n  podTemplate:\n    spec:\n      containers:\n      - name: app\n        image: app\n        resources: {<<: *r, limits: {cpu: \"2\"}}\n";
        let cluster = parse(Path::new("demo.yaml"), &format!("{base}{HEAD}{spec}")).unwrap();
        let spec = serde_json::to_value(&cluster.spec).unwrap();
        let resources = &spec["podTemplate"]["spec"]["containers"][0]["resources"];
        assert_eq!(*resources, serde_json::json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}));
    }

    #[test]
    fn text_that_is_no_yaml_is_told_with_line_and_column() {
        let error = parse(Path::new("demo.yaml"), "spec: {a: [1\nb: 2").unwrap_err().to_string();
        assert!(error.starts_with("demo.yaml:2:"), "{error}");
    }

    #[test]
    fn a_file_without_a_cluster_says_so() {
        let error = parse(Path::new("demo.yaml"), "kind: Secret\napiVersion: v1\n").unwrap_err().to_string();
        assert_eq!(error, "demo.yaml contains no FanoutCluster (apiVersion fanout.dev/v1alpha1)");
    }

    #[test]
    fn a_change_that_a_cluster_would_refuse_is_refused() {
        let read = |spec: &str| parse(Path::new("demo.yaml"), &format!("{HEAD}{spec}")).unwrap();
        let old = read("spec: {redis: {managed: {}, channelPrefix: a}}");
        let refused =
            check_change(&old, &read("spec: {redis: {managed: {}, channelPrefix: b}}")).unwrap_err();
        assert!(refused.contains("redis.channelPrefix cannot be changed"), "{refused}");
        check_change(&old, &read("spec: {replicas: 5, redis: {managed: {}, channelPrefix: a}}")).unwrap();
    }
}
