//! The console: one page for browsers, with its style and its script. It has nothing from elsewhere, and shows what
//! the other routes say.

use super::guard::Changes;

/// The browser loads the page's own files and asks this endpoint, and nothing else.
pub(super) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) const STYLE: &str = include_str!("console.css");
pub(super) const SCRIPT: &str = include_str!("console.js");

/// The page, which offers the changes that may be made.
pub(super) fn page(changes: Changes) -> String {
    include_str!("index.html").replace("@CHANGES@", changes.into())
}
