//! Times as people write them: RFC 3339 texts and time zones.
//!
//! The one door to the time zone database, which is built in: what a zone's name means does
//! not depend on the machine.

use std::{fmt, str::FromStr, sync::LazyLock};

use jiff::{
    Timestamp,
    tz::{Offset, TimeZone, TimeZoneDatabase},
};
use serde::{Deserialize, Serialize};

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// The longest text of a time or a zone that is looked at.
const TEXT_BYTES_MAX: usize = 64;
/// No zone of the world is further from UTC, in minutes.
const OFFSET_MINUTES_MAX: i32 = 14 * 60;

/// Reads an RFC 3339 text as milliseconds since 1970; what is before is 0.
pub fn rfc3339_ms(text: &str) -> Option<u64> {
    if text.len() > TEXT_BYTES_MAX || !text.contains(['T', 't', ' ']) {
        return None;
    }
    let time: Timestamp = text.parse().ok()?;
    Some(u64::try_from(time.as_millisecond()).unwrap_or(0))
}

/// A time zone: a name of the IANA database, or an offset like `+08:00`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Zone(Box<str>);

/// A text that names no zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an IANA time zone like Europe/Berlin, or an offset like +08:00")]
pub struct NoZone;

impl Zone {
    /// Its text, as it was stated.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The zone with its rules.
    pub fn rules(&self) -> Rules {
        // A name that was known once may be gone from a newer database.
        Rules(zone_of(&self.0).unwrap_or(TimeZone::UTC))
    }
}

impl FromStr for Zone {
    type Err = NoZone;

    fn from_str(text: &str) -> Result<Self, NoZone> {
        zone_of(text).map(|_| Self(text.into())).ok_or(NoZone)
    }
}

impl TryFrom<String> for Zone {
    type Error = NoZone;

    fn try_from(text: String) -> Result<Self, NoZone> {
        // What is stored was checked once; the database may have changed since.
        Ok(Self(text.into()))
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.0.into()
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a zone's clocks show, and when they are changed.
pub struct Rules(TimeZone);

impl Rules {
    /// How far local clocks are ahead of UTC at a time, in milliseconds.
    pub fn ahead_ms(&self, unix_ms: u64) -> i64 {
        timestamp(unix_ms).map_or(0, |at| i64::from(self.0.to_offset(at).seconds()) * 1_000)
    }

    /// When local clocks are changed next, in milliseconds since 1970.
    pub fn changed_after(&self, unix_ms: u64) -> Option<u64> {
        let next = self.0.following(timestamp(unix_ms)?).next()?;
        u64::try_from(next.timestamp().as_millisecond()).ok()
    }
}

fn timestamp(unix_ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()
}

fn zone_of(text: &str) -> Option<TimeZone> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        return None;
    }
    match text.as_bytes()[0] {
        sign @ (b'+' | b'-') => {
            let (hours, minutes) = text[1..].split_once(':')?;
            let number = |text: &str| {
                let is_number = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
                is_number.then(|| text.parse::<i32>().ok()).flatten()
            };
            let (hours, minutes) = (number(hours)?, number(minutes)?);
            let ahead = hours * 60 + minutes;
            if minutes > 59 || ahead > OFFSET_MINUTES_MAX {
                return None;
            }
            let seconds = if sign == b'-' { -60 * ahead } else { 60 * ahead };
            Offset::from_seconds(seconds).ok().map(TimeZone::fixed)
        }
        _ => ZONES.get(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_times_are_read_or_refused() {
        assert_eq!(rfc3339_ms("1970-01-02T00:00:00Z"), Some(86_400_000));
        assert_eq!(rfc3339_ms("1970-01-02T01:00:00.25+01:00"), Some(86_400_250));
        assert_eq!(rfc3339_ms("1969-01-02T01:00:00Z"), Some(0));
        for text in ["", "tomorrow", "1970-01-02", "1970-01-02T00:00:00", "86400000"] {
            assert_eq!(rfc3339_ms(text), None, "{text}");
        }
    }

    #[test]
    fn zones_have_names_or_offsets() {
        let summer = rfc3339_ms("2026-07-01T00:00:00Z").unwrap();
        for (text, hours) in [("Europe/Berlin", 2), ("UTC", 0), ("+08:00", 8), ("-03:00", -3)] {
            let zone: Zone = text.parse().unwrap();
            assert_eq!(zone.rules().ahead_ms(summer), hours * 3_600_000, "{text}");
        }
        for text in ["", "Europe/Nowhere", "+8:00", "+15:00", "+08:60", "+é:00", "-"] {
            assert_eq!(text.parse::<Zone>(), Err(NoZone), "{text}");
        }
    }
}
