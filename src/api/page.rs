//! How listings are asked for: where the page before ended, and how many items a page has.

use serde::Deserialize;

use crate::base::http::Problem;

/// The query of a listing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    /// `next` of the page before.
    pub after: Option<String>,
    /// As for [`limit_of`].
    pub limit: Option<i64>,
}

/// How many items: 1 to 1,000, and 100 unless it is stated.
///
/// # Errors
/// [`Problem`] that names the field.
pub(super) fn limit_of(stated: Option<i64>) -> Result<usize, Problem> {
    match usize::try_from(stated.unwrap_or(LIMIT)) {
        Ok(limit @ 1..=LIMIT_MAX) => Ok(limit),
        Ok(_) | Err(_) => Err(Problem::out_of_bounds("limit", "1 to 1000")),
    }
}

const LIMIT: i64 = 100;
/// The most items of a page.
pub(super) const LIMIT_MAX: usize = 1_000;
