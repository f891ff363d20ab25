//! What can go wrong between a caller and an API server.

use api::{Reason, Status};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with a failure.
    #[error("{0}")]
    Api(Box<Status>),
    /// No answer: connection, TLS, time-out. Whether a write happened is then unknown.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// An answer that is not what was asked for.
    #[error("the API server's answer about {what} cannot be read: {source}")]
    Decode { what: String, source: serde_json::Error },
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Api(Box::new(status))
    }
}

impl Error {
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Api(status) => Some(status),
            _ => None,
        }
    }

    fn is(&self, reason: Reason) -> bool {
        self.status().is_some_and(|s| s.reason == reason)
    }

    pub fn is_not_found(&self) -> bool {
        self.is(Reason::NotFound)
    }

    pub fn is_conflict(&self) -> bool {
        self.is(Reason::Conflict)
    }

    pub fn is_already_exists(&self) -> bool {
        self.is(Reason::AlreadyExists)
    }

    pub fn is_forbidden(&self) -> bool {
        self.is(Reason::Forbidden)
    }

    pub fn is_invalid(&self) -> bool {
        self.is(Reason::Invalid)
    }

    /// 410: the revision is no longer held, list again.
    pub fn is_expired(&self) -> bool {
        self.status().is_some_and(|s| matches!(s.reason, Reason::Gone | Reason::Expired) || s.code == 410)
    }

    pub(crate) fn decode(what: impl Into<String>, source: serde_json::Error) -> Self {
        Self::Decode { what: what.into(), source }
    }

    pub(crate) fn timeout(what: &str, after: std::time::Duration) -> Self {
        let text = format!("{what}: no answer within {} s", after.as_secs());
        Self::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
    }
}

/// The `Status` of a failed response; whatever the body is, the code is kept.
pub(crate) fn status_of(code: u16, body: &[u8]) -> Status {
    if let Ok(mut status) = serde_json::from_slice::<Status>(body) {
        status.code = code;
        return status;
    }
    // A reason we do not know, or no Status at all (a proxy's page).
    let message = serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|v| v["message"].as_str().map(String::from))
        .unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_string());
    let message = if message.is_empty() { format!("the server answered {code}") } else { message };
    Status { code, ..Status::new(reason_of(code), message) }
}

fn reason_of(code: u16) -> Reason {
    use Reason::*;
    let known = [BadRequest, Unauthorized, Forbidden, NotFound, MethodNotAllowed, NotAcceptable, Conflict, Expired, RequestEntityTooLarge];
    let more = [UnsupportedMediaType, Invalid, TooManyRequests, InternalError, ServiceUnavailable, Timeout];
    known.into_iter().chain(more).find(|r| r.code() == code).unwrap_or(Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_failed_answer_becomes_a_status() {
        let ours = serde_json::to_vec(&Status::not_found("", "pods", "web")).unwrap();
        assert!(Error::from(status_of(404, &ours)).is_not_found());
        let foreign = br#"{"kind":"Status","reason":"StorageReadInitializing","message":"storage is (re)initializing","code":429}"#;
        let status = status_of(429, foreign);
        assert_eq!((status.reason, status.code, status.message.as_str()), (Reason::TooManyRequests, 429, "storage is (re)initializing"));
        let page = status_of(502, b"<h1>Bad gateway</h1>\n");
        assert_eq!((page.reason, page.code, page.message.as_str()), (Reason::Unknown, 502, "<h1>Bad gateway</h1>"));
        assert!(Error::from(status_of(410, b"")).is_expired());
    }
}
