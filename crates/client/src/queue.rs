//! A queue of keys: each waits once, runs once at a time, and may be put off.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base::Backoff;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Cheap to clone; all clones are one queue. One taker at a time.
pub struct Queue<K>(Arc<Inner<K>>);

struct Inner<K> {
    state: Mutex<State<K>>,
    notify: Notify,
}

struct State<K> {
    /// Waiting to run now, first come first served; `waiting` holds the same keys.
    ready: VecDeque<K>,
    waiting: BTreeSet<K>,
    running: BTreeSet<K>,
    /// Added while they ran: they run once more.
    again: BTreeSet<K>,
    /// Put off; `due` finds a key's entry. The number keeps entries of one instant apart.
    later: BTreeMap<(Instant, u64), K>,
    due: BTreeMap<K, (Instant, u64)>,
    failures: BTreeMap<K, u32>,
    sequence: u64,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Ord + Clone> Default for Queue<K> {
    fn default() -> Self {
        let state = State {
            ready: VecDeque::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            again: BTreeSet::new(),
            later: BTreeMap::new(),
            due: BTreeMap::new(),
            failures: BTreeMap::new(),
            sequence: 0,
        };
        Self(Arc::new(Inner { state: Mutex::new(state), notify: Notify::new() }))
    }
}

impl<K: Ord + Clone> State<K> {
    fn add(&mut self, key: K) {
        // What comes now need not come later: the run will say anew when it wants to be called again.
        if let Some(at) = self.due.remove(&key) {
            self.later.remove(&at);
        }
        if self.running.contains(&key) {
            self.again.insert(key);
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn add_at(&mut self, key: K, at: Instant) {
        if self.waiting.contains(&key) || self.again.contains(&key) {
            return;
        }
        if let Some(before) = self.due.get(&key) {
            if before.0 <= at {
                return;
            }
            self.later.remove(before);
        }
        self.sequence += 1;
        self.due.insert(key.clone(), (at, self.sequence));
        self.later.insert((at, self.sequence), key);
    }

    /// Moves what is due to the ready ones; tells when the next is.
    fn ripen(&mut self, now: Instant) -> Option<Instant> {
        while let Some(first) = self.later.first_entry() {
            if first.key().0 > now {
                return Some(first.key().0);
            }
            let key = first.remove();
            self.due.remove(&key);
            self.add(key);
        }
        None
    }
}

impl<K: Ord + Clone> Queue<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.0.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Runs `key` soon: once, however often it is added before it runs, and once more if it runs already.
    pub fn add(&self, key: K) {
        self.lock().add(key);
        self.0.notify.notify_one();
    }

    /// Runs `key` after a while, or earlier if it is added earlier.
    pub fn add_after(&self, key: K, after: Duration) {
        self.lock().add_at(key, Instant::now() + after);
        self.0.notify.notify_one();
    }

    /// The next key that is due; it counts as running until [`Queue::done`] or [`Queue::failed`]. Cancel safe.
    pub async fn take(&self) -> K {
        loop {
            let next = {
                let mut state = self.lock();
                let next = state.ripen(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.waiting.remove(&key);
                    state.running.insert(key.clone());
                    return key;
                }
                next
            };
            match next {
                None => self.0.notify.notified().await,
                Some(at) => {
                    tokio::select! {
                        biased;
                        () = self.0.notify.notified() => {}
                        () = sleep_until(at) => {}
                    }
                }
            }
        }
    }

    /// The run succeeded; its failures are forgotten.
    pub fn done(&self, key: K, again_after: Option<Duration>) {
        let mut state = self.lock();
        state.failures.remove(&key);
        state.running.remove(&key);
        if state.again.remove(&key) {
            state.add(key);
        } else if let Some(after) = again_after {
            state.add_at(key, Instant::now() + after);
        }
        drop(state);
        self.0.notify.notify_one();
    }

    /// The run failed: it is put off, longer each time. Tells how long.
    pub fn failed(&self, key: K, backoff: Backoff) -> Duration {
        let mut state = self.lock();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        *failures = failures.saturating_add(1);
        let wait = backoff.after(*failures);
        state.running.remove(&key);
        // A change that came meanwhile does not shorten the wait: it would defeat the backoff.
        state.again.remove(&key);
        state.add_at(key, Instant::now() + wait);
        drop(state);
        self.0.notify.notify_one();
        wait
    }

    /// Keys that wait to run now.
    pub fn len(&self) -> usize {
        self.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_runs_once_at_a_time() {
        let q = Queue::default();
        q.add("a");
        q.add("b");
        q.add("a");
        assert_eq!((q.take().await, q.take().await), ("a", "b"));
        assert!(q.take().now_or_never().is_none());
        q.add("a");
        assert!(q.take().now_or_never().is_none(), "a runs already");
        q.done("a", None);
        assert_eq!(q.take().await, "a");
        q.done("a", None);
        assert!(q.take().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_two_times_counts_and_now_beats_later() {
        let q = Queue::default();
        let start = Instant::now();
        q.add_after("a", Duration::from_secs(30));
        q.add_after("a", Duration::from_secs(10));
        q.add_after("a", Duration::from_secs(20));
        assert_eq!(q.take().await, "a");
        assert_eq!(start.elapsed().as_secs(), 10);
        q.done("a", Some(Duration::from_secs(5)));
        q.add("a");
        assert_eq!(q.take().await, "a");
        assert_eq!(start.elapsed().as_secs(), 10);
        q.done("a", None);
        assert!(q.take().now_or_never().is_none(), "the put-off run was replaced");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_success_forgets_them() {
        let q = Queue::default();
        let start = Instant::now();
        q.add("a");
        let mut waits = Vec::new();
        for _ in 0..3 {
            waits.push(q.failed(q.take().await, BACKOFF).as_secs());
        }
        assert_eq!(waits, [1, 2, 4]);
        assert_eq!(q.take().await, "a");
        assert_eq!(start.elapsed().as_secs(), 7);
        q.done("a", None);
        q.add("a");
        assert_eq!(q.failed(q.take().await, BACKOFF).as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_taker_asleep_on_a_far_key_wakes_for_a_near_one() {
        let q = Queue::default();
        q.add_after("far", Duration::from_secs(100));
        let taker = tokio::spawn({
            let q = q.clone();
            async move { q.take().await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        q.add_after("near", Duration::from_secs(1));
        assert_eq!(taker.await.unwrap(), "near");
    }
}
