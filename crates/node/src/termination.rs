//! Termination messages: what a container left in its file, or the end of its log.
//!
//! Source: `terminationMessagePath` and `terminationMessagePolicy`; at most 4096 bytes, of a log 2048 bytes or 80 lines.

use std::io::Read;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Container as Spec;

use crate::limits::{TERMINATION_LOG_BYTES, TERMINATION_LOG_LINES, TERMINATION_MESSAGE_BYTES};
use crate::logs;
use crate::pod::Paths;

/// The file of one attempt, on the node.
pub(crate) fn file(paths: &Paths, container: &str, attempt: u32) -> PathBuf {
    paths.etc.join(format!("{container}.{attempt}.termination-log"))
}

pub(crate) fn message(paths: &Paths, spec: &Spec, attempt: u32, code: i32) -> String {
    let text = read(&file(paths, &spec.name, attempt));
    if !text.is_empty() || code == 0 || spec.termination_message_policy.as_deref() != Some("FallbackToLogsOnError") {
        return text;
    }
    logs::tail_text(&paths.logs.join(&spec.name).join(format!("{attempt}.log")), TERMINATION_LOG_LINES, TERMINATION_LOG_BYTES)
}

fn read(path: &std::path::Path) -> String {
    let mut bytes = Vec::new();
    // The container wrote it: it may be anything, so only its first bytes are read, and no link is followed.
    let opened = rustix::fs::open(
        path,
        rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    if let Ok(fd) = opened {
        let _ = std::fs::File::from(fd).take(TERMINATION_MESSAGE_BYTES as u64).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
