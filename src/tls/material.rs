//! What rustls is configured with, made of files, and made again when these have changed.

use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};

use super::files::{Chain, Concern, Files, LoadError, Sums};

/// A section of the configuration that names files.
pub trait Section: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// What rustls takes.
    type Config: Debug + Send + Sync;

    /// Reads the files. `None` where one of them is of no use, which is told to `files`.
    fn make(&self, files: &mut Files) -> Option<Self::Config>;
}

/// A configuration of rustls. Handshakes take the one in force; those that have begun keep theirs.
#[derive(Debug)]
pub struct Material<S: Section> {
    section: S,
    loaded: RwLock<Loaded<S>>,
}

#[derive(Debug)]
struct Loaded<S: Section> {
    config: Arc<S::Config>,
    sums: Sums,
    chains: Vec<Chain>,
    concerns: Vec<Concern>,
}

/// What was made of files that have changed, and is not in force yet.
pub struct Renewal {
    /// Keys of the section whose files have changed.
    pub keys: Vec<&'static str>,
    put: Box<dyn FnOnce() + Send>,
}

impl Renewal {
    /// Has it be used from now on.
    pub fn put_in_force(self) {
        (self.put)();
    }
}

impl<S: Section> Material<S> {
    /// Reads the files that a section names.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn load(section: &S) -> Result<Self, LoadError> {
        Ok(Self {
            loaded: RwLock::new(Loaded::of(section)?),
            section: section.clone(),
        })
    }

    /// The section it was made of.
    #[must_use]
    pub fn section(&self) -> &S {
        &self.section
    }

    /// What is in force.
    #[must_use]
    pub fn config(&self) -> Arc<S::Config> {
        self.read(|loaded| loaded.config.clone())
    }

    /// What is shown to peers.
    #[must_use]
    pub fn chains(&self) -> Vec<Chain> {
        self.read(|loaded| loaded.chains.clone())
    }

    /// Until when they are good, in seconds since the Unix epoch: the first to end.
    #[must_use]
    pub fn not_after(&self) -> Option<i64> {
        let ends = |chain: &Chain| chain.ends_first.not_after.seconds;
        self.read(|loaded| loaded.chains.iter().map(ends).min())
    }

    /// What is not as it should be.
    #[must_use]
    pub fn concerns(&self) -> Vec<Concern> {
        self.read(|loaded| loaded.concerns.clone())
    }

    /// Reads the files again. `None` if they are what they were.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn read_again(self: &Arc<Self>) -> Result<Option<Renewal>, LoadError> {
        let new = Loaded::of(&self.section)?;
        let keys: Vec<_> = self.read(|old| {
            let new = new.sums.iter();
            let changed = new.filter(|(key, sum)| old.sums.get(*key) != Some(sum));
            changed.map(|(key, _)| *key).collect()
        });
        let material = self.clone();
        let put = Box::new(move || {
            let loaded = material.loaded.write();
            *loaded.unwrap_or_else(PoisonError::into_inner) = new;
        });
        Ok((!keys.is_empty()).then_some(Renewal { keys, put }))
    }

    fn read<T>(&self, of: impl FnOnce(&Loaded<S>) -> T) -> T {
        of(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Section> Loaded<S> {
    fn of(section: &S) -> Result<Self, LoadError> {
        let mut files = Files::default();
        let made = section.make(&mut files);
        let (config, files) = files.finish(made)?;
        Ok(Self {
            config: Arc::new(config),
            sums: files.sums,
            chains: files.chains,
            concerns: files.concerns,
        })
    }
}
