//! What `kubectl get` shows: `metav1.Table` from a row's columns and cells, and ages as people read them.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// An age with two or three significant figures, as kubectl prints it: `45s`, `5m32s`, `3h`, `3d4h`, `2y10d`.
pub fn human_duration(d: SignedDuration) -> String {
    let seconds = d.as_secs();
    // A second of clock skew between machines is no news.
    if seconds < -1 {
        return "<invalid>".into();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |big: i64, unit: &str, small: i64, sub: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{sub}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () if years < 8 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

/// How long ago an RFC 3339 time was; `<unknown>` for what is no time.
pub fn age_of(time: &Value, now: Timestamp) -> String {
    match time.as_str().and_then(|t| t.parse::<Timestamp>().ok()) {
        Some(then) => human_duration(now.duration_since(then)),
        None => "<unknown>".into(),
    }
}

/// The Age cell: how long ago `metadata.creationTimestamp` was.
pub fn age(object: &Value, now: Timestamp) -> String {
    age_of(&object["metadata"]["creationTimestamp"], now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        for (seconds, expect) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (332, "5m32s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600, "3h"),
            (5 * 3600 + 120, "5h2m"),
            (8 * 3600 + 120, "8h"),
            (47 * 3600, "47h"),
            (76 * 3600, "3d4h"),
            (8 * 86400 + 3600, "8d"),
            (729 * 86400, "729d"),
            (740 * 86400, "2y10d"),
            (10 * 365 * 86400, "10y"),
        ] {
            assert_eq!(human_duration(SignedDuration::from_secs(seconds)), expect, "{seconds}");
        }
    }
}
