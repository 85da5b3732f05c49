//! When a registration takes messages: paused or not, and its hours of the day.
//!
//! Outside of them none of its queues is delivered, control entries included; entries wait where
//! they are and expire as they would otherwise. Who is connected is woken when the hours begin.

use serde::{Deserialize, Serialize};

use super::{Error, Service, bind::By, records::Registration, register::load};
use crate::{
    base::{
        civil::{Rules, Zone},
        clock::DAY_MS,
        ids::RegId,
    },
    queue::store::{Space, encode},
    service::register::NO_REGISTRATION,
};

const MINUTE_MS: u64 = 60_000;
const MINUTES: i64 = 24 * 60;
/// Changes of a zone's clocks that are looked at for the next beginning: more than a week has.
const CHANGES_MAX: usize = 8;

/// When a registration takes messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// Not now.
    pub is_paused: bool,
    /// Only then.
    pub hours: Option<Hours>,
}

/// Hours of every day, on the clocks of a zone; over midnight if they end before they begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hours {
    /// The first minute of the day, 0 to 1439.
    pub start_minute: u16,
    /// The minute before which they end, 0 to 1439; never `start_minute`.
    pub end_minute: u16,
    /// Whose clocks.
    pub zone: Zone,
}

/// Whether a registration takes messages at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It does.
    Open,
    /// Not before this, in milliseconds since 1970.
    At(u64),
    /// Not until that is changed.
    Paused,
}

/// [`Accept`] as the app server sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AcceptView {
    /// Not until that is changed.
    pub paused: bool,
    /// Only then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hours: Option<HoursView>,
    /// Whether it takes messages now.
    pub open: bool,
    /// When it does next, in milliseconds since 1970, if its hours keep it from that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opens_ms: Option<u64>,
}

/// [`Hours`] as they are stated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HoursView {
    /// The first minute of the day.
    pub start_minute: u16,
    /// The minute before which they end.
    pub end_minute: u16,
    /// An IANA name or an offset.
    pub zone: String,
}

impl Hours {
    /// Hours as stated.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they are none.
    pub fn of(start_minute: i64, end_minute: i64, zone: &str) -> Result<Self, Error> {
        let minute = |field, minute: i64| match u16::try_from(minute) {
            Ok(known) if minute < MINUTES => Ok(known),
            Ok(_) | Err(_) => Err(Error::Invalid { field, rule: "0 to 1439".into() }),
        };
        let hours = Self {
            start_minute: minute("hours.start_minute", start_minute)?,
            end_minute: minute("hours.end_minute", end_minute)?,
            zone: zone.parse().map_err(|error: crate::base::civil::NoZone| Error::Invalid {
                field: "hours.zone",
                rule: error.to_string(),
            })?,
        };
        if start_minute == end_minute {
            let rule = "not start_minute: that is no time or all of it; say `paused`, or no hours";
            return Err(Error::Invalid { field: "hours.end_minute", rule: rule.into() });
        }
        Ok(hours)
    }

    /// Whether they have begun, on a clock that is so far ahead.
    fn are_now(&self, local_ms: u64) -> bool {
        let minute = local_ms % DAY_MS / MINUTE_MS;
        let (start, end) = (u64::from(self.start_minute), u64::from(self.end_minute));
        match start < end {
            true => (start..end).contains(&minute),
            false => minute >= start || minute < end,
        }
    }

    /// The time at which they begin next, or `None` if they have begun. A change of the clocks
    /// may skip their beginning: then they begin with the change, if it leads into them.
    fn begin_after(&self, rules: &Rules, now_ms: u64) -> Option<u64> {
        let mut from_ms = now_ms;
        for _ in 0..CHANGES_MAX {
            let local_ms = from_ms.saturating_add_signed(rules.ahead_ms(from_ms));
            if self.are_now(local_ms) {
                return (from_ms > now_ms).then_some(from_ms);
            }
            let start_ms = u64::from(self.start_minute) * MINUTE_MS;
            let begin_ms = from_ms + (start_ms + DAY_MS - local_ms % DAY_MS) % DAY_MS;
            match rules.changed_after(from_ms) {
                Some(changed_ms) if changed_ms <= begin_ms => from_ms = changed_ms,
                Some(_) | None => return Some(begin_ms),
            }
        }
        Some(now_ms + DAY_MS)
    }
}

impl Accept {
    /// Whether it says nothing: everything is taken at any time.
    pub fn is_always(&self) -> bool {
        !self.is_paused && self.hours.is_none()
    }

    /// Whether messages are taken at a time.
    pub fn opening(&self, now_ms: u64) -> Opening {
        match &self.hours {
            _ if self.is_paused => Opening::Paused,
            None => Opening::Open,
            Some(hours) => {
                hours.begin_after(&hours.zone.rules(), now_ms).map_or(Opening::Open, Opening::At)
            }
        }
    }

    /// As the app server sees it.
    pub fn view(&self, now_ms: u64) -> AcceptView {
        let opening = self.opening(now_ms);
        let hours = self.hours.as_ref().map(|hours| HoursView {
            start_minute: hours.start_minute,
            end_minute: hours.end_minute,
            zone: hours.zone.to_string(),
        });
        let opens_ms = match opening {
            Opening::At(ms) => Some(ms),
            Opening::Open | Opening::Paused => None,
        };
        AcceptView { paused: self.is_paused, hours, open: opening == Opening::Open, opens_ms }
    }
}

impl Service {
    /// Says when a registration takes messages, instead of what was said before. Its connection
    /// hears of it at once.
    ///
    /// # Errors
    /// [`Error::NotFound`] if `by` has no such registration, [`Error::Unavailable`].
    pub async fn set_accept(&self, regid: &str, accept: Accept, by: By<'_>) -> Result<(), Error> {
        let (device, Registration { regid, .. }) = self.registration_of(regid, by)?;
        let accept = (!accept.is_always()).then(|| Box::new(accept));
        let is_changed = self
            .router
            .run(device.shard(), move |txn| {
                let mut record = load(txn, &device)?;
                let mut all = record.registrations.iter_mut();
                let registration = all.find(|one| one.regid == regid).ok_or(NO_REGISTRATION)?;
                if registration.accept == accept {
                    return Ok(false);
                }
                registration.accept = accept;
                txn.put(Space::Devices, device.as_bytes(), encode(&record));
                Ok::<_, Error>(true)
            })
            .await?;
        self.note_settings(1, usize::from(is_changed));
        if is_changed {
            self.refresh(&device);
        }
        Ok(())
    }

    /// Whether a registration takes messages now. One that is no more does.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn opening(&self, regid: &RegId) -> Result<Opening, Error> {
        let Some(device) = self.device_of(regid)? else { return Ok(Opening::Open) };
        let Some(record) = self.device(&device)? else { return Ok(Opening::Open) };
        let registration = record.registrations.iter().find(|one| one.regid == *regid);
        let accept = registration.and_then(|one| one.accept.as_ref());
        Ok(accept.map_or(Opening::Open, |accept| accept.opening(self.now_ms())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::civil::rfc3339_ms;

    fn opening(start: i64, end: i64, zone: &str, now: &str) -> Opening {
        let hours = Some(Hours::of(start, end, zone).unwrap());
        Accept { is_paused: false, hours }.opening(rfc3339_ms(now).unwrap())
    }

    fn at(time: &str) -> Opening {
        Opening::At(rfc3339_ms(time).unwrap())
    }

    #[test]
    fn hours_of_the_day_and_over_midnight() {
        let day = |now| opening(8 * 60, 22 * 60, "UTC", now);
        assert_eq!(day("2026-01-05T07:59:59.999Z"), at("2026-01-05T08:00:00Z"));
        assert_eq!(day("2026-01-05T08:00:00Z"), Opening::Open);
        assert_eq!(day("2026-01-05T21:59:59.999Z"), Opening::Open);
        assert_eq!(day("2026-01-05T22:00:00Z"), at("2026-01-06T08:00:00Z"));
        let night = |now| opening(22 * 60, 6 * 60, "+08:00", now);
        assert_eq!(night("2026-01-05T22:00:00+08:00"), Opening::Open);
        assert_eq!(night("2026-01-06T00:00:00+08:00"), Opening::Open);
        assert_eq!(night("2026-01-06T05:59:00+08:00"), Opening::Open);
        assert_eq!(night("2026-01-06T06:00:00+08:00"), at("2026-01-06T22:00:00+08:00"));
        let to_midnight = |now| opening(23 * 60, 0, "-03:30", now);
        assert_eq!(to_midnight("2026-01-05T23:59:00-03:30"), Opening::Open);
        assert_eq!(to_midnight("2026-01-06T00:00:00-03:30"), at("2026-01-06T23:00:00-03:30"));
        let last_minute = |now| opening(1_439, 0, "UTC", now);
        assert_eq!(last_minute("2026-01-05T12:00:00Z"), at("2026-01-05T23:59:00Z"));
    }

    #[test]
    fn clocks_that_are_changed_move_the_beginning() {
        // Berlin's clocks go from 2:00 to 3:00 on 29 March, and from 3:00 to 2:00 on 25 October.
        let morning = |now| opening(8 * 60, 20 * 60, "Europe/Berlin", now);
        assert_eq!(morning("2026-03-28T21:00:00+01:00"), at("2026-03-29T08:00:00+02:00"));
        assert_eq!(morning("2026-10-24T21:00:00+02:00"), at("2026-10-25T08:00:00+01:00"));
        let skipped = |now| opening(150, 300, "Europe/Berlin", now);
        assert_eq!(skipped("2026-03-29T01:00:00+01:00"), at("2026-03-29T03:00:00+02:00"));
        let gone = |now| opening(135, 165, "Europe/Berlin", now);
        assert_eq!(gone("2026-03-29T01:00:00+01:00"), at("2026-03-30T02:15:00+02:00"));
        let twice = |now| opening(150, 165, "Europe/Berlin", now);
        assert_eq!(twice("2026-10-25T02:00:00+02:00"), at("2026-10-25T02:30:00+02:00"));
        assert_eq!(twice("2026-10-25T02:50:00+02:00"), at("2026-10-25T02:30:00+01:00"));
        assert_eq!(twice("2026-10-25T02:50:00+01:00"), at("2026-10-26T02:30:00+01:00"));
    }

    #[test]
    fn what_is_no_time_of_the_day_is_refused() {
        let field = |start, end, zone| match Hours::of(start, end, zone) {
            Err(Error::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(-1, 5, "UTC"), "hours.start_minute");
        assert_eq!(field(1_440, 5, "UTC"), "hours.start_minute");
        assert_eq!(field(5, 1_440, "UTC"), "hours.end_minute");
        assert_eq!(field(5, 5, "UTC"), "hours.end_minute");
        assert_eq!(field(5, 6, "Mars/Olympus"), "hours.zone");
        let paused = Accept { is_paused: true, hours: Some(Hours::of(0, 1, "UTC").unwrap()) };
        assert_eq!(paused.opening(0), Opening::Paused);
    }
}
