//! What training multiplies by, beside the backbone's own weights.
use std::sync::{Arc, OnceLock};

use super::{CpuBackend, Layer};
use delo_kernels::{Format, Kernel, PackedMatrix, Precision, bf16};

/// The matrices of the linear maps of a layer, or their transposes.
#[derive(Debug)]
pub struct LayerMatrices<F: Format> {
    pub qkv: PackedMatrix<F>,
    pub attention_output: PackedMatrix<F>,
    pub intermediate: PackedMatrix<F>,
    pub output: PackedMatrix<F>,
}

/// What a layer multiplies by in training, where its products are in bf16.
#[derive(Debug)]
pub struct HalfLayer {
    pub kernel: Kernel<bf16>,
    pub forward: LayerMatrices<bf16>,
    pub back: LayerMatrices<bf16>,
}

/// What training multiplies by, beside the weights: packed at first use.
#[derive(Debug)]
pub struct LearningMatrices {
    precision: Precision,
    transposes: OnceLock<Vec<Arc<LayerMatrices<f32>>>>,
    half: OnceLock<Vec<Arc<HalfLayer>>>,
    pooler: OnceLock<Arc<PackedMatrix<f32>>>,
}

impl<F: Format> LayerMatrices<F> {
    fn of(layer: &Layer<f32>, make: impl Fn(&PackedMatrix<f32>) -> PackedMatrix<F>) -> Self {
        Self {
            qkv: make(&layer.qkv.weight),
            attention_output: make(&layer.attention_output.weight),
            intermediate: make(&layer.intermediate.weight),
            output: make(&layer.output.weight),
        }
    }
}

impl Default for LearningMatrices {
    /// Products in f32.
    fn default() -> Self {
        Self { precision: Precision::F32, transposes: OnceLock::new(), half: OnceLock::new(), pooler: OnceLock::new() }
    }
}

impl CpuBackend<f32> {
    /// The same backbone, whose layers multiply in this format where a task learns.
    pub fn learning_in(mut self, precision: Precision) -> Self {
        self.learning.precision = precision;
        self
    }

    /// The number format of the products of layers that learn.
    pub fn learning_precision(&self) -> Precision {
        self.learning.precision
    }

    /// The transposed weights of a layer, by which a backward pass multiplies.
    pub fn transposed_layer(&self, index: usize) -> Arc<LayerMatrices<f32>> {
        let of_layer = |layer: &Arc<Layer<f32>>| Arc::new(LayerMatrices::of(layer, PackedMatrix::transposed));
        self.learning.transposes.get_or_init(|| self.layers.iter().map(of_layer).collect())[index].clone()
    }

    /// The weights of a layer in bf16, and their transposes.
    pub fn half_layer(&self, index: usize) -> Arc<HalfLayer> {
        let rounded = |weight: &PackedMatrix<f32>| PackedMatrix::<bf16>::new(&[&weight.unpack()], weight.k());
        let of_layer = |layer: &Arc<Layer<f32>>| {
            let (forward, back) = (LayerMatrices::of(layer, rounded), LayerMatrices::of(layer, |weight| rounded(weight).transposed()));
            Arc::new(HalfLayer { kernel: <bf16 as Format>::kernel(self.kernel.isa), forward, back })
        };
        self.learning.half.get_or_init(|| self.layers.iter().map(of_layer).collect())[index].clone()
    }

    /// The transposed weights of the pooler.
    pub fn transposed_pooler(&self) -> Arc<PackedMatrix<f32>> {
        self.learning.pooler.get_or_init(|| Arc::new(self.pooler.weight.transposed())).clone()
    }
}
