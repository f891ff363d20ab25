//! How large each ReplicaSet shall be: scaling in proportion, growing the new, shrinking the old, forgetting the empty.

use super::is_recreate;
use super::work::{DESIRED_REPLICAS, MAX_REPLICAS, Work, observed, spec_replicas, status_replicas};
use crate::objects;

impl Work<'_> {
    /// The Deployment's replicas changed since a live ReplicaSet was sized: that is scaling, not a rollout.
    pub fn is_scaling(&self) -> bool {
        self.sets.iter().filter(|rs| spec_replicas(&rs.now) > 0).any(|rs| {
            objects::annotation(&rs.now.metadata, DESIRED_REPLICAS).and_then(|d| d.parse::<i32>().ok()).is_some_and(|d| d != self.replicas)
        })
    }

    /// Sizes the ReplicaSets for changed replicas without moving the rollout on.
    pub fn scale(&mut self) {
        let alive: Vec<usize> = (0..self.sets.len()).filter(|i| self.spec_of(*i) > 0).collect();
        let single = match alive[..] {
            [] => self.new.or_else(|| self.old().last()),
            [one] => Some(one),
            _ => None,
        };
        let total: i32 = alive.iter().map(|i| self.spec_of(*i)).sum();
        let allowed = if self.replicas > 0 { self.replicas + self.room.surge } else { 0 };
        if allowed > total && !self.at_rest() {
            return;
        }
        if let Some(one) = single {
            self.resize(one, self.replicas);
        } else if self.saturated() {
            for i in self.old().filter(|i| alive.contains(i)) {
                self.resize(i, 0);
            }
        } else if !is_recreate(self.spec) {
            self.scale_in_proportion(alive, allowed - total);
        }
    }

    /// No ReplicaSet has more pods than it shall have, or may not know that it has.
    fn at_rest(&self) -> bool {
        self.settled() && self.sets.iter().all(|rs| status_replicas(&rs.now) <= spec_replicas(&rs.now))
    }

    /// The new ReplicaSet carries the Deployment alone.
    fn saturated(&self) -> bool {
        self.new.is_some_and(|i| {
            let desired = objects::annotation(&self.sets[i].now.metadata, DESIRED_REPLICAS).and_then(|d| d.parse::<i32>().ok());
            self.spec_of(i) == self.replicas && desired == Some(self.replicas) && self.available_of(i) == self.replicas
        })
    }

    /// Spreads the difference over all live ReplicaSets by their size: a bad rollout does not get the whole growth.
    fn scale_in_proportion(&mut self, mut alive: Vec<usize>, to_add: i32) {
        // Largest first; among equals the newer grows first and the older shrinks first.
        alive.sort_by_key(|i| (-self.spec_of(*i), if to_add > 0 { -(*i as i64) } else { *i as i64 }));
        let mut added = 0;
        let mut sizes: Vec<(usize, i32)> = Vec::new();
        for i in alive {
            let share = self.share(i, to_add, added);
            added += share;
            sizes.push((i, self.spec_of(i) + share));
        }
        if let Some(first) = sizes.first_mut() {
            first.1 = (first.1 + to_add - added).max(0);
        }
        for (i, size) in sizes {
            self.resize(i, size.max(0));
        }
    }

    fn share(&self, i: usize, to_add: i32, added: i32) -> i32 {
        let size = self.spec_of(i);
        if size == 0 || to_add == 0 || to_add == added {
            return 0;
        }
        let fraction = if self.replicas == 0 {
            -size
        } else {
            let base = objects::annotation(&self.sets[i].now.metadata, MAX_REPLICAS).and_then(|m| m.parse::<i32>().ok());
            let base = base.or(self.status.replicas).filter(|b| *b > 0).unwrap_or(size);
            let scaled = f64::from(size) * f64::from(self.replicas + self.room.surge) / f64::from(base);
            scaled.round() as i32 - size
        };
        let left = to_add - added;
        if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
    }

    /// How large the new ReplicaSet may be now.
    pub fn new_size(&self, new: usize) -> i32 {
        let size = self.spec_of(new);
        if is_recreate(self.spec) {
            return self.replicas;
        }
        // What exists counts, and what will exist: a pod that its ReplicaSet has yet to delete still takes its room.
        let present: i32 = self.sets.iter().map(|rs| spec_replicas(&rs.now).max(status_replicas(&rs.now))).sum();
        let free = self.replicas + self.room.surge - present;
        size + free.max(0).min(self.replicas - size).max(0)
    }

    /// Whether the new ReplicaSet changed its size.
    pub fn grow_new(&mut self) -> bool {
        let Some(new) = self.new else { return false };
        let size = self.spec_of(new);
        let to = if size > self.replicas { self.replicas } else { self.new_size(new) };
        if to != size {
            self.resize(new, to);
        }
        to != size
    }

    /// Whether an old ReplicaSet lost pods: the unavailable ones first, then as many as availability allows.
    pub fn shrink_old(&mut self) -> bool {
        let Some(new) = self.new else { return false };
        let total: i32 = (0..self.sets.len()).map(|i| self.spec_of(i)).sum();
        let min_available = self.replicas - self.room.unavailable;
        let mut budget = total - min_available - (self.spec_of(new) - self.available_of(new));
        let mut shrunk = false;
        for i in self.old() {
            let sick = (self.spec_of(i) - self.available_of(i)).min(budget);
            if sick > 0 {
                self.resize(i, self.spec_of(i) - sick);
                budget -= sick;
                shrunk = true;
            }
        }
        let available: i32 = (0..self.sets.len()).map(|i| self.available_of(i)).sum();
        let mut budget = budget.min(available - min_available);
        for i in self.old() {
            let healthy = self.spec_of(i).min(budget);
            if healthy > 0 {
                self.resize(i, self.spec_of(i) - healthy);
                budget -= healthy;
                shrunk = true;
            }
        }
        shrunk
    }

    /// Recreate's first half. Whether there was something to stop.
    pub fn stop_old(&mut self) -> bool {
        let alive: Vec<usize> = self.old().filter(|i| self.spec_of(*i) > 0).collect();
        for i in &alive {
            self.resize(*i, 0);
        }
        !alive.is_empty()
    }

    /// Old and empty ReplicaSets beyond `revisionHistoryLimit`, lowest revision first.
    pub fn clean_up(&mut self) {
        let Some(keep) = self.spec.revision_history_limit.filter(|l| *l != i32::MAX) else { return };
        let mut old: Vec<_> = self.old().filter_map(|i| self.sets[i].seen).filter(|rs| !objects::deleting(*rs)).collect();
        let surplus = old.len().saturating_sub(usize::try_from(keep).unwrap_or(0));
        let revision = |rs: &k8s_openapi::api::apps::v1::ReplicaSet| {
            objects::annotation(&rs.metadata, super::REVISION).and_then(|r| r.parse::<i64>().ok()).unwrap_or(0)
        };
        old.sort_by_key(|rs| revision(rs));
        let empty = old.into_iter().take(surplus).filter(|rs| spec_replicas(rs) == 0 && status_replicas(rs) == 0 && observed(rs));
        self.delete = empty.collect();
    }
}
