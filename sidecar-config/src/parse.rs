//! From text to settings, with every mistake reported at once.

use std::fmt;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A settings document.
pub trait Document: DeserializeOwned + JsonSchema {
    /// Mistakes that a JSON Schema cannot express; empty for a good document.
    fn check(&self) -> Vec<Mistake>;
}

/// One mistake in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it is, as `hub.limits.headerBytes` or `namespaces[1].name`; empty for the document itself.
    pub path: String,
    /// The bad value and what is allowed.
    pub message: String,
}

/// All mistakes of a document; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

/// Reads a YAML (or JSON) document.
///
/// # Errors
/// Every mistake with its path: text that is no YAML (with line and column), values the schema refuses,
/// unknown keys, and what [`Document::check`] finds.
pub fn parse<D: Document>(text: &str) -> Result<D, Mistakes> {
    let value: Value =
        serde_yaml::from_str(text).map_err(|error| Mistakes::one("", format!("is no YAML: {error}")))?;
    // An empty file is an empty document: all defaults.
    let value = if value.is_null() { Value::Object(serde_json::Map::default()) } else { value };
    let schema = schema::<D>();
    let validator = jsonschema::validator_for(&schema).expect("a derived schema is a valid schema");
    let mistakes: Vec<_> = validator.iter_errors(&value).flat_map(|error| from_schema(&error)).collect();
    if !mistakes.is_empty() {
        return Err(Mistakes(mistakes));
    }
    let document: D = serde_json::from_value(value).map_err(|error| Mistakes::one("", error.to_string()))?;
    let mistakes = document.check();
    if mistakes.is_empty() { Ok(document) } else { Err(Mistakes(mistakes)) }
}

/// The JSON Schema (draft 2020-12) of a document.
pub fn schema<D: JsonSchema>() -> Value {
    schemars::schema_for!(D).to_value()
}

fn from_schema(error: &jsonschema::ValidationError<'_>) -> Vec<Mistake> {
    let path = dotted(error.instance_path().as_str());
    match error.kind() {
        jsonschema::error::ValidationErrorKind::AdditionalProperties { unexpected } => unexpected
            .iter()
            .map(|key| {
                Mistake::new(
                    if path.is_empty() { key.clone() } else { format!("{path}.{key}") },
                    "is an unknown key",
                )
            })
            .collect(),
        _ => vec![Mistake::new(path, error.to_string())],
    }
}

/// `/namespaces/0/name` → `namespaces[0].name`.
fn dotted(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.split('/').skip(1) {
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            path.push_str(&format!("[{part}]"));
        } else {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&part.replace("~1", "/").replace("~0", "~"));
        }
    }
    path
}

// === impl Mistake ===

impl Mistake {
    /// A mistake at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, message } = self;
        if path.is_empty() { write!(f, "the document {message}") } else { write!(f, "{path}: {message}") }
    }
}

// === impl Mistakes ===

impl Mistakes {
    fn one(path: &str, message: impl Into<String>) -> Self {
        Self(vec![Mistake::new(path, message)])
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(Mistake::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}
