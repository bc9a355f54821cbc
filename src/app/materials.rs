//! The certificates and keys of a configuration. They are read before anything changes, so that a reload is
//! all or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::admin::TokenFile;
use crate::config::{Config, ConfigErrors};
use crate::metrics::{CertificateFigure, Metrics, wall_clock};
use crate::server::Listener;
use crate::tls::{Acceptor, AdminAcceptor, Chain, Concern, Connector, Material, Renewal, Section};

/// What a configuration needs, read from its files.
#[derive(Default)]
pub(super) struct Materials {
    /// By listener.
    acceptors: BTreeMap<String, Arc<Acceptor>>,
    connectors: BTreeMap<String, Arc<Connector>>,
    admin: Option<Arc<AdminAcceptor>>,
    token: Option<TokenFile>,
    /// Of sections that stay, and whose files have changed.
    renewals: Vec<(String, Renewal)>,
    /// Each with the path of its key.
    errors: Vec<(String, String)>,
}

/// A chain in force, and where it is configured.
pub(super) type InForce = (CertificateFigure, Chain);

impl Materials {
    /// Reads all files. Sections that `serving` listeners and the admin address have already go on to be
    /// used, with what is in the files now once that is [put in force](Self::put_in_force). `file` is the
    /// one that the configuration is from.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn load(
        config: &Config,
        serving: &[Arc<Listener>],
        admin: Option<&Arc<AdminAcceptor>>,
        file: Option<&Path>,
    ) -> Result<Self, ConfigErrors> {
        Self::read(config, serving, admin).finish(file)
    }

    /// Reads all files for a start, that of the token, too: a wrong path is to be noticed now. Later it is read
    /// for each request, so a reload does without.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn for_start(config: &Config, file: Option<&Path>) -> Result<Self, ConfigErrors> {
        let mut all = Self::read(config, &[], None);
        let admin = config.admin.as_ref();
        if let Some(file) = admin.and_then(|admin| admin.token_file.clone()) {
            let key = "admin.token_file";
            let refused = |why| (key.to_owned(), format!("{key}: {why}"));
            let token = TokenFile::new(file).map_err(|why| all.errors.push(refused(why)));
            all.token = token.ok();
        }
        all.finish(file)
    }

    fn read(
        config: &Config,
        serving: &[Arc<Listener>],
        admin: Option<&Arc<AdminAcceptor>>,
    ) -> Self {
        let mut all = Self::default();
        for (i, listener) in config.listeners.iter().enumerate() {
            let name = &listener.name;
            let old = serving.iter().find(|old| old.config.name == *name);
            let old = old.map(|old| &old.params);
            let [at, path] = [name, &i.to_string()].map(|it| format!("listeners[{it}].tls"));
            let acceptor = listener.tls.as_ref();
            let place = [&*at, &*path];
            let acceptor =
                acceptor.and_then(|tls| all.one(place, tls, old.and_then(|old| old.tls.as_ref())));
            all.acceptors.extend(acceptor.map(|it| (name.clone(), it)));
            let [at, path] =
                [name, &i.to_string()].map(|it| format!("listeners[{it}].upstream.tls"));
            let connector = listener.upstream.tls.as_ref();
            let place = [&*at, &*path];
            let connector = connector
                .and_then(|tls| all.one(place, tls, old.and_then(|old| old.cluster.tls())));
            all.connectors
                .extend(connector.map(|it| (name.clone(), it)));
        }
        let tls = config.admin.as_ref().and_then(|admin| admin.tls.as_ref());
        all.admin = tls.and_then(|tls| all.one(["admin.tls"; 2], tls, admin));
        all
    }

    fn finish(self, file: Option<&Path>) -> Result<Self, ConfigErrors> {
        match self.errors.is_empty() {
            true => Ok(self),
            false => Err(ConfigErrors::of_files(&self.errors, file)),
        }
    }

    /// The section is `at` for people, and at this path in the file.
    fn one<S: Section>(
        &mut self,
        [at, path]: [&str; 2],
        section: &S,
        old: Option<&Arc<Material<S>>>,
    ) -> Option<Arc<Material<S>>> {
        let loaded = match old.filter(|old| old.section() == section) {
            Some(old) => old.read_again().map(|renewal| {
                let renewal = renewal.map(|renewal| (at.to_owned(), renewal));
                self.renewals.extend(renewal);
                old.clone()
            }),
            None => Material::load(section).map(Arc::new),
        };
        let told = loaded.map_err(|error| {
            let lines = error.lines(at);
            self.errors
                .extend(lines.map(|(key, line)| (format!("{path}.{key}"), line)));
        });
        told.ok()
    }

    /// What the clients of a listener meet.
    pub fn acceptor(&self, listener: &str) -> Option<Arc<Acceptor>> {
        self.acceptors.get(listener).cloned()
    }

    /// How the service of a listener is met.
    pub fn connector(&self, listener: &str) -> Option<Arc<Connector>> {
        self.connectors.get(listener).cloned()
    }

    /// What the clients of the admin address meet.
    pub fn admin(&self) -> Option<Arc<AdminAcceptor>> {
        self.admin.clone()
    }

    /// Whose bearer may change something at the admin address.
    pub fn token(&self) -> Option<TokenFile> {
        self.token.clone()
    }

    /// Has the files that have changed be used by whoever comes from now on. Returns the keys that name them.
    pub fn put_in_force(&mut self) -> Vec<String> {
        let mut keys = Vec::new();
        for (at, renewal) in self.renewals.drain(..) {
            keys.extend(renewal.keys.iter().map(|key| format!("{at}.{key}")));
            renewal.put_in_force();
        }
        keys
    }

    /// The chains, with where they are configured.
    pub fn chains(&self) -> Vec<InForce> {
        let of = |place: [&str; 2], chains: Vec<Chain>| {
            let [listener, leg] = place.map(str::to_owned);
            let figure = move |chain: Chain| {
                let figure = CertificateFigure {
                    listener: listener.clone(),
                    leg: leg.clone(),
                    file: chain.file.display().to_string(),
                    not_after: chain.ends_first.not_after.seconds,
                };
                (figure, chain)
            };
            chains.into_iter().map(figure).collect::<Vec<_>>()
        };
        let down = self.acceptors.iter();
        let down = down.flat_map(|(name, it)| of([name, "downstream"], it.chains()));
        let up = self.connectors.iter();
        let up = up.flat_map(|(name, it)| of([name, "upstream"], it.chains()));
        let admin = self.admin.iter();
        let admin = admin.flat_map(|it| of(["", ""], it.chains()));
        down.chain(up).chain(admin).collect()
    }

    /// Has metrics show until when each certificate is good, and warns of those that are not, or not for long.
    pub fn report(&self, metrics: &Metrics) {
        let chains = self.chains();
        for (figure, chain) in &chains {
            let validity = chain.ends_first.validity(wall_clock());
            if validity.needs_renewal() {
                let CertificateFigure {
                    listener,
                    leg,
                    file,
                    ..
                } = figure;
                let whose = chain.whose_end();
                tracing::warn!(
                    listener,
                    leg,
                    file,
                    "the certificate{whose} {validity}: renew it"
                );
            }
        }
        let figures = chains.into_iter().map(|(figure, _)| figure);
        metrics.set_certificates(figures.collect());
    }
}

/// What the files with certificates and keys of a configuration hold. That of a token is read, too.
#[derive(Debug)]
pub struct TlsFiles {
    /// What is shown to peers.
    pub chains: Vec<Chain>,
    /// What is not as it should be.
    pub concerns: Vec<Concern>,
}

impl TlsFiles {
    /// Reads them. `file` is the one that the configuration is from.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn read(config: &Config, file: Option<&Path>) -> Result<Self, ConfigErrors> {
        let found = Materials::for_start(config, file)?;
        let (down, up) = (found.acceptors.values(), found.connectors.values());
        Ok(Self::of(down, up, found.admin.as_ref()))
    }

    /// What is in force.
    pub(super) fn in_force(serving: &[Arc<Listener>], admin: Option<&Arc<AdminAcceptor>>) -> Self {
        let down = serving.iter().filter_map(|l| l.params.tls.as_ref());
        let up = serving.iter().filter_map(|l| l.params.cluster.tls());
        Self::of(down, up, admin)
    }

    fn of<'a>(
        down: impl Iterator<Item = &'a Arc<Acceptor>> + Clone,
        up: impl Iterator<Item = &'a Arc<Connector>> + Clone,
        admin: Option<&Arc<AdminAcceptor>>,
    ) -> Self {
        let chains = down.clone().flat_map(|it| it.chains());
        let chains = chains.chain(up.clone().flat_map(|it| it.chains()));
        let chains = chains.chain(admin.into_iter().flat_map(|it| it.chains()));
        let chains = chains.collect();
        let concerns = down.flat_map(|it| it.concerns());
        let concerns = concerns.chain(up.flat_map(|it| it.concerns()));
        let concerns = concerns.chain(admin.into_iter().flat_map(|it| it.concerns()));
        // One file may serve many.
        let concerns: BTreeSet<_> = concerns.collect();
        Self {
            chains,
            concerns: concerns.into_iter().collect(),
        }
    }
}
