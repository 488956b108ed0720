//! Value trees in which nothing was lost on the way: a key that stands twice in one object is an error, where a plain
//! reader would keep the last and drop the others unseen. For YAML documents and, by the same reader, for JSON.

use std::{
    cell::{Cell, RefCell},
    fmt,
};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Repeated keys told of one document: each costs another reading.
const MOST: usize = 16;

/// YAML's merge key (<https://yaml.org/type/merge.html>): what it names is put in where no key of its own stands.
const MERGE: &str = "<<";

/// Error for text that is not YAML or in which a key is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YamlError {
    /// The document, from 0.
    pub document: usize,
    /// Path of the repeated key, such as `hub.limits.headerBytes`. Empty for text that is not YAML.
    pub path: String,
    /// From 1; `None` where it has no place.
    pub line: Option<usize>,
    /// From 1.
    pub column: Option<usize>,
    /// The mistake. For text that is not YAML, the parser's message, including the position.
    pub message: String,
}

/// Bytes that are no JSON, or JSON in which a key is repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Message of the parser.
    #[error("invalid JSON: {0}")]
    Syntax(String),
    /// Path of the repeated key.
    #[error("duplicate key `{0}`")]
    Repeated(String),
}

/// Every document of a YAML text. Aliases are replaced by what they name, merge keys by what they bring.
///
/// # Errors
/// What is no YAML, or every key that is repeated (up to 16 of a document).
pub fn yaml(text: &str) -> Result<Vec<Value>, Vec<YamlError>> {
    let (mut values, mut errors) = (Vec::new(), Vec::new());
    for (at, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let trail = Trail::default();
        match Strict(&trail).deserialize(document) {
            Ok(value) => values.push(value),
            Err(error) => {
                let syntax = trail.repeated.borrow().is_none();
                errors.push(YamlError::new(at, &trail, &error));
                if syntax {
                    errors.extend(mark_inside(at, text));
                    // What follows is read from where nobody knows.
                    break;
                }
                errors.extend(more_repeated(text, at));
            }
        }
    }
    if errors.is_empty() { Ok(values) } else { Err(errors) }
}

/// The repeated keys of a document behind the first: the parser tells a place only in its errors.
fn more_repeated(text: &str, at: usize) -> impl Iterator<Item = YamlError> {
    (1..MOST).map_while(move |skip| {
        let trail = Trail { skip: Cell::new(skip), ..Trail::default() };
        let document = serde_yaml::Deserializer::from_str(text).nth(at)?;
        let error = Strict(&trail).deserialize(document).err()?;
        trail.repeated.borrow().is_some().then(|| YamlError::new(at, &trail, &error))
    })
}

/// The byte order mark inside of a text that could not be read: nobody sees it, and files that were put together from
/// several have one.
fn mark_inside(document: usize, text: &str) -> Option<YamlError> {
    let at = text.char_indices().skip(1).find(|(_, c)| *c == '\u{feff}')?.0;
    let line = Some(text[..at].matches('\n').count() + 1);
    let message = "contains a byte order mark (U+FEFF) that is not at its beginning: remove it".to_owned();
    Some(YamlError { document, path: String::new(), line, column: None, message })
}

/// One JSON value.
///
/// # Errors
/// What is no JSON, or the first key that is repeated.
pub fn json(bytes: &[u8]) -> Result<Value, JsonError> {
    let trail = Trail::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let read = Strict(&trail).deserialize(&mut deserializer);
    read.and_then(|value| deserializer.end().map(|()| value)).map_err(|error| match trail.repeated.take() {
        Some(path) => JsonError::Repeated(path),
        None => JsonError::Syntax(error.to_string()),
    })
}

/// Returns a key for display, with invisible characters escaped.
pub fn visible(key: &str) -> String {
    let hidden = |c: char| c.is_control() || matches!(c, '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{2060}');
    let mut text = String::with_capacity(key.len());
    for c in key.chars() {
        if hidden(c) { text.extend(c.escape_unicode()) } else { text.push(c) }
    }
    text
}

/// Where a reader is, and what it found.
#[derive(Debug, Default)]
struct Trail {
    steps: RefCell<String>,
    /// Repeated keys to pass over.
    skip: Cell<usize>,
    repeated: RefCell<Option<String>>,
}

impl Trail {
    /// Does `read` one step deeper.
    fn inside<T>(&self, step: &str, read: impl FnOnce() -> T) -> T {
        let before = self.steps.borrow().len();
        self.put(step);
        let answer = read();
        self.steps.borrow_mut().truncate(before);
        answer
    }

    fn put(&self, step: &str) {
        let mut steps = self.steps.borrow_mut();
        if !steps.is_empty() && !step.starts_with('[') {
            steps.push('.');
        }
        steps.push_str(step);
    }

    /// A key that stands twice: whether it is the one to tell.
    fn tells(&self, key: &str) -> bool {
        if let Some(left) = self.skip.get().checked_sub(1) {
            self.skip.set(left);
            return false;
        }
        let path = self.inside(&visible(key), || self.steps.borrow().clone());
        *self.repeated.borrow_mut() = Some(path);
        true
    }
}

/// Reads a value.
#[derive(Clone, Copy)]
struct Strict<'a>(&'a Trail);

/// Reads a key that must not be one of those.
struct Key<'a> {
    trail: &'a Trail,
    known: &'a Map<String, Value>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) =
            self.0.inside(&format!("[{}]", list.len()), || items.next_element_seed(self))?
        {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key_seed(Key { trail: self.0, known: &object })? {
            let value = self.0.inside(&visible(&key), || map.next_value_seed(self))?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string as key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<String, E> {
        if self.known.contains_key(key) && self.trail.tells(key) {
            return Err(E::custom("duplicate key: keep only one of them"));
        }
        Ok(key.to_owned())
    }
}

/// Puts in what merge keys bring, everywhere in a document. Own keys win, and of several merged objects the first.
///
/// # Errors
/// What stands behind a merge key and is no object.
pub fn merged(value: Value) -> Result<Value, &'static str> {
    match value {
        Value::Array(items) => items.into_iter().map(merged).collect::<Result<_, _>>().map(Value::Array),
        Value::Object(object) => merge(object).map(Value::Object),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(value),
    }
}

fn merge(object: Map<String, Value>) -> Result<Map<String, Value>, &'static str> {
    let mut object: Map<_, _> = object
        .into_iter()
        .map(|(key, value)| merged(value).map(|value| (key, value)))
        .collect::<Result<_, _>>()?;
    let sources = match object.remove(MERGE) {
        None => return Ok(object),
        Some(Value::Array(sources)) => sources,
        Some(source) => vec![source],
    };
    for source in sources {
        let Value::Object(source) = source else {
            return Err(
                "merges a value that is not an object: `<<` takes an alias of an object or a list of them",
            );
        };
        for (key, value) in source {
            object.entry(key).or_insert(value);
        }
    }
    Ok(object)
}

// === impl YamlError ===

impl YamlError {
    fn new(document: usize, trail: &Trail, error: &serde_yaml::Error) -> Self {
        let place = error.location();
        let repeated = trail.repeated.borrow().clone();
        Self {
            document,
            line: place.as_ref().map(serde_yaml::Location::line),
            column: place.as_ref().map(serde_yaml::Location::column),
            message: match &repeated {
                Some(_) => "duplicate key: keep only one of them".to_owned(),
                None => format!("is not valid YAML: {error}"),
            },
            path: repeated.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn repeated(text: &str) -> Vec<(String, Option<usize>)> {
        yaml(text).unwrap_err().into_iter().map(|error| (error.path, error.line)).collect()
    }

    #[test]
    fn every_repeated_key_is_told_with_its_path_and_line() {
        let text =
            "hub:\n  limits: {a: 1}\n  limits: {b: 1}\nlist:\n- x: 1\n- y: 1\n  z: 2\n  y: 3\nhub: {}\n";
        let expected = [("hub.limits", 3), ("list[1].y", 8), ("hub", 9)];
        assert_eq!(repeated(text), expected.map(|(path, line)| (path.to_owned(), Some(line))));
        assert_eq!(repeated("a: 1\n---\nb: 1\n'b': 2\n"), [("b".to_owned(), Some(4))]);
        let many: String = (0..100).map(|_| "a: 1\n").collect();
        assert_eq!(repeated(&many).len(), MOST);
    }

    #[test]
    fn the_same_key_in_two_objects_is_no_repetition() {
        assert_eq!(
            yaml("a: {x: 1}\nb: {x: 1}\nx: 2").unwrap(),
            [json!({"a": {"x": 1}, "b": {"x": 1}, "x": 2})]
        );
    }

    #[test]
    fn aliases_are_what_they_name_and_a_merge_brings_what_is_not_there() {
        let text = "base: &base {x: 1, y: 1}\nother: &other {y: 2, z: 2}\na: {<<: *base, x: 5}\nb: {<<: [*other, *base]}\n";
        let value = merged(yaml(text).unwrap().remove(0)).unwrap();
        assert_eq!(value["a"], json!({"x": 5, "y": 1}));
        assert_eq!(value["b"], json!({"x": 1, "y": 2, "z": 2}));
        assert_eq!(repeated("base: &b {x: 1}\na:\n  <<: *b\n  <<: *b\n"), [("a.<<".to_owned(), Some(4))]);
        // The second is inside of what an alias names.
        assert_eq!(repeated("base: &b\n  x: 1\n  x: 2\na: *b\n")[0], ("base.x".to_owned(), Some(3)));
        assert!(merged(json!({"a": {"<<": 7}})).is_err());
    }

    #[test]
    fn json_is_read_as_strictly() {
        assert_eq!(json(br#"{"a": [1, null, "x"]}"#), Ok(json!({"a": [1, null, "x"]})));
        assert_eq!(json(br#"{"a": {"b": 1, "b": 2}}"#), Err(JsonError::Repeated("a.b".to_owned())));
        // However it is written.
        assert_eq!(json(br#"{"sub": 1, "s\u0075b": 2}"#), Err(JsonError::Repeated("sub".to_owned())));
        assert!(matches!(json(b"{} {}"), Err(JsonError::Syntax(_))));
    }

    #[test]
    fn what_nobody_sees_in_a_key_is_written_out() {
        assert_eq!(visible("\u{feff}hub"), "\\u{feff}hub");
        assert_eq!(visible("größe"), "größe");
    }
}
