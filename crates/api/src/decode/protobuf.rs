//! Kubernetes' protobuf encoding, read by the field table: one decoder for every built-in kind.
//!
//! Sources: the wire format of protocol buffers, the envelope `runtime.Unknown` after the magic `k8s\0`, and the numbers in the
//! schema facts. Knows nothing of encoding: answers are JSON. Fields it does not know are skipped, as protobuf has it. Zero
//! values that Go always sends are kept here; the structural check drops them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::limits::{PROTOBUF_DEPTH_MAX, PROTOBUF_VALUES_MAX};
use crate::schema::{self, Schema, Type, Wire};

const MAGIC: &[u8] = b"k8s\0";

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtobufError {
    #[error("it does not start with the magic bytes \"k8s\\0\"")]
    Magic,
    #[error("it is cut short")]
    Truncated,
    #[error("a varint is longer than ten bytes")]
    Varint,
    #[error("a field has the number 0 or an unknown wire type")]
    Tag,
    #[error("field {0:?} has the wrong wire type")]
    WireType(&'static str),
    #[error("field {0:?} is not UTF-8 text")]
    Utf8(&'static str),
    #[error("field {0:?} holds no JSON: {1}")]
    Json(&'static str, String),
    #[error("field {0:?} is no time that can be written")]
    Time(&'static str),
    #[error("field {0:?} has no protobuf form")]
    Formless(&'static str),
    #[error("messages are nested too deeply")]
    Depth,
    #[error("it holds too many values")]
    Values,
    #[error("no kind {1:?} is registered for version {0:?}")]
    Kind(String, String),
    #[error("the content encoding {0:?} is not known")]
    Encoding(String),
}

use ProtobufError as E;

/// An object in its envelope.
pub(super) fn decode(body: &[u8]) -> Result<Value, E> {
    Decoder { values_left: PROTOBUF_VALUES_MAX }.envelope(body, 0)
}

/// One field as it stands on the wire.
#[derive(Clone, Copy)]
enum Raw<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32,
    Bytes(&'a [u8]),
}

/// The fields of a message, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, E> {
        let mut value = 0u64;
        for i in 0..10 {
            let (byte, rest) = self.0.split_first().ok_or(E::Truncated)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7F) << (7 * i);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(E::Varint)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], E> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(E::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u32, Raw<'a>)>, E> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| *n != 0).ok_or(E::Tag)?;
        let raw = match tag & 7 {
            0 => Raw::Varint(self.varint()?),
            1 => Raw::Fixed64(self.take(8)?.try_into().map_err(|_| E::Truncated)?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| E::Truncated)?;
                Raw::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Raw::Fixed32)?,
            _ => return Err(E::Tag),
        };
        Ok(Some((number, raw)))
    }
}

impl<'a> Raw<'a> {
    fn bytes(self, field: &'static str) -> Result<&'a [u8], E> {
        if let Raw::Bytes(bytes) = self { Ok(bytes) } else { Err(E::WireType(field)) }
    }

    fn number(self, field: &'static str) -> Result<i64, E> {
        if let Raw::Varint(n) = self { Ok(n as i64) } else { Err(E::WireType(field)) }
    }

    fn text(self, field: &'static str) -> Result<&'a str, E> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| E::Utf8(field))
    }
}

struct Decoder {
    /// How many more values may be made.
    values_left: usize,
}

impl Decoder {
    /// `runtime.Unknown`: `typeMeta = 1 { apiVersion = 1, kind = 2 }`, `raw = 2`, `contentEncoding = 3`, `contentType = 4`.
    fn envelope(&mut self, body: &[u8], depth: usize) -> Result<Value, E> {
        let mut fields = Fields(body.strip_prefix(MAGIC).ok_or(E::Magic)?);
        let (mut api_version, mut kind, mut raw, mut encoding, mut media) = ("", "", [].as_slice(), "", "");
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => {
                    let mut meta = Fields(value.bytes("typeMeta")?);
                    while let Some((number, value)) = meta.next()? {
                        match number {
                            1 => api_version = value.text("apiVersion")?,
                            2 => kind = value.text("kind")?,
                            _ => {}
                        }
                    }
                }
                2 => raw = value.bytes("raw")?,
                3 => encoding = value.text("contentEncoding")?,
                4 => media = value.text("contentType")?,
                _ => {}
            }
        }
        if !encoding.is_empty() {
            return Err(E::Encoding(encoding.into()));
        }
        if media == super::JSON {
            return json(raw, "raw");
        }
        let schema = schema::for_api_version(api_version, kind).ok_or_else(|| E::Kind(api_version.into(), kind.into()))?;
        let mut object = Map::new();
        self.message(schema, raw, depth + 1, &mut object)?;
        object.insert("apiVersion".into(), api_version.into());
        object.insert("kind".into(), kind.into());
        Ok(Value::Object(object))
    }

    fn message(&mut self, schema: &Schema, bytes: &[u8], depth: usize, into: &mut Map<String, Value>) -> Result<(), E> {
        if depth > PROTOBUF_DEPTH_MAX {
            return Err(E::Depth);
        }
        let mut fields = Fields(bytes);
        while let Some((number, raw)) = fields.next()? {
            match schema.wire.get(&number) {
                Some(Wire::Field(name)) => {
                    if let Some(field) = schema.fields.get(name) {
                        self.field(field.name, &field.ty, raw, depth, into)?;
                    }
                }
                Some(Wire::Inline(of)) => self.message(of.schema(), raw.bytes("an inlined struct")?, depth + 1, into)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Lists and maps grow by what comes; anything else is replaced by the last that comes.
    fn field(&mut self, name: &'static str, ty: &Type, raw: Raw<'_>, depth: usize, into: &mut Map<String, Value>) -> Result<(), E> {
        match ty {
            Type::List { of, wrapped: false } => {
                if let Value::Array(list) = into.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
                    self.item(name, of, raw, depth, list)?;
                }
            }
            Type::Map(of) => {
                let (key, value) = self.entry(name, of, raw.bytes(name)?, depth)?;
                if let Value::Object(map) = into.entry(name).or_insert_with(|| Value::Object(Map::new())) {
                    map.insert(key, value);
                }
            }
            _ => {
                let value = self.value(name, ty, raw, depth)?;
                into.insert(name.into(), value);
            }
        }
        Ok(())
    }

    /// One item of a list, or several numbers packed together.
    fn item(&mut self, name: &'static str, of: &Type, raw: Raw<'_>, depth: usize, list: &mut Vec<Value>) -> Result<(), E> {
        let number = matches!(of, Type::Int32 | Type::Int64 | Type::Bool);
        match raw {
            Raw::Bytes(packed) if number => {
                let mut packed = Fields(packed);
                while !packed.0.is_empty() {
                    let raw = Raw::Varint(packed.varint()?);
                    list.push(self.value(name, of, raw, depth)?);
                }
            }
            _ => list.push(self.value(name, of, raw, depth)?),
        }
        Ok(())
    }

    /// A map's entry is a message of key and value.
    fn entry(&mut self, name: &'static str, of: &Type, bytes: &[u8], depth: usize) -> Result<(String, Value), E> {
        let (mut key, mut value) = ("", None);
        let mut fields = Fields(bytes);
        while let Some((number, raw)) = fields.next()? {
            match number {
                1 => key = raw.text(name)?,
                2 => value = Some(self.value(name, of, raw, depth)?),
                _ => {}
            }
        }
        // An entry without a value has the zero value, which the structural check puts in.
        Ok((key.into(), value.unwrap_or(Value::Null)))
    }

    fn value(&mut self, name: &'static str, ty: &Type, raw: Raw<'_>, depth: usize) -> Result<Value, E> {
        self.values_left = self.values_left.checked_sub(1).ok_or(E::Values)?;
        Ok(match ty {
            Type::String => raw.text(name)?.into(),
            Type::Bool => (raw.number(name)? != 0).into(),
            Type::Int32 => (raw.number(name)? as i32).into(),
            Type::Int64 => raw.number(name)?.into(),
            Type::Float => match raw {
                Raw::Fixed64(bytes) => f64::from_le_bytes(bytes).into(),
                _ => return Err(E::WireType(name)),
            },
            Type::Bytes => STANDARD.encode(raw.bytes(name)?).into(),
            Type::Quantity => quantity(raw.bytes(name)?, name)?,
            Type::Time => time(raw.bytes(name)?, name, base::rfc3339)?,
            Type::MicroTime => time(raw.bytes(name)?, name, base::rfc3339_micro)?,
            Type::Duration => go_duration(first_number(raw.bytes(name)?, name)?).into(),
            Type::IntOrString => int_or_string(raw.bytes(name)?, name)?,
            Type::Raw => self.raw(raw.bytes(name)?, name, depth)?,
            Type::Any => return Err(E::Formless(name)),
            Type::Object(of) => {
                let mut object = Map::new();
                self.message(of.schema(), raw.bytes(name)?, depth + 1, &mut object)?;
                Value::Object(object)
            }
            Type::List { of, wrapped } => {
                // A list as a map's value or as a field comes in a message whose field 1 repeats.
                let (mut list, mut fields) = (Vec::new(), Fields(raw.bytes(name)?));
                while let Some((number, raw)) = fields.next()? {
                    if number == 1 && *wrapped {
                        self.item(name, of, raw, depth, &mut list)?;
                    }
                }
                Value::Array(list)
            }
            Type::Map(_) => return Err(E::Formless(name)),
        })
    }

    /// `RawExtension` and `FieldsV1`: field 1 holds JSON, or an object in an envelope of its own.
    fn raw(&mut self, bytes: &[u8], name: &'static str, depth: usize) -> Result<Value, E> {
        let (mut content, mut fields) = ([].as_slice(), Fields(bytes));
        while let Some((number, raw)) = fields.next()? {
            if number == 1 {
                content = raw.bytes(name)?;
            }
        }
        match content {
            [] => Ok(Value::Null),
            _ if content.starts_with(MAGIC) && depth < PROTOBUF_DEPTH_MAX => self.envelope(content, depth + 1),
            _ => json(content, name),
        }
    }
}

fn json(bytes: &[u8], field: &'static str) -> Result<Value, E> {
    serde_json::from_slice(bytes).map_err(|e| E::Json(field, e.to_string()))
}

/// `Quantity { string = 1 }`
fn quantity(bytes: &[u8], field: &'static str) -> Result<Value, E> {
    let (mut text, mut fields) = ("0", Fields(bytes));
    while let Some((number, raw)) = fields.next()? {
        if number == 1 {
            text = raw.text(field)?;
        }
    }
    Ok(text.into())
}

/// `Timestamp { seconds = 1, nanos = 2 }`; nothing at all is Go's zero time, which JSON has as null.
fn time(bytes: &[u8], field: &'static str, form: fn(jiff::Timestamp) -> String) -> Result<Value, E> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos, mut fields) = (0, 0, Fields(bytes));
    while let Some((number, raw)) = fields.next()? {
        match number {
            1 => seconds = raw.number(field)?,
            2 => nanos = raw.number(field)? as i32,
            _ => {}
        }
    }
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| E::Time(field))?;
    Ok(form(time).into())
}

/// `IntOrString { type = 1, intVal = 2, strVal = 3 }`, type 1 being the string.
fn int_or_string(bytes: &[u8], field: &'static str) -> Result<Value, E> {
    let (mut kind, mut int, mut text, mut fields) = (0, 0, "", Fields(bytes));
    while let Some((number, raw)) = fields.next()? {
        match number {
            1 => kind = raw.number(field)?,
            2 => int = raw.number(field)? as i32,
            3 => text = raw.text(field)?,
            _ => {}
        }
    }
    Ok(if kind == 1 { text.into() } else { int.into() })
}

/// `Duration { duration = 1 }` in nanoseconds.
fn first_number(bytes: &[u8], field: &'static str) -> Result<i64, E> {
    let (mut n, mut fields) = (0, Fields(bytes));
    while let Some((number, raw)) = fields.next()? {
        if number == 1 {
            n = raw.number(field)?;
        }
    }
    Ok(n)
}

/// A duration in seconds with a fraction, a spelling that Go reads: `90.5s`.
fn go_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let (seconds, rest) = (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
    let fraction = if rest == 0 { String::new() } else { format!(".{rest:09}").trim_end_matches('0').to_string() };
    format!("{sign}{seconds}{fraction}s")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrap(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let field = |number: u8, bytes: &[u8]| {
            let mut out = vec![number << 3 | 2];
            let mut n = bytes.len();
            while n >= 0x80 {
                out.push(n as u8 | 0x80);
                n >>= 7;
            }
            out.push(n as u8);
            [out, bytes.to_vec()].concat()
        };
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn broken_bytes_are_told_apart() {
        for (body, expect) in [
            (b"{}".to_vec(), E::Magic),
            (b"k8s\0".to_vec(), E::Kind("".into(), "".into())),
            (wrap("v1", "Nothing", b""), E::Kind("v1".into(), "Nothing".into())),
            (wrap("v1", "Pod", b"\x0a"), E::Truncated),
            (wrap("v1", "Pod", b"\x0a\x7f"), E::Truncated),
            (wrap("v1", "Pod", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), E::Varint),
            (wrap("v1", "Pod", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), E::Truncated),
            (wrap("v1", "Pod", b"\x00\x00"), E::Tag),
            (wrap("v1", "Pod", b"\x0b\x00"), E::Tag),
            (wrap("v1", "Pod", b"\x08\x01"), E::WireType("metadata")),
            (wrap("v1", "Pod", b"\x0a\x03\x0a\x01\xff"), E::Utf8("name")),
            // creationTimestamp = { seconds: 2^62 }
            (wrap("v1", "Pod", b"\x0a\x0c\x42\x0a\x08\x80\x80\x80\x80\x80\x80\x80\x80\x40"), E::Time("creationTimestamp")),
        ] {
            assert_eq!(decode(&body), Err(expect), "{body:02x?}");
        }
    }

    #[test]
    fn unknown_numbers_are_skipped() {
        let body = wrap("v1", "Pod", b"\xf8\x7f\x05\xfa\x7f\x01x\xf9\x7f12345678\xfd\x7f1234\x0a\x03\x0a\x01a");
        assert_eq!(decode(&body).unwrap(), serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}));
    }

    #[test]
    fn bombs_are_refused() {
        // Objects without bytes: finalizers, two bytes each.
        let many = [b"\x72\x00".repeat(PROTOBUF_VALUES_MAX + 1)].concat();
        let mut meta = vec![0x0a];
        let mut n = many.len();
        while n >= 0x80 {
            meta.push(n as u8 | 0x80);
            n >>= 7;
        }
        meta.push(n as u8);
        assert_eq!(decode(&wrap("v1", "Pod", &[meta, many].concat())), Err(E::Values));
        // A controller revision that holds a controller revision that holds …
        let mut inner = wrap("apps/v1", "ControllerRevision", b"");
        for _ in 0..200 {
            let field = |number: u8, bytes: &[u8]| {
                let n = bytes.len();
                let mut out = vec![number << 3 | 2, n as u8 | 0x80, (n >> 7) as u8 | 0x80, (n >> 14) as u8];
                out.extend(bytes);
                out
            };
            inner = wrap("apps/v1", "ControllerRevision", &field(2, &field(1, &inner)));
        }
        assert!(decode(&inner).is_err());
    }

    #[test]
    fn durations_are_readable_by_go() {
        for (nanos, expect) in [(0, "0s"), (1_500_000_000, "1.5s"), (-2_000_000_000, "-2s"), (1, "0.000000001s")] {
            assert_eq!(go_duration(nanos), expect);
        }
    }
}
