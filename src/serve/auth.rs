//! The clients of `auth.clients_file`, with their tokens or certificates and their roles.
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::files::FileError;

/// Limits of the file, so that a wrong path or a broken generator does no harm.
pub const MAX_BYTES: u64 = 1 << 20;
const MAX_CLIENTS: usize = 4096;
const MAX_NAME: usize = 128;
/// No client has a longer token than this; it is not hashed.
const MAX_TOKEN: usize = 4096;

/// What a client may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The classifier.
    Classify,
    /// What the admin service shows.
    ReadOnly,
    /// All of the admin service, and the classifier.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Classify => "classify",
            Self::ReadOnly => "read_only",
            Self::Admin => "admin",
        })
    }
}

/// Why a file of clients is not taken.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error(transparent)]
    File(#[from] FileError),
    /// The parser's message may quote the file. Its first line names the key, not the value.
    #[error("{path}: {message}")]
    Syntax { path: PathBuf, message: String },
    #[error("{path}: client {name:?}: {reason}")]
    Client { path: PathBuf, name: String, reason: &'static str },
    #[error("{path} has {entries} clients, at most {MAX_CLIENTS} are allowed")]
    TooMany { path: PathBuf, entries: usize },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    client: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    role: Role,
    token_sha256: Option<String>,
    certificate: Option<String>,
}

/// One client that may call.
#[derive(Clone, Debug)]
pub struct Client {
    pub name: Arc<str>,
    pub role: Role,
}

/// A token's SHA-256. Its Debug form does not show it.
struct TokenDigest([u8; 32]);

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(…)")
    }
}

/// The clients of one file, as it was read.
#[derive(Debug, Default)]
pub struct Clients {
    by_token: Vec<(TokenDigest, Client)>,
    by_certificate: Vec<(String, Client)>,
}

impl Clients {
    /// The clients in `bytes`, which stand in the file at `path`.
    ///
    /// # Errors
    /// A file that is not such TOML, has too many clients, has a client with two roles or without a token and
    /// a certificate, or has the same token or certificate twice.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, AuthError> {
        let syntax =
            |message: String| AuthError::Syntax { path: path.to_owned(), message: message.lines().next().unwrap_or_default().to_owned() };
        let text = std::str::from_utf8(bytes).map_err(|_| syntax("it is no UTF-8 text".to_owned()))?;
        let source = config::File::from_str(text, config::FileFormat::Toml);
        // The parser's message quotes the line at fault, which may hold a secret pasted by mistake.
        let parsed = config::Config::builder().add_source(source).build().map_err(|_| syntax("it is not valid TOML".to_owned()))?;
        let document: Document = serde_path_to_error::deserialize(parsed).map_err(|e| {
            syntax(format!(
                "{} is wrong: a [[client]] has name, role (classify, read_only or admin), and token_sha256 or certificate",
                e.path()
            ))
        })?;
        if document.client.len() > MAX_CLIENTS {
            return Err(AuthError::TooMany { path: path.to_owned(), entries: document.client.len() });
        }
        let mut clients = Self::default();
        let (mut roles, mut proofs) = (HashMap::new(), HashSet::new());
        for entry in document.client {
            clients.add(entry, &mut roles, &mut proofs).map_err(|(name, reason)| AuthError::Client {
                path: path.to_owned(),
                name: name.chars().take(MAX_NAME).collect(),
                reason,
            })?;
        }
        Ok(clients)
    }

    /// Adds an entry. A client may have several, each with a token or a certificate: the old one and the new
    /// one while they are exchanged.
    fn add(&mut self, entry: Entry, roles: &mut HashMap<String, Role>, proofs: &mut HashSet<String>) -> Result<(), (String, &'static str)> {
        let Entry { name, role, token_sha256, certificate } = entry;
        let printable = |text: &str| !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(char::is_control);
        if !printable(&name) {
            return Err((name, "a name has 1 to 128 bytes, none of them a control character"));
        }
        if roles.insert(name.clone(), role).is_some_and(|before| before != role) {
            return Err((name, "it is there with two roles; give each role a name of its own"));
        }
        let client = Client { name: name.as_str().into(), role };
        let proof = match (token_sha256, certificate) {
            (Some(hex), None) => {
                let Some(digest) = digest(&hex) else {
                    return Err((name, "token_sha256 is the SHA-256 of the token, 64 hexadecimal digits"));
                };
                self.by_token.push((TokenDigest(digest), client));
                hex.to_ascii_lowercase()
            }
            (None, Some(subject)) => {
                if !printable(&subject) {
                    return Err((name, "certificate is a common name or a DNS name, 1 to 128 bytes"));
                }
                self.by_certificate.push((subject.clone(), client));
                subject
            }
            _ => return Err((name, "give either token_sha256 or certificate")),
        };
        if proofs.insert(proof) { Ok(()) } else { Err((name, "the same token or certificate is there twice")) }
    }

    /// The client with this token. A constant-time lookup: its time depends neither on which client's token
    /// it is nor on whether it is a client's at all.
    pub fn of_token(&self, token: &[u8]) -> Option<Client> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut found = u32::MAX;
        for (index, (known, _)) in (0u32..).zip(&self.by_token) {
            let same: Choice = known.0.ct_eq(&digest);
            found.conditional_assign(&index, same);
        }
        self.by_token.get(found as usize).map(|(_, client)| client.clone())
    }

    /// The client whose certificate has one of these names.
    pub fn of_certificate(&self, names: &[String]) -> Option<Client> {
        self.by_certificate.iter().find(|(subject, _)| names.contains(subject)).map(|(_, client)| client.clone())
    }

    /// How many tokens and certificates the clients have.
    pub fn count(&self) -> usize {
        self.by_token.len() + self.by_certificate.len()
    }

    /// Whether some clients are known by their certificates.
    pub fn any_certificate(&self) -> bool {
        !self.by_certificate.is_empty()
    }
}

/// 32 bytes from 64 hexadecimal digits.
fn digest(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Clients, AuthError> {
        Clients::parse(Path::new("clients.toml"), text.as_bytes())
    }

    /// SHA-256 of "secret".
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    #[test]
    fn knows_clients_by_token_and_by_certificate() {
        let text = format!(
            "[[client]]\nname = \"app\"\nrole = \"classify\"\ntoken_sha256 = \"{SECRET}\"\n\
             [[client]]\nname = \"ops\"\nrole = \"admin\"\ncertificate = \"ops.example\""
        );
        let clients = parse(&text).unwrap();
        let app = clients.of_token(b"secret").unwrap();
        assert_eq!((&*app.name, app.role), ("app", Role::Classify));
        assert!(clients.of_token(b"secre").is_none() && clients.of_token(b"").is_none() && clients.of_token(&[b'a'; 9000]).is_none());
        assert_eq!(clients.of_certificate(&["x".to_owned(), "ops.example".to_owned()]).unwrap().role, Role::Admin);
        assert!(clients.of_certificate(&["ops".to_owned()]).is_none());
    }

    #[test]
    fn a_client_may_have_several_tokens_and_certificates_while_they_are_exchanged() {
        let entry = |proof: &str| format!("[[client]]\nname = \"app\"\nrole = \"classify\"\n{proof}\n");
        // SHA-256 of "abc", FIPS 180-2, B.1.
        let other = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let text = [SECRET, other].map(|digest| entry(&format!("token_sha256 = \"{digest}\""))).concat() + &entry("certificate = \"app\"");
        let clients = parse(&text).unwrap();
        let known = [clients.of_token(b"secret"), clients.of_token(b"abc"), clients.of_certificate(&["app".to_owned()])];
        assert!(known.iter().all(|client| client.as_ref().is_some_and(|c| &*c.name == "app")), "{known:?}");
    }

    #[test]
    fn refuses_what_is_ambiguous_or_beyond_its_limits_and_names_the_client() {
        let client = |more: &str| format!("[[client]]\nname = \"app\"\nrole = \"classify\"\n{more}\n");
        let token = format!("token_sha256 = \"{SECRET}\"");
        for text in [
            client(""),
            client("token_sha256 = \"12\""),
            client(&format!("{token}\ncertificate = \"a\"")),
            client(&token) + &client("certificate = \"b\"").replace("classify", "admin"),
            client(&token) + &client(&token),
            client(&token) + &client(&token).replace("app", "other"),
            client(&token).replace("app", &"a".repeat(MAX_NAME + 1)),
            client(&token).replace("app", ""),
        ] {
            assert!(matches!(parse(&text), Err(AuthError::Client { .. })), "{text}");
        }
        for text in [client("tokn = \"1\""), client(&token).replace("classify", "root"), "[[client]".to_owned()] {
            assert!(matches!(parse(&text), Err(AuthError::Syntax { .. })), "{text}");
        }
        let many: String =
            (0..=MAX_CLIENTS).map(|i| format!("[[client]]\nname = \"{i}\"\nrole = \"admin\"\ncertificate = \"{i}\"\n")).collect();
        assert!(matches!(parse(&many), Err(AuthError::TooMany { .. })));
    }

    #[test]
    fn neither_debug_nor_errors_show_a_token_or_its_digest() {
        let text = format!("[[client]]\nname = \"app\"\nrole = \"classify\"\ntoken_sha256 = \"{SECRET}\"");
        assert!(format!("{:?}", parse(&text).unwrap()).contains("TokenDigest(…)"));
        for text in ["[[client]]\ntoken_sha256 = hunter2", "[[client]]\nname = \"a\"\nrole = \"hunter2\""] {
            assert!(!parse(text).unwrap_err().to_string().contains("hunter2"));
        }
    }
}
