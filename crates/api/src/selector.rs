//! Label and field selectors: from query strings and from `LabelSelector` objects, and what they match.
//!
//! Source: `k8s.io/apimachinery` `pkg/labels` and `pkg/fields`; the messages are upstream's. Knows labels as strings and, for
//! field selectors, what a row's `fields` hook names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use crate::{Cause, Resource, Status, names};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

impl From<SelectorError> for Status {
    fn from(e: SelectorError) -> Status {
        Status::bad_request(e.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: BTreeSet<String>,
}

impl Requirement {
    fn new(key: &str, operator: Operator, values: BTreeSet<String>) -> Result<Self, SelectorError> {
        if let Some(error) = key_error(key) {
            return Err(error);
        }
        if matches!(operator, Operator::GreaterThan | Operator::LessThan) && values.iter().any(|v| v.parse::<i64>().is_err()) {
            let value = values.first().cloned().unwrap_or_default();
            return Err(SelectorError(format!(
                "values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            )));
        }
        for (i, value) in values.iter().enumerate() {
            let why = names::label_value(value);
            if !why.is_empty() {
                return Err(SelectorError(format!("values[{i}][{key}]: Invalid value: {value:?}: {}", why.join("; "))));
            }
        }
        Ok(Self { key: key.into(), operator, values })
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let number = |compare: fn(&i64, &i64) -> bool| {
            let wanted = self.values.first().and_then(|v| v.parse().ok());
            let found = value.and_then(|v| v.parse().ok());
            matches!((found, wanted), (Some(f), Some(w)) if compare(&f, &w))
        };
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn | Operator::NotEquals => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => number(i64::gt),
            Operator::LessThan => number(i64::lt),
        }
    }
}

fn key_error(key: &str) -> Option<SelectorError> {
    let why = names::qualified(key);
    (!why.is_empty()).then(|| SelectorError(format!("<nil>: Invalid value: {key:?}: {}", why.join("; "))))
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let values = self.values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// A conjunction of requirements on labels. The default matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    pub fn everything() -> Self {
        Self::default()
    }

    /// What an absent `LabelSelector` selects.
    pub fn nothing() -> Self {
        Self { nothing: true, ..Self::default() }
    }

    /// From a query string: `app=web,tier in (a,b),!canary`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Parser { tokens: lex(text), at: 0 }.selector()
    }

    /// Exactly these labels, as `spec.selector` of a Service. Unlike a Service without one, none of them is everything.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let one =
            |(k, v): (&String, &String)| Requirement { key: k.clone(), operator: Operator::Equals, values: BTreeSet::from([v.clone()]) };
        Self { requirements: labels.into_iter().map(one).collect(), nothing: false }
    }

    /// From a `LabelSelector`; `null` selects nothing, `{}` everything.
    pub fn from_value(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let typed: LabelSelector = serde_json::from_value(selector.clone()).map_err(|e| SelectorError(e.to_string()))?;
        Self::from_label_selector(&typed)
    }

    pub fn from_label_selector(selector: &LabelSelector) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::new(key, Operator::Equals, BTreeSet::from([value.clone()]))?);
        }
        for e in selector.match_expressions.iter().flatten() {
            let operator = match e.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(SelectorError(format!("{other:?} is not a valid label selector operator"))),
            };
            let values: BTreeSet<String> = e.values.iter().flatten().cloned().collect();
            if values.is_empty() && matches!(operator, Operator::In | Operator::NotIn) {
                return Err(SelectorError("values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty".into()));
            }
            requirements.push(Requirement::new(&e.key, operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    /// Against `metadata.labels` (`null` is no labels).
    pub fn matches(&self, labels: &Value) -> bool {
        self.matches_with(|key| labels.get(key).and_then(Value::as_str))
    }

    pub fn matches_map(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            write!(f, "{}{r}", if i > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    Bad(String),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Word(s) => s,
            Token::Symbol(s) => s,
            Token::Bad(s) => s,
            Token::End => "",
        }
    }
}

/// Longer symbols first.
const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

fn lex(text: &str) -> Vec<Token> {
    let special = |c: char| "=!(),<>".contains(c);
    let mut rest = text.trim_start_matches([' ', '\t', '\r', '\n']);
    let mut tokens = Vec::new();
    while !rest.is_empty() {
        let length = if rest.starts_with(special) {
            match SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
                Some(s) => {
                    tokens.push(Token::Symbol(s));
                    s.len()
                }
                None => {
                    tokens.push(Token::Bad(rest.chars().take(1).collect()));
                    rest.chars().next().map_or(1, char::len_utf8)
                }
            }
        } else {
            let end = rest.find(|c: char| special(c) || c.is_ascii_whitespace()).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_string()));
            end
        };
        rest = rest[length..].trim_start_matches([' ', '\t', '\r', '\n']);
    }
    tokens.push(Token::End);
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

fn expected<T>(found: &Token, what: &str) -> Result<T, SelectorError> {
    Err(SelectorError(format!("found '{}', expected: {what}", found.text())))
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        self.at += 1;
        self.tokens.get(self.at - 1).cloned().unwrap_or(Token::End)
    }

    fn selector(mut self) -> Result<Selector, SelectorError> {
        let mut requirements = Vec::new();
        let starts = |t: &Token| matches!(t, Token::Word(_) | Token::Symbol("!"));
        loop {
            match self.peek() {
                Token::End => break,
                t if starts(t) => {}
                other => return expected(other, "!, identifier, or 'end of string'"),
            }
            requirements.push(self.requirement().map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?);
            match self.next() {
                Token::End => break,
                Token::Symbol(",") if starts(self.peek()) => {}
                Token::Symbol(",") => return expected(self.peek(), "identifier after ','"),
                other => return expected(&other, "',' or 'end of string'"),
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Selector { requirements, nothing: false })
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut token = self.next();
        let absent = token == Token::Symbol("!");
        if absent {
            token = self.next();
        }
        let Token::Word(key) = token else { return expected(&token, "identifier") };
        if let Some(error) = key_error(&key) {
            return Err(error);
        }
        if absent {
            return Requirement::new(&key, Operator::DoesNotExist, BTreeSet::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement::new(&key, Operator::Exists, BTreeSet::new());
        }
        let operator = match self.next() {
            Token::Symbol("=") => Operator::Equals,
            Token::Symbol("==") => Operator::DoubleEquals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            Token::Word(w) if w == "in" => Operator::In,
            Token::Word(w) if w == "notin" => Operator::NotIn,
            other => return expected(&other, "in, notin, =, ==, !=, >, <"),
        };
        let values = if matches!(operator, Operator::In | Operator::NotIn) { self.set()? } else { BTreeSet::from([self.exact()?]) };
        Requirement::new(&key, operator, values)
    }

    fn exact(&mut self) -> Result<String, SelectorError> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            _ => match self.next() {
                Token::Word(w) => Ok(w),
                other => expected(&other, "identifier"),
            },
        }
    }

    /// `(a,b)`; nothing between two commas is the empty value.
    fn set(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let open = self.next();
        if open != Token::Symbol("(") {
            return Err(SelectorError(format!("found '{}' expected: '('", open.text())));
        }
        let mut values = BTreeSet::new();
        loop {
            let value = match self.peek() {
                Token::Word(w) => {
                    let w = w.clone();
                    self.at += 1;
                    w
                }
                Token::Symbol("," | ")") => String::new(),
                other => return expected(other, "',', ')' or identifier"),
            };
            values.insert(value);
            match self.next() {
                Token::Symbol(")") => return Ok(values),
                Token::Symbol(",") => {}
                other => return expected(&other, "',' or ')'"),
            }
        }
    }
}

/// What is wrong with a `LabelSelector`, at the path that it is at.
pub fn validate(selector: &Value, path: &str) -> Vec<Cause> {
    let mut causes = labels(&selector["matchLabels"], &format!("{path}.matchLabels"));
    for (i, e) in selector["matchExpressions"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{path}.matchExpressions[{i}]");
        let values = e["values"].as_array().map_or(&[][..], Vec::as_slice);
        match e["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if values.is_empty() => {
                causes.push(Cause::required(format!("{at}.values"), "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                causes.push(Cause::forbidden(format!("{at}.values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
            }
            "Exists" | "DoesNotExist" => {}
            other => causes.push(Cause::invalid(format!("{at}.operator"), &other.into(), "not a valid selector operator")),
        }
        let key = e["key"].as_str().unwrap_or_default();
        causes.extend(names::qualified(key).iter().map(|m| Cause::invalid(format!("{at}.key"), &key.into(), m)));
        for (n, value) in values.iter().enumerate() {
            let why = names::label_value(value.as_str().unwrap_or_default());
            causes.extend(why.iter().map(|m| Cause::invalid(format!("{at}.values[{n}]"), value, m)));
        }
    }
    causes
}

/// What is wrong with a map of labels.
pub fn labels(labels: &Value, path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        causes.extend(names::qualified(key).iter().map(|m| Cause::invalid(path, &key.as_str().into(), m)));
        let text = value.as_str().unwrap_or_default();
        causes.extend(names::label_value(text).iter().map(|m| Cause::invalid(path, value, m)));
    }
    causes
}

/// A conjunction of terms on fields: `status.phase=Running,metadata.name!=x`. The default matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    field: String,
    equal: bool,
    value: String,
}

impl FieldSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let cant = || SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'"));
            let at = part.find(['=', '!']).ok_or_else(cant)?;
            let (field, rest) = part.split_at(at);
            let operators = [("!=", false), ("==", true), ("=", true)];
            let (value, equal) = operators.iter().find_map(|(o, equal)| Some((rest.strip_prefix(o)?, *equal))).ok_or_else(cant)?;
            terms.push(Term { field: field.into(), equal, value: unescape(value)? });
        }
        Ok(Self { terms })
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Fails on a field that this kind cannot be selected by.
    pub fn check(&self, row: &Resource) -> Result<(), SelectorError> {
        let known = (row.hooks.fields)(&Value::Null);
        let good =
            |t: &&Term| matches!(t.field.as_str(), "metadata.name" | "metadata.namespace") || known.iter().any(|(f, _)| *f == t.field);
        match self.terms.iter().find(|t| !good(t)) {
            Some(t) => Err(SelectorError(format!("field label not supported: {}", t.field))),
            None => Ok(()),
        }
    }

    pub fn matches(&self, row: &Resource, object: &Value) -> bool {
        if self.terms.is_empty() {
            return true;
        }
        let meta = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_string();
        let special = self.terms.iter().any(|t| !t.field.starts_with("metadata."));
        let fields = if special { (row.hooks.fields)(object) } else { vec![] };
        self.terms.iter().all(|t| {
            let found = match t.field.as_str() {
                "metadata.name" => meta("name"),
                "metadata.namespace" => meta("namespace"),
                other => fields.iter().find(|(f, _)| *f == other).map(|(_, v)| v.clone()).unwrap_or_default(),
            };
            (found == t.value) == t.equal
        })
    }

    /// The value that a field must have, where the selector says so.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }
}

/// At commas that no backslash stands before.
fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(e @ ('\\' | ',' | '=')) => out.push(e),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(SelectorError(format!("invalid field selector: invalid escape sequence: {sequence}")));
                }
            },
            ',' | '=' => return Err(SelectorError(format!("invalid field selector: unescaped character in value: {c}"))),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_select() {
        let labels = json!({"app": "web", "tier": "a", "n": "5", "e": ""});
        for (text, expect) in [
            ("", true),
            ("app=web", true),
            ("app == web , tier!=b", true),
            ("app=web,tier=b", false),
            ("app in (web, api)", true),
            ("app notin (web)", false),
            ("missing notin (x)", true),
            ("missing!=x", true),
            ("missing", false),
            ("!missing", true),
            ("! app", false),
            ("app", true),
            ("e=", true),
            ("e in (,x)", true),
            ("e in ()", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("app>1", false),
            ("in in (in),x", false),
            ("app.kubernetes.io/name notin (x)", true),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(&labels), expect, "{text}");
        }
    }

    #[test]
    fn mistakes_are_named_as_upstream_names_them() {
        for (text, expect) in [
            ("app=web,", "found '', expected: identifier after ','"),
            ("=web", "found '=', expected: !, identifier, or 'end of string'"),
            ("app web", "unable to parse requirement: found 'web', expected: in, notin, =, ==, !=, >, <"),
            ("app in web", "unable to parse requirement: found 'web' expected: '('"),
            ("app in (a b)", "unable to parse requirement: found 'b', expected: ',' or ')'"),
            ("app=a b", "found 'b', expected: ',' or 'end of string'"),
            ("n>x", "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer"),
            ("a/b/c=d", "unable to parse requirement: <nil>: Invalid value: \"a/b/c\": a qualified name"),
            ("app=-", "unable to parse requirement: values[0][app]: Invalid value: \"-\": a valid label must be an empty string"),
        ] {
            let error = Selector::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(expect), "{text}: {error}");
        }
    }

    #[test]
    fn objects_become_selectors() {
        assert!(!Selector::from_value(&Value::Null).unwrap().matches(&json!({})));
        assert!(Selector::from_value(&json!({})).unwrap().is_everything());
        let s = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["b", "a"]}, {"key": "a", "operator": "DoesNotExist"}]});
        let selector = Selector::from_value(&s).unwrap();
        assert_eq!(selector.to_string(), "!a,app=web,tier in (a,b)");
        assert_eq!(Selector::parse(&selector.to_string()).unwrap().to_string(), selector.to_string());
        assert!(selector.matches(&json!({"app": "web", "tier": "a"})));
        assert!(Selector::from_value(&json!({"matchExpressions": [{"key": "a", "operator": "Like"}]})).is_err());
    }

    #[test]
    fn wrong_objects_are_told_field_by_field() {
        let s = json!({"matchLabels": {"a b": "c"}, "matchExpressions": [
            {"key": "x", "operator": "In"}, {"key": "x", "operator": "Exists", "values": ["y"]}, {"key": "x", "operator": "Like"}]});
        let causes = validate(&s, "spec.selector");
        let fields: Vec<&str> = causes.iter().map(|c| c.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.selector.matchLabels",
                "spec.selector.matchExpressions[0].values",
                "spec.selector.matchExpressions[1].values",
                "spec.selector.matchExpressions[2].operator"
            ]
        );
    }

    #[test]
    fn field_selectors_select() {
        let row = crate::table::by_kind("", "v1", "Pod").unwrap();
        let pod = json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
        for (text, expect) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,metadata.namespace!=other", true),
            ("spec.nodeName=n1,status.phase=Running", true),
            ("status.phase!=Running", false),
            ("spec.nodeName!=", true),
            ("metadata.name=a\\,b", false),
        ] {
            let selector = FieldSelector::parse(text).unwrap();
            selector.check(row).unwrap();
            assert_eq!(selector.matches(row, &pod), expect, "{text}");
        }
        let unknown = FieldSelector::parse("spec.foo=a").unwrap().check(row).unwrap_err();
        assert_eq!(unknown.to_string(), "field label not supported: spec.foo");
        for (text, expect) in [
            ("nonsense", "invalid selector: 'nonsense'; can't understand 'nonsense'"),
            ("a=b\\x", "invalid field selector: invalid escape sequence: \\x"),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap_err().to_string(), expect);
        }
        assert_eq!(FieldSelector::parse("metadata.name=a").unwrap().required("metadata.name"), Some("a"));
    }
}
