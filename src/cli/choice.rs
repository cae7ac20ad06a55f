//! A flag whose values are the names of an enumeration.

use std::error::Error;
use std::fmt::Display;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use delo_model::{KeyAverage, Metric};

/// A parser of the names of `values`, so that help and errors list them. A value's help stands beside its
/// name in the long help; an empty one is left out.
pub fn choice<T>(values: &[(T, &'static str)]) -> impl TypedValueParser<Value = T> + use<T>
where
    T: Display + FromStr + Clone + Send + Sync + 'static,
    T::Err: Into<Box<dyn Error + Send + Sync>> + Send + Sync,
{
    let value = |(value, help): &(T, &'static str)| {
        let named = PossibleValue::new(value.to_string());
        if help.is_empty() { named } else { named.help(*help) }
    };
    PossibleValuesParser::new(values.iter().map(value)).try_map(|name| name.parse::<T>())
}

/// A parser of the metrics that decide the task.
pub fn metrics() -> impl TypedValueParser<Value = Metric> {
    choice(&[(Metric::Plain, "The cosine itself"), (Metric::Whitened, "The cosine in the metric of the resident sessions' second moments")])
}

/// A parser of the ways in which a key is drawn from a session.
pub fn averages() -> impl TypedValueParser<Value = KeyAverage> {
    choice(&[
        (KeyAverage::Ema, "key ← β·key + (1 − β)·mean of the batch, while the task trains"),
        (KeyAverage::Mean, "The plain mean over the session"),
    ])
}

#[cfg(test)]
mod tests {
    use delo_model::{Layout, MethodKind};
    use delo_train::training::AlignedLayers;
    use delo_train::{MissingKind, Split};

    use super::*;

    /// Every value is written as it is read, and no other text is a value.
    fn reads_back<T: Display + FromStr<Err = String> + PartialEq + std::fmt::Debug>(values: &[T]) {
        for value in values {
            assert_eq!(value.to_string().parse::<T>().as_ref(), Ok(value));
        }
        let error = "other".parse::<T>().unwrap_err();
        assert!(values.iter().all(|value| error.contains(&value.to_string())), "{error}");
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        reads_back(&Split::ALL);
        reads_back(&MissingKind::ALL);
        reads_back(&AlignedLayers::ALL);
        reads_back(&KeyAverage::ALL);
        reads_back(&Layout::ALL);
        reads_back(&MethodKind::ALL);
        reads_back(&Metric::ALL);
    }

    #[test]
    fn a_name_that_is_no_value_is_refused_with_those_that_are() {
        let values = Split::ALL.map(|split| (split, ""));
        let command = || clap::Command::new("x").arg(clap::Arg::new("split").long("split").value_parser(choice(&values)));
        let parsed = command().try_get_matches_from(["x", "--split", "val"]).unwrap();
        assert_eq!(parsed.get_one::<Split>("split"), Some(&Split::Val));
        let error = command().try_get_matches_from(["x", "--split", "dev"]).unwrap_err().to_string();
        assert!(error.contains("[possible values: train, val, test]"), "{error}");
    }
}
