//! Volumes: one source each, and what the sources ask for.

use std::collections::BTreeSet;

use super::super::{At, Out};
use super::container::{field_ref, inner_path, resource_field_ref};
use crate::names;

const MODE_MAX: i64 = 0o777;
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
const HOST_PATH_TYPES: [&str; 7] = ["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const VOLUME_FIELD_PATHS: [&str; 5] = ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

pub(super) fn volumes(at: &At, out: &mut Out) {
    let mut seen = BTreeSet::new();
    for volume in at.items() {
        let name = volume.get("name");
        out.named(&name, names::dns1123_label);
        if name.given() && !seen.insert(name.text()) {
            out.duplicate(&name);
        }
        one_source(&volume, "must specify a volume type", "may not specify more than 1 volume type", out);
        source(&volume, out);
    }
}

/// The sources of a volume or a projection are its fields but the name.
fn one_source(at: &At, none: &str, more: &str, out: &mut Out) {
    let given = at.v.as_object().into_iter().flatten().filter(|(k, v)| *k != "name" && !v.is_null());
    let given: Vec<&String> = given.map(|(k, _)| k).collect();
    if given.is_empty() {
        out.required(at, none);
    }
    given.iter().skip(1).for_each(|extra| out.forbidden(&at.get(extra), more));
}

fn source(volume: &At, out: &mut Out) {
    let at = |name: &str| Some(volume.get(name)).filter(At::is_set);
    if let Some(path) = at("hostPath") {
        let text = path.get("path");
        if !text.given() {
            out.required(&text, "");
        } else if text.text().split('/').any(|p| p == "..") {
            out.invalid(&text, "must not contain '..'");
        }
        out.one_of(&path.get("type"), &HOST_PATH_TYPES);
    }
    if let Some(empty) = at("emptyDir")
        && empty.get("sizeLimit").is_set()
        && crate::quantity::Quantity::from_value(empty.get("sizeLimit").v).map_or(true, |q| q.is_negative())
    {
        out.forbidden(&empty.get("sizeLimit"), "SizeLimit field must be a valid resource quantity");
    }
    for (kind, field) in [("secret", "secretName"), ("configMap", "name")] {
        if let Some(files) = at(kind) {
            if !files.get(field).given() {
                out.required(&files.get(field), "");
            }
            mode(&files.get("defaultMode"), out);
            keys(&files.get("items"), out);
        }
    }
    if let Some(api) = at("downwardAPI") {
        mode(&api.get("defaultMode"), out);
        downward(&api.get("items"), out);
    }
    if let Some(projected) = at("projected") {
        mode(&projected.get("defaultMode"), out);
        projected.get("sources").items().iter().for_each(|s| projection(s, out));
        paths_differ(&projected, out);
    }
    if let Some(claim) = at("persistentVolumeClaim")
        && !claim.get("claimName").given()
    {
        out.required(&claim.get("claimName"), "");
    }
    if let Some(image) = at("image") {
        out.one_of(&image.get("pullPolicy"), &["Always", "IfNotPresent", "Never"]);
        if !image.get("reference").given() {
            out.required(&image.get("reference"), "");
        }
    }
}

fn mode(at: &At, out: &mut Out) {
    if at.int().is_some_and(|m| !(0..=MODE_MAX).contains(&m)) {
        out.invalid(at, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

/// Files are named by relative paths that stay inside and do not begin with two dots.
fn file_path(at: &At, out: &mut Out) {
    if !at.given() {
        return out.required(at, "");
    }
    inner_path(at, out);
    if at.text().starts_with("..") && !at.text().split('/').any(|p| p == "..") {
        out.invalid(at, "must not start with '..'");
    }
}

fn keys(at: &At, out: &mut Out) {
    for item in at.items() {
        if !item.get("key").given() {
            out.required(&item.get("key"), "");
        }
        file_path(&item.get("path"), out);
        mode(&item.get("mode"), out);
    }
}

fn downward(at: &At, out: &mut Out) {
    for item in at.items() {
        file_path(&item.get("path"), out);
        mode(&item.get("mode"), out);
        let (field, resource) = (item.get("fieldRef"), item.get("resourceFieldRef"));
        match (field.is_set(), resource.is_set()) {
            (true, both) => {
                field_ref(&field, &VOLUME_FIELD_PATHS, out);
                if both {
                    out.invalid_value(&item, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
                }
            }
            (false, true) => {
                if !resource.get("containerName").given() {
                    out.required(&resource.get("containerName"), "");
                }
                resource_field_ref(&resource, out);
            }
            (false, false) => out.required(&item, "one of fieldRef and resourceFieldRef is required"),
        }
    }
}

fn projection(at: &At, out: &mut Out) {
    one_source(at, "must specify a volume type", "may not specify more than 1 volume type per source", out);
    for kind in ["secret", "configMap"] {
        let files = at.get(kind);
        if files.is_set() {
            if !files.get("name").given() {
                out.required(&files.get("name"), "");
            }
            keys(&files.get("items"), out);
        }
    }
    downward(&at.get("downwardAPI.items"), out);
    let token = at.get("serviceAccountToken");
    if token.is_set() {
        let seconds = token.get("expirationSeconds");
        if seconds.int().is_some_and(|s| s < TOKEN_SECONDS_MIN) {
            out.invalid(&seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds.int().is_some_and(|s| s > TOKEN_SECONDS_MAX) {
            out.invalid(&seconds, "may not specify a duration larger than 2^32 seconds");
        }
        file_path(&token.get("path"), out);
    }
}

/// Two projections must not write one file.
fn paths_differ(projected: &At, out: &mut Out) {
    let mut seen = BTreeSet::new();
    for source in projected.get("sources").items() {
        let mut paths = vec![source.get("serviceAccountToken.path")];
        for kind in ["secret", "configMap", "downwardAPI"] {
            paths.extend(source.get(kind).get("items").items().iter().map(|i| i.get("path")));
        }
        for path in paths.iter().filter(|p| p.given()) {
            if !seen.insert(path.text()) {
                out.invalid(path, "conflicting duplicate paths");
            }
        }
    }
}
