//! A decoder that panics refuses its image: what stands in a file is its sender's fault, not the program's.
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::{Mutex, Once, PoisonError};

use super::InputError;

thread_local! {
    /// Whether a decoder runs on this thread.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// What the last panic under guard said, and where.
    static PANIC: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

struct Panic {
    message: String,
    place: String,
}

/// The outcome of `decode`, or a refusal where it panics. The log has one line for each place in the code
/// that panics, and no backtrace.
///
/// # Errors
/// Those of `decode`; [`InputError::Undecodable`] for a panic.
pub(super) fn guarded<T>(format: &'static str, decode: impl FnOnce() -> Result<T, InputError>) -> Result<T, InputError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| if GUARDED.get() { keep(info) } else { usual(info) }));
    });
    GUARDED.set(true);
    // A decoder owns all that it changes, so that nothing half-changed is left.
    let outcome = catch_unwind(AssertUnwindSafe(decode));
    GUARDED.set(false);
    outcome.unwrap_or_else(|_| {
        log(format, PANIC.take());
        Err(InputError::Undecodable { format, reason: "its decoder fails on it".to_owned() })
    })
}

fn keep(info: &PanicHookInfo) {
    let payload = info.payload();
    let message = payload.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| payload.downcast_ref::<String>().cloned());
    let message = message.unwrap_or_else(|| "no message".to_owned());
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    PANIC.set(Some(Panic { message, place }));
}

/// A client may send the same file a thousand times: a place is told once.
fn log(format: &str, panic: Option<Panic>) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let Some(Panic { message, place }) = panic else { return };
    // An insertion leaves the set whole, also where it panics.
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(place.clone()) {
        tracing::warn!(
            format,
            message,
            place,
            "an image decoder panicked: the image is refused, and others that fail there are refused silently"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_that_panics_refuses_its_image_without_the_panic_hook() {
        let error = guarded("PNG", || -> Result<(), _> { panic!("index out of bounds") }).unwrap_err();
        assert!(matches!(error, InputError::Undecodable { format: "PNG", .. }), "{error}");
        assert!(!error.to_string().contains("index"), "the decoder's inner words are for the log: {error}");
        assert_eq!(guarded("PNG", || Ok(1)).unwrap(), 1);
        assert!(guarded("PNG", || Err::<(), _>(InputError::Empty)).is_err());
    }

    #[test]
    fn a_panic_elsewhere_on_the_same_thread_is_still_shown() {
        guarded("PNG", || Ok(())).unwrap();
        assert!(!GUARDED.get());
    }
}
