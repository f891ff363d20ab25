//! Clock, ids, backoff: what every floor stands on.
//!
//! Knows nothing of Kubernetes, of I/O or of an async runtime. Time and chance enter the program here and nowhere
//! else, so that a simulator can hand in its own.

mod backoff;
mod clock;
mod ids;

pub use backoff::Backoff;
pub use clock::{Clock, ManualClock, SharedClock, SystemClock};
pub use ids::Ids;
pub use jiff::Timestamp;

/// RFC 3339 with whole seconds and `Z`, the form of `metav1.Time`.
pub fn rfc3339(t: Timestamp) -> String {
    let whole = Timestamp::from_second(t.as_second()).unwrap_or(t);
    whole.to_string()
}

/// RFC 3339 with microseconds, the form of `metav1.MicroTime`.
pub fn rfc3339_micro(t: Timestamp) -> String {
    format!("{t:.6}")
}
