//! Label selectors and node selectors over typed objects.
//!
//! Source: `metav1.LabelSelector`, `corev1.NodeSelector`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::objects;

pub type Labels = BTreeMap<String, String>;

/// An empty selector selects everything. An unknown operator matches nothing.
pub fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let get = |key: &str| labels.and_then(|l| l.get(key));
    let pairs = selector.match_labels.iter().flatten().all(|(k, v)| get(k) == Some(v));
    pairs && selector.match_expressions.iter().flatten().all(|e| requirement(&e.operator, e.values.as_deref().unwrap_or(&[]), get(&e.key)))
}

/// `spec.selector` of a Service: all pairs present; an empty one selects nothing.
pub fn matches_pairs(pairs: &Labels, labels: Option<&Labels>) -> bool {
    !pairs.is_empty() && pairs.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
}

pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty) && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

fn requirement(operator: &str, values: &[String], found: Option<&String>) -> bool {
    let number = |text: &String| text.parse::<i64>().ok();
    let than = |ok: fn(i64, i64) -> bool| match (found.and_then(number), values.first().and_then(number)) {
        (Some(have), Some(bound)) => ok(have, bound),
        _ => false,
    };
    match operator {
        "In" => found.is_some_and(|f| values.contains(f)),
        "NotIn" => found.is_none_or(|f| !values.contains(f)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => than(|have, bound| have > bound),
        "Lt" => than(|have, bound| have < bound),
        _ => false,
    }
}

/// One of the terms matches. No terms: nothing does.
pub fn node_matches(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|t| node_term_matches(t, node))
}

/// All requirements of the term match; an empty term matches nothing.
pub fn node_term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or(&[]);
    let fields = term.match_fields.as_deref().unwrap_or(&[]);
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = node.metadata.labels.as_ref();
    let name = objects::name(node).to_string();
    let check = |r: &NodeSelectorRequirement, found: Option<&String>| requirement(&r.operator, r.values.as_deref().unwrap_or(&[]), found);
    expressions.iter().all(|r| check(r, labels.and_then(|l| l.get(&r.key))))
        && fields.iter().all(|r| check(r, (r.key == "metadata.name").then_some(&name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operators() {
        let labels: Labels = [("app".to_string(), "web".to_string()), ("n".to_string(), "5".to_string())].into();
        for (key, op, values, want) in [
            ("app", "In", vec!["web", "db"], true),
            ("app", "NotIn", vec!["web"], false),
            ("tier", "NotIn", vec!["web"], true),
            ("app", "Exists", vec![], true),
            ("tier", "DoesNotExist", vec![], true),
            ("n", "Gt", vec!["4"], true),
            ("n", "Lt", vec!["5"], false),
            ("app", "Gt", vec!["4"], false),
            ("app", "Like", vec!["web"], false),
        ] {
            let s: LabelSelector =
                serde_json::from_value(json!({"matchExpressions": [{"key": key, "operator": op, "values": values}]})).unwrap();
            assert_eq!(matches(&s, Some(&labels)), want, "{key} {op} {values:?}");
        }
        assert!(matches(&LabelSelector::default(), None));
        assert!(!matches_pairs(&Labels::new(), Some(&labels)));
    }
}
