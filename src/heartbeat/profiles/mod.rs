//! The protocols. Each is followed as far as its answers can be told for certain; the rest is opaque.

pub mod custom;

use strum::IntoStaticStr;

use super::profile::Profile;
use crate::liveness::Leg;

/// The protocols that are known, by the names of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Protocol {
    /// What the operator describes.
    Custom(custom::Description),
}

impl Protocol {
    /// How the peer of this leg is asked, if it can be in this protocol.
    #[must_use]
    pub fn profile(&self, leg: Leg) -> Option<Box<dyn Profile>> {
        match (self, leg) {
            (Self::Custom(description), _) => Some(Box::new(custom::Custom::new(description))),
        }
    }
}
