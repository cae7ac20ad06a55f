//! Why a call or a sample is not served, for programs: the label of `delo_rejected_total`, and the reason in an error's
//! `google.rpc.ErrorInfo`. Each has a page in `docs/errors/`.
use std::collections::HashMap;

use tonic::Status;
use tonic_types::StatusExt;

use crate::metric_table::REJECTED;

/// The domain of the reasons in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "delo";

/// Declares the reasons, and the list of them all.
macro_rules! reasons {
    ($($(#[$attribute:meta])* $name:ident = $label:literal,)*) => {
        /// Why a call or a sample is not served.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason { $($(#[$attribute])* $name),* }

        impl Reason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The label in metrics.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label),* }
            }
        }
    };
}

reasons! {
    /// A field of the request is wrong.
    InvalidInput = "invalid_input",
    /// The call is no gRPC.
    ContentType = "content_type",
    Unauthenticated = "unauthenticated",
    /// The client's role does not allow the call.
    Forbidden = "forbidden",
    /// No task of the name that the request gives is loaded.
    UnknownTask = "unknown_task",
    /// No partition is loaded.
    NothingLoaded = "nothing_loaded",
    /// The model is not loaded yet.
    Starting = "starting",
    Draining = "draining",
    /// Too many calls are in flight.
    TooManyRequests = "too_many_requests",
    /// Too many calls of one client are in flight.
    ClientLimit = "client_limit",
    /// Too many bytes of requests are being received.
    ReceiveMemory = "receive_memory",
    QueueFull = "queue_full",
    /// The client has its share of the queue.
    ClientShare = "client_share",
    /// The sample would wait longer than `batching.max_queue_seconds`.
    QueueWait = "queue_wait",
    /// The sample would wait longer than its deadline.
    WouldExpire = "would_expire",
    /// The queue's memory is taken.
    QueueMemory = "queue_memory",
    DeadlineExceeded = "deadline_exceeded",
    /// A comparison with a shadow version is left out; no caller sees it.
    Shadow = "shadow",
}

impl Reason {
    /// Counts a call or a sample that is not served.
    pub fn count(self) {
        REJECTED.with([self.label()]).increment(1);
    }

    /// Counts it, and adds the reason to the details of its status.
    pub fn refuse(self, status: &Status) -> Status {
        self.count();
        self.mark(status)
    }

    /// Adds the reason to the details of a status.
    pub fn mark(self, status: &Status) -> Status {
        let mut details = status.get_error_details();
        details.set_error_info(self.label().to_ascii_uppercase(), DOMAIN, HashMap::new());
        Status::with_error_details_and_metadata(status.code(), status.message(), details, status.metadata().clone())
    }
}

/// Makes the series of all reasons appear at 0: Prometheus sees an increase only of a series that was there before it.
pub fn show() {
    Reason::ALL.iter().for_each(|reason| REJECTED.with([reason.label()]).increment(0));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::serve::status::exhausted;

    #[test]
    fn a_reason_joins_the_other_details_of_a_status() {
        let status = Reason::QueueFull.refuse(&exhausted("full", Duration::from_secs(2)));
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("QUEUE_FULL", "delo"));
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(2)));
        assert_eq!((status.code(), status.message()), (tonic::Code::ResourceExhausted, "full"));
    }
}
