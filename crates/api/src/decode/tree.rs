//! Reads any self-describing format into a `Value` and notes the keys that come twice.

use std::fmt::{self, Write};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::Decoded;

/// Reads one document.
pub(super) fn read<'de, D: Deserializer<'de>>(reader: D) -> Result<Decoded, D::Error> {
    let mut trace = Trace::default();
    let object = Node(&mut trace).deserialize(reader)?;
    Ok(Decoded { object, duplicates: trace.duplicates })
}

#[derive(Default)]
struct Trace {
    path: String,
    duplicates: Vec<String>,
}

impl Trace {
    /// Steps down; the returned length is where [`Trace::up`] goes back to.
    fn down(&mut self, step: fmt::Arguments<'_>) -> usize {
        let length = self.path.len();
        let _ = self.path.write_fmt(step);
        length
    }

    fn up(&mut self, length: usize) {
        self.path.truncate(length);
    }
}

struct Node<'t>(&'t mut Trace);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(b.into())
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_f64<E: Error>(self, n: f64) -> Result<Value, E> {
        Number::from_f64(n).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, s: &str) -> Result<Value, E> {
        Ok(s.into())
    }

    fn visit_string<E>(self, s: String) -> Result<Value, E> {
        Ok(s.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        self.deserialize(reader)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let back = self.0.down(format_args!("[{}]", items.len()));
            let item = seq.next_element_seed(Node(self.0))?;
            self.0.up(back);
            match item {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let dot = if self.0.path.is_empty() { "" } else { "." };
            let back = self.0.down(format_args!("{dot}{key}"));
            if map.contains_key(&key) {
                let path = self.0.path.clone();
                self.0.duplicates.push(path);
            }
            let value = entries.next_value_seed(Node(self.0))?;
            self.0.up(back);
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
