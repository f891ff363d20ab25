//! Small questions about objects that several planners ask.

use base::Timestamp;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::action::Object;

pub fn name<K: Object>(object: &K) -> &str {
    object.metadata().name.as_deref().unwrap_or_default()
}

pub fn namespace<K: Object>(object: &K) -> &str {
    object.metadata().namespace.as_deref().unwrap_or_default()
}

pub fn uid<K: Object>(object: &K) -> &str {
    object.metadata().uid.as_deref().unwrap_or_default()
}

/// A deletion was asked for.
pub fn deleting<K: Object>(object: &K) -> bool {
    object.metadata().deletion_timestamp.is_some()
}

pub fn created_at<K: Object>(object: &K) -> Option<Timestamp> {
    object.metadata().creation_timestamp.as_ref().map(|t| t.0)
}

pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The owner that manages the object, of which there is one at most.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|o| o.controller == Some(true))
}

/// The reference that makes `owner` the managing owner.
pub fn controller_ref<K: Object>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::API_VERSION.into(),
        kind: K::KIND.into(),
        name: name(owner).into(),
        uid: uid(owner).into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Ended for good: `Succeeded` or `Failed`.
pub fn terminated(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Counts towards a ReplicaSet: neither ended nor on its way out.
pub fn active(pod: &Pod) -> bool {
    !terminated(pod) && !deleting(pod)
}

pub fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

pub fn pod_condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

pub fn ready(pod: &Pod) -> bool {
    pod_condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when the pod is ready, if it is.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let condition = pod_condition(pod, "Ready").filter(|c| c.status == "True")?;
    condition.last_transition_time.as_ref().map(|t| t.0)
}

/// Ready for at least `min_ready_seconds`.
pub fn available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    if !ready(pod) {
        return false;
    }
    min_ready_seconds <= 0 || ready_since(pod).is_some_and(|t| t + SignedDuration::from_secs(min_ready_seconds.into()) <= now)
}

/// `30%` of `total` or a plain number. What is neither counts as 0: validation refused it long ago.
pub fn int_or_percent(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|p| p.parse().ok()).unwrap_or(0);
            let hundredths = percent * i64::from(total);
            let whole =
                if round_up { hundredths.div_euclid(100) + i64::from(hundredths.rem_euclid(100) != 0) } else { hundredths.div_euclid(100) };
            whole.clamp(i32::MIN.into(), i32::MAX.into()) as i32
        }
    }
}

/// FNV-1a, 32 bits: names of templates and nothing more.
pub fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811C_9DC5, |hash, b| (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

/// A number in the letters of generated names.
pub fn safe_encode(number: u32) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    number.to_string().bytes().map(|digit| LETTERS[usize::from(digit) % LETTERS.len()] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_asked() {
        for (text, total, up, want) in [
            ("25%", 4, true, 1),
            ("25%", 5, true, 2),
            ("25%", 5, false, 1),
            ("0%", 9, true, 0),
            ("100%", 3, false, 3),
            ("30%", 1, false, 0),
        ] {
            assert_eq!(int_or_percent(&IntOrString::String(text.into()), total, up), want, "{text} of {total}");
        }
        assert_eq!(int_or_percent(&IntOrString::Int(7), 3, true), 7);
    }
}
