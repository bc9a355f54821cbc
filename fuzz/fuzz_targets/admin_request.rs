//! Requests to the admin endpoint. Every one is answered, and only POST and DELETE change anything.
#![no_main]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use hyper::Request;
use hyper::header::{ACCEPT, HOST, ORIGIN};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::{Corpus, fuzz_target};
use pulsegate::admin::{self, Control, NotReloaded, Readiness};
use pulsegate::metrics::End;
use pulsegate::view::{EndpointView, OnSilent, ReloadReport, Shown, Summary, VerifiedSession};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    method: Method,
    target: &'a str,
    host: Option<&'a str>,
    origin: Option<&'a str>,
    accept: Option<&'a str>,
    body: &'a str,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Method {
    Get,
    Head,
    Post,
    Delete,
    Other,
}

/// A process without a session.
#[derive(Default)]
struct Process {
    changed: AtomicBool,
}

impl Control for Process {
    fn metrics(&self) -> String {
        String::new()
    }

    fn summary(&self) -> Summary {
        Summary {
            version: "0.0.0",
            now: 1,
            monotonic_ms: 1,
            draining: false,
            sessions: 0,
            listeners: Vec::new(),
        }
    }

    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }

    fn knows_listener(&self, name: &str) -> bool {
        name == "db"
    }

    fn sessions(&self) -> Vec<Arc<dyn Shown>> {
        Vec::new()
    }

    fn close(&self, ids: &[u64], _reason: Option<&str>) -> usize {
        self.changed.store(true, Relaxed);
        ids.iter().filter(|id| **id == 7).count()
    }

    fn verify(
        &self,
        _ids: &[u64],
        _on_silent: OnSilent,
    ) -> Pin<Box<dyn Future<Output = Vec<VerifiedSession>> + Send>> {
        self.changed.store(true, Relaxed);
        Box::pin(std::future::ready(Vec::new()))
    }

    fn upstreams(&self) -> Vec<EndpointView> {
        Vec::new()
    }

    fn found(&self) -> Vec<End> {
        Vec::new()
    }

    fn config(&self) -> String {
        String::new()
    }

    fn reload(
        &self,
    ) -> Pin<Box<dyn Future<Output = Result<ReloadReport, NotReloaded>> + Send>> {
        self.changed.store(true, Relaxed);
        Box::pin(std::future::ready(Ok(ReloadReport::default())))
    }

    fn drain(&self) {
        self.changed.store(true, Relaxed);
    }
}

fuzz_target!(|input: Input<'_>| -> Corpus {
    let method = match input.method {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Delete => "DELETE",
        Method::Other => "PATCH",
    };
    let mut request = Request::builder().method(method).uri(input.target);
    for (name, value) in [
        (HOST, input.host),
        (ORIGIN, input.origin),
        (ACCEPT, input.accept),
    ] {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    let Ok(request) = request.body(input.body.to_owned()) else {
        return Corpus::Reject;
    };
    let process = Arc::new(Process::default());
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().build().expect("a runtime");
    let status = runtime.block_on(admin::status(process.clone(), request));
    assert!(!status.is_server_error(), "{status}");
    let may_change = matches!(input.method, Method::Post | Method::Delete);
    assert!(may_change || !process.changed.load(Relaxed), "{input:?}");
    Corpus::Keep
});
