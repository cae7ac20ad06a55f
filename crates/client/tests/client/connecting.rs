//! Connections over TCP and TLS.
use std::net::SocketAddr;
use std::time::Duration;

use delo_client::{Client, Code, ConnectError, Retry, Sample};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::fake::Fake;

/// Signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for this name, and its key.
    pub fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Serves on a free port, over TLS where it is given.
async fn serve(fake: &Fake, tls: Option<ServerTlsConfig>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls).unwrap();
    }
    tokio::spawn(server.add_routes(fake.routes()).serve_with_incoming(TcpIncoming::from(listener)));
    address
}

/// A port at which nobody listens.
async fn dead() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_server_is_known_by_its_authority_and_its_name() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("delo.example");
    let fake = Fake::default();
    let address = serve(&fake, Some(ServerTlsConfig::new().identity(Identity::from_pem(certificate, key)))).await;
    let builder = || Client::builder(format!("https://{address}"));
    let client = builder().ca_certificate(authority.pem()).domain_name("delo.example").connect().await.unwrap();
    client.classify(Sample::text("pizza")).await.unwrap();
    // Several authorities are trusted; with one, the address needs no scheme.
    let client = Client::builder(address.to_string()).ca_certificate(Authority::new().pem()).ca_certificate(authority.pem());
    client.domain_name("delo.example").connect().await.unwrap();
    let name = builder().ca_certificate(authority.pem()).connect().await.unwrap_err();
    assert!(name.to_string().contains("NotValidForName") || name.to_string().contains("not valid for name"), "{name}");
    let stranger = builder().ca_certificate(Authority::new().pem()).domain_name("delo.example").connect().await.unwrap_err();
    assert!(stranger.to_string().contains("UnknownIssuer") || stranger.to_string().contains("BadSignature"), "{stranger}");
    assert_eq!(fake.calls(), 1);
}

#[cfg(feature = "native-roots")]
#[tokio::test]
async fn without_an_authority_of_its_own_a_server_is_not_trusted() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let address = serve(&Fake::default(), Some(ServerTlsConfig::new().identity(Identity::from_pem(certificate, key)))).await;
    let refused = Client::connect(format!("https://localhost:{}", address.port())).await;
    // Where the system has no authorities, the setting itself is refused.
    assert!(matches!(refused, Err(ConnectError::Unreachable { .. } | ConnectError::Tls(_))), "{refused:?}");
}

#[tokio::test]
async fn a_client_shows_its_certificate() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key)).client_ca_root(Certificate::from_pem(authority.pem()));
    let address = serve(&Fake::default(), Some(tls)).await;
    let builder = || Client::builder(format!("https://localhost:{}", address.port())).ca_certificate(authority.pem()).retry(Retry::never());
    let (certificate, key) = authority.issue("client.example");
    let client = builder().client_certificate(certificate, key).connect_lazy().unwrap();
    client.classify(Sample::text("pizza")).await.unwrap();
    let error = builder().connect_lazy().unwrap().classify(Sample::text("pizza")).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
}

#[tokio::test]
async fn certificates_need_tls_and_are_certificates() {
    let authority = Authority::new();
    for builder in [
        Client::builder("http://localhost:1").ca_certificate(authority.pem()),
        Client::builder("http://localhost:1").client_certificate("", ""),
        Client::builder("https://localhost:1").ca_certificate("none"),
        Client::builder("https://localhost:1").ca_certificate(authority.pem()).client_certificate("none", "none"),
    ] {
        let shown = format!("{builder:?}");
        let refused = builder.connect_lazy();
        assert!(matches!(refused, Err(ConnectError::Tls(_))), "{shown}: {refused:?}");
    }
}

#[tokio::test]
async fn an_address_that_is_none_is_refused() {
    for server in ["", "http://", "http://:1", "ftp://localhost:1", "http://local host:1"] {
        let refused = Client::connect(server).await;
        assert!(matches!(refused, Err(ConnectError::Address { .. })), "{server}: {refused:?}");
    }
}

#[tokio::test]
async fn connecting_to_nobody_fails_at_once_and_says_to_whom() {
    let address = dead().await;
    let error = Client::connect(format!("http://{address}")).await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("refused"), "{error}");
    let missing = Client::builder(format!("http://{}", serve(&Fake::default(), None).await)).token_file("/no/such/token").connect().await;
    assert!(missing.unwrap_err().to_string().contains("/no/such/token"));
}

#[tokio::test]
async fn calls_go_to_the_servers_in_turn_and_a_dead_one_costs_another_attempt() {
    let (one, two) = (Fake::default(), Fake::default());
    let client = Client::builder(serve(&one, None).await.to_string()).server(serve(&two, None).await.to_string()).connect().await.unwrap();
    for _ in 0..6 {
        client.classify(Sample::text("pizza")).await.unwrap();
    }
    assert_eq!((one.calls(), two.calls()), (3, 3));
    let builder = Client::builder(dead().await.to_string()).server(serve(&one, None).await.to_string());
    let client = builder.retry(Retry::default().first_wait(Duration::from_millis(1)).attempts(2)).connect().await.unwrap();
    let mut attempts = Vec::new();
    for _ in 0..4 {
        attempts.push(client.classify(Sample::text("pizza")).response().await.unwrap().attempts());
    }
    assert_eq!(attempts, [2, 1, 2, 1]);
}

#[tokio::test]
async fn the_client_says_what_it_is() {
    let fake = Fake::default();
    let address = serve(&fake, None).await.to_string();
    Client::connect(&address).await.unwrap().classify(Sample::text("pizza")).await.unwrap();
    Client::builder(&address).user_agent("shop/1").connect().await.unwrap().classify(Sample::text("pizza")).await.unwrap();
    let agents: Vec<_> = fake.state().seen.iter().map(|seen| seen.header("user-agent").to_owned()).collect();
    assert!(agents[0].starts_with("delo-client/") && agents[1].starts_with("shop/1"), "{agents:?}");
    assert!(matches!(Client::builder(address).user_agent("a\nb").connect_lazy(), Err(ConnectError::Header(_))));
}
