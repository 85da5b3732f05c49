//! Filters: which registrations a message is for, by what their devices say of themselves.
//!
//! All parts of a filter must match; a part that looks at an attribute which is absent does not.
//! Pure.

use std::{cmp::Ordering, iter};

use serde::{Deserialize, Serialize};

/// Bytes of one attribute, and of one text of a filter.
pub const TEXT_BYTES_MAX: usize = 64;
/// Texts of one part of a filter.
pub const TEXTS_MAX: usize = 32;

/// What a device says of itself, for one registration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Numbers with dots.
    pub app_version: Option<String>,
    /// A language tag.
    pub locale: Option<String>,
    /// The device's model.
    pub model: Option<String>,
    /// The kind of its network.
    pub network: Option<String>,
}

/// What a message asks of attributes. A part without texts asks nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// All of these must hold.
    pub app_version: Vec<Bound>,
    /// One of these, or the beginning of a tag: `de` is also for `de-AT`.
    pub locale: Vec<String>,
    /// One of these.
    pub model: Vec<String>,
    /// One of these.
    pub network: Vec<String>,
}

/// A comparison of versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    how: How,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum How {
    Less,
    AtMost,
    Equal,
    Other,
    AtLeast,
    More,
}

/// A version: `2.10` comes after `2.9`, and `2` is `2.0`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version(Vec<u64>);

/// A text that cannot be part of a filter, or no attribute; says what a valid one looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The attribute.
    pub field: &'static str,
    /// The rule.
    pub rule: &'static str,
}

impl Attributes {
    /// Each with its name.
    pub fn each(&self) -> [(&'static str, Option<&str>); 4] {
        [
            ("app_version", self.app_version.as_deref()),
            ("locale", self.locale.as_deref()),
            ("model", self.model.as_deref()),
            ("network", self.network.as_deref()),
        ]
    }

    /// Whether they keep to their bounds.
    ///
    /// # Errors
    /// [`Invalid`] names the first that does not.
    pub fn check(&self) -> Result<(), Invalid> {
        let wrong = self.each().into_iter().find(|(_, text)| text.is_some_and(|t| !is_text(t)));
        wrong.map_or(Ok(()), |(field, _)| Err(Invalid { field, rule: TEXT }))
    }

    /// Whether none is there.
    pub fn is_empty(&self) -> bool {
        self.each().iter().all(|(_, text)| text.is_none())
    }
}

impl Filter {
    /// From texts; those of `app_version` are bounds like `>=2.1`.
    ///
    /// # Errors
    /// [`Invalid`] names the first part that is none.
    pub fn new(
        app_version: &[String],
        locale: Vec<String>,
        model: Vec<String>,
        network: Vec<String>,
    ) -> Result<Self, Invalid> {
        let field = "filter.app_version";
        if app_version.len() > TEXTS_MAX {
            return Err(Invalid { field, rule: LIST });
        }
        let bounds = app_version.iter().map(|text| Bound::parse(text));
        let app_version = bounds.collect::<Option<Vec<Bound>>>();
        let app_version = app_version.ok_or(Invalid { field, rule: BOUND })?;
        for (field, texts) in
            [("filter.locale", &locale), ("filter.model", &model), ("filter.network", &network)]
        {
            if texts.len() > TEXTS_MAX {
                return Err(Invalid { field, rule: LIST });
            }
            if !texts.iter().all(|text| is_text(text)) {
                return Err(Invalid { field, rule: TEXT });
            }
        }
        Ok(Self { app_version, locale, model, network })
    }

    /// Whether it asks nothing.
    pub fn is_empty(&self) -> bool {
        self.app_version.is_empty()
            && self.locale.is_empty()
            && self.model.is_empty()
            && self.network.is_empty()
    }

    /// Whether a message with this filter is for who has these attributes.
    pub fn matches(&self, attributes: &Attributes) -> bool {
        let among = |texts: &[String], attribute: &Option<String>, is: fn(&str, &str) -> bool| {
            let matches = |has: &String| texts.iter().any(|text| is(text, has));
            texts.is_empty() || attribute.as_ref().is_some_and(matches)
        };
        let version = || attributes.app_version.as_deref().and_then(Version::parse);
        let is_version = self.app_version.is_empty()
            || version().is_some_and(|v| self.app_version.iter().all(|bound| bound.holds(&v)));
        is_version
            && among(&self.locale, &attributes.locale, is_locale)
            && among(&self.model, &attributes.model, str::eq_ignore_ascii_case)
            && among(&self.network, &attributes.network, str::eq_ignore_ascii_case)
    }

    /// Roughly its bytes in memory and on disk.
    pub fn bytes(&self) -> usize {
        let texts = self.locale.iter().chain(&self.model).chain(&self.network);
        texts.map(String::len).sum::<usize>() + 16 * self.app_version.len()
    }
}

impl Bound {
    /// Reads `<`, `<=`, `=`, `!=`, `>=` or `>` and a version; without a sign it is `=`.
    pub fn parse(text: &str) -> Option<Self> {
        let signs = [
            ("<=", How::AtMost),
            ("<", How::Less),
            (">=", How::AtLeast),
            (">", How::More),
            ("!=", How::Other),
            ("=", How::Equal),
        ];
        let signed = signs.iter().find_map(|(sign, how)| Some((text.strip_prefix(sign)?, *how)));
        let (rest, how) = signed.unwrap_or((text, How::Equal));
        let rest = rest.trim_start();
        let is_plain = rest.chars().all(|c| c.is_ascii_digit() || c == '.');
        let version = Version::parse(rest).filter(|_| is_plain)?;
        Some(Self { how, version })
    }

    fn holds(&self, version: &Version) -> bool {
        let order = version.compare(&self.version);
        match self.how {
            How::Less => order == Ordering::Less,
            How::AtMost => order != Ordering::Greater,
            How::Equal => order == Ordering::Equal,
            How::Other => order != Ordering::Equal,
            How::AtLeast => order != Ordering::Less,
            How::More => order == Ordering::Greater,
        }
    }
}

impl Version {
    /// The numbers at the beginning of a text, at most eight; `2.1-beta` is `2.1`.
    pub fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let numbers = text[..end].trim_end_matches('.').split('.');
        let numbers: Option<Vec<u64>> = numbers.map(|number| number.parse().ok()).collect();
        numbers.filter(|numbers| numbers.len() <= NUMBERS_MAX).map(Self)
    }

    /// Number by number; what one has not is 0.
    pub fn compare(&self, other: &Self) -> Ordering {
        let padded = |version: &Self| version.0.clone().into_iter().chain(iter::repeat(0));
        padded(self).take(NUMBERS_MAX).cmp(padded(other).take(NUMBERS_MAX))
    }
}

fn is_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control)
}

/// Equal, or the beginning of it up to a `-` or `_`.
fn is_locale(prefix: &str, locale: &str) -> bool {
    let plain = |text: &str| text.replace('_', "-").to_ascii_lowercase();
    let (prefix, locale) = (plain(prefix), plain(locale));
    locale.strip_prefix(&prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

const NUMBERS_MAX: usize = 8;
const TEXT: &str = "1 to 64 bytes of UTF-8 without control characters";
const LIST: &str = "at most 32 of them";
const BOUND: &str =
    "`<`, `<=`, `=`, `!=`, `>=` or `>` and up to 8 numbers with dots, like `>=2.10`";

#[cfg(test)]
mod tests {
    use super::*;

    fn is_for(bounds: &[&str], version: &str) -> bool {
        let bounds: Vec<String> = bounds.iter().map(|text| (*text).to_owned()).collect();
        let filter = Filter::new(&bounds, Vec::new(), Vec::new(), Vec::new()).unwrap();
        let app_version = Some(version.to_owned());
        filter.matches(&Attributes { app_version, ..Attributes::default() })
    }

    #[test]
    fn versions_compare_number_by_number() {
        assert!(is_for(&[">=2.9"], "2.10") && !is_for(&["<2.9"], "2.10"));
        assert!(is_for(&["2"], "2.0.0") && is_for(&["!=2"], "2.0.1") && is_for(&["<=2.0"], "2"));
        assert!(is_for(&[">=2.1", "<3"], "2.1-beta") && !is_for(&[">=2.1", "<3"], "3.0+7"));
        assert!(is_for(&["> 1"], "1.0.0.0.0.0.0.1"));
        for none in ["", "v2", "x", "2..1", ".1", "99999999999999999999", "1.1.1.1.1.1.1.1.1"] {
            assert!(!is_for(&["!=7"], none), "{none}");
        }
        for wrong in ["", ">=", "2.x", "~2", "=>2", "2.1-beta", "1 2"] {
            assert_eq!(Bound::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_locale_is_also_for_its_regions() {
        let of = |locale: &str, has: &str| {
            let filter = Filter::new(&[], vec![locale.into()], Vec::new(), Vec::new()).unwrap();
            filter.matches(&Attributes { locale: Some(has.into()), ..Attributes::default() })
        };
        assert!(of("de", "de") && of("de", "de-AT") && of("de", "de_AT") && of("DE_at", "de-AT"));
        assert!(!of("de", "den") && !of("de-AT", "de") && !of("de", "en"));
    }

    #[test]
    fn every_part_must_match_and_what_is_absent_does_not() {
        let texts = |text: &str| vec![text.to_owned()];
        let filter = Filter::new(&texts("1"), texts("de"), texts("Pixel 8"), texts("wifi"));
        let filter = filter.unwrap();
        let all = Attributes {
            app_version: Some("1".into()),
            locale: Some("de".into()),
            model: Some("pixel 8".into()),
            network: Some("WIFI".into()),
        };
        assert!(filter.matches(&all) && Filter::default().matches(&Attributes::default()));
        for without in [
            Attributes { app_version: None, ..all.clone() },
            Attributes { locale: None, ..all.clone() },
            Attributes { model: None, ..all.clone() },
            Attributes { network: Some("cell".into()), ..all.clone() },
        ] {
            assert!(!filter.matches(&without), "{without:?}");
        }
    }

    #[test]
    fn texts_keep_to_their_bounds() {
        let long = vec!["x".repeat(65)];
        assert_eq!(Filter::new(&[], long, vec![], vec![]).unwrap_err().field, "filter.locale");
        let many = vec!["x".to_owned(); 33];
        assert_eq!(Filter::new(&[], vec![], many, vec![]).unwrap_err().rule, LIST);
        let model = Some("a\nb".to_owned());
        let wrong = Attributes { model, ..Attributes::default() };
        assert_eq!(wrong.check().unwrap_err().field, "model");
    }
}
