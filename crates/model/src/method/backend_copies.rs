//! What a backend keeps beside the numbers that it was made from.
use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The copies that backends made of some numbers, of any type. They belong to those numbers: the memory of a device is
/// free for other use by this process when the last batch has let go of the partition.
#[derive(Default)]
pub struct BackendCopies(Mutex<Vec<Arc<dyn Any + Send + Sync>>>);

impl BackendCopies {
    /// The copy of this type that `fits`; `make` is called where there is none.
    ///
    /// # Errors
    /// That of `make`.
    pub fn get_or_make<C: Send + Sync + 'static, E>(
        &self,
        fits: impl Fn(&C) -> bool,
        make: impl FnOnce() -> Result<C, E>,
    ) -> Result<Arc<C>, E> {
        // A panic leaves the list whole: its change is a single call.
        let mut copies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_type = copies.iter().filter_map(|copy| copy.clone().downcast::<C>().ok());
        if let Some(copy) = of_type.into_iter().find(|copy| fits(copy)) {
            return Ok(copy);
        }
        let copy = Arc::new(make()?);
        copies.push(copy.clone());
        Ok(copy)
    }

    /// How many copies there are.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no backend made a copy yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A clone of the numbers stands in memory of its own, on devices as on the CPU.
impl Clone for BackendCopies {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for BackendCopies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendCopies").field("copies", &self.len()).finish()
    }
}
