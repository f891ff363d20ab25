//! The ServiceAccount `default` in every namespace that lives.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{Action, Plan, Reason, objects};

pub const DEFAULT: &str = "default";

/// `account` is the namespace's ServiceAccount `default`, if it has one.
pub fn plan(namespace: &Namespace, account: Option<&ServiceAccount>) -> (Plan, Vec<Reason>) {
    let mut plan = Plan::none();
    if account.is_none() && !objects::deleting(namespace) {
        let meta = ObjectMeta { name: Some(DEFAULT.into()), namespace: namespace.metadata.name.clone(), ..ObjectMeta::default() };
        plan.wave([Action::create(&ServiceAccount { metadata: meta, ..ServiceAccount::default() })]);
    }
    (plan, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once_and_not_in_a_namespace_that_goes() {
        let mut ns = Namespace::default();
        ns.metadata.name = Some("shop".into());
        let made: ServiceAccount = plan(&ns, None).0.actions().next().unwrap().created().unwrap();
        assert_eq!((objects::namespace(&made), objects::name(&made)), ("shop", "default"));
        assert!(plan(&ns, Some(&made)).0.is_empty());
        ns.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(base::Timestamp::UNIX_EPOCH));
        assert!(plan(&ns, None).0.is_empty());
    }
}
