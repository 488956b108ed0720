//! Parsing of settings documents, reporting all mistakes at once.

use std::fmt;

use jsonschema::{
    JsonType, ValidationError,
    error::{TypeKind, ValidationErrorKind as ErrorKind},
};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    format::{FORMATS, complaint},
    strict::{self, YamlError, visible},
};

/// Settings document.
pub trait Document: DeserializeOwned + JsonSchema {
    /// Returns the mistakes that a JSON Schema cannot express. Also called for documents with other mistakes, so that
    /// all are reported at once; values that the schema rejects are ignored.
    fn check(document: &Value) -> Vec<Mistake>;
}

/// Mistake in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Path of the value, such as `hub.limits.headerBytes` or `namespaces[1].name`. Empty for the document itself.
    pub path: String,
    /// The invalid value and what is allowed.
    pub message: String,
}

/// All mistakes in a document. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

/// Reads a YAML (or JSON) document.
///
/// # Errors
/// Every mistake with its path: text that is no YAML and repeated keys (with line and column), values the schema
/// refuses, unknown keys, and what [`Document::check`] finds. A text without a document is one, too: what was meant as
/// all defaults is written `{}`, so that a file that is being written is never taken for that.
pub fn parse<D: Document>(text: &str) -> Result<D, Mistakes> {
    let value = the_document(text)?;
    let mut mistakes: Vec<_> =
        validator::<D>().iter_errors(&value).flat_map(|error| from_schema(&error)).collect();
    let mut unseen = D::check(&value);
    unseen.retain(|mistake| mistakes.iter().all(|told| told.path != mistake.path));
    mistakes.append(&mut unseen);
    if !mistakes.is_empty() {
        return Err(Mistakes(mistakes));
    }
    // Few errors remain here: for example, a schema accepts 5.0 as an integer.
    serde_path_to_error::deserialize(value)
        .map_err(|error| Mistakes::one(&error.path().to_string(), error.inner().to_string()))
}

fn the_document(text: &str) -> Result<Value, Mistakes> {
    let mut documents =
        strict::yaml(text).map_err(|errors| Mistakes(errors.iter().map(Mistake::of).collect()))?;
    match documents.len() {
        0 => return Err(Mistakes::one("", EMPTY)),
        1 => {}
        more => {
            return Err(Mistakes::one("", format!("is one of {more} documents in this text: keep only one")));
        }
    }
    match strict::merged(documents.remove(0)) {
        Ok(Value::Null) => Err(Mistakes::one("", EMPTY)),
        Ok(value) => Ok(value),
        Err(text) => Err(Mistakes::one("", text)),
    }
}

/// Message for a text without a document.
const EMPTY: &str =
    "is empty, like a file that is still being written: use `{}` for a document with only defaults";

fn validator<D: JsonSchema>() -> jsonschema::Validator {
    let options = jsonschema::options().should_validate_formats(true);
    let options =
        FORMATS.iter().fold(options, |options, format| options.with_format(format.name, format.fits));
    options.build(&schema::<D>()).expect("a derived schema is a valid schema")
}

/// Returns the JSON Schema (draft 2020-12) of a document.
pub fn schema<D: JsonSchema>() -> Value {
    schemars::schema_for!(D).to_value()
}

fn from_schema(error: &ValidationError<'_>) -> Vec<Mistake> {
    let path = dotted(error.instance_path().as_str());
    let value = error.instance();
    let message = match error.kind() {
        ErrorKind::AdditionalProperties { unexpected } => {
            let unknown = |key: &String| Mistake::new(joined(&path, &visible(key)), "unknown key");
            return unexpected.iter().map(unknown).collect();
        }
        // An optional section may be `null`; any other value is meant as the section.
        ErrorKind::AnyOf { context } => {
            return context
                .iter()
                .filter(|branch| !wants_null(branch))
                .flatten()
                .flat_map(from_schema)
                .collect();
        }
        ErrorKind::Format { format } => complaint(format).map(|complaint| format!("{value} {complaint}")),
        ErrorKind::Enum { .. } | ErrorKind::OneOfNotValid { .. } => {
            Some(format!("{value} is not one of {}", listed(&named(error))))
        }
        _ => None,
    };
    vec![Mistake::new(path, message.unwrap_or_else(|| error.to_string()))]
}

fn wants_null(branch: &[ValidationError<'_>]) -> bool {
    let null = |kind: &ErrorKind| matches!(kind, ErrorKind::Type { kind: TypeKind::Single(JsonType::Null) });
    branch.iter().any(|error| null(error.kind()))
}

/// Returns the values that an enum allows, which are listed together, or one by one if each has its own description.
fn named(error: &ValidationError<'_>) -> Vec<Value> {
    match error.kind() {
        ErrorKind::Enum { options } => options.as_array().cloned().unwrap_or_default(),
        ErrorKind::Constant { expected_value } => vec![Value::clone(expected_value)],
        ErrorKind::OneOfNotValid { context } => context.iter().flatten().flat_map(named).collect(),
        _ => Vec::new(),
    }
}

/// `"a", "b" or "c"`.
fn listed(values: &[Value]) -> String {
    let texts: Vec<_> = values.iter().map(Value::to_string).collect();
    match texts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => texts.concat(),
    }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
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
    /// Creates a mistake at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }

    fn of(error: &YamlError) -> Self {
        let YamlError { document: _, path, line, column, message } = error;
        let place = match (line, column) {
            (Some(line), Some(column)) if !path.is_empty() => format!(" (line {line}, column {column})"),
            (Some(line), None) => format!(" (line {line})"),
            _ => String::new(),
        };
        Self::new(path.clone(), format!("{message}{place}"))
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
