//! A product with frozen weights, for training: candle's own product would give the weights a gradient too.
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor};

use delo_model::vilt::Linear;

/// `x Wᵀ + b` of frozen W and b: `[rows, in]` → `[rows, out]`, differentiable in x alone.
///
/// # Errors
/// x has another width than W.
pub(super) fn frozen(map: &Linear, x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&map.weight, FrozenProduct)?.broadcast_add(&map.bias)
}

/// `(x, W)` → `x Wᵀ`; the backward pass computes the gradient of x and none of W.
struct FrozenProduct;

fn product<S: BackendStorage>(x: &S, x_layout: &Layout, weight: &S, weight_layout: &Layout) -> Result<(S, Shape)> {
    let ((rows, width), (out, _)) = (x_layout.shape().dims2()?, weight_layout.shape().dims2()?);
    let product = x.matmul(weight, (1, rows, out, width), x_layout, &weight_layout.transpose(0, 1)?)?;
    Ok((product, Shape::from((rows, out))))
}

impl CustomOp2 for FrozenProduct {
    fn name(&self) -> &'static str {
        "frozen-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, weight: &CpuStorage, weight_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        product(x, x_layout, weight, weight_layout)
    }

    fn cuda_fwd(&self, x: &CudaStorage, x_layout: &Layout, weight: &CudaStorage, weight_layout: &Layout) -> Result<(CudaStorage, Shape)> {
        product(x, x_layout, weight, weight_layout)
    }

    fn metal_fwd(
        &self,
        x: &MetalStorage,
        x_layout: &Layout,
        weight: &MetalStorage,
        weight_layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        product(x, x_layout, weight, weight_layout)
    }

    fn bwd(&self, _: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.contiguous()?.matmul(weight)?), None))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn it_is_the_product_and_gives_the_weight_no_gradient() {
        let weight = Var::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, -1.0]], &Device::Cpu).unwrap();
        let map = Linear { weight: weight.as_tensor().clone(), bias: Tensor::new(&[0.5f32, 0.0, -0.5], &Device::Cpu).unwrap() };
        let x = Var::new(&[[2f32, -1.0], [0.0, 3.0]], &Device::Cpu).unwrap();
        let out = frozen(&map, &x).unwrap();
        assert_eq!(out.to_vec2::<f32>().unwrap(), [[0.5, 2.0, 10.5], [6.5, 12.0, -3.5]]);
        let gradients = out.sum_all().unwrap().backward().unwrap();
        assert_eq!(gradients.get(&x).unwrap().to_vec2::<f32>().unwrap(), [[9.0, 5.0], [9.0, 5.0]], "the sums of W's columns");
        assert!(gradients.get(&weight).is_none());
    }
}
