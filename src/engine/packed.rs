//! Several samples' tokens in one stream: what is computed per token runs once over everything, attention runs per sample.
use std::sync::Arc;

use candle_core::Tensor;

use crate::input::Presence;

/// Where one sample stands in the stream: `[text CLS, text…, SEP][image CLS, patches…]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The row of the text CLS.
    pub start: usize,
    /// Text tokens, CLS and SEP included.
    pub text: usize,
    /// Image tokens, CLS included.
    pub image: usize,
    /// Which query signals are true; the other is replaced by its proxy (METHOD.md 3).
    pub presence: Presence,
}

/// Hidden states of several samples, one after another.
#[derive(Clone, Debug)]
pub struct Packed {
    /// `[tokens, d]`
    pub hidden: Tensor,
    pub spans: Arc<[Span]>,
}

impl Packed {
    /// One stream from several, in order.
    pub fn concat(_parts: &[Packed]) -> candle_core::Result<Packed> {
        todo!()
    }

    /// The samples at `rows`, in that order.
    pub fn select(&self, _rows: &[usize]) -> candle_core::Result<Packed> {
        todo!()
    }
}
