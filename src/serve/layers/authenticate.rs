//! Finds the client that makes a call, and whether its role allows the call.
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{Extensions, HeaderMap, Request, header};
use tonic::Status;
use tonic::body::Body;

use super::{Answer, Inner, Policy, call, refusal};
use crate::serve::auth::{Client, Clients, Role};
use crate::serve::connections::Peer;
use crate::serve::methods::{RequiredRole, method};
use crate::serve::reason::Reason;

/// The client that makes a call; in the extensions of every request.
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

    /// The caller by its address. Where nobody is authenticated, each caller may call everything.
    fn at(extensions: &Extensions) -> Self {
        let address = extensions.get::<Peer>().and_then(|peer| peer.address);
        let name = address.map_or_else(|| "unknown".into(), |address| network(address.ip()).into());
        Self { name, role: Role::Admin }
    }
}

/// The caller's name by its address: an IPv4 address, or the 64-bit network of an IPv6 address, because one
/// host may use every address of its network.
fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => format!("{}/64", Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address.to_string(),
    }
}

/// Finds the caller of each call, and refuses unknown callers and calls that the caller's role does not
/// allow. `None`: nobody is authenticated, and each caller may call everything.
#[derive(Clone, Debug)]
pub struct Authenticate(pub Option<Arc<ArcSwap<Clients>>>);

impl Authenticate {
    /// The caller of a request, by its path, its headers and the peer in its extensions.
    ///
    /// # Errors
    /// UNAUTHENTICATED, or PERMISSION_DENIED.
    pub fn caller(&self, request: &Request<Body>) -> Result<Caller, Status> {
        let required = method(request.uri().path()).role;
        let Some(clients) = self.0.as_ref().filter(|_| required != RequiredRole::Nobody) else {
            return Ok(Caller::at(request.extensions()));
        };
        let Client { name, role } = identify(&clients.load(), request)?;
        if !required.allows(role) {
            // The message does not quote the request.
            let message = format!(
                "this client has the role {role}, this call needs {}: ask the operator of auth.clients_file for that",
                required.roles()
            );
            return Err(Reason::Forbidden.refuse(&Status::permission_denied(message)));
        }
        Ok(Caller { name, role })
    }
}

/// # Errors
/// UNAUTHENTICATED, with the same message whatever was wrong.
fn identify(clients: &Clients, request: &Request<Body>) -> Result<Client, Status> {
    let found = match bearer(request.headers()) {
        // A token counts before a certificate: a caller with a bad token is refused whatever its certificate
        // says.
        Some(token) => token.and_then(|token| clients.of_token(token)),
        None => request.extensions().get::<Peer>().and_then(|peer| clients.of_certificate(peer.names.as_deref()?)),
    };
    found.ok_or_else(|| {
        Reason::Unauthenticated.refuse(&Status::unauthenticated(
            "send a token that this server knows (authorization: Bearer …), or connect with a client certificate that it knows",
        ))
    })
}

/// The token in the headers: `None` if there is no such header, `Some(None)` if it holds no token.
fn bearer(headers: &HeaderMap) -> Option<Option<&[u8]>> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.as_bytes();
    let token = value.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer ")).map(|(_, token)| token);
    Some(token.filter(|_| values.next().is_none()))
}

impl RequiredRole {
    fn allows(self, role: Role) -> bool {
        match self {
            Self::Nobody | Self::Any => true,
            Self::Classify => matches!(role, Role::Classify | Role::Admin),
            Self::ReadOnly => matches!(role, Role::ReadOnly | Role::Admin),
            Self::Admin => role == Role::Admin,
        }
    }

    /// The roles that are allowed, for the refusal.
    fn roles(self) -> &'static str {
        match self {
            Self::Nobody | Self::Any => "any role",
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
        // No layer further in reads the token, and a header that is gone is not logged.
        request.headers_mut().remove(header::AUTHORIZATION);
        Box::pin(call(next, request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_reaches_its_methods_and_no_others() {
        let may = |role, path| method(path).role.allows(role);
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
        let network = |address: &str| network(address.parse().unwrap());
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(network("2001:db8:1:2::9"), network("2001:db8:1:2:ffff::"));
        assert_ne!(network("2001:db8:1:2::9"), network("2001:db8:1:3::9"));
        assert_eq!((network("::ffff:192.0.2.1").as_str(), network("192.0.2.1").as_str()), ("192.0.2.1", "192.0.2.1"));
        assert_eq!(network("::1"), "::1");
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
