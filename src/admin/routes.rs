//! Which request gets which answer. Nothing here waits, but for peers that are being verified, and
//! for a place where the answer may be large: an answer is made from what [`Control`] says, and no
//! route reads a request body.

use std::collections::HashMap;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper::body::Body;
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::answer::Answer;
use super::guard::{Reach, change_refusal, refusal};
use super::query::{Format, Query};
use super::table::{self, Table};
use super::{Control, Readiness};
use crate::liveness::{Span, Time};
use crate::metrics::TEXT_FORMAT;
use crate::sys;
use crate::view::{VerifiedSession, VerifyList};

pub(super) type Reply = Response<Answer>;
/// An answer that may take a while.
type Later = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// Answers of `/metrics` that are made or under way at once, and those with any number of sessions.
const FIGURES: usize = 2;
const LISTINGS: usize = 2;
/// Requests that may wait for such a place, and for how long; the others get 503 at once.
const WAITING: usize = 8;
const PLACE_WITHIN: Duration = Duration::from_secs(2);

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

/// The pause after a large answer is made for so much work at most, ms.
const LONGEST_WORK: Span = Span::ms(100);

/// Answers requests. Its clones share their places.
#[derive(Clone)]
pub(super) struct Router {
    control: Arc<dyn Control>,
    reach: Reach,
    figures: Places,
    listings: Places,
}

/// Those who make large answers, and those who wait for that.
#[derive(Clone)]
struct Places {
    busy: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// When the next one may be made ([`sys::now`]). Each answer is followed by a pause as long as it took, so
    /// that a flood of requests leaves the thread to probes and to new connections.
    not_before: Arc<AtomicU64>,
}

impl Places {
    fn new(places: usize) -> Self {
        Self {
            busy: Arc::new(Semaphore::new(places)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            not_before: Arc::default(),
        }
    }

    async fn get(&self) -> Option<OwnedSemaphorePermit> {
        let _waits = self.waiting.try_acquire().ok()?;
        let place = async {
            let place = self.busy.clone().acquire_owned().await.ok();
            let pause = Time::ms(self.not_before.load(Relaxed)) - sys::now();
            sleep(pause.into()).await;
            place
        };
        timeout(PLACE_WITHIN, place).await.ok()?
    }

    /// An answer was made since `began`; not all of that was work where peers were asked.
    fn rest(&self, began: Time) {
        let now = sys::now();
        let not_before = now + (now - began).min(LONGEST_WORK);
        self.not_before.store(not_before.as_millis(), Relaxed);
    }
}

/// Whether this is asked by what watches the process. Its answer is small, costs nothing, and must
/// not wait for others.
pub(super) fn is_probe<B>(request: &Request<B>) -> bool {
    matches!(request.uri().path(), "/livez" | "/readyz")
}

impl Router {
    pub(super) fn new(control: Arc<dyn Control>, reach: Reach) -> Self {
        Self {
            control,
            reach,
            figures: Places::new(FIGURES),
            listings: Places::new(LISTINGS),
        }
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
        if let Some(why) = refusal(self.reach, request.headers()) {
            return Err(refused(why).into());
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
            && let Some(why) = change_refusal(self.reach, request.headers())
        {
            return Err(refused(why).into());
        }
        let query = request.uri().query().unwrap_or_default();
        let headers = request.headers();
        let reply = match route {
            Route::Verify(id) => return self.verify(id, query, headers),
            Route::VerifyAll => return self.verify_all(query, headers),
            Route::Index => text(StatusCode::OK, INDEX),
            Route::Metrics => return Ok(self.metrics()),
            Route::Connections => return self.connections(query, headers),
            Route::Livez => text(StatusCode::OK, "ok\n"),
            Route::Readyz => self.readyz(),
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
        let query = Query::parse_verify(query).map_err(|why| bad_query(&why))?;
        let format = query.format.unwrap_or_else(|| accepted(headers));
        let verified = self.control.verify(&[id], query.quick);
        Ok(Box::pin(async move {
            match (&verified.await[..], format) {
                ([], _) => unknown(id),
                ([session, ..], Format::Json) => json(session),
                (sessions, Format::Text) => text(StatusCode::OK, table::verified(sessions)),
            }
        }))
    }

    fn verify_all(&self, query: &str, headers: &HeaderMap) -> Result<Later, Box<Reply>> {
        let query = Query::parse_verify(query).map_err(|why| bad_query(&why))?;
        let format = query.format.unwrap_or_else(|| accepted(headers));
        let router = self.clone();
        Ok(Box::pin(with_place(
            self.listings.clone(),
            async move || {
                let chosen = query.choose(router.control.sessions()).await.sessions;
                let ids: Vec<u64> = chosen.iter().map(|session| session.id()).collect();
                drop(chosen);
                let verified = router.control.verify(&ids, query.quick).await;
                let list = VerifyList::of(in_order(verified, &ids), ids.len());
                match format {
                    Format::Json => json(&list),
                    Format::Text => text(StatusCode::OK, table::verify_list(&list)),
                }
            },
        )))
    }

    fn metrics(&self) -> Later {
        let control = self.control.clone();
        Box::pin(with_place(self.figures.clone(), async move || {
            reply(StatusCode::OK, TEXT_FORMAT, control.metrics())
        }))
    }

    fn readyz(&self) -> Reply {
        match self.control.readiness() {
            Readiness::Ready => text(StatusCode::OK, "ready\n"),
            Readiness::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        }
    }

    fn connections(&self, query: &str, headers: &HeaderMap) -> Result<Later, Box<Reply>> {
        let query = Query::parse(query).map_err(|why| bad_query(&why))?;
        let format = query.format.unwrap_or_else(|| accepted(headers));
        let control = self.control.clone();
        Ok(Box::pin(with_place(
            self.listings.clone(),
            async move || {
                let chosen = query.choose(control.sessions()).await;
                let kind = match format {
                    Format::Json => "application/json",
                    Format::Text => TEXT,
                };
                reply(StatusCode::OK, kind, Answer::listing(chosen, format))
            },
        )))
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
            Err(why) => return *bad_query(&why),
        };
        let mut sessions = self.control.sessions().into_iter();
        let session = sessions.find(|session| session.id() == id);
        let Some(view) = session.and_then(|session| session.view()) else {
            return unknown(id);
        };
        match query.format.unwrap_or_else(|| accepted(headers)) {
            Format::Json => json(&view),
            Format::Text => text(StatusCode::OK, Table::default().rows(&[view])),
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

fn bad_query(why: &str) -> Box<Reply> {
    text(StatusCode::BAD_REQUEST, format!("{why}\n")).into()
}

fn refused(why: &str) -> Reply {
    text(StatusCode::FORBIDDEN, format!("refused: {why}\n"))
}

/// The answer of `make`, which keeps its place until the client has taken it.
async fn with_place<F: Future<Output = Reply>>(places: Places, make: impl FnOnce() -> F) -> Reply {
    match places.get().await {
        Some(place) => {
            let began = sys::now();
            let reply = make().await;
            places.rest(began);
            reply.map(|answer| answer.keeping(place))
        }
        None => busy("other large answers are under way; try again\n"),
    }
}

/// Another time.
pub(super) fn busy(why: &'static str) -> Reply {
    let mut reply = text(StatusCode::SERVICE_UNAVAILABLE, why);
    let headers = reply.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    reply
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
pub(super) fn text(status: StatusCode, body: impl Into<Answer>) -> Reply {
    reply(status, TEXT, body)
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Answer>) -> Reply {
    const NOSNIFF: (HeaderName, HeaderValue) = (
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    let mut reply = Response::new(body.into());
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
