//! A panic of a decoder refuses the image and nothing else: a damaged file must not end the program.
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::{Mutex, Once, PoisonError};

use super::InputError;

thread_local! {
    /// Whether a decoder runs on this thread.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// The message and the place of the last panic of a decoder on this thread.
    static PANIC: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

/// The message of a panic and its place in the code.
struct Panic {
    message: String,
    place: String,
}

/// The result of `decode`, or an error where it panics. Each place in the code that panics is logged once,
/// without a backtrace.
///
/// # Errors
/// The errors of `decode`; [`InputError::Undecodable`] for a panic.
pub(super) fn guarded<T>(format: &'static str, decode: impl FnOnce() -> Result<T, InputError>) -> Result<T, InputError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| if GUARDED.get() { keep(info) } else { usual(info) }));
    });
    GUARDED.set(true);
    // A decoder owns all data that it changes, so a panic leaves nothing in an invalid state.
    let outcome = catch_unwind(AssertUnwindSafe(decode));
    GUARDED.set(false);
    outcome.unwrap_or_else(|_| {
        log(format, PANIC.take());
        Err(InputError::Undecodable { format, reason: "its decoder fails on it".to_owned() })
    })
}

/// Keeps the message and the place of a panic for the log.
fn keep(info: &PanicHookInfo) {
    let payload = info.payload();
    let message = payload.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| payload.downcast_ref::<String>().cloned());
    let message = message.unwrap_or_else(|| "no message".to_owned());
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    PANIC.set(Some(Panic { message, place }));
}

/// Logs a panic, once for each place: a client may send the same file a thousand times.
fn log(format: &str, panic: Option<Panic>) {
    static LOGGED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let Some(Panic { message, place }) = panic else { return };
    // The set is valid also after a panic, because it is changed by a single call.
    if LOGGED.lock().unwrap_or_else(PoisonError::into_inner).insert(place.clone()) {
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
        assert!(!error.to_string().contains("index"), "the message of the panic belongs in the log: {error}");
        assert_eq!(guarded("PNG", || Ok(1)).unwrap(), 1);
        assert!(guarded("PNG", || Err::<(), _>(InputError::Empty)).is_err());
    }

    #[test]
    fn a_panic_outside_a_decoder_still_reaches_the_panic_hook() {
        guarded("PNG", || Ok(())).unwrap();
        assert!(!GUARDED.get());
    }
}
