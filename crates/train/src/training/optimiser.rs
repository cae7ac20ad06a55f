//! AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, 2019), with a state that can be stored and
//! continued.
use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var, bail};
use rayon::prelude::*;

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// β₁: decay of the first moment.
    pub beta1: f64,
    /// β₂: decay of the second moment.
    pub beta2: f64,
    /// ε: added to the root of the second moment.
    pub epsilon: f64,
    /// A step shrinks a variable by its learning rate times this.
    pub weight_decay: f64,
}

/// One variable with its moments; the value is kept beside the variable so that a step reads only the
/// gradient.
#[derive(Debug)]
struct Parameter {
    name: String,
    var: Var,
    value: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

/// The optimiser of one session's variables, all in f32.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    parameters: Vec<Parameter>,
    /// Steps taken.
    step: usize,
}

impl AdamW {
    /// An optimiser that has taken no step.
    ///
    /// # Errors
    /// A variable that is not in f32.
    pub fn new(vars: BTreeMap<String, Var>, config: AdamWConfig) -> Result<Self> {
        let parameter = |(name, var): (String, Var)| {
            let value = flat(&var)?;
            Ok(Parameter { name, first: vec![0.0; value.len()], second: vec![0.0; value.len()], value, var })
        };
        Ok(Self { config, parameters: vars.into_iter().map(parameter).collect::<Result<_>>()?, step: 0 })
    }

    /// Steps taken.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// One step at learning rate `rate`. A variable that the loss does not depend on keeps its value.
    ///
    /// # Errors
    /// A gradient that is not in f32.
    pub fn step(&mut self, gradients: &GradStore, rate: f64) -> Result<()> {
        self.step += 1;
        let AdamWConfig { beta1, beta2, epsilon, weight_decay } = self.config;
        // Bias corrections in f64: 1 − β₂ᵗ has no digits to lose at the first steps.
        let scale = (rate / (1.0 - beta1.powi(self.step as i32))) as f32;
        let root = (1.0 - beta2.powi(self.step as i32)).sqrt() as f32;
        let keep = (1.0 - rate * weight_decay) as f32;
        let (b1, b2, eps) = (beta1 as f32, beta2 as f32, epsilon as f32);
        self.parameters.par_iter_mut().try_for_each(|p| {
            let Some(gradient) = gradients.get(&p.var) else { return Ok(()) };
            let gradient = flat(gradient)?;
            for (((x, m), v), g) in p.value.iter_mut().zip(&mut p.first).zip(&mut p.second).zip(gradient) {
                *m = b1 * *m + (1.0 - b1) * g;
                *v = b2 * *v + (1.0 - b2) * g * g;
                *x = keep * *x - scale * *m / (v.sqrt() / root + eps);
            }
            p.var.set(&Tensor::from_slice(&p.value, p.var.shape(), p.var.device())?)
        })
    }

    /// Variables and moments by name: `value.NAME`, `first.NAME`, `second.NAME`.
    ///
    /// # Errors
    /// Those of candle, none of which is expected.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for p in &self.parameters {
            for (part, data) in [("value", &p.value), ("first", &p.first), ("second", &p.second)] {
                state.insert(format!("{part}.{}", p.name), Tensor::from_slice(data, p.var.shape(), &Device::Cpu)?);
            }
        }
        Ok(state)
    }

    /// Continues from the [`AdamW::state`] after `step` steps; the variables take its values.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape than its variable.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>, step: usize) -> Result<()> {
        for p in &mut self.parameters {
            let read = |part: &str| {
                let name = format!("{part}.{}", p.name);
                match state.get(&name) {
                    Some(tensor) if tensor.shape() == p.var.shape() => flat(tensor),
                    Some(tensor) => bail!("{name} has shape {:?}, expected {:?}", tensor.shape(), p.var.shape()),
                    None => bail!("{name} is missing"),
                }
            };
            (p.value, p.first, p.second) = (read("value")?, read("first")?, read("second")?);
            p.var.set(&Tensor::from_slice(&p.value, p.var.shape(), p.var.device())?)?;
        }
        self.step = step;
        Ok(())
    }
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weight_decay: 0.01 };

    fn one(value: f32) -> (Var, AdamW) {
        let var = Var::new(&[value], &Device::Cpu).unwrap();
        let optimiser = AdamW::new(BTreeMap::from([("w".to_owned(), var.clone())]), CONFIG).unwrap();
        (var, optimiser)
    }

    /// The gradient of 3w is 3, that of 3w² is 6w.
    fn step(var: &Var, optimiser: &mut AdamW, square: bool) {
        let x = if square { var.sqr().unwrap() } else { var.as_tensor().clone() };
        optimiser.step(&(x * 3.0).unwrap().sum_all().unwrap().backward().unwrap(), 0.1).unwrap();
    }

    #[test]
    fn steps_as_computed_by_hand() {
        let (var, mut optimiser) = one(2.0);
        step(&var, &mut optimiser, false);
        // m̂ = 3, v̂ = 9: 2·(1 − 0.1·0.01) − 0.1·3/3 = 1.898
        let w1 = 1.898_f64;
        assert!((f64::from(flat(&var).unwrap()[0]) - w1).abs() < 1e-6);
        step(&var, &mut optimiser, true);
        let g = 6.0 * w1;
        let (m, v) = (0.9 * 0.3 + 0.1 * g, 0.98 * 0.18 + 0.02 * g * g);
        let w2 = w1 * 0.999 - 0.1 * (m / (1.0 - 0.81)) / ((v / (1.0 - 0.9604)).sqrt() + 1e-8);
        assert!((f64::from(flat(&var).unwrap()[0]) - w2).abs() < 1e-6);
        assert_eq!(optimiser.steps(), 2);
    }

    #[test]
    fn continues_from_its_state_bit_for_bit() {
        let (whole, mut optimiser) = one(2.0);
        step(&whole, &mut optimiser, true);
        let (resumed, mut other) = one(-7.0);
        other.restore(&optimiser.state().unwrap(), optimiser.steps()).unwrap();
        for _ in 0..3 {
            step(&whole, &mut optimiser, true);
            step(&resumed, &mut other, true);
        }
        assert_eq!(flat(&whole).unwrap(), flat(&resumed).unwrap());
        assert!(other.restore(&BTreeMap::new(), 0).unwrap_err().to_string().contains("value.w is missing"));
    }

    #[test]
    fn a_variable_outside_the_loss_keeps_its_value() {
        let (var, mut optimiser) = one(2.0);
        let other = Var::new(&[1.0_f32], &Device::Cpu).unwrap();
        optimiser.step(&other.sum_all().unwrap().backward().unwrap(), 0.1).unwrap();
        assert_eq!(flat(&var).unwrap(), [2.0]);
    }
}
