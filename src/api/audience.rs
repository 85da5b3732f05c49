//! Whom a message is for, and what devices say of themselves, as JSON.

use serde::Deserialize;

use crate::{
    base::http::Problem,
    queue::filter::{Attributes, Filter},
    service::Error,
};

/// Attributes of a registration; those that are not there it has not.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatedAttributes {
    app_version: Option<String>,
    locale: Option<String>,
    model: Option<String>,
    network: Option<String>,
}

impl From<StatedAttributes> for Attributes {
    fn from(stated: StatedAttributes) -> Self {
        let StatedAttributes { app_version, locale, model, network } = stated;
        Self { app_version, locale, model, network }
    }
}

/// What a message asks of attributes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatedFilter {
    #[serde(default)]
    app_version: Vec<String>,
    #[serde(default)]
    locale: Vec<String>,
    #[serde(default)]
    model: Vec<String>,
    #[serde(default)]
    network: Vec<String>,
}

impl TryFrom<StatedFilter> for Filter {
    type Error = Problem;

    fn try_from(stated: StatedFilter) -> Result<Self, Problem> {
        let StatedFilter { app_version, locale, model, network } = stated;
        Ok(Self::new(&app_version, locale, model, network).map_err(Error::from)?)
    }
}
