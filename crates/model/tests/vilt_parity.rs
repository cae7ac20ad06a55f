//! The backbone computes what `transformers` computes. Fixtures: tools/fixtures/vilt.py.
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use delo_model::input::Pixels;
use delo_model::model_dir::ModelDir;
use delo_model::vilt::{Output, PaddedInput, Vilt};

/// The largest allowed difference of a hidden state or a pooled value.
const BAR: f32 = 1e-4;

fn fixtures() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures/vilt")
}

struct Expected(HashMap<String, Tensor>);

impl Expected {
    fn open(file: &Path) -> Self {
        Self(candle_core::safetensors::load(file, &Device::Cpu).unwrap())
    }

    fn get(&self, name: &str) -> Tensor {
        self.0[name].clone()
    }

    fn samples(&self) -> usize {
        self.0.keys().filter(|name| name.ends_with(".ids")).count()
    }

    fn inputs(&self) -> Vec<PaddedInput> {
        (0..self.samples())
            .map(|i| {
                let ids = self.get(&format!("{i}.ids")).to_vec1::<i64>().unwrap();
                let pixels = self.get(&format!("{i}.pixels"));
                let (_, height, width) = pixels.dims3().unwrap();
                let data = pixels.flatten_all().unwrap().to_vec1::<u8>().unwrap();
                let data = data.into_iter().map(|value| f32::from(value) / 127.5 - 1.0).collect();
                PaddedInput { text: ids.into_iter().map(|id| id as u32).collect(), image: Pixels { height, width, data } }
            })
            .collect()
    }
}

/// The states of the real tokens of one row: `[layers + 1, tokens, d]`.
fn real_states(output: &Output, row: usize) -> Tensor {
    let mask = output.mask.get(row).unwrap().to_vec1::<f32>().unwrap();
    let real: Vec<u32> = (0u32..).zip(&mask).filter(|&(_, &m)| m > 0.0).map(|(i, _)| i).collect();
    let real = Tensor::new(real, &Device::Cpu).unwrap();
    let states: Vec<_> = output.states.iter().map(|s| s.get(row).unwrap().index_select(&real, 0).unwrap()).collect();
    Tensor::stack(&states, 0).unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let worst = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_dtype(DType::F32).unwrap();
    worst.to_scalar().unwrap()
}

fn agrees(checkpoint: &str) {
    let dir = fixtures().join(checkpoint);
    let vilt = Vilt::load(&ModelDir::Path(dir.clone()), &Device::Cpu).unwrap();
    let expected = Expected::open(&dir.join("expected.safetensors"));
    let inputs = expected.inputs();
    let together = vilt.forward(&inputs).unwrap();
    let (mut states, mut pooled) = (0f32, 0f32);
    for (i, input) in inputs.iter().enumerate() {
        let alone = vilt.forward(std::slice::from_ref(input)).unwrap();
        for (output, row) in [(&together, i), (&alone, 0)] {
            states = states.max(difference(&real_states(output, row), &expected.get(&format!("{i}.states"))));
            pooled = pooled.max(difference(&output.pooled.get(row).unwrap(), &expected.get(&format!("{i}.pooled"))));
        }
    }
    println!("{checkpoint}: worst difference of {} samples: states {states:e}, pooled {pooled:e}", inputs.len());
    assert!(states <= BAR && pooled <= BAR, "{checkpoint}: states differ by {states}, pooled by {pooled}");
}

#[test]
fn agrees_with_transformers_on_a_bare_f32_checkpoint() {
    agrees("plain");
}

#[test]
fn agrees_with_transformers_on_a_checkpoint_with_prefix_and_head() {
    agrees("masked-lm");
}

#[test]
fn agrees_with_transformers_on_an_f16_checkpoint() {
    agrees("half");
}

#[test]
fn agrees_with_transformers_on_a_bf16_checkpoint_without_qkv_bias() {
    agrees("brain");
}

#[test]
fn agrees_with_transformers_on_the_embedded_checkpoint_and_real_samples() {
    let vilt = Vilt::load(&ModelDir::Embedded, &Device::Cpu).unwrap();
    let expected = Expected::open(&fixtures().join("emoji-mini.safetensors"));
    let inputs = expected.inputs();
    let output = vilt.forward(&inputs).unwrap();
    let (mut parts, mut pooled) = (0f32, 0f32);
    for (i, input) in inputs.iter().enumerate() {
        let states = real_states(&output, i);
        let (text, tokens) = (input.text.len(), states.dim(1).unwrap());
        let mean = |from: usize, to: usize| match to - from {
            0 => states.narrow(1, 0, 1).unwrap().squeeze(1).unwrap().zeros_like().unwrap(),
            n => states.narrow(1, from, n).unwrap().mean(1).unwrap(),
        };
        let cls = |at: usize| states.narrow(1, at, 1).unwrap().squeeze(1).unwrap();
        let all = Tensor::stack(&[mean(1, text - 1), mean(text + 1, tokens), cls(0), cls(text)], 1).unwrap();
        parts = parts.max(difference(&all, &expected.get(&format!("{i}.parts"))));
        pooled = pooled.max(difference(&output.pooled.get(i).unwrap(), &expected.get(&format!("{i}.pooled"))));
    }
    println!("emoji-mini: worst difference of {} samples: parts {parts:e}, pooled {pooled:e}", inputs.len());
    assert!(parts <= BAR && pooled <= BAR, "parts differ by {parts}, pooled by {pooled}");
}
