//! Settings in environment variables, `DELO_SECTION__KEY`, distinguished from variables that only look like
//! them.
//!
//! Kubernetes gives every container variables named after the Services of its namespace: of one called
//! `delo-x`, `DELO_X_SERVICE_HOST`, `DELO_X_PORT=tcp://…` and more
//! (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>). Those are no
//! settings.
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::IpAddr;

use super::origin::{ConfigError, Origin};

/// What the name of every variable for delo begins with.
const PREFIX: &str = "DELO_";
/// Between the section and the key.
const SEPARATOR: &str = "__";
/// Variables of delo that are no settings: the client's token, the file of settings, and the flags in the
/// systemd unit.
const OTHERS: [&str; 3] = ["TOKEN", "CONFIG", "ARGS"];

/// One setting and where it comes from.
#[derive(Debug)]
pub struct Variable {
    pub name: String,
    pub value: String,
}

/// The environment's variables for delo.
#[derive(Debug, Default)]
pub struct Environment {
    /// By the setting's path.
    pub settings: BTreeMap<String, Variable>,
    /// Names that begin with `DELO_`, are no setting, and are not made by Kubernetes or Docker.
    pub unknown: Vec<String>,
}

impl Environment {
    /// Picks the settings out of the variables of a process. `known` are the paths of all settings. Names
    /// count in any case.
    ///
    /// # Errors
    /// A variable that is meant as a setting and can't be one: a name close to a known one, or a value that
    /// is no UTF-8.
    pub fn read(variables: impl IntoIterator<Item = (OsString, OsString)>, known: &[String]) -> Result<Self, ConfigError> {
        let mut read = Self::default();
        for (name, value) in variables {
            let shown = name.to_string_lossy().into_owned();
            let Some(rest) = rest(&shown) else { continue };
            if OTHERS.contains(&rest.as_str()) || is_of_a_service(&rest, &value) || is_of_a_link(&rest) {
                continue;
            }
            let path = rest.to_ascii_lowercase().replace(SEPARATOR, ".");
            let refused = |message: String| ConfigError::Setting { origin: Origin::Variable(shown.clone()), path: path.clone(), message };
            if known.contains(&path) {
                let value = value.into_string().map_err(|_| refused("the value is no UTF-8 text: give it in UTF-8".to_owned()))?;
                let variable = Variable { name: shown.clone(), value };
                if let Some(other) = read.settings.insert(path.clone(), variable) {
                    return Err(refused(format!("{} is the same setting: unset one of the two", other.name)));
                }
            } else if let Some(meant) = meant(&rest, &path, known) {
                return Err(refused(format!("there is no such setting: did you mean {}?", name_of(meant))));
            } else if rest.contains(SEPARATOR) {
                return Err(refused(format!(
                    "there is no such setting: name one of `delo serve`'s settings as {PREFIX}SECTION{SEPARATOR}KEY, or unset it"
                )));
            } else {
                read.unknown.push(shown);
            }
        }
        Ok(read)
    }
}

/// The variable of a setting.
pub fn name_of(path: &str) -> String {
    format!("{PREFIX}{}", path.to_ascii_uppercase().replace('.', SEPARATOR))
}

/// What follows the prefix, in capitals; `None`: no variable for delo.
fn rest(name: &str) -> Option<String> {
    let prefix = name.get(..PREFIX.len())?;
    prefix.eq_ignore_ascii_case(PREFIX).then(|| name[PREFIX.len()..].to_ascii_uppercase())
}

/// The setting that a wrong name is close to: up to two letters off, or with one underscore for two. With two
/// underscores a name is surely meant as a setting, so that it may be further off.
fn meant<'a>(rest: &str, path: &str, known: &'a [String]) -> Option<&'a str> {
    let separated = rest.contains(SEPARATOR);
    let flat = |path: &str| path.replace('.', "_");
    let distance = |setting: &str| match separated {
        true => strsim::osa_distance(path, setting),
        false => strsim::osa_distance(&rest.to_ascii_lowercase(), &flat(setting)),
    };
    let most = if separated { path.len() / 3 } else { 2 };
    known.iter().map(|setting| (distance(setting), setting.as_str())).min().filter(|(far, _)| *far <= most).map(|(_, setting)| setting)
}

/// Whether Kubernetes makes such a variable of a Service whose name begins with `delo`; `rest` is its name
/// after `DELO_`, in capitals.
fn is_of_a_service(rest: &str, value: &OsStr) -> bool {
    let Some(value) = value.to_str() else { return false };
    let number = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let address = value.parse::<IpAddr>().is_ok();
    let url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let protocol = ["tcp", "udp", "sctp"].contains(&value);
    let of_port = |port: &str| {
        let mut parts = port.split('_');
        let numbered = parts.next().is_some_and(|number| number.parse::<u16>().is_ok());
        let known = parts.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol));
        let fits = match parts.next() {
            None => url,
            Some("ADDR") => address,
            Some("PORT") => number,
            Some("PROTO") => protocol,
            Some(_) => false,
        };
        numbered && known && fits && parts.next().is_none()
    };
    after(rest, "SERVICE_HOST").any(|end| end.is_empty() && address)
        // A named port's name follows.
        || after(rest, "SERVICE_PORT").any(|end| (end.is_empty() || end.starts_with('_')) && number)
        || after(rest, "PORT").any(|end| if end.is_empty() { url } else { end.strip_prefix('_').is_some_and(of_port) })
}

/// What follows each `word` in a name, where a Service's name and one underscore stand before it: a Service's
/// name ends with a letter or a digit. Of a Service called `delo`, nothing is left before it.
fn after<'a>(rest: &'a str, word: &'static str) -> impl Iterator<Item = &'a str> {
    rest.match_indices(word).filter_map(move |(at, _)| {
        let follows_a_name =
            at == 0 || rest[..at].strip_suffix('_').is_some_and(|name| name.ends_with(|c: char| c.is_ascii_alphanumeric()));
        follows_a_name.then(|| &rest[at + word.len()..])
    })
}

/// Whether Docker makes such a variable of a container that is linked under the name `delo…`: it hands on
/// that container's own variables.
fn is_of_a_link(rest: &str) -> bool {
    rest.starts_with("ENV_") || rest.contains("_ENV_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::layers::known_settings;

    fn read(name: &str, value: &str) -> Result<Environment, ConfigError> {
        Environment::read([(name.into(), value.into())], &known_settings())
    }

    /// What Kubernetes 1.33's `makeLinkVariables` and `FromServices` make of a Service with a named and an
    /// unnamed port.
    fn of_a_service(name: &str) -> Vec<(String, &'static str)> {
        let name = name.to_uppercase().replace('-', "_");
        let mut variables = vec![
            (format!("{name}_SERVICE_HOST"), "10.96.7.1"),
            (format!("{name}_SERVICE_PORT"), "50051"),
            (format!("{name}_SERVICE_PORT_GRPC"), "50051"),
            (format!("{name}_SERVICE_PORT_GRPC_WEB_2"), "50055"),
            (format!("{name}_PORT"), "tcp://10.96.7.1:50051"),
        ];
        for (protocol, url) in [("TCP", "tcp://10.96.7.1:50051"), ("UDP", "udp://10.96.7.1:50051"), ("SCTP", "sctp://[fd00::1]:50051")] {
            let lower = protocol.to_lowercase();
            let value = |of: &str| match of {
                "_ADDR" => "fd00::1",
                "_PORT" => "50051",
                "_PROTO" => ["tcp", "udp", "sctp"].into_iter().find(|known| *known == lower).unwrap(),
                _ => url,
            };
            variables.extend(["", "_ADDR", "_PORT", "_PROTO"].map(|of| (format!("{name}_PORT_50051_{protocol}{of}"), value(of))));
        }
        variables
    }

    #[test]
    fn variables_that_kubernetes_makes_of_services_are_no_settings() {
        for service in
            ["delo", "delo-admin", "delo-metrics", "delo-batching", "delo-server", "delo-model-server", "delo--x", "delo-a--b", "delo-env"]
        {
            for (name, value) in of_a_service(service) {
                let read = read(&name, value).unwrap_or_else(|e| panic!("{name}={value}: {e}"));
                assert!(read.settings.is_empty() && read.unknown.is_empty(), "{name}: {read:?}");
            }
        }
    }

    #[test]
    fn a_variable_that_only_resembles_a_service_is_reported() {
        assert!(read("DELO_SERVER__PORT", "50051").is_err());
        assert!(read("DELO_SERVER__SERVICE_PORT", "50051").is_err());
        assert_eq!(read("DELO_PORT", "50051").unwrap().unknown, ["DELO_PORT"]);
        assert_eq!(read("DELO_SERVICE_HOST", "somewhere").unwrap().unknown, ["DELO_SERVICE_HOST"]);
    }

    #[test]
    fn other_variables_of_delo_and_of_others_are_no_settings() {
        for (name, value) in [
            ("DELO_TOKEN", "secret"),
            ("DELO_ARGS", "--config /etc/delo/delo.toml"),
            ("DELO_CONFIG", "/etc/delo/delo.toml"),
            ("DELO_ENV_DELO_SERVER__LISTEN", "0.0.0.0:50051"),
            ("DELO", "1"),
            ("DELOREAN__MAX_TOKENS", "88"),
            ("PATH", "/bin"),
        ] {
            let read = read(name, value).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(read.settings.is_empty() && read.unknown.is_empty(), "{name}: {read:?}");
        }
        assert_eq!(read("DELO_VERSION", "3").unwrap().unknown, ["DELO_VERSION"]);
    }

    #[test]
    fn a_misspelt_setting_is_refused_by_its_variable_with_what_was_meant() {
        for (name, meant) in [
            ("DELO_BATCHING__MAX_TOKNS", "DELO_BATCHING__MAX_TOKENS"),
            ("DELO_BACTHING__MAX_TOKENS", "DELO_BATCHING__MAX_TOKENS"),
            ("DELO_BATCHING_MAX_TOKENS", "DELO_BATCHING__MAX_TOKENS"),
            ("DELO_BATCHING_MAX_TOKNS", "DELO_BATCHING__MAX_TOKENS"),
            ("DELO_INPUT_LIMITS_MAX_SIDE", "DELO_INPUT__LIMITS__MAX_SIDE"),
            ("DELO_INPUT__LIMITS_MAX_SIDE", "DELO_INPUT__LIMITS__MAX_SIDE"),
            ("DELO_BATCHING___MAX_TOKENS", "DELO_BATCHING__MAX_TOKENS"),
            ("delo_server__listn", "DELO_SERVER__LISTEN"),
        ] {
            let error = read(name, "1").unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(&format!("did you mean {meant}?")), "{error}");
        }
        let error = read("DELO_SOMETHING__ELSE", "1").unwrap_err().to_string();
        assert!(error.contains("DELO_SOMETHING__ELSE") && error.contains("DELO_SECTION__KEY"), "{error}");
    }

    #[test]
    fn a_setting_is_known_in_any_case_and_given_once() {
        assert_eq!(read("delo_batching__max_tokens", "9").unwrap().settings["batching.max_tokens"].value, "9");
        let both =
            [("delo_batching__max_tokens", "9"), ("DELO_BATCHING__MAX_TOKENS", "10")].map(|(name, value)| (name.into(), value.into()));
        let error = Environment::read(both, &known_settings()).unwrap_err().to_string();
        assert!(error.contains("delo_batching__max_tokens") && error.contains("DELO_BATCHING__MAX_TOKENS"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_utf8_is_refused_by_name_and_never_taken_for_absent() {
        use std::os::unix::ffi::OsStringExt;
        let of = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let read = |name: &[u8], value: &[u8]| Environment::read([(of(name), of(value))], &known_settings());
        let error = read(b"DELO_AUTH__CLIENTS_FILE", b"/etc/\xff.toml").unwrap_err().to_string();
        assert!(error.contains("DELO_AUTH__CLIENTS_FILE") && error.contains("UTF-8"), "{error}");
        let error = read(b"DELO_AUTH__CLIENTS_FIL\xff", b"/etc/clients.toml").unwrap_err().to_string();
        assert!(error.contains("DELO_AUTH__CLIENTS_FIL"), "{error}");
    }
}
