//! The ConfigMap `kube-root-ca.crt` in every namespace: how pods know the API server.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{Action, Plan, Reason, objects};

pub const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";

/// `map` is the namespace's ConfigMap of that name; `ca` the certificates, PEM. What someone changed is put right.
pub fn plan(namespace: &Namespace, map: Option<&ConfigMap>, ca: &str) -> (Plan, Vec<Reason>) {
    let mut plan = Plan::none();
    if objects::deleting(namespace) {
        return (plan, Vec::new());
    }
    let data = Some([(KEY.to_string(), ca.to_string())].into());
    plan.wave(match map {
        None => {
            let meta = ObjectMeta { name: Some(NAME.into()), namespace: namespace.metadata.name.clone(), ..ObjectMeta::default() };
            Some(Action::create(&ConfigMap { metadata: meta, data, ..ConfigMap::default() }))
        }
        Some(seen) => Action::patch(seen, &ConfigMap { data, binary_data: None, ..seen.clone() }, None),
    });
    (plan, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_and_put_right() {
        let mut ns = Namespace::default();
        ns.metadata.name = Some("shop".into());
        let made: ConfigMap = plan(&ns, None, "PEM").0.actions().next().unwrap().created().unwrap();
        assert!(plan(&ns, Some(&made), "PEM").0.is_empty());
        let (fixed, _) = plan(&ns, Some(&made), "NEW");
        let Some(Action::Patch { patch, .. }) = fixed.actions().next() else { panic!() };
        assert_eq!(patch["data"]["ca.crt"], "NEW");
    }
}
