//! The query signals of a layer, before proxies: the mean hidden state of each modality (METHOD.md 2).
use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::packed::Span;
use crate::tensors::{values, with_values};

/// `[tokens, d]` → `[2 · samples, d]`: the mean over each sample's patches, then the mean over each sample's
/// text tokens, both without CLS and SEP. The mean of an empty text is zero or, of its own dummy, that of these
/// two.
#[derive(Debug)]
pub struct SegmentMean {
    pub spans: Arc<[Span]>,
    /// Whether an empty text is a dummy, whose CLS and SEP count.
    pub dummies: bool,
}

impl SegmentMean {
    /// The rows averaged into each row of the output.
    fn segments(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let text = |span: &Span| if self.dummies { span.own_rows().text } else { span.words() };
        self.spans.iter().map(Span::patches).chain(self.spans.iter().map(text))
    }
}

impl CustomOp1 for SegmentMean {
    fn name(&self) -> &'static str {
        "segment-mean"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let d = layout.shape().dims2()?.1;
        let mut out = vec![0.0; 2 * self.spans.len() * d];
        for (out, rows) in out.chunks_exact_mut(d).zip(self.segments()) {
            let scale = 1.0 / rows.len().max(1) as f32;
            for row in x[rows.start * d..rows.end * d].chunks_exact(d) {
                out.iter_mut().zip(row).for_each(|(o, &x)| *o += x);
            }
            out.iter_mut().for_each(|o| *o *= scale);
        }
        Ok((CpuStorage::F32(out), Shape::from((2 * self.spans.len(), d))))
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let d = arg.dim(1)?;
        let mut out = vec![0.0; arg.elem_count()];
        with_values(grad, |grad| {
            for (grad, rows) in grad.chunks_exact(d).zip(self.segments()) {
                let scale = 1.0 / rows.len().max(1) as f32;
                for row in out[rows.start * d..rows.end * d].chunks_exact_mut(d) {
                    row.iter_mut().zip(grad).for_each(|(o, &g)| *o += g * scale);
                }
            }
        })?;
        Ok(Some(Tensor::from_vec(out, arg.shape(), arg.device())?))
    }
}
