//! Which request gets which answer. An answer is made from what [`Control`] says. Only two things
//! wait: verifying peers, and a large answer for its place. No route reads a request body.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper::body::Body;
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
    RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::answer::Answer;
use super::console;
use super::guard::{Guard, refusal};
use super::live::{Events, Summaries};
use super::query::{Format, Query};
use super::server::Asker;
use super::table::{self, Sessions};
use super::{Control, NotReloaded, Readiness};
use crate::host::checks::Checks;
use crate::liveness::{Span, Time};
use crate::metrics::{FoundList, TEXT_FORMAT, wall_clock};
use crate::sys;
use crate::telemetry::Repeated;
use crate::view::{SessionView, VerifiedSession, VerifyList};

pub(super) type Reply = Response<Answer>;

/// Answers of `/metrics` that are made or under way at once, and those with any number of sessions.
const FIGURES: usize = 2;
const LISTINGS: usize = 2;
/// Clients that are told what happens each second.
const WATCHERS: usize = 8;
/// Requests that may wait for such a place, and for how long. The others get 503 at once.
const WAITING: usize = 8;
const PLACE_WITHIN: Duration = Duration::from_secs(2);
/// The pause after a large answer is made for so much work at most.
const LONGEST_WORK: Span = Span::ms(100);

/// A body up to this size is ignored; no route takes one.
const MAX_BODY: u64 = 4096;

/// By this header of every answer the subcommands know a pulsegate. Not `Server`, which proxies replace.
pub(super) const OURS: HeaderName = HeaderName::from_static("pulsegate");

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const INDEX: &str = "\
GET     /                  this list; the console, in a browser
GET     /metrics           figures for Prometheus
GET     /livez             200 as long as the process runs
GET     /readyz            200 if new clients are taken, else 503 and why
GET     /summary           figures of each listener, for an overview
GET     /events            the same each second (server-sent events)
GET     /connections       sessions; ?format=text for a table, &wide=true for all of its columns
                           filters: listener, condition, phase, peer, min_idle; sort, limit
GET     /connections/ID    one session
DELETE  /connections       end those that the filters leave, or ?all=true; &reason=TEXT for the log
DELETE  /connections/ID    end a session
POST    /connections/ID/verify   ask both peers now; ?quick=true ends the session if one is gone
POST    /verify            the same for all sessions, or those that the filters leave
GET     /upstreams         the endpoints of the services; ?format=text for a table
GET     /found             the last ends because a peer was gone, or hung; ?format=text for a table
GET     /config            the running configuration
GET     /explain           what follows from it: the worst case of each fault
GET     /reloads           the last reloads: when, who asked, what became of each change, or what was wrong
GET     /doctor            what of this host bounds the promise
POST    /reload            read the configuration file again; says what became of each change
POST    /drain             stop taking clients, let sessions finish, exit
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route<'a> {
    Index,
    Style,
    Script,
    Metrics,
    Livez,
    Readyz,
    Summary,
    Events,
    Connections,
    Connection(&'a str),
    Verify(&'a str),
    VerifyAll,
    Upstreams,
    Found,
    Config,
    Explain,
    Reloads,
    Doctor,
    Reload,
    Drain,
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Option<Self> {
        Some(match path {
            "/" => Self::Index,
            "/console.css" => Self::Style,
            "/console.js" => Self::Script,
            "/metrics" => Self::Metrics,
            "/livez" => Self::Livez,
            "/readyz" => Self::Readyz,
            "/summary" => Self::Summary,
            "/events" => Self::Events,
            "/connections" => Self::Connections,
            "/verify" => Self::VerifyAll,
            "/upstreams" => Self::Upstreams,
            "/found" => Self::Found,
            "/config" => Self::Config,
            "/explain" => Self::Explain,
            "/reloads" => Self::Reloads,
            "/doctor" => Self::Doctor,
            "/reload" => Self::Reload,
            "/drain" => Self::Drain,
            _ => {
                let id = path.strip_prefix("/connections/")?;
                id.strip_suffix("/verify")
                    .map_or(Self::Connection(id), Self::Verify)
            }
        })
    }

    /// Whether a process without sessions has nothing to say here.
    const fn needs_sessions(self) -> bool {
        !matches!(
            self,
            Self::Index | Self::Metrics | Self::Livez | Self::Readyz | Self::Config | Self::Drain
        )
    }

    const fn allowed(self) -> &'static str {
        match self {
            Self::Connections | Self::Connection(_) => "GET, HEAD, DELETE",
            Self::Reload | Self::Drain | Self::Verify(_) | Self::VerifyAll => "POST",
            _ => "GET, HEAD",
        }
    }

    fn allows(self, method: &Method) -> bool {
        self.allowed().split(", ").any(|m| m == method.as_str())
    }
}

/// Why a request is not answered as asked: a line of text, and perhaps a header.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    why: String,
    header: Option<(HeaderName, &'static str)>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self {
            status,
            why: why.into(),
            header: None,
        }
    }

    /// The client is to ask again.
    pub(super) fn busy(why: &str) -> Self {
        Self {
            header: Some((RETRY_AFTER, "1")),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, why)
        }
    }

    fn forbidden(why: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, format!("refused: {why}"))
    }

    fn bad_request(why: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }

    fn unknown(id: u64) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("no session {id}"))
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        let mut reply = text(refusal.why + "\n");
        *reply.status_mut() = refusal.status;
        if let Some((name, value)) = refusal.header {
            let value = HeaderValue::from_static(value);
            reply.headers_mut().insert(name, value);
        }
        reply
    }
}

fn is_change(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::DELETE)
}

fn asker(head: &Parts) -> Option<&str> {
    head.extensions.get().map(|Asker(by)| &**by)
}

/// Lines about changes that were refused.
static REFUSED: Repeated = Repeated::new();

/// A page of another site, or somebody without the token, has tried to change something: that is told.
fn refused(head: &Parts, refusal: Refusal) -> Refusal {
    if is_change(&head.method) && REFUSED.begin() {
        let (method, why) = (&head.method, refusal.why.trim_start_matches("refused: "));
        tracing::warn!(by = asker(head), %method, request = %head.uri, "admin: a change is refused: {why}");
        tokio::spawn(REFUSED.sum_up(|more| {
            tracing::warn!("admin: changes are refused: {more} more in the last 10 s");
        }));
    }
    refusal
}

/// Places for large answers.
#[derive(Clone)]
struct Places {
    free: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// When the next answer may be made ([`sys::now`], ms). Each one is followed by a pause as long
    /// as it took, so that a flood of requests leaves the thread to probes and new connections.
    not_before: Arc<AtomicU64>,
}

impl Places {
    fn new(places: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(places)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            not_before: Arc::default(),
        }
    }

    async fn get(&self) -> Result<Place, Refusal> {
        let place = async {
            let _waits = self.waiting.try_acquire().ok()?;
            let permit = self.free.clone().acquire_owned().await.ok()?;
            let pause = Time::ms(self.not_before.load(Relaxed)) - sys::now();
            sleep(pause.into()).await;
            Some(permit)
        };
        match timeout(PLACE_WITHIN, place).await {
            Ok(Some(permit)) => Ok(Place {
                permit,
                not_before: self.not_before.clone(),
                began: sys::now(),
            }),
            _ => Err(Refusal::busy(
                "other large answers are under way; try again",
            )),
        }
    }
}

/// One place, while its answer is made.
struct Place {
    permit: OwnedSemaphorePermit,
    not_before: Arc<AtomicU64>,
    began: Time,
}

impl Place {
    /// The answer, which keeps the place until the client has taken it.
    fn keep(self, reply: Reply) -> Reply {
        let now = sys::now();
        // Not all of that was work where peers were asked.
        let pause = (now - self.began).min(LONGEST_WORK);
        self.not_before.store((now + pause).as_millis(), Relaxed);
        reply.map(|answer| answer.keeping(self.permit))
    }
}

/// Whether this is asked by what watches the process. Its answer is small, costs nothing, and must
/// not wait for others.
pub(super) fn is_probe<B>(request: &Request<B>) -> bool {
    matches!(request.uri().path(), "/livez" | "/readyz")
}

/// Answers requests. Its clones share their places.
#[derive(Clone)]
pub(super) struct Router {
    control: Arc<dyn Control>,
    guard: Guard,
    figures: Places,
    listings: Places,
    summaries: Summaries,
    watchers: Arc<Semaphore>,
}

impl Router {
    pub(super) fn new(control: Arc<dyn Control>, guard: Guard) -> Self {
        Self {
            summaries: Summaries::new(control.clone()),
            watchers: Arc::new(Semaphore::new(WATCHERS)),
            control,
            guard,
            figures: Places::new(FIGURES),
            listings: Places::new(LISTINGS),
        }
    }

    /// The answer to a request. Its body is not read.
    pub(super) fn answer<B: Body>(
        &self,
        request: Request<B>,
    ) -> impl Future<Output = Reply> + Send + use<B> {
        let router = self.clone();
        let (head, body) = request.into_parts();
        let has_body =
            body.size_hint().upper().is_none_or(|n| n > MAX_BODY) && !body.is_end_stream();
        async move {
            if has_body {
                let why = "no route takes a body";
                return Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why).into();
            }
            router.route(&head).await.unwrap_or_else(Reply::from)
        }
    }

    async fn route(&self, head: &Parts) -> Result<Reply, Refusal> {
        let (method, path) = (&head.method, head.uri.path());
        if let Some(why) = refusal(self.guard.reach, &head.headers) {
            return Err(refused(head, Refusal::forbidden(why)));
        }
        let route = self.route_of(path)?;
        if !route.allows(method) {
            let allowed = route.allowed();
            let why = format!("{method} is not allowed here; allowed: {allowed}");
            return Err(Refusal {
                header: Some((ALLOW, allowed)),
                ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, why)
            });
        }
        if is_change(method) {
            let may = self.may_change(&head.headers);
            may.map_err(|refusal| refused(head, refusal))?;
            tracing::info!(by = asker(head), %method, request = %head.uri, "admin: request of an operator");
        }
        match route {
            Route::Index if let Some(index) = self.control.index() => Ok(text(index)),
            Route::Index if asks_for(&head.headers, "text/html") => {
                let page = console::page(self.guard.changes());
                Ok(of_console("text/html; charset=utf-8", page))
            }
            Route::Index => Ok(text(INDEX)),
            Route::Style => Ok(of_console("text/css; charset=utf-8", console::STYLE)),
            Route::Script => Ok(of_console(
                "text/javascript; charset=utf-8",
                console::SCRIPT,
            )),
            Route::Livez => Ok(text("ok\n")),
            Route::Readyz => self.ready(),
            Route::Metrics => {
                let place = self.figures.get().await?;
                Ok(place.keep(reply(TEXT_FORMAT, self.control.metrics())))
            }
            Route::Config => Ok(reply("application/yaml", self.control.config())),
            Route::Explain => Ok(text(self.control.explain())),
            Route::Reloads => Ok(json(&self.control.reloads())),
            Route::Doctor => self.doctor().await,
            Route::Summary => Ok(reply(JSON, self.summaries.json())),
            Route::Events => self.events(),
            Route::Upstreams => self.upstreams(head),
            Route::Found => self.found(head),
            Route::Connections if *method == Method::DELETE => self.close_all(head).await,
            Route::Connections => self.connections(head).await,
            Route::Connection(id) if *method == Method::DELETE => self.close(number(id)?, head),
            Route::Connection(id) => self.connection(number(id)?, head),
            Route::Verify(id) => self.verify(number(id)?, head).await,
            Route::VerifyAll => self.verify_all(head).await,
            Route::Reload => self.reload(head).await,
            Route::Drain => Ok(self.drain()),
        }
    }

    fn route_of<'a>(&self, path: &'a str) -> Result<Route<'a>, Refusal> {
        let only = self.control.index();
        let why = match (Route::of(path), only) {
            (Some(route), None) => return Ok(route),
            (Some(route), Some(_)) if !route.needs_sessions() => return Ok(route),
            (Some(_), Some(only)) => only.trim_end().to_owned(),
            (None, only) => {
                let index = only.unwrap_or(INDEX).trim_end();
                format!("nothing at {path}; there is\n\n{index}")
            }
        };
        Err(Refusal::new(StatusCode::NOT_FOUND, why))
    }

    fn drain(&self) -> Reply {
        self.control.drain();
        accepted("draining\n".to_owned())
    }

    async fn doctor(&self) -> Result<Reply, Refusal> {
        let place = self.figures.get().await?;
        Ok(place.keep(json(&Checks::of(self.control.doctor()))))
    }

    fn events(&self) -> Result<Reply, Refusal> {
        let place = self.watchers.clone().try_acquire_owned();
        let place = place.map_err(|_| {
            let why = format!("{WATCHERS} clients have the events; ask /summary instead");
            Refusal::busy(&why)
        })?;
        let events = Answer::events(Events::new(self.summaries.clone()));
        Ok(reply("text/event-stream", events.keeping(place)))
    }

    fn upstreams(&self, head: &Parts) -> Result<Reply, Refusal> {
        let query = self.understood(Query::parse_of_listener(query(head)))?;
        let mut endpoints = self.control.upstreams();
        endpoints.retain(|endpoint| query.wants_listener(&endpoint.listener));
        Ok(match format(&query, head) {
            Format::Json => json(&endpoints),
            Format::Text => text(table::endpoints(&endpoints)),
        })
    }

    /// Of a listener that has gone, too.
    fn found(&self, head: &Parts) -> Result<Reply, Refusal> {
        let query = Query::parse_of_listener(query(head)).map_err(Refusal::bad_request)?;
        let mut ends = self.control.found();
        ends.retain(|end| query.wants_listener(&end.listener));
        let list = FoundList::of(ends, wall_clock());
        Ok(match format(&query, head) {
            Format::Json => json(&list),
            Format::Text => text(table::found(&list)),
        })
    }

    async fn reload(&self, head: &Parts) -> Result<Reply, Refusal> {
        let query = self.understood(Query::parse(query(head)))?;
        match self.control.reload().await {
            Ok(report) => Ok(match format(&query, head) {
                Format::Json => json(&report),
                Format::Text => text(table::reloaded(&report)),
            }),
            Err(NotReloaded::Impossible(why)) => Err(Refusal::new(StatusCode::CONFLICT, why)),
            Err(NotReloaded::Refused(lines)) => {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                Err(Refusal::new(status, lines.join("\n")))
            }
        }
    }

    fn may_change(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some((status, why)) = self.guard.refuses(headers) else {
            return Ok(());
        };
        let challenge = (WWW_AUTHENTICATE, "Bearer");
        Err(Refusal {
            header: (status == StatusCode::UNAUTHORIZED).then_some(challenge),
            ..Refusal::new(status, format!("refused: {why}"))
        })
    }

    /// A query that is well-formed, and names no listener that is not there.
    fn understood(&self, query: Result<Query, String>) -> Result<Query, Refusal> {
        let query = query.map_err(Refusal::bad_request)?;
        match query.listener() {
            Some(name) if !self.control.knows_listener(name) => {
                let why = format!("listener: there is none of the name '{name}'");
                Err(Refusal::bad_request(why))
            }
            _ => Ok(query),
        }
    }

    async fn connections(&self, head: &Parts) -> Result<Reply, Refusal> {
        let query = self.understood(Query::parse(query(head)))?;
        let place = self.listings.get().await?;
        let chosen = query.choose(self.control.sessions()).await;
        Ok(place.keep(match format(&query, head) {
            Format::Json => reply(JSON, Answer::listing(chosen, Format::Json, query.detail)),
            Format::Text => reply(TEXT, Answer::listing(chosen, Format::Text, query.detail)),
        }))
    }

    fn connection(&self, id: u64, head: &Parts) -> Result<Reply, Refusal> {
        let query = self.understood(Query::parse(query(head)))?;
        let mut sessions = self.control.sessions().into_iter();
        let session = sessions.find(|session| session.id() == id);
        let gone = || Refusal::unknown(id);
        let session = session.ok_or_else(gone)?;
        let connection = session.view().ok_or_else(gone)?;
        Ok(match format(&query, head) {
            Format::Json => json(&SessionView {
                connection,
                detail: session.detail(),
            }),
            Format::Text => text(Sessions::new(query.detail).rows(&[connection])),
        })
    }

    fn close(&self, id: u64, head: &Parts) -> Result<Reply, Refusal> {
        let query = self.understood(Query::parse_close(query(head)))?;
        match self.control.close(&[id], query.reason.as_deref()) {
            0 => Err(Refusal::unknown(id)),
            _ => Ok(accepted(format!("session {id} is being ended\n"))),
        }
    }

    async fn close_all(&self, head: &Parts) -> Result<Reply, Refusal> {
        let query = self.understood(Query::parse_close(query(head)))?;
        if !query.names_sessions() {
            let why = "name the sessions by a filter, or say all=true";
            return Err(Refusal::bad_request(why.to_owned()));
        }
        let place = self.listings.get().await?;
        let chosen = query.choose(self.control.sessions()).await.sessions;
        let ids: Vec<u64> = chosen.iter().map(|session| session.id()).collect();
        drop(chosen);
        let ended = match self.control.close(&ids, query.reason.as_deref()) {
            1 => "1 session is being ended\n".to_owned(),
            ended => format!("{ended} sessions are being ended\n"),
        };
        Ok(place.keep(accepted(ended)))
    }

    async fn verify(&self, id: u64, head: &Parts) -> Result<Reply, Refusal> {
        let query = self.understood(Query::parse_verify(query(head)))?;
        let verified = self.control.verify(&[id], query.on_silent).await;
        let session = verified.first().ok_or_else(|| Refusal::unknown(id))?;
        Ok(match format(&query, head) {
            Format::Json => json(session),
            Format::Text => text(table::verified(&verified)),
        })
    }

    fn ready(&self) -> Result<Reply, Refusal> {
        let why = match (self.control.readiness(), self.control.without_endpoint()) {
            (Readiness::Draining, _) => "draining".to_owned(),
            (Readiness::Ready, Some(name)) => format!("no endpoint of listener {name} is up"),
            (Readiness::Ready, None) => return Ok(text("ready\n")),
        };
        Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why))
    }

    async fn verify_all(&self, head: &Parts) -> Result<Reply, Refusal> {
        let query = self.understood(Query::parse_verify(query(head)))?;
        let place = self.listings.get().await?;
        let chosen = query.choose(self.control.sessions()).await.sessions;
        let ids: Vec<u64> = chosen.iter().map(|session| session.id()).collect();
        drop(chosen);
        let verified = self.control.verify(&ids, query.on_silent).await;
        let list = VerifyList::of(in_order(verified, &ids), ids.len());
        Ok(place.keep(match format(&query, head) {
            Format::Json => json(&list),
            Format::Text => text(table::verify_list(&list)),
        }))
    }
}

fn number(id: &str) -> Result<u64, Refusal> {
    let why = |_| Refusal::bad_request(format!("id: expected a whole number, got '{id}'"));
    id.parse().map_err(why)
}

/// In the order that the query asked for.
fn in_order(mut sessions: Vec<VerifiedSession>, ids: &[u64]) -> Vec<VerifiedSession> {
    let place: HashMap<u64, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    sessions.sort_by_key(|session| place.get(&session.id).copied());
    sessions
}

fn query(head: &Parts) -> &str {
    head.uri.query().unwrap_or_default()
}

fn format(query: &Query, head: &Parts) -> Format {
    query.format.unwrap_or_else(|| asked_for(&head.headers))
}

/// JSON unless plain text is asked for and JSON is not.
fn asked_for(headers: &HeaderMap) -> Format {
    if asks_for(headers, "text/plain") && !asks_for(headers, JSON) {
        Format::Text
    } else {
        Format::Json
    }
}

fn asks_for(headers: &HeaderMap, kind: &str) -> bool {
    let mut values = headers.get_all(ACCEPT).iter();
    values.any(|v| v.to_str().is_ok_and(|v| v.contains(kind)))
}

/// A file of the console.
fn of_console(kind: &'static str, body: impl Into<Answer>) -> Reply {
    let mut reply = reply(kind, body);
    let policy = HeaderValue::from_static(console::POLICY);
    reply.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    reply
}

fn json<T: Serialize>(value: &T) -> Reply {
    // Plain fields and text: there is nothing that could fail.
    let json = serde_json::to_string(value).unwrap_or_default();
    reply(JSON, json + "\n")
}

/// A plain text answer.
pub(super) fn text(body: impl Into<Answer>) -> Reply {
    reply(TEXT, body)
}

fn accepted(body: String) -> Reply {
    let mut reply = text(body);
    *reply.status_mut() = StatusCode::ACCEPTED;
    reply
}

fn reply(kind: &'static str, body: impl Into<Answer>) -> Reply {
    let mut reply = Response::new(body.into());
    for (name, value) in [
        (OURS, "admin"),
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        let value = HeaderValue::from_static(value);
        reply.headers_mut().insert(name, value);
    }
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
            assert_eq!(asked_for(&headers), format, "{accept}");
        }
    }
}
