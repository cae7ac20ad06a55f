//! How the connections of a port end: by their clients, by their age, or by the drain of the port.
use std::pin::pin;
use std::time::Duration;

use hyper_util::server::graceful::GracefulConnection;
use tokio_util::sync::CancellationToken;

/// How far the age at which a connection ends differs at random from the setting, so that connections which began
/// together do not end together.
const JITTER: std::ops::RangeInclusive<f64> = 0.9..=1.1;

/// When a port asks the clients of its connections to go elsewhere.
#[derive(Clone, Debug)]
pub struct Closing {
    pub drain: CancellationToken,
    /// `None`: no connection is too old.
    pub max_age: Option<Duration>,
}

impl Closing {
    /// Serves one connection until it is closed. When it is too old, and when the port drains, its client is asked to
    /// make further calls elsewhere; those that have begun are answered.
    ///
    /// # Errors
    /// What ended the connection early.
    pub async fn serve<C: GracefulConnection>(self, connection: C) -> Result<(), C::Error> {
        let mut connection = pin!(connection);
        let aged = async {
            match self.max_age {
                Some(age) => tokio::time::sleep(age.mul_f64(rand::random_range(JITTER))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = aged => {}
            () = self.drain.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    }
}
