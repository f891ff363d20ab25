//! Protobuf bodies as Go clients write them, against the JSON that Go writes for the same objects; and mutations of all three
//! encodings, which have to end in a value or a 400.
//!
//! The fixture alternates lines of hexadecimal protobuf (the serializer of `k8s.io/apimachinery` v0.33) and JSON.

use api::decode::{self, JSON, PROTOBUF, YAML};
use api::{Value, schema};

/// Pairs of protobuf bytes and JSON.
fn fixtures() -> Vec<(Vec<u8>, Value)> {
    let lines: Vec<&str> = include_str!("fixtures/protobuf.txt").lines().collect();
    let hex = |line: &str| (0..line.len() / 2).map(|i| u8::from_str_radix(&line[2 * i..2 * i + 2], 16).unwrap()).collect();
    lines.chunks(2).map(|pair| (hex(pair[0]), serde_json::from_str(pair[1]).unwrap())).collect()
}

fn checked(mut object: Value) -> Value {
    let schema = schema::for_api_version(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap()).unwrap();
    assert_eq!(schema::check(schema, &mut object), schema::Check::default(), "{object}");
    object
}

#[test]
fn what_go_sends_is_what_go_would_have_written_as_json() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 30);
    for (bytes, json) in fixtures {
        let decoded = decode::decode(PROTOBUF, &bytes).unwrap();
        assert_eq!(decoded.object["kind"], json["kind"]);
        assert_eq!(checked(decoded.object), checked(json));
    }
}

/// The check leaves alone what Go writes, but for nulls and zero structs that only Go's encoder puts out.
#[test]
fn the_check_keeps_what_go_writes() {
    fn without_nulls(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|_, v| !v.is_null());
                // A number that stands for "unset": the zero of a plain IntOrString.
                if map.get("targetPort") == Some(&0.into()) {
                    map.remove("targetPort");
                }
                map.values_mut().for_each(without_nulls);
            }
            Value::Array(list) => list.iter_mut().for_each(without_nulls),
            _ => {}
        }
    }
    for (_, mut json) in fixtures() {
        let checked = checked(json.clone());
        if json["kind"] != "ControllerRevision" {
            without_nulls(&mut json);
        }
        json.get_mut("metadata").map(without_nulls);
        assert_eq!(checked, json);
    }
}

/// SplitMix64: the same bytes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

#[test]
fn hostile_bytes_end_in_a_value_or_a_400() {
    let fixtures = fixtures();
    let mut random = Random(1);
    let mut decoded = 0;
    for round in 0..20_000 {
        let mut bytes = fixtures[random.below(fixtures.len())].0.clone();
        match round % 4 {
            0 => bytes.truncate(random.below(bytes.len())),
            1 => bytes.extend((0..random.below(40)).map(|i| (i * 37) as u8)),
            _ => {}
        }
        for _ in 0..random.below(8) {
            if bytes.len() > 5 {
                let at = 4 + random.below(bytes.len() - 4);
                bytes[at] = random.next() as u8;
            }
        }
        match decode::decode(PROTOBUF, &bytes) {
            Ok(mut d) => {
                decoded += 1;
                // Whatever came out is safe to check as well.
                let kind = (d.object["apiVersion"].as_str().map(str::to_owned), d.object["kind"].as_str().map(str::to_owned));
                if let (Some(v), Some(k)) = kind
                    && let Some(schema) = schema::for_api_version(&v, &k)
                {
                    schema::check(schema, &mut d.object);
                }
            }
            Err(status) => assert_eq!(status.code, 400),
        }
    }
    assert!(decoded > 1000, "{decoded}: mutations should not only hit the envelope");
    for _ in 0..20_000 {
        let mut bytes = b"k8s\0".to_vec();
        bytes.extend((0..random.below(200)).map(|_| random.next() as u8));
        assert!(decode::decode(PROTOBUF, &bytes).is_err());
    }
}

#[test]
fn hostile_text_ends_in_a_value_or_a_400() {
    let fixtures = fixtures();
    let marks: &[u8] = b"{}[]\",:&*!|>-#%@`?\n\t\\0e<~ \xff";
    let mut random = Random(2);
    for round in 0..4_000 {
        let json = &fixtures[random.below(fixtures.len())].1;
        let mut text = if round % 2 == 0 { json.to_string().into_bytes() } else { serde_json::to_vec_pretty(json).unwrap() };
        text.truncate(1 + random.below(text.len()).max(20));
        for _ in 0..1 + random.below(6) {
            let at = random.below(text.len());
            text[at] = marks[random.below(marks.len())];
        }
        for content_type in [JSON, YAML] {
            match decode::decode(content_type, &text) {
                Ok(mut d) => {
                    if let Some(schema) = schema::for_kind("", "v1", "Pod") {
                        schema::check(schema, &mut d.object);
                    }
                }
                Err(status) => assert_eq!(status.code, 400, "{}", String::from_utf8_lossy(&text)),
            }
        }
    }
}
