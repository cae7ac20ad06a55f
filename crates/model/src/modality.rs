//! The modalities of a sample, and one value for each of them ([`PerModality`]).
use std::ops::{Index, IndexMut};

/// A kind of input. Factor pools stand in artifacts and in memory in the order of the variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Modality {
    /// The image; its factor pools are called `visual`.
    Image,
    /// The text; its factor pools are called `textual`.
    Text,
}

impl Modality {
    /// All of them, in order.
    pub const ALL: [Self; 2] = [Self::Image, Self::Text];

    /// The name of its factor pools in artifacts, answers and metrics: `visual` or `textual`.
    pub fn pool_name(self) -> &'static str {
        match self {
            Self::Image => "visual",
            Self::Text => "textual",
        }
    }
}

/// One value for each modality.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerModality<T> {
    /// The image's value.
    pub image: T,
    /// The text's value.
    pub text: T,
}

impl<T> PerModality<T> {
    /// The values by reference.
    pub fn as_ref(&self) -> PerModality<&T> {
        PerModality { image: &self.image, text: &self.text }
    }

    /// Each modality with its value, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Modality, &T)> {
        Modality::ALL.into_iter().map(|modality| (modality, &self[modality]))
    }
}

impl<T> Index<Modality> for PerModality<T> {
    type Output = T;

    fn index(&self, modality: Modality) -> &T {
        match modality {
            Modality::Image => &self.image,
            Modality::Text => &self.text,
        }
    }
}

impl<T> IndexMut<Modality> for PerModality<T> {
    fn index_mut(&mut self, modality: Modality) -> &mut T {
        match modality {
            Modality::Image => &mut self.image,
            Modality::Text => &mut self.text,
        }
    }
}
