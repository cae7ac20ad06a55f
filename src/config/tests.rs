//! Settings from all layers, and the errors that name them.
use std::collections::HashMap;
use std::path::Path;

use super::layers::{known_settings, toml};
use super::*;
use delo_catalogue::RoutingRule;
use delo_model::input::Limits;
use delo_model::routing::keys::{KeyAverage, KeySignal, Metric};

fn with_file(text: &str) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::layered(Some(file.path()), HashMap::new(), vec![])
}

fn environment(key: &str, value: &str) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_owned())])
}

/// The setting's path in the error.
fn path(result: Result<Config, ConfigError>) -> String {
    match result {
        Err(ConfigError::Setting { path, .. }) => path,
        other => panic!("not refused for a setting: {other:?}"),
    }
}

#[test]
fn later_layers_win_over_earlier_ones() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[batching]\nmax_tokens = 1\nmax_samples = 2\nmax_queue_samples = 3").unwrap();
    let mut env = environment("DELO_BATCHING__MAX_SAMPLES", "20");
    env.extend(environment("DELO_BATCHING__MAX_QUEUE_SAMPLES", "30"));
    let config = Config::layered(Some(file.path()), env, vec![("batching.max_queue_samples", "300".to_owned())]).unwrap();
    assert_eq!((config.batching.max_tokens, config.batching.max_samples, config.batching.max_queue_samples), (Some(1), 20, 300));
    let defaults = Config::layered(None, HashMap::new(), vec![]).unwrap();
    assert_eq!(config.batching.max_queue_bytes, defaults.batching.max_queue_bytes);
}

#[test]
fn refuses_an_unknown_key_of_a_file_with_its_path() {
    assert_eq!(path(with_file("[batching]\nmax_tokns = 1")), "batching.max_tokns");
    assert_eq!(path(with_file("[batchin]\nmax_tokens = 1")), "batchin");
}

#[test]
fn refuses_an_unknown_key_of_the_environment_with_its_path() {
    assert_eq!(path(Config::layered(None, environment("DELO_BATCHING__MAX_TOKNS", "1"), vec![])), "batching.max_tokns");
    assert_eq!(path(Config::layered(None, environment("DELO_BACTHING__MAX_TOKENS", "1"), vec![])), "bacthing.max_tokens");
}

#[test]
fn refuses_a_value_of_the_wrong_type_or_range_with_its_path() {
    assert_eq!(path(with_file("[batching]\nmax_tokens = \"many\"")), "batching.max_tokens");
    assert_eq!(path(with_file("[batching]\nmax_tokens = 0")), "batching.max_tokens");
    assert_eq!(path(with_file("[batching]\nmax_tokens = -1")), "batching.max_tokens");
    assert_eq!(path(with_file("[deadline]\nmax_seconds = nan")), "deadline.max_seconds");
    assert_eq!(path(with_file("[deadline]\ndefault_seconds = 500.0")), "deadline.default_seconds");
    assert_eq!(path(with_file("[server]\nlisten = \"nowhere\"")), "server.listen");
    assert_eq!(path(with_file("[metrics]\nlisten = \"nowhere\"")), "metrics.listen");
    assert_eq!(path(with_file("[tracing]\notlp_endpoint = \"127.0.0.1:4317\"")), "tracing.otlp_endpoint");
    assert_eq!(path(with_file("[tracing]\nsample_share = 1.5")), "tracing.sample_share");
    assert_eq!(path(with_file("[routing]\nmetric = \"best\"")), "routing.metric");
    assert_eq!(path(with_file("[routing]\nsignal = \"parts\"")), "routing.signal");
    assert_eq!(path(Config::layered(None, environment("DELO_BATCHING__MAX_TOKENS", "many"), vec![])), "batching.max_tokens");
}

#[test]
fn an_error_names_the_file_the_variable_or_the_flag_that_the_setting_comes_from() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[batching]\nmax_samples = 0\n[deadline]\ndefault_seconds = 500.0").unwrap();
    let origin = |file: Option<&Path>, environment, flags| match Config::layered(file, environment, flags) {
        Err(ConfigError::Setting { origin, .. }) => origin,
        other => panic!("not refused for a setting: {other:?}"),
    };
    let in_file = Origin::File(file.path().to_owned());
    assert_eq!(origin(Some(file.path()), HashMap::new(), vec![]), in_file);
    let variable = |name: &str| Origin::Variable(name.to_owned());
    let by_variable = environment("DELO_BATCHING__MAX_SAMPLES", "-3");
    assert_eq!(origin(Some(file.path()), by_variable, vec![]), variable("DELO_BATCHING__MAX_SAMPLES"));
    // The variable mends the first fault of the file, so that the second is met.
    assert_eq!(origin(Some(file.path()), environment("DELO_BATCHING__MAX_SAMPLES", "3"), vec![]), in_file);
    let by_variable = environment("DELO_MODEL__THREADS", "2");
    let by_flag = vec![("model.threads", "100000".to_owned())];
    assert_eq!(origin(None, by_variable, by_flag), Origin::Flag("--threads".to_owned()));
    let by_flag = vec![("admin.listen", "nowhere".to_owned())];
    assert_eq!(origin(None, HashMap::new(), by_flag), Origin::Flag("--admin-listen".to_owned()));
    assert_eq!(origin(None, environment("DELO_TLS__CERTIFICATE", "a.pem"), vec![]), Origin::Default);
}

#[test]
fn every_number_out_of_range_is_refused_by_name_and_every_usual_one_is_taken() {
    let defaults = config::Config::builder().add_source(toml(DEFAULTS)).build().unwrap();
    let defaults: serde_json::Value = defaults.try_deserialize().unwrap();
    for setting in known_settings() {
        let value = setting.split('.').fold(&defaults, |value, key| &value[key]);
        let given = |text: &str| Config::layered(None, environment(&environment::name_of(&setting), text), vec![]);
        if value.is_number() || setting == "batching.max_tokens" {
            for text in
                ["-1", "-9223372036854775808", "18446744073709551616", "1e400", "nan", "inf", "-inf", "many", "", " ", "0x10", "1;2"]
            {
                let refused = given(text).unwrap_err().to_string();
                assert!(refused.contains(&environment::name_of(&setting)), "{setting}={text}: {refused}");
            }
        }
        if value.is_u64() && !setting.starts_with("input.limits") {
            let most = given("9223372036854775807").unwrap_err().to_string();
            assert!(most.contains("out of range"), "{setting}: {most}");
        }
        let usual = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        assert!(value.is_array() || given(&usual).is_ok(), "{setting}={usual}");
    }
}

#[test]
fn an_address_that_is_none_says_what_to_write() {
    for (text, words) in [
        ("localhost", "127.0.0.1:50051"),
        (":50061", "0.0.0.0:50061"),
        ("50061", "0.0.0.0:50061"),
        ("example.com:50061", "0.0.0.0:50061"),
        ("unix:/run/delo.sock", "Unix sockets are not served"),
        ("*:50061", "0.0.0.0:50061"),
        ("[::1]", "[::]:50051"),
        ("127.0.0.1:99999", "127.0.0.1:50051"),
        ("", "127.0.0.1:50051"),
    ] {
        let message = parse_address(text).unwrap_err();
        assert!(message.contains(words), "{message}");
        let error = with_file(&format!("[server]\nlisten = \"{text}\"")).unwrap_err().to_string();
        assert!(error.contains("server.listen") && error.contains(words), "{error}");
        assert!(text.parse::<Listen>().unwrap_err().contains("\"off\""));
    }
    assert_eq!(parse_address("localhost:7"), Ok("127.0.0.1:7".parse().unwrap()));
    assert_eq!(parse_address("[::]:7"), Ok("[::]:7".parse().unwrap()));
}

#[test]
fn refuses_half_of_tls_and_says_which_is_missing() {
    assert_eq!(path(with_file("[tls]\ncertificate = \"a.pem\"")), "tls.key");
    assert_eq!(path(with_file("[tls]\nkey = \"a.pem\"")), "tls.certificate");
    assert_eq!(path(with_file("[tls]\nclient_certificate = \"required\"")), "tls.client_ca");
    let both = "[tls]\ncertificate = \"a.pem\"\nkey = \"a.pem\"\nclient_ca = \"ca.pem\"\n";
    assert_eq!(path(with_file(both)), "tls.client_certificate");
    assert!(with_file(&format!("{both}client_certificate = \"optional\"")).is_ok());
}

#[test]
fn a_token_in_the_environment_is_no_setting() {
    assert!(Config::layered(None, environment("DELO_TOKEN", "secret"), vec![]).is_ok());
}

#[test]
fn says_what_to_choose_instead_of_a_device_or_precision_that_this_build_lacks() {
    for (text, setting) in [("device = \"gpu\"", "model.device"), ("precision = \"f8\"", "model.precision"), ("isa = \"mmx\"", "model.isa")]
    {
        let error = with_file(&format!("[model]\n{text}")).unwrap_err().to_string();
        assert!(error.contains(setting), "{error}");
    }
}

#[test]
fn names_a_file_that_is_missing_or_no_toml() {
    let error = Config::layered(Some(Path::new("/nowhere/delo.toml")), HashMap::new(), vec![]).unwrap_err();
    assert!(error.to_string().contains("/nowhere/delo.toml"), "{error}");
    assert!(matches!(with_file("[batching"), Err(ConfigError::Syntax { .. })));
}

#[test]
fn loads_every_file_that_ships() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations-free-config");
    let mut files = vec![dir.join("default.toml")];
    files.extend(std::fs::read_dir(dir.join("examples")).unwrap().map(|f| f.unwrap().path()));
    assert!(files.len() > 1);
    for file in files {
        Config::layered(Some(&file), HashMap::new(), vec![]).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}

#[test]
fn the_default_file_states_the_limits_of_the_input_room() {
    assert_eq!(Config::layered(None, HashMap::new(), vec![]).unwrap().input.limits, Limits::default());
}

#[test]
fn the_operator_can_choose_how_tasks_are_recognised() {
    let rule = |text: &str| with_file(text).unwrap().routing.rule();
    assert_eq!(rule(""), RoutingRule::default());
    let chosen = RoutingRule { metric: Some(Metric::Plain), signal: Some(KeySignal::Pooled), average: Some(KeyAverage::Ema) };
    assert_eq!(rule("[routing]\nmetric = \"plain\"\nsignal = \"pooled\"\naverage = \"ema\""), chosen);
}

#[test]
fn lists_come_from_files_and_from_the_environment() {
    let config = with_file("[registry]\nallowed_urls = [\"https://a/\", \"s3://b/\"]").unwrap();
    assert!(config.registry.allowed_urls.check("s3://b/partition").is_ok());
    let env = environment("DELO_REGISTRY__TRUSTED_KEYS", "a.pem, b.pem");
    assert_eq!(Config::layered(None, env, vec![]).unwrap().registry.trusted_keys, [Path::new("a.pem"), Path::new("b.pem")]);
}

#[test]
fn refuses_a_registry_that_could_not_do_what_it_says() {
    assert_eq!(path(with_file("[registry]\nrequire_signature = true")), "registry.require_signature");
    assert_eq!(path(with_file("[registry]\nallowed_urls = [\"example.com\"]")), "registry.allowed_urls");
    assert_eq!(path(with_file("[registry]\npoll_seconds = 0.0")), "registry.poll_seconds");
}

#[test]
fn metrics_and_admin_can_be_off() {
    let config = with_file("[metrics]\nlisten = \"off\"\n[admin]\nlisten = \"off\"").unwrap();
    assert_eq!((config.metrics.listen, config.admin.listen), (Listen::Off, Listen::Off));
}
