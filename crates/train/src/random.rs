//! Random choices that are the same on every machine: ChaCha streams and integer sampling of our own.
use rand::RngCore;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// What a stream of random numbers is for. Streams of two purposes are different for every seed and place.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// Which items lose a modality; place = (task id, split).
    Missing = 1,
    /// The order of the samples; place = (task id, epoch).
    Order = 2,
    /// Which modality the consistency loss hides; place = (task id, step).
    Hidden = 3,
    /// The parameters at the start; place = (task id, 0).
    Start = 4,
    /// Which groups a bootstrap draws; place = (draw, stratum).
    Bootstrap = 5,
    /// The random projection of a peer; place = (0, 0).
    Projection = 6,
    /// Which groups of training items are kept; place = (task id, class).
    Share = 7,
}

/// The stream for one purpose, seed and place. Every place has a stream of its own, which does not depend on
/// how many numbers were drawn for another.
pub fn stream(purpose: Purpose, seed: u64, place: (u64, u64)) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (chunk, word) in key.chunks_exact_mut(8).zip([purpose as u64, seed, place.0, place.1]) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A uniform integer below `bound` (> 0), without modulo bias.
pub fn below(rng: &mut impl RngCore, bound: usize) -> usize {
    let bound = bound as u64;
    let zone = u64::MAX - u64::MAX % bound;
    loop {
        let drawn = rng.next_u64();
        if drawn < zone {
            return (drawn % bound) as usize;
        }
    }
}

/// `count` distinct integers below `len`, in random order; `count = len` is a permutation.
pub fn choose(rng: &mut impl RngCore, len: usize, count: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..len).collect();
    for i in 0..count.min(len) {
        let other = i + below(rng, len - i);
        all.swap(i, other);
    }
    all.truncate(count);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_holds_every_index_once_and_depends_on_seed_and_place() {
        let draw = |seed, place| choose(&mut stream(Purpose::Order, seed, place), 50, 50);
        let mut sorted = draw(0, (3, 1));
        assert_eq!(sorted, draw(0, (3, 1)));
        assert_ne!(sorted, draw(1, (3, 1)));
        assert_ne!(sorted, draw(0, (3, 2)));
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn choices_never_change() {
        assert_eq!(choose(&mut stream(Purpose::Missing, 0, (0, 0)), 10, 4), [7, 2, 4, 6]);
    }

    #[test]
    fn integers_are_uniform() {
        let mut rng = stream(Purpose::Hidden, 7, (0, 0));
        let mut counts = [0; 6];
        for _ in 0..6_000 {
            counts[below(&mut rng, 6)] += 1;
        }
        assert!(counts.iter().all(|c| (850..1_150).contains(c)), "{counts:?}");
    }
}
