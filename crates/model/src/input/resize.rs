//! The resampling of 8-bit RGB images of Pillow 13.0.0, bit for bit: `src/libImaging/Resample.c` and, for the nearest pixel, `Geometry.c` of
//! <https://github.com/python-pillow/Pillow/tree/13.0.0>.
//!
//! Each of its two passes rounds and clips to 8 bits. At sharp edges, where a cubic filter overshoots, the order of the passes makes tens of levels of
//! difference, so that the order is kept too. It is another one in older versions: up to 12.0.0, rows are always filtered first.
use std::f64::consts::PI;

/// Fractional bits of a filter's weights: what a 32-bit sum of 8-bit values leaves, less two for sign and overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Pillow's resampling filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

impl Filter {
    /// The filter behind Pillow's number for it.
    pub(super) fn from_pillow(number: u8) -> Option<Self> {
        [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming].get(usize::from(number)).copied()
    }

    /// Half the width of the kernel, in pixels of the smaller image.
    fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        let distance = x.abs();
        match self {
            Self::Nearest | Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - distance).max(0.0),
            Self::Hamming if distance < 1.0 => sinc(x) * (0.54 + 0.46 * (x * PI).cos()),
            // Keys' cubic with a = -1/2 (Catmull-Rom).
            Self::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Self::Bicubic if distance < 2.0 => ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0,
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Hamming | Self::Bicubic | Self::Lanczos => 0.0,
        }
    }

    /// For each output position, where its window of the input begins and the weights of the window. When shrinking, the window widens with the scale: this
    /// is the antialiasing.
    fn windows(self, from: usize, to: usize) -> Vec<Window> {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = self.support() * stretch;
        if self == Self::Nearest {
            // Pillow adds the scale up step by step, which rounds in another way than a product.
            let centers = std::iter::successors(Some(scale * 0.5), |center| Some(center + scale));
            return centers.take(to).map(|c| Window { start: (c as usize).min(from - 1), weights: vec![1 << PRECISION_BITS] }).collect();
        }
        let shrink = 1.0 / stretch;
        let window = |position: usize| {
            let center = (position as f64 + 0.5) * scale;
            // A negative bound saturates to 0.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let weights: Vec<f64> = (start..end).map(|x| self.weight((x as f64 - center + 0.5) * shrink)).collect();
            let sum: f64 = weights.iter().sum();
            Window { start, weights: weights.iter().map(|w| fixed_point(w / sum)).collect() }
        };
        (0..to).map(window).collect()
    }
}

struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// A weight in `PRECISION_BITS` fractional bits: half a unit is added and the fraction cut off.
fn fixed_point(weight: f64) -> i32 {
    (weight * f64::from(1u32 << PRECISION_BITS) + 0.5f64.copysign(weight)) as i32
}

/// Resizes interleaved RGB from `(height, width)` `from` to `to`; a side that keeps its length is not filtered.
///
/// # Panics
/// If `rgb` does not hold `[height, width, 3]` values or a side is 0.
pub(super) fn resize(rgb: Vec<u8>, from: (usize, usize), to: (usize, usize), filter: Filter) -> Vec<u8> {
    assert_eq!(rgb.len(), 3 * from.0 * from.1);
    let (mut rgb, mut width) = (rgb, from.1);
    // Pillow filters rows first, unless the height loses more than twice as many pixels as the width; an enlarged side loses a negative number.
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    let columns_first = lost(from.0, to.0) > 0.max(2 * lost(from.1, to.1));
    for columns in [columns_first, !columns_first] {
        if columns && to.0 != from.0 {
            rgb = resize_columns(&rgb, width, &filter.windows(from.0, to.0));
        } else if !columns && to.1 != from.1 {
            rgb = resize_rows(&rgb, from.1, &filter.windows(from.1, to.1));
            width = to.1;
        }
    }
    rgb
}

const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Each row of `width` pixels becomes one of `windows.len()`.
fn resize_rows(rgb: &[u8], width: usize, windows: &[Window]) -> Vec<u8> {
    let mut resized = Vec::with_capacity(rgb.len() / width * windows.len());
    for row in rgb.chunks_exact(3 * width) {
        for window in windows {
            let mut sums = [HALF; 3];
            for (pixel, &weight) in row[3 * window.start..].chunks_exact(3).zip(&window.weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            resized.extend(sums.map(to_byte));
        }
    }
    resized
}

/// The rows of `width` pixels become `windows.len()` rows.
fn resize_columns(rgb: &[u8], width: usize, windows: &[Window]) -> Vec<u8> {
    let mut resized = Vec::with_capacity(3 * width * windows.len());
    let mut sums = vec![HALF; 3 * width];
    for window in windows {
        sums.fill(HALF);
        for (row, &weight) in rgb.chunks_exact(3 * width).skip(window.start).zip(&window.weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        resized.extend(sums.iter().copied().map(to_byte));
    }
    resized
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    const ALL: [u8; 6] = [0, 1, 2, 3, 4, 5];

    /// Height and width before and after, Pillow's number of the filter, and the digest of the pixels.
    type Case = ((usize, usize), (usize, usize), u8, String);

    #[derive(serde::Deserialize)]
    struct Fixture {
        pillow: String,
        cases: Vec<Case>,
    }

    /// `[height, width, 3]` of black, white and other values: a hash of the index, as `tools/fixtures/input.py` makes it.
    fn edges(height: usize, width: usize) -> Vec<u8> {
        let value = |i: u32| {
            let mut x = i.wrapping_mul(2_654_435_761);
            x = (x ^ x >> 15).wrapping_mul(2_246_822_519);
            match (x ^ x >> 13) as u8 {
                ..85 => 0,
                171.. => 255,
                v => v,
            }
        };
        (0..(3 * height * width) as u32).map(value).collect()
    }

    #[test]
    fn agrees_with_pillow_13_bit_for_bit_at_any_size() {
        let fixture: Fixture = serde_json::from_str(include_str!("../../../../tests/fixtures/input/resize.json")).unwrap();
        assert_eq!(fixture.pillow, "13.0.0");
        assert!(fixture.cases.len() > 400);
        let differs = |(from, to, filter, expected): &((usize, usize), (usize, usize), u8, String)| {
            let resized = resize(edges(from.0, from.1), *from, *to, Filter::from_pillow(*filter).unwrap());
            !format!("{:x}", Sha256::digest(&resized)).starts_with(expected)
        };
        let different: Vec<_> = fixture.cases.iter().filter(|case| differs(case)).collect();
        assert!(different.is_empty(), "{} sizes differ: {different:?}", different.len());
    }

    proptest! {
        #[test]
        fn an_even_colour_stays_as_it_is(height in 1usize..40, width in 1usize..40, to_height in 1usize..40, to_width in 1usize..40, colour: [u8; 3]) {
            let rgb = colour.repeat(height * width);
            for filter in ALL.map(|n| Filter::from_pillow(n).unwrap()) {
                let resized = resize(rgb.clone(), (height, width), (to_height, to_width), filter);
                prop_assert_eq!(&resized, &colour.repeat(to_height * to_width), "{:?}", filter);
            }
        }

        #[test]
        fn extremes_neither_overflow_nor_leave_the_window(from in 1usize..200, to in 1usize..200, bits: u64) {
            let row: Vec<u8> = (0..3 * from).map(|i| if bits >> (i % 64) & 1 == 1 { 255 } else { 0 }).collect();
            for filter in ALL.map(|n| Filter::from_pillow(n).unwrap()) {
                prop_assert_eq!(resize(row.clone(), (1, from), (1, to), filter).len(), 3 * to);
                prop_assert_eq!(resize(row.clone(), (from, 1), (to, 1), filter).len(), 3 * to);
            }
        }
    }
}
