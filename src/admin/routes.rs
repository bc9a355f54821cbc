//! Which request gets which answer. Nothing here waits, but for peers that are being verified: an
//! answer is made from what [`Control`] says, and no route reads a request body.

use std::collections::HashMap;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Serialize;

use super::guard::{Mutations, refusal};
use super::query::{Format, Query};
use super::{Control, Readiness, table};
use crate::metrics::TEXT_FORMAT;
use crate::view::{VerifiedSession, VerifyList};

pub(super) type Reply = Response<Full<Bytes>>;
/// An answer that may take a while.
type Later = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// A body up to this size is ignored; no route takes one.
const MAX_BODY: u64 = 4096;

const TEXT: &str = "text/plain; charset=utf-8";
const INDEX: &str = "\
GET     /                  this list
GET     /metrics           figures for Prometheus
GET     /livez             200 as long as the process runs
GET     /readyz            200 if new clients are taken, else 503 and why
GET     /connections       sessions; ?format=text for a table
                           filters: listener, condition, phase, peer, min_idle; sort, limit
GET     /connections/ID    one session
DELETE  /connections/ID    end a session
POST    /connections/ID/verify   ask both peers now; ?quick=true ends the session if one is gone
POST    /verify            the same for all sessions, or those that the filters leave
GET     /config            the running configuration
POST    /drain             stop taking clients, let sessions finish, exit
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route<'a> {
    Index,
    Metrics,
    Livez,
    Readyz,
    Connections,
    Connection(&'a str),
    Verify(&'a str),
    VerifyAll,
    Config,
    Drain,
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Option<Self> {
        Some(match path {
            "/" => Self::Index,
            "/metrics" => Self::Metrics,
            "/livez" => Self::Livez,
            "/readyz" => Self::Readyz,
            "/connections" => Self::Connections,
            "/verify" => Self::VerifyAll,
            "/config" => Self::Config,
            "/drain" => Self::Drain,
            _ => {
                let id = path.strip_prefix("/connections/")?;
                id.strip_suffix("/verify")
                    .map_or(Self::Connection(id), Self::Verify)
            }
        })
    }

    const fn allowed(self) -> &'static str {
        match self {
            Self::Connection(_) => "GET, HEAD, DELETE",
            Self::Drain | Self::Verify(_) | Self::VerifyAll => "POST",
            _ => "GET, HEAD",
        }
    }

    fn allows(self, method: &Method) -> bool {
        self.allowed().split(", ").any(|m| m == method.as_str())
    }
}

/// Answers requests.
#[derive(Clone)]
pub(super) struct Router {
    control: Arc<dyn Control>,
    mutations: Mutations,
}

impl Router {
    pub(super) fn new(control: Arc<dyn Control>, mutations: Mutations) -> Self {
        Self { control, mutations }
    }

    /// The answer to a request, whose body is not read.
    pub(super) fn answer<B: Body>(&self, request: &Request<B>) -> Later {
        match self.answer_now(request) {
            Ok(later) => later,
            Err(reply) => Box::pin(ready(*reply)),
        }
    }

    /// `Err` is an answer that is known at once.
    fn answer_now<B: Body>(&self, request: &Request<B>) -> Result<Later, Box<Reply>> {
        let body = request.body();
        if body.size_hint().upper().is_none_or(|n| n > MAX_BODY) && !body.is_end_stream() {
            let message = "no route takes a body\n";
            return Err(text(StatusCode::PAYLOAD_TOO_LARGE, message).into());
        }
        let path = request.uri().path();
        let Some(route) = Route::of(path) else {
            let message = format!("nothing at {path}; there is\n\n{INDEX}");
            return Err(text(StatusCode::NOT_FOUND, message).into());
        };
        let method = request.method();
        if !route.allows(method) {
            return Err(not_allowed(route, method).into());
        }
        if matches!(*method, Method::POST | Method::DELETE)
            && let Some(why) = refusal(self.mutations, request.headers())
        {
            let message = format!("refused: {why}\n");
            return Err(text(StatusCode::FORBIDDEN, message).into());
        }
        let query = request.uri().query().unwrap_or_default();
        let headers = request.headers();
        let reply = match route {
            Route::Verify(id) => return self.verify(id, query, headers),
            Route::VerifyAll => return self.verify_all(query, headers),
            Route::Index => text(StatusCode::OK, INDEX),
            Route::Metrics => reply(StatusCode::OK, TEXT_FORMAT, self.control.metrics()),
            Route::Livez => text(StatusCode::OK, "ok\n"),
            Route::Readyz => self.readyz(),
            Route::Connections => self.connections(query, headers),
            Route::Connection(id) => self.connection(id, method, query, headers),
            Route::Config => reply(StatusCode::OK, "application/yaml", self.control.config()),
            Route::Drain => {
                self.control.drain();
                text(StatusCode::ACCEPTED, "draining\n")
            }
        };
        Err(reply.into())
    }

    fn verify(&self, id: &str, query: &str, headers: &HeaderMap) -> Result<Later, Box<Reply>> {
        let id = number(id)?;
        let (query, quick) = Query::parse_verify(query).map_err(|why| bad_query(&why))?;
        let format = query.format.unwrap_or_else(|| accepted(headers));
        let verified = self.control.verify(&[id], quick);
        Ok(Box::pin(async move {
            match (&verified.await[..], format) {
                ([], _) => unknown(id),
                ([session, ..], Format::Json) => json(session),
                (sessions, Format::Text) => text(StatusCode::OK, table::verified(sessions)),
            }
        }))
    }

    fn verify_all(&self, query: &str, headers: &HeaderMap) -> Result<Later, Box<Reply>> {
        let (query, quick) = Query::parse_verify(query).map_err(|why| bad_query(&why))?;
        let format = query.format.unwrap_or_else(|| accepted(headers));
        let chosen = query.apply(self.control.connections()).connections;
        let ids: Vec<u64> = chosen.iter().map(|c| c.id).collect();
        let verified = self.control.verify(&ids, quick);
        Ok(Box::pin(async move {
            let list = VerifyList::of(in_order(verified.await, &ids), ids.len());
            match format {
                Format::Json => json(&list),
                Format::Text => text(StatusCode::OK, table::verify_list(&list)),
            }
        }))
    }

    fn readyz(&self) -> Reply {
        match self.control.readiness() {
            Readiness::Ready => text(StatusCode::OK, "ready\n"),
            Readiness::Starting => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
            Readiness::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        }
    }

    fn connections(&self, query: &str, headers: &HeaderMap) -> Reply {
        let query = match Query::parse(query) {
            Ok(query) => query,
            Err(why) => return bad_query(&why),
        };
        let list = query.apply(self.control.connections());
        match query.format.unwrap_or_else(|| accepted(headers)) {
            Format::Json => json(&list),
            Format::Text => text(StatusCode::OK, table::list(&list)),
        }
    }

    fn connection(&self, id: &str, method: &Method, query: &str, headers: &HeaderMap) -> Reply {
        let id = match number(id) {
            Ok(id) => id,
            Err(reply) => return *reply,
        };
        if *method == Method::DELETE {
            if !self.control.close(id) {
                return unknown(id);
            }
            return text(
                StatusCode::ACCEPTED,
                format!("session {id} is being ended\n"),
            );
        }
        let query = match Query::parse(query) {
            Ok(query) => query,
            Err(why) => return bad_query(&why),
        };
        let mut connections = self.control.connections();
        connections.retain(|c| c.id == id);
        let Some(connection) = connections.first() else {
            return unknown(id);
        };
        match query.format.unwrap_or_else(|| accepted(headers)) {
            Format::Json => json(connection),
            Format::Text => text(StatusCode::OK, table::rows(&connections)),
        }
    }
}

fn number(id: &str) -> Result<u64, Box<Reply>> {
    id.parse().map_err(|_| {
        let message = format!("id: expected a whole number, got '{id}'\n");
        text(StatusCode::BAD_REQUEST, message).into()
    })
}

fn unknown(id: u64) -> Reply {
    text(StatusCode::NOT_FOUND, format!("no session {id}\n"))
}

fn bad_query(why: &str) -> Reply {
    text(StatusCode::BAD_REQUEST, format!("{why}\n"))
}

/// In the order that the query asked for.
fn in_order(mut sessions: Vec<VerifiedSession>, ids: &[u64]) -> Vec<VerifiedSession> {
    let place: HashMap<u64, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    sessions.sort_by_key(|session| place.get(&session.id).copied());
    sessions
}

/// JSON unless plain text is asked for and JSON is not.
fn accepted(headers: &HeaderMap) -> Format {
    let asks = |kind| {
        let mut values = headers.get_all(ACCEPT).iter();
        values.any(|v| v.to_str().is_ok_and(|v| v.contains(kind)))
    };
    if asks("text/plain") && !asks("application/json") {
        Format::Text
    } else {
        Format::Json
    }
}

fn not_allowed(route: Route<'_>, method: &Method) -> Reply {
    let allowed = route.allowed();
    let message = format!("{method} is not allowed here; allowed: {allowed}\n");
    let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, message);
    let headers = reply.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}

fn json<T: Serialize>(value: &T) -> Reply {
    match serde_json::to_vec(value) {
        Ok(mut body) => {
            body.push(b'\n');
            reply(StatusCode::OK, "application/json", body)
        }
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}

/// A plain text answer.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, TEXT, body)
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    const NOSNIFF: (HeaderName, HeaderValue) = (
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(NOSNIFF.0, NOSNIFF.1);
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_lists_every_route_with_its_methods() {
        for line in INDEX.lines().filter(|l| !l.starts_with(' ')) {
            let mut words = line.split_whitespace();
            let method = words.next().and_then(|m| m.parse::<Method>().ok());
            let route = words.next().and_then(Route::of);
            let (Some(method), Some(route)) = (method, route) else {
                panic!("{line}");
            };
            assert!(route.allows(&method), "{line}");
        }
    }

    #[test]
    fn plain_text_is_for_those_who_ask() {
        for (accept, format) in [
            ("*/*", Format::Json),
            ("text/plain", Format::Text),
            ("text/plain;q=0.5, */*", Format::Text),
            ("application/json, text/plain", Format::Json),
            ("text/html", Format::Json),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(accepted(&headers), format, "{accept}");
        }
    }
}
