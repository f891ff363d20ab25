//! What the server reads of the cluster while it decides: small questions to the cache.

use std::sync::Arc;

use api::Value;
use store::Cache;
use store::cache::Object;

use crate::limits;

pub struct State {
    pub cache: Arc<Cache>,
}

impl State {
    pub fn new(cache: Arc<Cache>) -> State {
        State { cache }
    }

    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.cache.snapshot().get(key).cloned()
    }

    /// An object as it is shown, `resourceVersion` included.
    pub fn value(&self, key: &str) -> Option<Value> {
        serde_json::from_slice(&self.get(key)?.json()).ok()
    }

    pub fn values(&self, prefix: &str) -> Vec<Value> {
        self.list(prefix).iter().filter_map(|o| serde_json::from_slice(&o.json()).ok()).collect()
    }

    pub fn list(&self, prefix: &str) -> Vec<Arc<Object>> {
        self.cache.snapshot().range(prefix).cloned().collect()
    }

    /// After a conflict: waits until the cache shows what the write lost to, so that the next try decides on it.
    pub async fn caught_up(&self, found: Option<store::Revision>) {
        match found {
            Some(revision) => {
                let _ = tokio::time::timeout(limits::CACHE_WAIT, self.cache.reached(revision)).await;
            }
            // It went: at which revision is not told, but soon.
            None => tokio::time::sleep(limits::CONFLICT_PAUSE).await,
        }
    }

    pub fn uid_of(&self, key: &str) -> Option<String> {
        self.get(key).map(|o| o.uid.to_string())
    }
}
