//! A pool of prompts with keys, of which a sample takes those whose keys are nearest to it.
use delo_kernels::elementwise::dot;

use super::selection::top;

/// A pool of prompts, ready to serve. Those that a sample takes go through all layers behind the sample's own
/// tokens. They are states that enter layer 0 and stay in f32, as all states do.
#[derive(Clone, Debug)]
pub struct PromptPool {
    hidden: usize,
    /// Tokens of a prompt.
    length: usize,
    /// Prompts that a sample takes.
    chosen: usize,
    /// `[pool, length, d]`
    tokens: Vec<f32>,
    /// `[pool, d]`
    keys: Vec<f32>,
}

impl PromptPool {
    /// A pool of the prompts `[pool, length, d]` with the keys `[pool, d]`, d = `hidden`.
    ///
    /// # Panics
    /// If the numbers do not fill these shapes.
    pub fn new(hidden: usize, length: usize, chosen: usize, tokens: Vec<f32>, keys: Vec<f32>) -> Self {
        assert!(
            keys.len().is_multiple_of(hidden) && tokens.len() == keys.len() * length,
            "{} numbers of prompts, {} of keys",
            tokens.len(),
            keys.len()
        );
        Self { hidden, length, chosen, tokens, keys }
    }

    /// How many tokens a sample takes.
    pub fn sample_tokens(&self) -> usize {
        self.chosen * self.length
    }

    /// The tokens that a sample takes, `[d]` each, prompt by prompt, by its frozen text CLS after the final
    /// norm, `[d]`.
    pub fn tokens_for(&self, frozen_cls: &[f32]) -> impl Iterator<Item = &[f32]> {
        let of_prompt = self.length * self.hidden;
        let chosen = nearest(&self.keys, frozen_cls, self.chosen);
        chosen.into_iter().flat_map(move |prompt| self.tokens[prompt as usize * of_prompt..][..of_prompt].chunks_exact(self.hidden))
    }
}

/// The numbers of the `chosen` keys with the largest cosines with a query `[d]`, the largest first, ties to
/// the lower number. A key of length 0 has the cosine 0. `keys` is `[pool, d]`.
pub(super) fn nearest(keys: &[f32], query: &[f32], chosen: usize) -> Vec<u32> {
    let scaled_cosine = |key: &[f32]| {
        let length = dot(key, key).sqrt();
        // The query's own length is the same for all keys.
        if length > 0.0 { dot(key, query) / length } else { 0.0 }
    };
    let cosines: Vec<f32> = keys.chunks_exact(query.len()).map(scaled_cosine).collect();
    top(&cosines, chosen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_takes_the_prompts_of_the_nearest_keys_whatever_their_lengths() {
        let keys = [[100.0, 0.0], [0.0, 0.5], [0.0, 0.0], [-3.0, 0.0]].concat();
        assert_eq!(nearest(&keys, &[1.0, 2.0], 3), [1, 0, 2]);
        assert_eq!(nearest(&keys, &[-1.0, 0.0], 2), [3, 1], "ties to the lower number");
        let tokens = (0..16).map(|i| i as f32).collect();
        let pool = PromptPool::new(2, 2, 2, tokens, keys);
        assert_eq!(pool.sample_tokens(), 4);
        let found: Vec<&[f32]> = pool.tokens_for(&[-1.0, 0.0]).collect();
        assert_eq!(found, [[12.0, 13.0], [14.0, 15.0], [4.0, 5.0], [6.0, 7.0]]);
    }

    #[test]
    #[should_panic(expected = "3 numbers of prompts, 4 of keys")]
    fn prompts_that_do_not_fill_the_shape_are_refused() {
        PromptPool::new(2, 1, 1, vec![0.0; 3], vec![0.0; 4]);
    }
}
