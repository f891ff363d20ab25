//! `GET …/pods/NAME/log`: the agent's log frames as one plain-text body.

use std::sync::Arc;

use api::{Cause, Status};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use ports::{Frame, LogOptions, NodeRequest};

use super::Target;
use crate::Server;
use crate::request::Query;
use crate::respond::Body;

fn options(query: &Query) -> Result<LogOptions, Status> {
    let mut causes = Vec::new();
    let mut at_least = |name: &str, least: i64| -> Result<Option<i64>, Status> {
        let value = query.number(name)?;
        if let Some(n) = value.filter(|n| *n < least) {
            causes.push(Cause::invalid(name, &n.into(), &format!("must be greater than or equal to {least}")));
        }
        Ok(value)
    };
    let options = LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        since_seconds: at_least("sinceSeconds", 1)?,
        since_time: query.text("sinceTime").map(String::from),
        timestamps: query.flag("timestamps"),
        tail_lines: at_least("tailLines", 0)?,
        limit_bytes: at_least("limitBytes", 1)?,
    };
    if let Some(text) = &options.since_time
        && text.parse::<base::Timestamp>().is_err()
    {
        causes.push(Cause::invalid("sinceTime", &text.as_str().into(), "must be an RFC 3339 time"));
    }
    if options.since_seconds.is_some() && options.since_time.is_some() {
        causes.push(Cause::forbidden("sinceSeconds", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if causes.is_empty() { Ok(options) } else { Err(Status::invalid("", "PodLogOptions", "", causes)) }
}

pub async fn logs(server: &Arc<Server>, target: Target, query: &Query) -> Result<Response<Body>, Status> {
    let options = options(query)?;
    let container = target.container(query.text("container"))?;
    let (namespace, pod, uid) = (target.namespace.clone(), target.pod.clone(), target.uid.clone());
    let limit = options.limit_bytes;
    let session = target.handler.open(NodeRequest::Logs { namespace, pod, uid, container, options }).await?;
    // Dropping the body drops the session's input, which tells the agent that nobody reads any more.
    let state = (session, server.stopping.clone(), limit);
    let stream = futures_util::stream::unfold(Some(state), |state| async {
        let (mut session, stopping, mut left) = state?;
        loop {
            let frame = tokio::select! {
                biased;
                () = stopping.cancelled() => None,
                frame = session.output.recv() => frame,
            };
            let frame = frame?;
            let mut data: Bytes = match frame.channel {
                Frame::STDOUT | Frame::STDERR => frame.data,
                Frame::ERROR => match serde_json::from_slice::<api::Value>(&frame.data) {
                    Ok(status) if status["status"] != "Success" => {
                        let text = status["message"].as_str().unwrap_or("the log ended early");
                        return Some((Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(format!("{text}\n")))), None));
                    }
                    _ => return None,
                },
                _ => continue,
            };
            if let Some(left) = &mut left {
                data.truncate((*left).max(0) as usize);
                *left -= data.len() as i64;
            }
            let ended = left == Some(0);
            if data.is_empty() && !ended {
                continue;
            }
            return Some((Ok(http_body::Frame::data(data)), (!ended).then_some((session, stopping, left))));
        }
    });
    let mut response = Response::new(StreamBody::new(stream.boxed()).boxed_unsync());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}
