//! How the values of settings are read: the forms in which they are written, and their ranges.
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Error as _, IntoDeserializer};
use serde::{Deserialize, Deserializer};

use super::listen::parse_address;
use delo_registry::remote::AllowedUrls;

/// An address to listen at.
pub fn address<'de, D: Deserializer<'de>>(de: D) -> Result<SocketAddr, D::Error> {
    parse_address(&String::deserialize(de)?).map_err(D::Error::custom)
}

/// A value by its own parser.
pub fn from_str<'de, T: FromStr<Err = String>, D: Deserializer<'de>>(de: D) -> Result<T, D::Error> {
    String::deserialize(de)?.parse().map_err(D::Error::custom)
}

/// A choice, or `auto`.
pub fn auto<'de, T: Deserialize<'de>, D: Deserializer<'de>>(de: D) -> Result<Option<T>, D::Error> {
    match String::deserialize(de)?.as_str() {
        "auto" => Ok(None),
        choice => T::deserialize(choice.to_owned().into_deserializer()).map(Some),
    }
}

/// A value by its own parser, or `auto`.
pub fn auto_from_str<'de, T: FromStr<Err = String>, D: Deserializer<'de>>(de: D) -> Result<Option<T>, D::Error> {
    match String::deserialize(de)?.as_str() {
        "auto" => Ok(None),
        choice => choice.parse().map(Some).map_err(D::Error::custom),
    }
}

/// The most that any count or size of memory may be: beyond any machine, and small enough to be multiplied.
const MOST: usize = 1 << 48;
/// The most samples of one forward pass, and things done at the same time.
const MOST_AT_ONCE: usize = 1 << 20;
/// The most threads of the compute pool.
pub const MOST_THREADS: usize = 4096;

fn within<'de, D: Deserializer<'de>>(de: D, range: RangeInclusive<usize>) -> Result<usize, D::Error> {
    let (least, most) = (range.start(), range.end());
    // Signed, so that a negative number is refused as out of range, and not as a wrong type.
    let n = i64::deserialize(de)?;
    usize::try_from(n).ok().filter(|n| range.contains(n)).ok_or_else(|| match n {
        ..=0 if *least == 1 => D::Error::custom(format!("{n} is out of range, it must be at least 1")),
        _ => D::Error::custom(format!("{n} is out of range, choose {least} to {most}")),
    })
}

/// A count or a size of memory, at least 1.
pub fn positive<'de, D: Deserializer<'de>>(de: D) -> Result<usize, D::Error> {
    within(de, 1..=MOST)
}

/// A number of things at the same time, at least 1.
pub fn at_once<'de, D: Deserializer<'de>>(de: D) -> Result<usize, D::Error> {
    within(de, 1..=MOST_AT_ONCE)
}

/// A number of things at the same time.
pub fn at_once_or_zero<'de, D: Deserializer<'de>>(de: D) -> Result<usize, D::Error> {
    within(de, 0..=MOST_AT_ONCE)
}

/// A number of threads.
pub fn threads<'de, D: Deserializer<'de>>(de: D) -> Result<usize, D::Error> {
    within(de, 0..=MOST_THREADS)
}

/// A count or a size of memory.
pub fn any<'de, D: Deserializer<'de>>(de: D) -> Result<usize, D::Error> {
    within(de, 0..=MOST)
}

/// A count of at least 1, or `auto`.
pub fn positive_or_auto<'de, D: Deserializer<'de>>(de: D) -> Result<Option<usize>, D::Error> {
    match String::deserialize(de)?.as_str() {
        "auto" => Ok(None),
        number => match number.parse() {
            Ok(n @ 1..=MOST) => Ok(Some(n)),
            _ => Err(D::Error::custom(format!("{number:?} is neither \"auto\" nor a whole number from 1 to {MOST}"))),
        },
    }
}

/// A probability above 0 and up to 1, as a number or a text, or `off`.
pub fn share_or_off<'de, D: Deserializer<'de>>(de: D) -> Result<Option<f32>, D::Error> {
    let wrong = "neither \"off\" nor a number above 0 and up to 1";
    let Some(share) = number_or_off(de, "a number from 0 to 1, or \"off\"", wrong)? else { return Ok(None) };
    if share > 0.0 && share <= 1.0 { Ok(Some(share as f32)) } else { Err(D::Error::custom(format!("{share} is {wrong}"))) }
}

/// A number, as such or as a text, or `off`. `expected` is the error of another type, `X is wrong` that of another text.
fn number_or_off<'de, D: Deserializer<'de>>(de: D, expected: &str, wrong: &str) -> Result<Option<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Number(f64),
        Text(String),
    }
    match Given::deserialize(de).map_err(|_| D::Error::custom(expected))? {
        Given::Text(text) if text == "off" => Ok(None),
        Given::Text(text) => text.parse().map(Some).map_err(|_| D::Error::custom(format!("{text:?} is {wrong}"))),
        Given::Number(number) => Ok(Some(number)),
    }
}

/// A share from 0 to 1, both included.
pub fn share<'de, D: Deserializer<'de>>(de: D) -> Result<f64, D::Error> {
    let share = f64::deserialize(de)?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(D::Error::custom(format!("{share} is out of range, choose 0 to 1"))) }
}

/// The address of a trace collector, which is spoken to in plaintext; the empty text is none.
pub fn optional_collector<'de, D: Deserializer<'de>>(de: D) -> Result<Option<String>, D::Error> {
    match String::deserialize(de)? {
        text if text.is_empty() => Ok(None),
        text if text.starts_with("http://") => Ok(Some(text)),
        text => Err(D::Error::custom(format!(
            "{text:?} is no address of a collector: give http://HOST:PORT, http://127.0.0.1:4317 for example"
        ))),
    }
}

/// A number of HTTP/2 streams: at most 2³¹ − 1.
pub fn streams<'de, D: Deserializer<'de>>(de: D) -> Result<u32, D::Error> {
    u32::try_from(within(de, 1..=0x7fff_ffff)?).map_err(D::Error::custom)
}

/// A time in seconds.
pub fn seconds<'de, D: Deserializer<'de>>(de: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(de)?;
    if !(0.001..=86_400.0).contains(&seconds) {
        return Err(D::Error::custom(format!("{seconds} is out of range, choose 0.001 to 86400 seconds")));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A time in seconds, as a number or a text, or `off`.
pub fn seconds_or_off<'de, D: Deserializer<'de>>(de: D) -> Result<Option<Duration>, D::Error> {
    let number = number_or_off(de, "a number of seconds, or \"off\"", "neither \"off\" nor a number of seconds")?;
    number.map(|number| seconds(number.into_deserializer())).transpose()
}

/// A list, or one text with commas between, as the environment gives it.
pub fn list<'de, D: Deserializer<'de>>(de: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a list of texts, or one text with commas between")]
    enum List {
        Items(Vec<String>),
        Text(String),
    }
    Ok(match List::deserialize(de)? {
        List::Items(items) => items,
        List::Text(text) => text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect(),
    })
}

/// A list of paths.
pub fn paths<'de, D: Deserializer<'de>>(de: D) -> Result<Vec<PathBuf>, D::Error> {
    Ok(list(de)?.into_iter().map(PathBuf::from).collect())
}

/// A list of prefixes of addresses.
pub fn allowed_urls<'de, D: Deserializer<'de>>(de: D) -> Result<AllowedUrls, D::Error> {
    AllowedUrls::parse(list(de)?.iter().map(String::as_str)).map_err(D::Error::custom)
}

/// A path; the empty text is none.
pub fn optional_path<'de, D: Deserializer<'de>>(de: D) -> Result<Option<PathBuf>, D::Error> {
    let path = String::deserialize(de)?;
    Ok((!path.is_empty()).then(|| path.into()))
}
