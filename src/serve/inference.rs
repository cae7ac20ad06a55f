//! What the compute thread runs: one forward pass over the catalogue that is live when the batch starts.
use std::sync::Arc;

use super::batcher::BatchRunner;
use delo_engine::{Answer, Engine, EngineError, Query, in_pool};
use delo_registry::CatalogueOwner;

/// The engine with the live catalogue.
#[derive(Debug)]
pub struct Inference {
    pub engine: Arc<Engine>,
    pub registry: Arc<CatalogueOwner>,
}

impl BatchRunner for Inference {
    type Job = Query;
    type Outcome = Result<Answer, EngineError>;

    fn tokens(&self, job: &Query) -> usize {
        self.engine.query_tokens(&self.registry.catalogue(), job)
    }

    /// One snapshot of the catalogue for the whole batch: a sample is served by the catalogue that it was
    /// routed with, whatever is loaded meanwhile.
    fn run(&self, jobs: &[Query]) -> Vec<Self::Outcome> {
        let catalogue = self.registry.catalogue();
        self.engine.classify(&catalogue, jobs)
    }

    fn on_pool(&self, work: impl FnOnce() + Send) {
        in_pool(work);
    }
}
