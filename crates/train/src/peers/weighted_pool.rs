//! A pool of prompts of which a sample gets a weighted sum (CODA-Prompt, Smith et al., CVPR 2023, eq. 3 and
//! 4; RebQ's pools): Σ_k cos(q ⊙ a_k, key_k) · prompt_k, over keys, attention vectors and prompts. Each
//! session is given a share of the pool; shares of earlier sessions are frozen and still count in the sum.
use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor, Var};
use rand_chacha::ChaCha8Rng;

use delo_model::method::normal::gaussian;

/// Some places of the pool.
#[derive(Clone, Debug)]
struct Components {
    /// `[places, d]`
    keys: Tensor,
    /// `[places, d]`
    attention: Tensor,
    /// `[places, length · d]`
    prompts: Tensor,
}

/// The pool of one layer.
#[derive(Debug)]
pub(super) struct WeightedPool {
    /// The shares of earlier sessions; `None` in the first.
    frozen: Option<Components>,
    /// The newest session's share: keys, attention vectors, prompts, in the shapes of [`Components`].
    learning: [Var; 3],
}

impl Components {
    /// The weighted sum for each query: `[samples, d]` → `[samples, length · d]`.
    fn sum(&self, queries: &Tensor) -> Result<Tensor> {
        // The constants keep the gradient finite where a vector is zero.
        let lengths = (self.keys.sqr()?.sum_keepdim(D::Minus1)? + 1e-16)?.sqrt()?;
        let keys = self.keys.broadcast_div(&lengths)?;
        let along = queries.matmul(&(keys * &self.attention)?.t()?)?;
        let lengths = (queries.sqr()?.matmul(&self.attention.sqr()?.t()?)? + 1e-16)?.sqrt()?;
        (along / lengths)?.matmul(&self.prompts)
    }
}

impl WeightedPool {
    /// The pool with a share of `places` for a new session; `earlier` is the pool until then. All vectors of
    /// a share begin with length 1, orthogonal to each other and to those of earlier shares as far as their
    /// width allows.
    ///
    /// # Errors
    /// The tensors cannot be made.
    pub fn grown(earlier: Option<Self>, places: usize, length: usize, d: usize, rng: &mut ChaCha8Rng) -> Result<Self> {
        let frozen = earlier.map(Self::freeze).transpose()?;
        let mut share = |of: fn(&Components) -> &Tensor, width: usize| {
            let before = frozen.as_ref().map_or(Ok(Vec::new()), |frozen| of(frozen).to_vec2::<f32>())?;
            Var::from_tensor(&orthonormal(rng, places, width, before)?)
        };
        let learning = [share(|of| &of.keys, d)?, share(|of| &of.attention, d)?, share(|of| &of.prompts, length * d)?];
        Ok(Self { frozen, learning })
    }

    /// All shares, frozen.
    fn freeze(self) -> Result<Components> {
        let [keys, attention, prompts] = self.learning.each_ref().map(|var| var.as_tensor().detach());
        match self.frozen {
            None => Ok(Components { keys, attention, prompts }),
            Some(frozen) => Ok(Components {
                keys: Tensor::cat(&[frozen.keys, keys], 0)?,
                attention: Tensor::cat(&[frozen.attention, attention], 0)?,
                prompts: Tensor::cat(&[frozen.prompts, prompts], 0)?,
            }),
        }
    }

    /// The weighted sum over all shares for each query: `[samples, d]` → `[samples, length, d]`.
    ///
    /// # Errors
    /// Queries of another width.
    pub fn prompts(&self, queries: &Tensor) -> Result<Tensor> {
        let (samples, d) = queries.dims2()?;
        let [keys, attention, prompts] = self.learning.each_ref().map(|var| var.as_tensor().clone());
        let mut sum = Components { keys, attention, prompts }.sum(queries)?;
        if let Some(frozen) = &self.frozen {
            sum = (frozen.sum(queries)? + sum)?;
        }
        sum.reshape((samples, (), d))
    }

    /// The variables of the newest share, by name.
    pub fn vars(&self, name: &str) -> BTreeMap<String, Var> {
        ["keys", "attention", "prompts"]
            .into_iter()
            .zip(&self.learning)
            .map(|(part, var)| (format!("{name}.{part}"), var.clone()))
            .collect()
    }

    /// Numbers of all shares.
    pub fn elements(&self) -> usize {
        let frozen = self.frozen.iter().flat_map(|Components { keys, attention, prompts }| [keys, attention, prompts]);
        frozen.map(Tensor::elem_count).sum::<usize>() + self.learning.iter().map(|var| var.elem_count()).sum::<usize>()
    }
}

/// `count` random vectors of length 1, `[count, width]`: each orthogonal to the ones before, those of
/// `before` first, while there are fewer than `width` (Gram and Schmidt, in f64).
fn orthonormal(rng: &mut ChaCha8Rng, count: usize, width: usize, before: Vec<Vec<f32>>) -> Result<Tensor> {
    let unit = |x: Vec<f64>| {
        let length = x.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        x.into_iter().map(|x| x / length).collect::<Vec<_>>()
    };
    let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<_>>();
    // Vectors of earlier sessions are not orthogonal any more once they have learnt.
    let mut basis: Vec<Vec<f64>> = Vec::new();
    let independent = |basis: &[Vec<f64>], x: Vec<f64>| {
        let mut x = x;
        for other in basis.iter().take(width - 1) {
            let along: f64 = x.iter().zip(other).map(|(x, o)| x * o).sum();
            x.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
        }
        unit(x)
    };
    for x in before {
        let x = independent(&basis, wide(x));
        basis.push(x);
    }
    let mut values = Vec::with_capacity(count * width);
    for x in gaussian(rng, (count, width))?.to_vec2::<f32>()? {
        let x = if basis.len() < width { independent(&basis, wide(x)) } else { unit(wide(x)) };
        values.extend(x.iter().map(|&x| x as f32));
        basis.push(x);
    }
    Tensor::from_vec(values, (count, width), &Device::Cpu)
}

#[cfg(test)]
impl WeightedPool {
    /// The prompts of earlier sessions.
    pub fn frozen_prompts(&self) -> Vec<f32> {
        super::testing::numbers(&self.frozen.as_ref().unwrap().prompts)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_share_begins_orthonormal_and_the_sum_is_that_of_the_definition() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let first = WeightedPool::grown(None, 2, 2, 5, &mut rng).unwrap();
        let pool = WeightedPool::grown(Some(first), 2, 2, 5, &mut rng).unwrap();
        assert_eq!((pool.elements(), pool.vars("x").len()), (4 * (5 + 5 + 10), 3));
        let all = pool.freeze_copy();
        let keys = all.keys.to_vec2::<f32>().unwrap();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        for (i, a) in keys.iter().enumerate() {
            for (j, b) in keys.iter().enumerate() {
                assert!((dot(a, b) - f32::from(u8::from(i == j))).abs() < 1e-5, "{i} {j}");
            }
        }
        let query = [0.5f32, -1.0, 2.0, 0.0, 1.5];
        let (attention, prompts) = (all.attention.to_vec2::<f32>().unwrap(), all.prompts.to_vec2::<f32>().unwrap());
        let mut expected = [0f32; 10];
        for k in 0..4 {
            let seen: Vec<f32> = query.iter().zip(&attention[k]).map(|(q, a)| q * a).collect();
            let weight = dot(&seen, &keys[k]) / (dot(&seen, &seen) * dot(&keys[k], &keys[k])).sqrt();
            expected.iter_mut().zip(&prompts[k]).for_each(|(e, p)| *e += weight * p);
        }
        let found = pool.prompts(&Tensor::new(&[query], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(found.dims(), [1, 2, 5]);
        let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-5), "{found:?} for {expected:?}");
    }

    #[test]
    fn more_vectors_than_numbers_have_length_1() {
        let vectors = orthonormal(&mut ChaCha8Rng::seed_from_u64(1), 7, 3, Vec::new()).unwrap().to_vec2::<f32>().unwrap();
        assert!(vectors.iter().all(|x| (x.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5));
    }

    impl WeightedPool {
        fn freeze_copy(&self) -> Components {
            let copy = Self { frozen: self.frozen.clone(), learning: self.learning.clone() };
            copy.freeze().unwrap()
        }
    }
}
