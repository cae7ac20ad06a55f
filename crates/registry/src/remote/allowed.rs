//! Which addresses the server reads for a caller: those below a prefix that the operator named.
use reqwest::Url;

use super::error::RemoteError;
use crate::file_address::SCHEMES;

/// The allowed prefixes of addresses, such as `https://models.example.com/delo/`. Without a prefix, no
/// address is allowed.
#[derive(Clone, Debug, Default)]
pub struct AllowedUrls(Vec<Url>);

impl AllowedUrls {
    /// Whether this is an address rather than a path on this machine.
    pub fn is_address(uri: &str) -> bool {
        uri.split_once("://").is_some_and(|(scheme, _)| SCHEMES.contains(&scheme.to_ascii_lowercase().as_str()))
    }

    /// Reads the prefixes.
    ///
    /// # Errors
    /// A prefix that is no address of a known scheme, or has credentials, a query or `..`, with what to
    /// change.
    pub fn parse<'a>(prefixes: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let parsed = prefixes.into_iter().map(|prefix| {
            let url = plain_url(prefix).map_err(|reason| format!("{:?} {reason}", without_query(prefix)))?;
            if url.query().is_some() {
                return Err(format!("{:?} has a query: leave it out", without_query(prefix)));
            }
            Ok(url)
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }

    /// The address, if it is below a prefix: it has the same scheme, host and port, and its path begins with
    /// the prefix's path and a `/`.
    ///
    /// # Errors
    /// [`RemoteError::NotAllowed`], also for an address that could be read in two ways.
    pub fn check(&self, given: &str) -> Result<Url, RemoteError> {
        let refused = || RemoteError::NotAllowed { url: without_query(given) };
        let url = plain_url(given).map_err(|_| refused())?;
        if self.0.iter().any(|prefix| is_below(&url, prefix)) { Ok(url) } else { Err(refused()) }
    }
}

/// An address of a known scheme, without credentials, `..` and escaped separators: client, proxy and server
/// might read those in different ways.
///
/// # Errors
/// What is wrong with it, to be appended to the address.
pub fn plain_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("is no address: {e}"))?;
    if !SCHEMES.contains(&url.scheme()) {
        return Err("has a scheme that is not one of http, https, s3, gs, az".to_owned());
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host or bucket".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds credentials: give them in the environment".to_owned());
    }
    if url.fragment().is_some() {
        return Err("has a fragment: leave it out".to_owned());
    }
    let raw = text.split(['?', '#']).next().unwrap_or(text).to_ascii_lowercase().replace("%2e", ".");
    if raw.contains('\\') || raw.contains("%2f") || raw.contains("%5c") || raw.contains("%25") || raw.chars().any(char::is_control) {
        return Err("holds an escaped separator or a backslash".to_owned());
    }
    if raw.split('/').any(|part| part == ".." || part == ".") {
        return Err("holds a . or .. in its path".to_owned());
    }
    Ok(url)
}

/// The address as logs and messages may show it: without its query, which may hold a signature, and without
/// credentials.
pub fn without_query(text: &str) -> String {
    let plain = text.split(['?', '#']).next().unwrap_or(text);
    match plain.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/').map_or((rest, String::new()), |(a, p)| (a, format!("/{p}")));
            format!("{scheme}://{}{path}", authority.rsplit_once('@').map_or(authority, |(_, host)| host))
        }
        None => plain.to_owned(),
    }
}

fn is_below(url: &Url, prefix: &Url) -> bool {
    let same_origin = url.scheme() == prefix.scheme()
        && url.host_str() == prefix.host_str()
        && url.port_or_known_default() == prefix.port_or_known_default();
    let path = prefix.path().trim_end_matches('/');
    same_origin && url.path().strip_prefix(path).is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allows_what_is_below_a_prefix_and_nothing_else() {
        let allowed = AllowedUrls::parse(["https://models.example.com/delo", "s3://bucket/partitions/", "http://127.0.0.1:8080/"]).unwrap();
        for url in [
            "https://models.example.com/delo/a.safetensors",
            "HTTPS://MODELS.example.com:443/delo/a/b.safetensors?token=1",
            "s3://bucket/partitions/a",
            "http://127.0.0.1:8080/a",
        ] {
            assert!(allowed.check(url).is_ok(), "{url}");
        }
        for url in [
            "https://models.example.com/delo",
            "https://models.example.com/delo/",
            "https://models.example.com/delo-secret/a",
            "https://models.example.com/other/a",
            "http://models.example.com/delo/a",
            "https://models.example.com:8443/delo/a",
            "https://models.example.com.evil.org/delo/a",
            "https://evil.org/https://models.example.com/delo/a",
            "https://models.example.com@evil.org/delo/a",
            "https://user:secret@models.example.com/delo/a",
            "https://models.example.com/delo/../secret",
            "https://models.example.com/delo/%2e%2E/secret",
            "https://models.example.com/delo/..%2fsecret",
            "https://models.example.com/delo/%252e%252e/secret",
            "https://models.example.com/delo\\..\\secret",
            "https:models.example.com/delo/../a",
            "s3://bucket/partitions-secret/a",
            "s3://other/partitions/a",
            "gs://bucket/partitions/a",
            "file:///etc/passwd",
            "http://127.0.0.1/a",
            "http://169.254.169.254/latest/meta-data",
        ] {
            assert!(matches!(allowed.check(url), Err(RemoteError::NotAllowed { .. })), "{url}");
        }
        assert!(AllowedUrls::default().check("https://models.example.com/delo/a").is_err());
    }

    #[test]
    fn refusals_show_neither_credentials_nor_queries() {
        let error = AllowedUrls::default().check("https://user:secret@host/a?signature=secret").unwrap_err().to_string();
        assert!(error.contains("https://host/a") && !error.contains("secret"), "{error}");
        assert!(error.contains("registry.allowed_urls"));
    }

    #[test]
    fn refuses_prefixes_that_mean_something_else_than_they_seem() {
        for prefix in
            ["models.example.com", "ftp://host/", "https://u@host/", "https://host/a/../b", "https://host/?a=b", "file:///a", "s3:///a"]
        {
            assert!(AllowedUrls::parse([prefix]).is_err(), "{prefix}");
        }
    }
}
