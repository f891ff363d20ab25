//! What `kubectl get` shows: `metav1.Table` from a row's columns and cells, and ages as people read them.
//!
//! Knows the form of tables, not what a kind's cells hold: that is the row's affair.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use crate::{Resource, Status};

/// The `includeObject` parameter: what stands beside the cells of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl Include {
    pub fn parse(parameter: Option<&str>) -> Result<Self, Status> {
        match parameter {
            None | Some("" | "Metadata") => Ok(Self::Metadata),
            Some("None") => Ok(Self::None),
            Some("Object") => Ok(Self::Object),
            Some(other) => Err(Status::bad_request(format!(
                "includeObject: Unsupported value: {other:?}: supported values: \"Metadata\", \"None\", \"Object\""
            ))),
        }
    }
}

/// `metav1.ListMeta`
#[derive(Debug, Clone, Copy, Default)]
pub struct ListMeta<'a> {
    /// Empty in the table of one watch event of a whole object.
    pub resource_version: &'a str,
    /// Where the next page starts; empty on the last.
    pub continue_token: &'a str,
    /// How many objects come after this page, where that is known.
    pub remaining: Option<u64>,
}

impl ListMeta<'_> {
    pub fn to_value(self) -> Value {
        let mut out = Map::new();
        if !self.resource_version.is_empty() {
            out.insert("resourceVersion".into(), self.resource_version.into());
        }
        if !self.continue_token.is_empty() {
            out.insert("continue".into(), self.continue_token.into());
        }
        if let Some(remaining) = self.remaining {
            out.insert("remainingItemCount".into(), remaining.into());
        }
        Value::Object(out)
    }
}

/// The `Table` of some objects of one kind; `now` is what ages are counted from.
pub fn table<'v>(
    row: &Resource,
    items: impl IntoIterator<Item = &'v Value>,
    now: Timestamp,
    include: Include,
    list: ListMeta<'_>,
) -> Value {
    let columns: Vec<Value> = row
        .columns
        .iter()
        .map(|c| json!({"name": c.name, "type": c.kind, "format": c.format, "description": "", "priority": c.priority}))
        .collect();
    let rows: Vec<Value> = items
        .into_iter()
        .map(|object| {
            let mut out = json!({"cells": (row.hooks.cells)(object, now)});
            match include {
                Include::None => {}
                Include::Metadata => out["object"] = partial(object),
                Include::Object => out["object"] = object.clone(),
            }
            out
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list.to_value(),
        "columnDefinitions": columns,
        "rows": rows,
    })
}

/// An object's `PartialObjectMetadata`.
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// `PartialObjectMetadataList`, what clients get that ask for metadata only.
pub fn partial_list<'v>(items: impl IntoIterator<Item = &'v Value>, list: ListMeta<'_>) -> Value {
    let items: Vec<Value> = items.into_iter().map(partial).collect();
    json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": list.to_value(), "items": items})
}

/// An age with two or three significant figures, as kubectl prints it: `45s`, `5m32s`, `3h`, `3d4h`, `2y10d`.
pub fn human_duration(d: SignedDuration) -> String {
    let seconds = d.as_secs();
    // A second of clock skew between machines is no news.
    if seconds < -1 {
        return "<invalid>".into();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |big: i64, unit: &str, small: i64, sub: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{sub}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () if years < 8 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

/// How long ago an RFC 3339 time was; `<unknown>` for what is no time.
pub fn age_of(time: &Value, now: Timestamp) -> String {
    match time.as_str().and_then(|t| t.parse::<Timestamp>().ok()) {
        Some(then) => human_duration(now.duration_since(then)),
        None => "<unknown>".into(),
    }
}

/// The Age cell: how long ago `metadata.creationTimestamp` was.
pub fn age(object: &Value, now: Timestamp) -> String {
    age_of(&object["metadata"]["creationTimestamp"], now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table as rows;

    #[test]
    fn tables_hold_columns_cells_and_what_was_asked_for() {
        let row = rows::by_kind("", "v1", "ConfigMap").unwrap();
        let now: Timestamp = "2024-05-01T12:05:32Z".parse().unwrap();
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"},
            "metadata": {"name": "cm", "creationTimestamp": "2024-05-01T12:00:00Z"}});
        let list = ListMeta { resource_version: "7", continue_token: "next", remaining: Some(3) };
        let table = table(row, [&object], now, Include::Metadata, list);
        assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
        assert_eq!(table["metadata"], json!({"resourceVersion": "7", "continue": "next", "remainingItemCount": 3}));
        assert_eq!(table["columnDefinitions"].as_array().unwrap().len(), row.columns.len());
        assert_eq!(
            table["columnDefinitions"][0],
            json!({"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0})
        );
        assert_eq!(table["rows"][0]["cells"][0], "cm");
        assert_eq!(table["rows"][0]["cells"].as_array().unwrap().last(), Some(&json!("5m32s")));
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(table["rows"][0]["object"]["metadata"], object["metadata"]);
        let with = |include| super::table(row, [&object], now, include, ListMeta::default())["rows"][0].get("object").cloned();
        assert_eq!(with(Include::None), None);
        assert_eq!(with(Include::Object), Some(object.clone()));
        assert!(Include::parse(Some("All")).is_err());
        assert_eq!(Include::parse(None), Ok(Include::Metadata));
        assert_eq!(partial_list([&object], ListMeta::default())["items"][0]["metadata"]["name"], "cm");
    }

    #[test]
    fn ages_are_short() {
        for (seconds, expect) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (332, "5m32s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600, "3h"),
            (5 * 3600 + 120, "5h2m"),
            (8 * 3600 + 120, "8h"),
            (47 * 3600, "47h"),
            (76 * 3600, "3d4h"),
            (8 * 86400 + 3600, "8d"),
            (729 * 86400, "729d"),
            (740 * 86400, "2y10d"),
            (10 * 365 * 86400, "10y"),
        ] {
            assert_eq!(human_duration(SignedDuration::from_secs(seconds)), expect, "{seconds}");
        }
    }
}
