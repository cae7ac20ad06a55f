//! The queries by which the factors of each layer are chosen, for diagnostics (METHOD.md 2, 3).
use std::borrow::Borrow;
use std::ops::Range;
use std::sync::Arc;

use candle_core::Result;

use super::Engine;
use super::backend::{Adapters, Backend};
use super::forward::in_pool;
use super::packed::Span;
use super::prompted::with_prompts;
use crate::compute::with_backend;
use delo_catalogue::Resident;
use delo_model::PerModality;
use delo_model::input::Sample;

/// The queries of one state: a vector `[d]` of each modality for each sample.
pub type Queries = Vec<PerModality<Vec<f32>>>;

impl Engine {
    /// The queries of the state that enters each layer, `[layers]`; the proxy's query where a modality is
    /// missing. With `residents`, one for each sample, their adapters are added to the layers; with `None`,
    /// the layers are the frozen ones. `dummy_image` is the height and width in pixels of the image that
    /// stands in for a missing one. Blocking.
    ///
    /// # Errors
    /// A failed forward pass.
    ///
    /// # Panics
    /// If there are residents, but not one for each sample.
    pub fn layer_queries(
        &self,
        samples: &[impl Borrow<Sample>],
        dummy_image: [usize; 2],
        residents: Option<&[Arc<Resident>]>,
    ) -> Result<Vec<Queries>> {
        let samples: Vec<&Sample> = samples.iter().map(Borrow::borrow).collect();
        assert!(residents.is_none_or(|residents| residents.len() == samples.len()), "a sample has one partition");
        let layers = self.backbone.config.num_hidden_layers;
        with_backend!(&self.compute, backbone => in_pool(|| {
            let (mut hidden, mut spans) = backbone.embed(&samples, self.dummy(dummy_image))?;
            let adapters = residents.map(|residents| residents.iter().map(|resident| &resident.partition.adapter).collect());
            let mut adapters = adapters.map(Adapters::new);
            if let Some(residents) = residents.filter(|residents| residents.iter().any(|r| r.partition.adapter.prompt_pool().is_some())) {
                let copy = backbone.select(&hidden, &spans)?;
                let cls = backbone.normalised(&backbone.run_to_cls(copy, &spans, 0)?)?;
                let prompted = residents.iter().zip(&cls).map(|(resident, cls)| (&resident.partition.adapter, Some(cls.as_slice())));
                (hidden, spans) = with_prompts(backbone, hidden, spans, prompted)?;
            }
            let mut of_layers = vec![queries(backbone, &hidden, &spans)?];
            for layer in 1..layers {
                backbone.run(&mut hidden, &spans, layer - 1..layer, adapters.as_mut())?;
                of_layers.push(queries(backbone, &hidden, &spans)?);
            }
            Ok(of_layers)
        }))
    }
}

fn queries<B: Backend>(backbone: &B, hidden: &B::Hidden, spans: &[Span]) -> Result<Queries> {
    let means = |rows: fn(&Span) -> Range<usize>| backbone.means(hidden, &spans.iter().map(rows).collect::<Vec<_>>());
    let (image, text) = (means(|span| span.query_rows().image)?, means(|span| span.query_rows().text)?);
    Ok(image.into_iter().zip(text).map(|(image, text)| PerModality { image, text }).collect())
}
