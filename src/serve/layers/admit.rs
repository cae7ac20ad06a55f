//! Bounds the calls in flight.
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::Status;
use tonic::body::Body;

use super::body::holding;
use super::{Answer, Inner, Policy, call, refusal};
use crate::serve::methods::method;
use crate::serve::reason::Reason;
use crate::serve::status::exhausted;

/// When a refused call may be tried again.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(100);

/// How many calls one port admits.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    pub most: usize,
    /// The name of the setting that bounds them, for the refusal.
    pub setting: &'static str,
}

/// Admits counted calls ([`Method::is_counted`](crate::serve::methods::Method)) up to a bound. Clones share the
/// bound.
#[derive(Clone, Debug)]
pub struct Admit {
    admission: Admission,
    /// A permit is held from a call's arrival until its answer is read or dropped.
    permits: Arc<Semaphore>,
    /// How many permits are held.
    in_flight: Arc<watch::Sender<usize>>,
}

/// The permit of one admitted call. The body of its answer holds it.
#[derive(Debug)]
struct Permit {
    _permit: OwnedSemaphorePermit,
    in_flight: Arc<watch::Sender<usize>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_flight.send_modify(|calls| *calls -= 1);
    }
}

impl Admit {
    pub fn new(admission: Admission) -> Self {
        let most = admission.most.min(1 << 20);
        let admission = Admission { most, ..admission };
        Self { admission, permits: Arc::new(Semaphore::new(most)), in_flight: Arc::new(watch::Sender::new(0)) }
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

    fn permit(&self) -> Result<Permit, Status> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| {
            let message = format!("too many requests are in flight ({}): retry later", self.admission.setting);
            Reason::TooManyRequests.refuse(&exhausted(message, RETRY_AFTER))
        })?;
        self.in_flight.send_modify(|calls| *calls += 1);
        Ok(Permit { _permit: permit, in_flight: self.in_flight.clone() })
    }
}

impl Policy for Admit {
    fn around<S: Inner>(&self, request: Request<Body>, next: &mut S) -> Answer {
        if !method(request.uri().path()).is_counted {
            return Box::pin(call(next, request));
        }
        let permit = match self.permit() {
            Ok(permit) => permit,
            Err(status) => return refusal(status),
        };
        let answer = call(next, request);
        Box::pin(async move { Ok(answer.await?.map(|body| holding(body, permit))) })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tonic::Code;
    use tower::Service;

    use super::*;
    use crate::serve::layers::tests::{code, request, service};

    fn admit(most: usize) -> Admit {
        Admit::new(Admission { most, setting: "a.setting" })
    }

    #[tokio::test]
    async fn admits_calls_of_its_service_up_to_the_bound_and_any_of_others() {
        let mut service = admit(1).layer(service());
        let first = service.call(request("/delo.v1.Classifier/Classify")).await.unwrap();
        assert_eq!(code(&service.call(request("/delo.v1.Classifier/Classify")).await.unwrap()), Code::ResourceExhausted);
        assert_eq!(code(&service.call(request("/health/A")).await.unwrap()), Code::Ok);
        drop(first);
        assert_eq!(code(&service.call(request("/delo.v1.Classifier/Classify")).await.unwrap()), Code::Ok);
    }

    #[tokio::test]
    async fn idle_waits_for_calls_in_flight_and_refuses_none() {
        let admit = admit(2);
        let mut service = admit.layer(service());
        let first = service.call(request("/delo.v1.Classifier/Classify")).await.unwrap();
        let mut idle = Box::pin(admit.idle());
        assert!((&mut idle).now_or_never().is_none(), "a call is in flight");
        let second = service.call(request("/delo.v1.Classifier/Classify")).await.unwrap();
        assert_eq!(code(&second), Code::Ok);
        drop(first);
        assert!((&mut idle).now_or_never().is_none() && !admit.is_idle(), "another call is in flight");
        drop(second);
        idle.await;
        assert!(admit.is_idle());
    }
}
