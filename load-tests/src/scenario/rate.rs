//! The rate of requests.
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Requests per second: a number, or a multiple of the measured capacity such as `2x`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "RateText")]
pub enum Rate {
    PerSecond(f64),
    OfCapacity(f64),
}

impl Rate {
    /// Requests per second, given the measured capacity.
    ///
    /// # Errors
    /// A multiple of a capacity that is not known or is zero.
    pub fn per_second(self, capacity: Option<f64>) -> Result<f64, String> {
        match (self, capacity) {
            (Self::PerSecond(n), _) => Ok(n),
            (Self::OfCapacity(n), Some(capacity)) if capacity > 0.0 => Ok(n * capacity),
            (Self::OfCapacity(n), _) => Err(format!("{n}x of nothing: no call succeeded while capacity was measured")),
        }
    }
}

/// A rate as it may be written in TOML.
#[derive(Deserialize)]
#[serde(untagged)]
enum RateText {
    Integer(i64),
    Float(f64),
    Text(String),
}

impl TryFrom<RateText> for Rate {
    type Error = String;

    fn try_from(text: RateText) -> Result<Self, String> {
        match text {
            RateText::Integer(n) => n.to_string().parse(),
            RateText::Float(f) => f.to_string().parse(),
            RateText::Text(s) => s.parse(),
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, relative) = text.strip_suffix('x').map_or((text, false), |n| (n, true));
        match number.parse::<f64>() {
            Ok(n) if n > 0.0 && n.is_finite() => Ok(if relative { Rate::OfCapacity(n) } else { Rate::PerSecond(n) }),
            _ => Err(format!("{text:?} is no rate: write requests per second, such as 120, or a multiple of capacity, such as 2x")),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::PerSecond(n) => write!(f, "{n}/s"),
            Rate::OfCapacity(n) => write!(f, "{n}x"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_or_a_multiple_of_capacity() {
        assert_eq!("120".parse(), Ok(Rate::PerSecond(120.0)));
        assert_eq!("0.6x".parse(), Ok(Rate::OfCapacity(0.6)));
        for bad in ["", "x", "-1", "0", "2 x", "infx", "NaN", "fast"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_relative_rate_follows_the_measured_capacity() {
        assert_eq!(Rate::OfCapacity(2.0).per_second(Some(150.0)), Ok(300.0));
        assert_eq!(Rate::PerSecond(2.0).per_second(None), Ok(2.0));
        assert!(Rate::OfCapacity(2.0).per_second(Some(0.0)).is_err());
        assert!(Rate::OfCapacity(2.0).per_second(None).is_err());
    }
}
