//! Which storage a text names: an address, a `file:` URI or a directory.
use std::path::Path;

use reqwest::Url;

use super::{Storage, bucket, http};
use crate::file_address::{self, Named, SCHEMES};
use crate::remote::allowed::{plain_url, without_query};
use crate::remote::{RemoteError, manifest};

impl Storage {
    /// The storage of a registry, named by its address or directory, or by those of its `manifest.json`.
    /// Nothing is created and nothing is contacted.
    ///
    /// # Errors
    /// [`RemoteError::Location`], also for a name that a directory may have and that is more likely a
    /// misspelt address.
    pub fn of_registry(given: &str) -> Result<Self, RemoteError> {
        let wrong = |reason: String| RemoteError::Location { given: without_query(given), reason };
        if given.is_empty() {
            return Err(wrong("it is empty; give a directory, or an address such as s3://bucket/delo".to_owned()));
        }
        if given.trim() != given || given.chars().any(char::is_control) {
            return Err(wrong("it begins or ends with a blank, or holds a control character: leave those out".to_owned()));
        }
        let base = given.strip_suffix(manifest::FILE_NAME).filter(|rest| rest.is_empty() || rest.ends_with('/')).unwrap_or(given);
        match file_address::parse(base).map_err(|reason| wrong(format!("it {reason}")))? {
            Named::File(path) => Ok(Self::Directory(path)),
            Named::Path(_) if base.is_empty() => Ok(Self::Directory(".".into())),
            Named::Path(path) => {
                check_directory(base).map_err(wrong)?;
                Ok(Self::Directory(path.to_owned()))
            }
            Named::Address => {
                let url = plain_url(base).map_err(|reason| wrong(format!("it {reason}")))?;
                if url.query().is_some() {
                    return Err(wrong("it has a query; give credentials in the environment".to_owned()));
                }
                Self::at(url)
            }
        }
    }

    /// The storage at an address that was checked by [`plain_url`].
    ///
    /// # Errors
    /// [`RemoteError::Location`]: a store that lacks its settings in the environment.
    pub fn at(url: Url) -> Result<Self, RemoteError> {
        match url.scheme() {
            "http" | "https" => {
                let wrong = |e: reqwest::Error| RemoteError::Location { given: without_query(url.as_str()), reason: e.to_string() };
                Ok(Self::Http { client: http::client(true).map_err(wrong)?, base: url })
            }
            _ => Ok(Self::Bucket { store: bucket::connect(&url)?, base: url }),
        }
    }

    /// Refuses a partitions directory that is the registry's own folder of artifacts: at each start all that
    /// was ever pushed would be served, withdrawn or not. Blocks.
    ///
    /// # Errors
    /// [`RemoteError::Location`]
    pub fn check_apart(&self, partitions: Option<&Path>) -> Result<(), RemoteError> {
        let (Self::Directory(dir), Some(partitions)) = (self, partitions) else { return Ok(()) };
        match (dir.join("partitions").canonicalize(), partitions.canonicalize()) {
            (Ok(artifacts), Ok(given)) if given.starts_with(&artifacts) => Err(RemoteError::Location {
                given: dir.display().to_string(),
                reason: format!(
                    "its artifacts lie in {}, which is model.partitions too, so that at each start all that was ever pushed would be served; name another directory in model.partitions, or none",
                    partitions.display()
                ),
            }),
            _ => Ok(()),
        }
    }
}

/// Whether a text names a directory. Its first part shows whether it is a misspelt address, or was meant for
/// a shell.
fn check_directory(given: &str) -> Result<(), String> {
    let (first, rest) = given.split_once('/').unwrap_or((given, ""));
    let instead = format!("; a directory of that name is ./{given}");
    if first.starts_with(['~', '$']) {
        return Err(format!("the shell did not replace its {}: write the directory in full{instead}", &first[..1]));
    }
    if first.contains(':') {
        return Err(format!("its {first:?} looks like an address without ://, such as s3://bucket/delo{instead}"));
    }
    if rest.starts_with('/') && SCHEMES.iter().chain(&["file"]).any(|scheme| first.eq_ignore_ascii_case(scheme)) {
        return Err(format!("it lacks the colon after its scheme: write {}:/{rest}{instead}", first.to_ascii_lowercase()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_named_by_itself_or_by_its_manifest() {
        for (given, object) in [
            ("registry", "registry/manifest.json"),
            ("registry/manifest.json", "registry/manifest.json"),
            ("manifest.json", "./manifest.json"),
            ("file:///a/registry/", "/a/registry/manifest.json"),
            ("file:///a/my%20registry/manifest.json", "/a/my registry/manifest.json"),
            ("file://localhost/a", "/a/manifest.json"),
            ("FILE:/a", "/a/manifest.json"),
            ("a%20b", "a%20b/manifest.json"),
            ("./s3:/bucket", "./s3:/bucket/manifest.json"),
            ("./~/registry", "./~/registry/manifest.json"),
            ("/srv/a:b", "/srv/a:b/manifest.json"),
            ("a/~b:c", "a/~b:c/manifest.json"),
            ("HTTPS://host/a", "https://host/a/manifest.json"),
            ("https://host/a/", "https://host/a/manifest.json"),
            ("https://host/a/manifest.json", "https://host/a/manifest.json"),
            ("http://host:81", "http://host:81/manifest.json"),
        ] {
            assert_eq!(Storage::of_registry(given).unwrap().shown("manifest.json"), object, "{given}");
        }
        for given in ["ftp://host/a", "https://u:p@host/a", "https://host/a?key=secret", "https://host/../a"] {
            let error = Storage::of_registry(given).unwrap_err().to_string();
            assert!(!error.contains("secret") && !error.contains("u:p"), "{error}");
        }
    }

    #[test]
    fn a_registry_s_artifacts_are_no_partitions_directory() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = dir.path().join("partitions");
        std::fs::create_dir(&artifacts).unwrap();
        let storage = Storage::Directory(dir.path().to_owned());
        let refused = storage.check_apart(Some(&artifacts)).unwrap_err().to_string();
        assert!(refused.contains("model.partitions"), "{refused}");
        for apart in [None, Some(dir.path())] {
            storage.check_apart(apart).unwrap();
        }
    }

    #[test]
    fn an_address_that_is_misspelt_is_refused_and_says_what_to_write() {
        for (given, words) in [
            ("", "empty"),
            (" s3://bucket/delo", "blank"),
            ("registry ", "blank"),
            ("registry\n", "control"),
            ("s3:/bucket/delo", "s3://bucket/delo"),
            ("s3:bucket", "s3://bucket"),
            ("S3:/bucket", "s3://bucket"),
            ("http:/host/x", "http://host/x"),
            ("az:b", "az://b"),
            ("s3//bucket/delo", "s3://bucket/delo"),
            ("file:reg", "file:///"),
            ("file://reg", "\"reg\""),
            ("file://nas/reg", "\"nas\""),
            ("file:///a%00b", "NUL"),
            ("~/reg", "shell"),
            ("~", "shell"),
            ("~ann/reg", "shell"),
            ("$HOME/reg", "shell"),
            ("S3://", "bucket"),
            ("s3:///delo", "bucket"),
            ("gcs://bucket/delo", "gs"),
            ("htp://host/delo", "http"),
            ("ftp://host/delo", "http"),
            ("localhost:8080/delo", "://"),
            ("models.example.com:443/delo", "://"),
            ("ann@host:delo", "://"),
            ("C:\\delo", "://"),
        ] {
            let refusal = Storage::of_registry(given).unwrap_err();
            assert!(matches!(refusal, RemoteError::Location { .. }) && refusal.to_string().contains(words), "{given}: {refusal}");
        }
    }
}
