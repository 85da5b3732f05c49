//! The one table from refused business calls to problems.
//!
//! It says which [`Code`] a refusal has; the code's row says the status, whose
//! fault it is and whether to try again. The conversion serves every HTTP door.

use crate::{
    base::{
        http::{Code, Problem},
        metrics::Unsent,
    },
    service::Error,
};

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = error.to_string();
        match error {
            Error::Invalid { field, rule } => Self::out_of_bounds(field, &rule),
            Error::NotFound { .. } => Self::new(Code::NotFound, detail),
            Error::Forbidden(_) | Error::Sealed(_) => Self::new(Code::Forbidden, detail),
            Error::Gone => Self::new(Code::PositionGone, detail),
            Error::NeedsPolicy => Self::new(Code::CollectionsNeedPolicy, detail),
            Error::Limit { .. } => Self::new(Code::LimitReached, detail),
            Error::Conflict(_) => Self::new(Code::AlreadyExists, detail),
            Error::Allowance { bound, after, .. } => {
                let code = match bound {
                    Unsent::Quota
                    | Unsent::BroadcastQuota
                    | Unsent::DayTargets
                    | Unsent::DayBroadcasts => Code::QuotaExceeded,
                    _ => Code::RateLimited,
                };
                let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
                Self { retry_after_s: Some(seconds.max(1)), ..Self::new(code, detail) }
            }
            Error::KeyInUse => Self::new(Code::IdempotencyKeyInUse, detail),
            Error::KeyReused => Self::new(Code::IdempotencyKeyReused, detail),
            Error::StorageBehind => Self::new(Code::StorageBehind, detail),
            Error::Unavailable(cause) => {
                tracing::warn!(%cause, "call is not possible now");
                Self::new(Code::Unavailable, detail)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::http::Retry, queue::shard};

    #[test]
    fn each_refusal_has_its_status() {
        let cases = [
            (Error::Invalid { field: "ttl_s", rule: "1 to 9".into() }, 422, "ttl_s: 1 to 9"),
            (Error::NotFound { what: "message" }, 404, "no such message"),
            (Error::Forbidden("not yours"), 403, "not yours"),
            (Error::Limit { what: "aliases", max: 20 }, 422, "at most 20 aliases"),
            (Error::Conflict("the app"), 409, "the app exists already"),
            (
                Error::KeyReused,
                422,
                "this Idempotency-Key was used for another request within the last 24 hours",
            ),
        ];
        for (error, status, detail) in cases {
            let problem = Problem::from(error);
            assert_eq!(
                (problem.code.row().status.as_u16(), problem.detail.as_str()),
                (status, detail)
            );
            assert_eq!(problem.retry(), Retry::Never);
        }
    }

    #[test]
    fn what_is_our_fault_can_be_retried_after_a_second() {
        let problem = Problem::from(Error::Unavailable(shard::Error::Stopped));
        assert_eq!(problem.code.row().status.as_u16(), 503);
        assert_eq!(problem.retry(), Retry::AfterS(1));
    }
}
