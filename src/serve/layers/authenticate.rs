//! Who calls, and whether that client may call this.
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{Extensions, HeaderMap, Request, header};
use tonic::Status;
use tonic::body::Body;

use super::{Answer, Inner, Policy, call, refusal};
use crate::serve::auth::{Client, Clients, Role};
use crate::serve::connections::Peer;
use crate::serve::status::refused;

/// Whose call it is; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The client's name, or the address that the call comes from where nobody is authenticated.
    pub name: Arc<str>,
    pub role: Role,
}

impl Caller {
    /// The caller that [`Authenticate`] has found; without that layer, the peer's address.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_else(|| Self::at(extensions))
    }

    /// The caller by its address, who may do whatever anybody may.
    fn at(extensions: &Extensions) -> Self {
        let address = extensions.get::<Peer>().and_then(|peer| peer.address);
        let name = address.map_or_else(|| "unknown".into(), |address| place(address.ip()).into());
        Self { name, role: Role::Admin }
    }
}

/// Who an address stands for: itself, or of IPv6 its network of 64 bits, of which one host may use every address.
fn place(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => format!("{}/64", Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address.to_string(),
    }
}

/// Finds the caller of each call, and refuses those who are unknown or may not. `None`: everybody may do everything.
#[derive(Clone, Debug)]
pub struct Authenticate(pub Option<Arc<ArcSwap<Clients>>>);

impl Authenticate {
    fn caller(&self, request: &Request<Body>) -> Result<Caller, Status> {
        let anybody = Caller::at(request.extensions());
        let (Some(clients), Some(needed)) = (&self.0, Needed::by(request.uri().path())) else { return Ok(anybody) };
        let Client { name, role } = identify(&clients.load(), request)?;
        if !needed.allows(role) {
            refused("forbidden");
            // The same words whatever the method: nothing of the caller's comes back.
            return Err(Status::permission_denied(format!(
                "this client has the role {role}, this call needs {}: ask the operator of auth.clients_file for that",
                needed.roles()
            )));
        }
        Ok(Caller { name, role })
    }
}

/// # Errors
/// UNAUTHENTICATED, always in the same words, whatever was wrong.
fn identify(clients: &Clients, request: &Request<Body>) -> Result<Client, Status> {
    let found = match bearer(request.headers()) {
        // A caller who shows a token is judged by it: a bad one is not made good by a certificate.
        Some(token) => token.and_then(|token| clients.of_token(token)),
        None => request.extensions().get::<Peer>().and_then(|peer| clients.of_certificate(peer.names.as_deref()?)),
    };
    found.ok_or_else(|| {
        refused("unauthenticated");
        Status::unauthenticated(
            "send a token that this server knows (authorization: Bearer …), or connect with a client certificate that it knows",
        )
    })
}

/// The token shown: `None` if there is no such header, `Some(None)` if it holds no token.
fn bearer(headers: &HeaderMap) -> Option<Option<&[u8]>> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.as_bytes();
    let token = value.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer ")).map(|(_, token)| token);
    Some(token.filter(|_| values.next().is_none()))
}

/// What a call needs of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needed {
    AnyRole,
    Classify,
    ReadOnly,
    Admin,
}

impl Needed {
    /// `None`: nothing. Health tells nothing that a port scan does not.
    fn by(path: &str) -> Option<Self> {
        Some(match path {
            "/delo.v1.Admin/ListPartitions" | "/delo.v1.Admin/GetStatus" => Self::ReadOnly,
            _ if path.starts_with("/grpc.health.v1.Health/") => return None,
            _ if path.starts_with("/grpc.reflection.") => Self::AnyRole,
            _ if path.starts_with("/delo.v1.Classifier/") => Self::Classify,
            // Also what does not exist: a method that is added is not open by being forgotten here.
            _ => Self::Admin,
        })
    }

    fn allows(self, role: Role) -> bool {
        match self {
            Self::AnyRole => true,
            Self::Classify => matches!(role, Role::Classify | Role::Admin),
            Self::ReadOnly => matches!(role, Role::ReadOnly | Role::Admin),
            Self::Admin => role == Role::Admin,
        }
    }

    fn roles(self) -> &'static str {
        match self {
            Self::AnyRole => "any role",
            Self::Classify => "classify or admin",
            Self::ReadOnly => "read_only or admin",
            Self::Admin => "admin",
        }
    }
}

impl Policy for Authenticate {
    fn around<S: Inner>(&self, mut request: Request<Body>, next: &mut S) -> Answer {
        match self.caller(&request) {
            Ok(caller) => request.extensions_mut().insert(caller),
            Err(status) => return refusal(status),
        };
        // Nobody further in has a use for it, and what isn't there isn't logged.
        request.headers_mut().remove(header::AUTHORIZATION);
        Box::pin(call(next, request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_reaches_its_methods_and_no_others() {
        let may = |role, path| Needed::by(path).is_none_or(|needed| needed.allows(role));
        for (path, classify, read_only) in [
            ("/delo.v1.Classifier/Classify", true, false),
            ("/delo.v1.Admin/ListPartitions", false, true),
            ("/delo.v1.Admin/GetStatus", false, true),
            ("/delo.v1.Admin/LoadPartition", false, false),
            ("/delo.v1.Admin/SomethingNew", false, false),
            ("/grpc.health.v1.Health/Check", true, true),
            ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", true, true),
            ("/elsewhere/Anything", false, false),
        ] {
            assert_eq!(
                (may(Role::Classify, path), may(Role::ReadOnly, path), may(Role::Admin, path)),
                (classify, read_only, true),
                "{path}"
            );
        }
    }

    #[test]
    fn addresses_of_one_network_are_one_caller() {
        let place = |address: &str| place(address.parse().unwrap());
        assert_eq!(place("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(place("2001:db8:1:2::9"), place("2001:db8:1:2:ffff::"));
        assert_ne!(place("2001:db8:1:2::9"), place("2001:db8:1:3::9"));
        assert_eq!((place("::ffff:192.0.2.1").as_str(), place("192.0.2.1").as_str()), ("192.0.2.1", "192.0.2.1"));
        assert_eq!(place("::1"), "::1");
    }

    #[test]
    fn a_bearer_token_is_one_header_of_that_scheme() {
        let headers = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            headers
        };
        assert_eq!(bearer(&headers(&[])), None);
        assert_eq!(bearer(&headers(&["Bearer abc"])), Some(Some(&b"abc"[..])));
        assert_eq!(bearer(&headers(&["bearer abc"])), Some(Some(&b"abc"[..])));
        for bad in [&["Basic abc"][..], &["Bearer"], &[""], &["Bearer a", "Bearer b"]] {
            assert_eq!(bearer(&headers(bad)), Some(None), "{bad:?}");
        }
    }
}
