//! The frozen layers over packed states, for training and evaluation.
use std::borrow::Borrow;
use std::ops::Range;

use candle_core::Result;

use super::backend::{Backend, Dummy};
use super::packed::Packed;
use super::tensors::from_rows;
use super::{Engine, signals};
use crate::compute::with_backend;
use delo_model::input::Sample;
use delo_model::routing::keys::{KeySignal, Signals};

impl Engine {
    /// Hidden states that enter layer 0. The dummy text stands in for a missing text, and a white image of
    /// `dummy_image` = [height, width] pixels for a missing image. Blocking.
    ///
    /// # Errors
    /// A text of more tokens than the backbone has positions, a token id outside its vocabulary, or an image
    /// whose sides are no multiples of the patch.
    pub fn embed(&self, samples: &[impl Borrow<Sample>], dummy_image: [usize; 2]) -> Result<Packed> {
        let samples: Vec<&Sample> = samples.iter().map(Borrow::borrow).collect();
        with_backend!(&self.compute, backbone => {
            let (hidden, spans) = in_pool(|| backbone.embed(&samples, self.dummy(dummy_image)))?;
            Ok(Packed { hidden: backbone.to_tensor(&hidden)?, spans: spans.into() })
        })
    }

    /// Runs frozen layers: from the state that enters `layers.start` to the state that enters `layers.end`.
    /// Blocking.
    ///
    /// # Errors
    /// A failed forward pass.
    pub fn run_frozen(&self, packed: &Packed, layers: Range<usize>) -> Result<Packed> {
        if layers.is_empty() {
            return Ok(packed.clone());
        }
        with_backend!(&self.compute, backbone => {
            let mut hidden = backbone.load_tensor(&packed.hidden)?;
            in_pool(|| backbone.run(&mut hidden, &packed.spans, layers, None))?;
            Ok(packed.with_hidden(backbone.to_tensor(&hidden)?))
        })
    }

    /// The `wanted` signals of the frozen backbone, `[samples, width]` each (METHOD.md 4, ROUTING.md 2).
    /// `packed` is the state that enters layer 0. Blocking.
    ///
    /// # Errors
    /// A failed forward pass.
    pub fn signals(&self, packed: &Packed, wanted: &[KeySignal]) -> Result<Signals> {
        let layers = self.backbone.config.num_hidden_layers;
        let found = with_backend!(&self.compute, backbone => {
            let hidden = backbone.load_tensor(&packed.hidden)?;
            in_pool(|| signals::signals(backbone, hidden, &packed.spans, layers, wanted))?
        });
        found.into_iter().map(|(signal, rows)| Ok((signal, from_rows(&rows)?))).collect()
    }

    /// The stand-ins for missing modalities, with a dummy image of this height and width in pixels.
    pub(super) fn dummy(&self, image: [usize; 2]) -> Dummy<'_> {
        Dummy { text: &self.dummy_text, image }
    }
}

/// Runs `f` on a thread of the compute pool, and blocks until it has returned. The pieces of work that it
/// makes then need no wake-up of the pool from outside.
pub fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}
