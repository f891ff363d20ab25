//! What the server reads of the cluster while it decides: small questions to the cache.

use std::sync::Arc;

use api::Value;
use store::Cache;
use store::cache::Object;

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

    pub fn uid_of(&self, key: &str) -> Option<String> {
        self.get(key).map(|o| o.uid.to_string())
    }
}
