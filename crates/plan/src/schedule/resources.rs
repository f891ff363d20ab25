//! What pods ask for and nodes have, as integers: milli-CPU, bytes, counts.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts by resource name; `cpu` in thousandths of a core, all else in whole units. What is absent is 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources(BTreeMap<String, i64>);

impl Resources {
    pub fn from_list(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let amount = |name: &str, q: &Quantity| {
            // The server let no malformed quantity pass; one from elsewhere asks for nothing.
            let exact = api::quantity::Quantity::try_from(q).unwrap_or(api::quantity::Quantity::ZERO);
            if name == "cpu" { exact.as_millis() } else { exact.as_units() }
        };
        Self(list.into_iter().flatten().map(|(name, q)| (name.clone(), amount(name, q))).filter(|(_, n)| *n != 0).collect())
    }

    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    pub fn set(&mut self, name: &str, amount: i64) {
        self.0.insert(name.into(), amount);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(k, v)| (k.as_str(), *v))
    }

    pub fn add(&mut self, other: &Self) {
        for (name, amount) in other.iter() {
            match self.0.get_mut(name) {
                Some(have) => *have = have.saturating_add(amount),
                None => self.set(name, amount),
            }
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        for (name, amount) in other.iter() {
            if let Some(have) = self.0.get_mut(name) {
                *have = have.saturating_sub(amount);
            }
        }
    }

    fn max(&mut self, other: &Self) {
        for (name, amount) in other.iter() {
            if amount > self.get(name) {
                self.set(name, amount);
            }
        }
    }
}

/// What a container asks for; a limit without a request asks for the limit.
fn of_container(c: &Container) -> Resources {
    let Some(resources) = &c.resources else { return Resources::default() };
    let mut asked = Resources::from_list(resources.limits.as_ref());
    for (name, amount) in Resources::from_list(resources.requests.as_ref()).iter() {
        asked.set(name, amount);
    }
    // A request of 0 beside a limit is a request.
    for name in
        resources.requests.iter().flatten().filter(|(n, _)| Resources::from_list(resources.requests.as_ref()).get(n) == 0).map(|(n, _)| n)
    {
        asked.0.remove(name);
    }
    asked
}

/// What a pod asks of its node: all containers and sidecars together, or the hungriest init container beside the sidecars
/// started before it, and the overhead of its RuntimeClass.
pub fn of_pod(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let mut total = Resources::default();
    spec.containers.iter().for_each(|c| total.add(&of_container(c)));
    let (mut sidecars, mut init_peak) = (Resources::default(), Resources::default());
    for c in spec.init_containers.iter().flatten() {
        let mut asked = of_container(c);
        if c.restart_policy.as_deref() == Some("Always") {
            total.add(&asked);
            sidecars.add(&asked);
            init_peak.max(&sidecars);
        } else {
            asked.add(&sidecars);
            init_peak.max(&asked);
        }
    }
    total.max(&init_peak);
    total.add(&Resources::from_list(spec.overhead.as_ref()));
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn init_containers_and_sidecars_count_as_upstream_counts_them() {
        let c = |cpu: &str, always: bool| {
            let mut c = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
            if always {
                c["restartPolicy"] = json!("Always");
            }
            c
        };
        let pod = |init: Vec<serde_json::Value>, main: Vec<serde_json::Value>| -> i64 {
            of_pod(&serde_json::from_value(json!({"metadata": {}, "spec": {"initContainers": init, "containers": main}})).unwrap())
                .get("cpu")
        };
        assert_eq!(pod(vec![], vec![c("100m", false), c("1", false)]), 1100);
        assert_eq!(pod(vec![c("2", false)], vec![c("1", false)]), 2000);
        assert_eq!(pod(vec![c("500m", true), c("1", false)], vec![c("600m", false)]), 1500);
        assert_eq!(pod(vec![c("500m", true), c("1", false)], vec![c("1500m", false)]), 2000);
    }

    #[test]
    fn limits_stand_in_for_missing_requests() {
        let c: Container = serde_json::from_value(json!({"name": "c", "resources": {
            "limits": {"cpu": "2", "memory": "1Gi", "ephemeral-storage": "1G"}, "requests": {"cpu": "1", "ephemeral-storage": "0"}}}))
        .unwrap();
        let r = of_container(&c);
        assert_eq!((r.get("cpu"), r.get("memory"), r.get("ephemeral-storage")), (1000, 1 << 30, 0));
    }
}
