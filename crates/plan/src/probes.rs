//! A probe's course: when it is asked next, and what its answers mean.
//!
//! Source: the probe fields of `core/v1 Probe` and the kubelet's documented behaviour. Does not know how a probe is asked.
//! Regular probes come at `start + initialDelay + k * period` (without a delay the first comes one period after the start)
//! and count against the thresholds. Between the start and the first success, startup and readiness probes are also asked
//! early, ever less often: a failure of such an early one counts for nothing, a success makes the pod ready sooner, which
//! Kubernetes documents for readiness.

use base::Timestamp;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Probe;

use crate::limits::{EARLY_PROBE_FIRST, EARLY_PROBE_MAX};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// As events name it: `Readiness probe failed: …`.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// The numbers of a probe, defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub initial_delay: SignedDuration,
    pub period: SignedDuration,
    pub timeout: SignedDuration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

impl Settings {
    pub fn of(probe: &Probe) -> Self {
        let seconds = |v: Option<i32>, default: i32| SignedDuration::from_secs(v.unwrap_or(default).into());
        let count = |v: Option<i32>, default: u32| v.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default);
        Self {
            initial_delay: seconds(probe.initial_delay_seconds.filter(|s| *s > 0), 0),
            period: seconds(probe.period_seconds.filter(|s| *s > 0), 10),
            timeout: seconds(probe.timeout_seconds.filter(|s| *s > 0), 1),
            success_threshold: count(probe.success_threshold, 1),
            failure_threshold: count(probe.failure_threshold, 3),
        }
    }
}

/// One probe of one attempt of one container.
#[derive(Debug, Clone)]
pub struct Course {
    pub kind: Kind,
    pub settings: Settings,
    /// The next regular probe.
    regular: Timestamp,
    /// The next early one, while they are asked.
    early: Option<Timestamp>,
    early_step: SignedDuration,
    last: bool,
    run: u32,
    verdict: Option<bool>,
    over: bool,
}

/// What is to be asked, and what its failure would mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub at: Timestamp,
    /// A regular probe: its failure counts and is told in an event.
    pub counts: bool,
}

impl Course {
    /// `opened` is when the probe may begin: the container's start, or the moment when its startup probe succeeded.
    /// `verdict` is what holds until the first decision: `Some(false)` for readiness (what it was, after a restart of the
    /// agent), `Some(true)` for liveness, `None` for startup.
    pub fn new(kind: Kind, settings: Settings, started: Timestamp, opened: Timestamp, verdict: Option<bool>) -> Self {
        let begin = later(started, settings.initial_delay).max(opened);
        let eager = kind != Kind::Liveness && verdict != Some(true);
        let regular = if settings.initial_delay.is_zero() { later(begin, settings.period) } else { begin };
        Self {
            kind,
            settings,
            regular,
            early: eager.then_some(begin),
            early_step: EARLY_PROBE_FIRST,
            last: false,
            run: 0,
            verdict,
            over: false,
        }
    }

    /// When and how to ask next; `None` once nothing more can change (startup decided, liveness failed).
    pub fn next(&self) -> Option<Ask> {
        if self.over {
            return None;
        }
        match self.early {
            Some(at) if at < self.regular => Some(Ask { at, counts: false }),
            _ => Some(Ask { at: self.regular, counts: true }),
        }
    }

    /// What holds now: ready, alive, started.
    pub fn verdict(&self) -> Option<bool> {
        self.verdict
    }

    /// Takes the answer to `ask` in, at `now`. `Some` when the verdict changed.
    pub fn answer(&mut self, ask: Ask, success: bool, now: Timestamp) -> Option<bool> {
        self.move_on(ask, now);
        if success {
            self.early = None;
        } else if !ask.counts {
            return None;
        }
        self.run = if self.run > 0 && self.last == success { self.run + 1 } else { 1 };
        self.last = success;
        let threshold = if success { self.settings.success_threshold } else { self.settings.failure_threshold };
        if self.run < threshold || self.verdict == Some(success) {
            return None;
        }
        self.verdict = Some(success);
        self.over = match self.kind {
            Kind::Startup => true,
            Kind::Liveness => !success,
            Kind::Readiness => false,
        };
        Some(success)
    }

    /// The question could not be asked: the next one comes as if it had been, and nothing is counted.
    pub fn skip(&mut self, ask: Ask, now: Timestamp) {
        self.move_on(ask, now);
    }

    fn move_on(&mut self, ask: Ask, now: Timestamp) {
        if ask.counts {
            // A probe that took longer than its period skips what it missed instead of catching up.
            while self.regular <= ask.at || self.regular <= now {
                self.regular = later(self.regular, self.settings.period);
            }
        }
        if let Some(early) = self.early {
            let mut at = early;
            while at <= now {
                at = later(at, self.early_step);
                self.early_step = (self.early_step * 2).min(EARLY_PROBE_MAX).min(self.settings.period);
            }
            // One early success is enough only where one success is: more are counted on the regular beat.
            self.early = Some(at);
        }
    }
}

fn later(t: Timestamp, by: SignedDuration) -> Timestamp {
    t.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_000_000_000_000 + ms).unwrap()
    }

    fn settings(delay: i64, period: i64, success: u32, failure: u32) -> Settings {
        Settings {
            initial_delay: SignedDuration::from_secs(delay),
            period: SignedDuration::from_secs(period),
            timeout: SignedDuration::from_secs(1),
            success_threshold: success,
            failure_threshold: failure,
        }
    }

    /// Runs a course against an application that answers `healthy(ms)`, and returns the verdicts with their times.
    fn run(mut course: Course, until_ms: i64, healthy: impl Fn(i64) -> bool) -> Vec<(i64, bool)> {
        let mut verdicts = Vec::new();
        while let Some(ask) = course.next() {
            let ms = ask.at.as_millisecond() - at(0).as_millisecond();
            if ms > until_ms {
                break;
            }
            if let Some(v) = course.answer(ask, healthy(ms), ask.at) {
                verdicts.push((ms, v));
            }
        }
        verdicts
    }

    #[test]
    fn thresholds_and_times_are_exact() {
        let readiness = |s| Course::new(Kind::Readiness, s, at(0), at(0), Some(false));
        let liveness = |s| Course::new(Kind::Liveness, s, at(0), at(0), Some(true));
        // Ready with the first early probe after the application listens, without waiting for the period.
        let verdicts = run(readiness(settings(0, 10, 1, 3)), 60_000, |ms| ms >= 300);
        assert!(matches!(verdicts[..], [(300..=900, true)]), "{verdicts:?}");
        // The initial delay is kept, and one failure is not three.
        assert_eq!(run(readiness(settings(5, 10, 1, 3)), 60_000, |ms| ms != 15_000), [(5_000, true)]);
        // Unready after the third failure in a row, ready again after the second success.
        let blip = |ms: i64| !(20_000..50_000).contains(&ms);
        assert_eq!(run(readiness(settings(5, 5, 2, 3)), 100_000, blip), [(10_000, true), (30_000, false), (55_000, true)]);
        // Liveness: dead after failureThreshold periods, and then nothing more is asked.
        assert_eq!(run(liveness(settings(0, 1, 1, 3)), 60_000, |_| false), [(3_000, false)]);
        assert_eq!(run(liveness(settings(7, 2, 1, 1)), 60_000, |_| false), [(7_000, false)]);
        assert_eq!(run(liveness(settings(0, 1, 1, 3)), 60_000, |ms| ms % 3_000 != 0), []);
        // Startup: one decision.
        let startup = Course::new(Kind::Startup, settings(0, 1, 1, 5), at(0), at(0), None);
        assert_eq!(run(startup.clone(), 60_000, |_| false), [(5_000, false)]);
        let verdicts = run(startup, 60_000, |ms| ms > 3_500);
        assert!(matches!(verdicts[..], [(3_501..=4_600, true)]), "{verdicts:?}");
    }

    #[test]
    fn a_slow_probe_skips_beats_and_a_gate_delays_the_first() {
        let mut course = Course::new(Kind::Liveness, settings(0, 1, 1, 3), at(0), at(10_000), Some(true));
        let ask = course.next().unwrap();
        assert_eq!(ask, Ask { at: at(11_000), counts: true });
        course.answer(ask, true, at(13_500));
        assert_eq!(course.next().unwrap().at, at(14_000));
    }

    #[test]
    fn early_probes_are_few() {
        let mut course = Course::new(Kind::Readiness, settings(0, 10, 1, 3), at(0), at(0), Some(false));
        let mut early = 0;
        while let Some(ask) = course.next().filter(|a| a.at < at(60_000)) {
            early += u32::from(!ask.counts);
            course.answer(ask, false, ask.at);
        }
        assert!((10..80).contains(&early), "{early}");
    }
}
