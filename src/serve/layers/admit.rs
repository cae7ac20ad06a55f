//! Bounds the calls in flight, in all and of each caller.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::Status;
use tonic::body::Body;

use super::authenticate::Caller;
use super::deadline::Expiry;
use super::{Answer, Holding, Inner, Policy, call, refusal};
use crate::serve::status::{exhausted, refused};

/// What one port admits.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// Path prefix of the service: `/package.Service/`. Calls of others (health, reflection) pass.
    pub prefix: &'static str,
    pub most: usize,
    pub most_of_a_client: usize,
    /// The setting that bounds all calls, for the message.
    pub setting: &'static str,
}

/// Admits calls of one service up to a bound. Clones share the bound.
#[derive(Clone, Debug)]
pub struct Admit {
    admission: Admission,
    /// A permit is held from a call's arrival to the end of its answer or of its time.
    permits: Arc<Semaphore>,
    clients: Arc<Clients>,
    /// How many permits are held.
    in_flight: Arc<watch::Sender<usize>>,
}

/// A call that was admitted. Dropped when its answer or its time ends.
#[derive(Debug)]
pub struct Admitted {
    _permit: OwnedSemaphorePermit,
    in_flight: Arc<watch::Sender<usize>>,
}

impl Admitted {
    fn new(permit: OwnedSemaphorePermit, in_flight: Arc<watch::Sender<usize>>) -> Self {
        in_flight.send_modify(|calls| *calls += 1);
        Self { _permit: permit, in_flight }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.in_flight.send_modify(|calls| *calls -= 1);
    }
}

/// How many calls of each client are in flight. A client without any has no entry, so there are never more entries than calls.
#[derive(Debug, Default)]
struct Clients(Mutex<HashMap<Arc<str>, usize>>);

impl Clients {
    /// One more call of `name`, unless it has `most`.
    fn enter(self: &Arc<Self>, name: Arc<str>, most: usize) -> Option<Place> {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_this = calls.get(&name).copied().unwrap_or(0);
        if of_this >= most {
            return None;
        }
        calls.insert(name.clone(), of_this + 1);
        Some(Place(Arc::new(Slot { clients: self.clone(), name })))
    }
}

/// One call of a client; counted until dropped.
#[derive(Debug)]
struct Slot {
    clients: Arc<Clients>,
    name: Arc<str>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut calls = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        match calls.get_mut(&self.name) {
            Some(of_this) if *of_this > 1 => *of_this -= 1,
            _ => drop(calls.remove(&self.name)),
        }
    }
}

/// A call's place among those of its client. It travels in the extensions of the answer, for whoever keeps the answer's body to keep with it.
#[derive(Clone, Debug)]
pub struct Place(#[expect(dead_code, reason = "held until dropped")] Arc<Slot>);

/// Gives the permit back when the call ends before its time.
struct Permit(Arc<Expiry>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Admit {
    pub fn new(admission: Admission) -> Self {
        let most = admission.most.min(1 << 20);
        let admission = Admission { most, ..admission };
        Self { admission, permits: Arc::new(Semaphore::new(most)), clients: Arc::default(), in_flight: Arc::new(watch::Sender::new(0)) }
    }

    /// Waits until no admitted call is in flight. More may arrive meanwhile and later.
    pub async fn idle(&self) {
        // An error would mean that the sender is gone, and it is in `self`.
        let _ = self.in_flight.subscribe().wait_for(|calls| *calls == 0).await;
    }

    /// Whether no admitted call is in flight at this moment.
    pub fn is_idle(&self) -> bool {
        *self.in_flight.borrow() == 0
    }

    fn admit(&self, client: Arc<str>) -> Result<(Admitted, Place), Status> {
        let soon = Duration::from_millis(100);
        let Some(place) = self.clients.enter(client, self.admission.most_of_a_client) else {
            refused("client_limit");
            let message = "too many requests of this client are in flight (server.max_in_flight_per_client): wait for answers, then retry";
            return Err(exhausted(message, soon));
        };
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| {
            refused("too_many_requests");
            exhausted(format!("too many requests are in flight ({}): retry later", self.admission.setting), soon)
        })?;
        Ok((Admitted::new(permit, self.in_flight.clone()), place))
    }
}

impl Policy for Admit {
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer {
        if !request.uri().path().starts_with(self.admission.prefix) {
            return Box::pin(call(next, request));
        }
        let (permit, place) = match self.admit(Caller::of(request.extensions()).name) {
            Ok(admitted) => admitted,
            Err(status) => return refusal(status),
        };
        let expiry = request.extensions().get::<Arc<Expiry>>().cloned().unwrap_or_default();
        expiry.hold(permit);
        let held = Permit(expiry);
        let answer = call(next, request);
        Box::pin(async move {
            let mut response = answer.await?.map(|body| Holding::around(body, held));
            // The place stays with an answer that the client does not read: of those, only this client has fewer.
            response.extensions_mut().insert(place);
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tonic::Code;

    use tower::Service;

    use super::*;
    use crate::serve::layers::tests::{code, request, service};

    fn admit(most: usize, most_of_a_client: usize) -> Admit {
        Admit::new(Admission { prefix: "/s/", most, most_of_a_client, setting: "a.setting" })
    }

    fn from(client: &str) -> Request<Body> {
        let mut request = request("/s/A");
        request.extensions_mut().insert(Caller { name: client.into(), ..Caller::of(&http::Extensions::new()) });
        request
    }

    #[tokio::test]
    async fn admits_so_many_calls_of_its_service_and_any_of_others() {
        let mut service = admit(1, 9).layer(service());
        let first = service.call(request("/s/A")).await.unwrap();
        assert_eq!(code(&service.call(request("/s/A")).await.unwrap()), Code::ResourceExhausted);
        assert_eq!(code(&service.call(request("/health/A")).await.unwrap()), Code::Ok);
        drop(first);
        assert_eq!(code(&service.call(request("/s/A")).await.unwrap()), Code::Ok);
    }

    #[tokio::test]
    async fn one_client_at_its_limit_leaves_the_others_alone_and_the_map_is_empty_in_the_end() {
        let policy = admit(9, 2);
        let mut service = policy.layer(service());
        let held = [service.call(from("a")).await.unwrap(), service.call(from("a")).await.unwrap()];
        let refusal = Status::from_header_map(service.call(from("a")).await.unwrap().headers()).unwrap();
        assert_eq!(refusal.code(), Code::ResourceExhausted);
        assert!(refusal.message().contains("server.max_in_flight_per_client"), "{refusal:?}");
        assert_eq!(code(&service.call(from("b")).await.unwrap()), Code::Ok);
        drop(held);
        assert_eq!(code(&service.call(from("a")).await.unwrap()), Code::Ok);
        assert!(policy.clients.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn idle_waits_for_calls_in_flight_and_keeps_out_none() {
        let admit = admit(2, 2);
        let mut service = admit.layer(service());
        let first = service.call(request("/s/A")).await.unwrap();
        let mut idle = Box::pin(admit.idle());
        assert!((&mut idle).now_or_never().is_none(), "a call is in flight");
        let second = service.call(request("/s/A")).await.unwrap();
        assert_eq!(code(&second), Code::Ok);
        drop(first);
        assert!((&mut idle).now_or_never().is_none() && !admit.is_idle(), "another call is in flight");
        drop(second);
        idle.await;
        assert!(admit.is_idle());
    }
}
