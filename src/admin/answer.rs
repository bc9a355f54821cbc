//! The body of an answer. A large one is made and sent in pieces as the client reads, so a client
//! that does not read holds one piece in memory.

use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::vec::IntoIter;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::live::Events;
use super::query::{Chosen, Format};
use super::table::{Detail, Sessions};
use super::view::{ConnectionView, Shown};

/// Bytes at a time.
const PIECE: usize = 16 * 1024;
/// Sessions in a piece: some 45 KiB as JSON. An answer with no more than these is not chunked.
const SESSIONS: usize = 64;

/// What is sent behind the header.
pub(super) struct Answer {
    content: Content,
    /// Released after the last piece was read, or when the client is gone.
    _place: Option<OwnedSemaphorePermit>,
}

enum Content {
    Bytes(Bytes),
    Listing(Box<Listing>),
    Events(Box<Events>),
}

impl Answer {
    /// The same, which holds this place until it is gone.
    pub(super) fn keeping(self, place: OwnedSemaphorePermit) -> Self {
        Self {
            _place: Some(place),
            ..self
        }
    }

    /// Server-sent events.
    pub(super) fn events(events: Events) -> Self {
        Self {
            content: Content::Events(Box::new(events)),
            _place: None,
        }
    }

    /// The sessions, in this form; as text, with so much of each.
    pub(super) fn listing(chosen: Chosen, format: Format, detail: Detail) -> Self {
        let mut listing = Listing::new(chosen, format, detail);
        let content = if listing.sessions.len() <= SESSIONS {
            let text = std::iter::from_fn(|| listing.next_piece());
            Content::Bytes(text.collect::<String>().into())
        } else {
            Content::Listing(Box::new(listing))
        };
        Self {
            content,
            _place: None,
        }
    }
}

impl<B: Into<Bytes>> From<B> for Answer {
    fn from(bytes: B) -> Self {
        Self {
            content: Content::Bytes(bytes.into()),
            _place: None,
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match &mut self.content {
            Content::Bytes(rest) if rest.is_empty() => None,
            Content::Bytes(rest) => Some(rest.split_to(rest.len().min(PIECE))),
            Content::Listing(listing) => listing.next_piece().map(Bytes::from),
            Content::Events(events) => ready!(events.poll_message(cx)),
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.content, Content::Bytes(rest) if rest.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Bytes(rest) => SizeHint::with_exact(rest.len() as u64),
            Content::Listing(_) | Content::Events(_) => SizeHint::new(),
        }
    }
}

/// Sessions, described one piece after the other. One that has ended by then is left out.
struct Listing {
    total: usize,
    matched: usize,
    shown: usize,
    sessions: IntoIter<Arc<dyn Shown>>,
    form: Form,
    stage: Stage,
}

enum Form {
    Json,
    Text(Sessions),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    Sessions,
    Over,
}

impl Listing {
    fn new(chosen: Chosen, format: Format, detail: Detail) -> Self {
        Self {
            total: chosen.total,
            matched: chosen.matched,
            shown: 0,
            sessions: chosen.sessions.into_iter(),
            form: match format {
                Format::Json => Form::Json,
                Format::Text => Form::Text(Sessions::new(detail)),
            },
            stage: Stage::Head,
        }
    }

    fn next_piece(&mut self) -> Option<String> {
        let mut piece = String::new();
        match self.stage {
            Stage::Over => return None,
            Stage::Head => {
                let Self { total, matched, .. } = self;
                if matches!(self.form, Form::Json) {
                    piece = format!("{{\"total\":{total},\"matched\":{matched},\"connections\":[");
                }
                self.stage = Stage::Sessions;
            }
            Stage::Sessions => {}
        }
        let views = self.sessions.by_ref().take(SESSIONS);
        let views: Vec<_> = views.filter_map(|session| session.view()).collect();
        self.add(&mut piece, &views);
        if self.sessions.len() == 0 {
            self.stage = Stage::Over;
            self.finish(&mut piece);
        }
        Some(piece)
    }

    fn add(&mut self, piece: &mut String, views: &[ConnectionView]) {
        match &mut self.form {
            Form::Text(table) => piece.push_str(&table.rows(views)),
            Form::Json => {
                for (i, view) in views.iter().enumerate() {
                    if self.shown + i > 0 {
                        piece.push(',');
                    }
                    // Plain fields and text: there is nothing that could fail.
                    piece.push_str(&serde_json::to_string(view).unwrap_or_default());
                }
            }
        }
        self.shown += views.len();
    }

    fn finish(&self, piece: &mut String) {
        let Self {
            shown,
            matched,
            total,
            ..
        } = self;
        let _ = match self.form {
            Form::Json => writeln!(piece, "]}}"),
            Form::Text(_) => writeln!(piece, "{shown} shown, {matched} matched, {total} in all"),
        };
    }
}
