//! JSON objects as such. serde's derived structs also take an array, its items by position: a protocol that says
//! "object" would mean another thing each time a field is added.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A value that was an object.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OnlyObject(PhantomData))
    }
}

struct OnlyObject<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyObject<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// JSON without the byte order mark that it should not have (RFC 8259 §8.1).
pub fn unmarked(json: &[u8]) -> &[u8] {
    json.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(json)
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pair<'a> {
        a: u8,
        #[serde(borrow)]
        b: Option<&'a RawValue>,
    }

    #[test]
    fn an_object_is_read_as_ever_and_an_array_is_none() {
        let Object(Pair { a, b }) = serde_json::from_str(r#"{"a": 1, "b": [ 2 ]}"#).unwrap();
        assert_eq!((a, b.unwrap().get()), (1, "[ 2 ]"));
        for (text, part) in [
            ("[1, 2]", "expected an object"),
            ("7", "expected an object"),
            (r#"{"a": 1, "a": 2}"#, "duplicate field"),
            (r#"{"a": 1, "c": 2}"#, "unknown field"),
            (r#"{"b": 2}"#, "missing field"),
        ] {
            let error = serde_json::from_str::<Object<Pair<'_>>>(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
