//! Copies of some numbers that backends keep, for example in the memory of a device.
use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The copies that backends made of some numbers, each of a type of the backend's own. They are owned by the
/// numbers, so that they are freed with the partition: when the last batch that uses it ends.
#[derive(Default)]
pub struct BackendCopies(Mutex<Vec<Arc<dyn Any + Send + Sync>>>);

impl BackendCopies {
    /// The copy of type `C` for which `fits` is true. Where there is none, `make` makes it and it is kept.
    /// Blocks while another thread makes a copy of the same numbers.
    ///
    /// # Errors
    /// The error of `make`.
    pub fn get_or_make<C: Send + Sync + 'static, E>(
        &self,
        fits: impl Fn(&C) -> bool,
        make: impl FnOnce() -> Result<C, E>,
    ) -> Result<Arc<C>, E> {
        // The list is valid also after a panic, because it is changed by a single call.
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

    /// Whether there is no copy.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A clone has no copies: cloned numbers have memory of their own, on a device too.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn get(copies: &BackendCopies, device: u32) -> Arc<u32> {
        copies.get_or_make(|&copy: &u32| copy == device, || Ok::<_, ()>(device)).unwrap()
    }

    #[test]
    fn a_copy_is_made_once_for_each_device_and_type_and_a_clone_has_none() {
        let copies = BackendCopies::default();
        assert!(copies.is_empty());
        let first = get(&copies, 0);
        assert!(Arc::ptr_eq(&first, &get(&copies, 0)));
        assert_eq!((copies.len(), copies.is_empty()), (1, false));
        assert_eq!(*get(&copies, 1), 1);
        copies.get_or_make(|_: &String| true, || Ok::<_, ()>("of another type".to_owned())).unwrap();
        assert_eq!((copies.len(), copies.clone().len()), (3, 0));
        assert_eq!(format!("{copies:?}"), "BackendCopies { copies: 3 }");
    }

    #[test]
    fn a_copy_that_cannot_be_made_is_not_kept() {
        let copies = BackendCopies::default();
        assert_eq!(copies.get_or_make(|_: &u32| true, || Err("no memory")).unwrap_err(), "no memory");
        assert!(copies.is_empty());
    }
}
