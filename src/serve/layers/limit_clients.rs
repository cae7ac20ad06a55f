//! Bounds the calls in flight of each client.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::Request;
use tonic::body::Body;

use super::admit::RETRY_AFTER;
use super::authenticate::Caller;
use super::body::holding;
use super::{Answer, Inner, Policy, call, refusal};
use crate::serve::methods::method;
use crate::serve::reason::Reason;
use crate::serve::status::exhausted;

/// Bounds the counted calls ([`Method::is_counted`](crate::serve::methods::Method)) that each client has in flight. A call counts until the transport is done
/// with its answer, also after its deadline: an answer that a client does not read counts for that client
/// alone.
#[derive(Clone, Debug)]
pub struct LimitClients {
    most_of_a_client: usize,
    calls: Arc<Calls>,
}

/// How many calls of each client are in flight. A client without any has no entry, so there are never more
/// entries than calls.
#[derive(Debug, Default)]
struct Calls(Mutex<HashMap<Arc<str>, usize>>);

impl Calls {
    /// Counts one more call of `client`, unless it has `most`.
    fn begin(self: &Arc<Self>, client: Arc<str>, most: usize) -> Option<CountedCall> {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_client = calls.get(&client).copied().unwrap_or(0);
        if of_client >= most {
            return None;
        }
        calls.insert(client.clone(), of_client + 1);
        Some(CountedCall { calls: self.clone(), client })
    }
}

/// One call of a client; counted until dropped.
#[derive(Debug)]
struct CountedCall {
    calls: Arc<Calls>,
    client: Arc<str>,
}

impl Drop for CountedCall {
    fn drop(&mut self) {
        let mut calls = self.calls.0.lock().unwrap_or_else(PoisonError::into_inner);
        match calls.get_mut(&self.client) {
            Some(of_client) if *of_client > 1 => *of_client -= 1,
            _ => drop(calls.remove(&self.client)),
        }
    }
}

impl LimitClients {
    pub fn new(most_of_a_client: usize) -> Self {
        Self { most_of_a_client, calls: Arc::default() }
    }
}

impl Policy for LimitClients {
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer {
        if !method(request.uri().path()).is_counted {
            return Box::pin(call(next, request));
        }
        let Some(counted) = self.calls.begin(Caller::of(request.extensions()).name, self.most_of_a_client) else {
            let message = "too many requests of this client are in flight (server.max_in_flight_per_client): wait for answers, then retry";
            return refusal(Reason::ClientLimit.refuse(&exhausted(message, RETRY_AFTER)));
        };
        let answer = call(next, request);
        Box::pin(async move { Ok(answer.await?.map(|body| holding(body, counted))) })
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};
    use tower::Service;

    use super::*;
    use crate::serve::layers::tests::{code, request, service};

    fn from(client: &str) -> Request<Body> {
        let mut request = request("/delo.v1.Classifier/Classify");
        request.extensions_mut().insert(Caller { name: client.into(), ..Caller::of(&http::Extensions::new()) });
        request
    }

    #[tokio::test]
    async fn one_client_at_its_limit_leaves_the_others_alone_and_the_map_is_empty_in_the_end() {
        let policy = LimitClients::new(2);
        let mut service = policy.layer(service());
        let held = [service.call(from("a")).await.unwrap(), service.call(from("a")).await.unwrap()];
        let refusal = Status::from_header_map(service.call(from("a")).await.unwrap().headers()).unwrap();
        assert_eq!(refusal.code(), Code::ResourceExhausted);
        assert!(refusal.message().contains("server.max_in_flight_per_client"), "{refusal:?}");
        assert_eq!(code(&service.call(from("b")).await.unwrap()), Code::Ok);
        drop(held);
        assert_eq!(code(&service.call(from("a")).await.unwrap()), Code::Ok);
        assert!(policy.calls.0.lock().unwrap().is_empty());
    }
}
