//! Events expire.

use std::time::Duration;

use base::Timestamp;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Event;

use crate::limits::SWEEP_MAX;
use crate::{Action, Cx, Plan, Reason, objects};

/// How long an Event lives after it last happened (upstream: `--event-ttl`).
pub const TTL: Duration = Duration::from_secs(3600);

/// Deletes what is older than `ttl`, and says when the next one is.
pub fn plan<'a>(events: impl IntoIterator<Item = &'a Event>, ttl: Duration, cx: &Cx) -> (Plan, Vec<Reason>) {
    let mut plan = Plan::none();
    let ttl = SignedDuration::try_from(ttl).unwrap_or(SignedDuration::MAX);
    let mut old = Vec::new();
    let mut next: Option<Timestamp> = None;
    for event in events.into_iter().filter(|e| !objects::deleting(*e)) {
        let due = last_seen(event).saturating_add(ttl).unwrap_or(Timestamp::MAX);
        if due <= cx.now {
            old.push((due, event));
        } else {
            next = Some(next.map_or(due, |n| n.min(due)));
        }
    }
    old.sort_by_key(|(due, _)| *due);
    if old.len() > SWEEP_MAX {
        plan.requeue(Duration::from_secs(1));
    } else if let Some(due) = next {
        plan.requeue(Duration::try_from(due.duration_since(cx.now)).unwrap_or_default().max(Duration::from_secs(1)));
    }
    plan.wave(old.into_iter().take(SWEEP_MAX).map(|(_, event)| Action::delete(event)));
    (plan, Vec::new())
}

fn last_seen(event: &Event) -> Timestamp {
    let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
    let times = [series, event.last_timestamp.as_ref().map(|t| t.0), event.event_time.as_ref().map(|t| t.0), objects::created_at(event)];
    times.into_iter().flatten().max().unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Ids;
    use serde_json::json;

    #[test]
    fn an_hour_after_it_last_happened() {
        let event = |name: &str, created: &str, last: &str| -> Event {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d", "uid": name, "creationTimestamp": created},
                "involvedObject": {}, "lastTimestamp": last}))
            .unwrap()
        };
        let all = [
            event("old", "2026-01-01T00:00:00Z", "2026-01-01T00:30:00Z"),
            event("repeated", "2026-01-01T00:00:00Z", "2026-01-01T01:29:00Z"),
        ];
        let cx = Cx { now: "2026-01-01T01:30:00Z".parse().unwrap(), ids: Ids::seeded(1) };
        let (made, _) = plan(&all, TTL, &cx);
        assert_eq!(made.actions().map(|a| a.target().unwrap().name.as_str()).collect::<Vec<_>>(), ["old"]);
        assert_eq!(made.requeue_after, Some(Duration::from_secs(59 * 60)));
    }
}
