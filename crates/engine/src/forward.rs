//! The frozen layers over a packed stream, for whoever trains on it or looks at it.
use std::borrow::Borrow;
use std::ops::Range;

use candle_core::Result;

use super::backend::{Backend, Dummy};
use super::packed::Packed;
use super::tensors::from_rows;
use super::{Compute, Engine, signals, with_backend};
use delo_model::input::Sample;
use delo_model::routing::keys::{KeySignal, Signals};

impl Engine {
    /// Hidden states entering layer 0; the dummy text, and a white image of `dummy_image` = [height, width] pixels, in place of what is missing.
    pub fn embed(&self, samples: &[impl Borrow<Sample>], dummy_image: [usize; 2]) -> Result<Packed> {
        let samples: Vec<&Sample> = samples.iter().map(Borrow::borrow).collect();
        with_backend!(&self.compute, backbone => {
            let (hidden, spans) = in_pool(|| backbone.embed(&samples, self.dummy(dummy_image)))?;
            Ok(Packed { hidden: backbone.to_tensor(&hidden)?, spans: spans.into() })
        })
    }

    /// Frozen layers over a stream: from the state entering `layers.start` to the state entering `layers.end`.
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

    /// The frozen backbone's signals, from the state entering layer 0, those of `wanted` only.
    pub fn signals(&self, packed: &Packed, wanted: &[KeySignal]) -> Result<Signals> {
        let layers = self.backbone.config.num_hidden_layers;
        let found = with_backend!(&self.compute, backbone => {
            let hidden = backbone.load_tensor(&packed.hidden)?;
            in_pool(|| signals::signals(backbone, hidden, &packed.spans, layers, wanted))?
        });
        found.into_iter().map(|(signal, rows)| Ok((signal, from_rows(&rows)?))).collect()
    }

    pub(super) fn dummy(&self, image: [usize; 2]) -> Dummy<'_> {
        Dummy { text: &self.dummy_text, image }
    }
}

/// Runs `f` on a thread of the compute pool, so that the pieces of its work are handed out without waking anybody.
pub fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}
