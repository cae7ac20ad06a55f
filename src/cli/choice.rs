//! A flag whose values are the names of an enumeration.

use std::error::Error;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use delo_model::{KeyAverage, Metric};

/// A parser of the names of an enumeration's values, so that help and errors list them. `values`: each name
/// with the help that stands beside it in the long help, or an empty one.
pub fn choice<T>(values: &[(&'static str, &'static str)]) -> impl TypedValueParser<Value = T> + use<T>
where
    T: FromStr + Clone + Send + Sync + 'static,
    T::Err: Into<Box<dyn Error + Send + Sync>> + Send + Sync,
{
    let value = |&(name, help): &(&'static str, &'static str)| {
        let named = PossibleValue::new(name);
        if help.is_empty() { named } else { named.help(help) }
    };
    PossibleValuesParser::new(values.iter().map(value)).try_map(|name| name.parse::<T>())
}

/// A parser of the metrics that decide the task.
pub fn metrics() -> impl TypedValueParser<Value = Metric> {
    choice(&[
        ("lda", "The probability of the task, from the class statistics of the resident sessions"),
        ("whitened", "The cosine in the metric of the resident sessions' second moments"),
        ("plain", "The cosine itself"),
    ])
}

/// A parser of the ways in which a key is drawn from a session.
pub fn averages() -> impl TypedValueParser<Value = KeyAverage> {
    choice(&[("ema", "key ← β·key + (1 − β)·mean of the batch, while the task trains"), ("mean", "The plain mean over the session")])
}

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Display};

    use delo_model::{Layout, MethodKind};
    use delo_train::training::AlignedLayers;
    use delo_train::{MissingKind, Split};

    use super::*;

    /// Every value is written as it is read, and no other text is a value.
    fn reads_back<T: Display + FromStr<Err = String> + PartialEq + Debug>(values: &[T]) {
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
        let parser = choice::<Split>(&[("train", ""), ("val", ""), ("test", "")]);
        let command = || clap::Command::new("x").arg(clap::Arg::new("split").long("split").value_parser(parser.clone()));
        let parsed = command().try_get_matches_from(["x", "--split", "val"]).unwrap();
        assert_eq!(parsed.get_one::<Split>("split"), Some(&Split::Val));
        let error = command().try_get_matches_from(["x", "--split", "dev"]).unwrap_err().to_string();
        assert!(error.contains("[possible values: train, val, test]"), "{error}");
    }
}
