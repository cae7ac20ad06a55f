//! Resamples 8-bit RGB images with the same bits as Pillow 13.0.0: `src/libImaging/Resample.c` and, for the
//! nearest pixel, `Geometry.c` of <https://github.com/python-pillow/Pillow/tree/13.0.0>.
//!
//! There are two passes, over rows and over columns, and each rounds and clips to 8 bits. At sharp edges,
//! where a cubic filter overshoots, the order of the passes changes values by tens of levels; the order is
//! therefore that of Pillow 13.0.0. Versions up to 12.0.0 always filter rows first.
use std::f64::consts::PI;

/// Fractional bits of a filter's weights: the bits that 8-bit values leave in a 32-bit sum, minus two for
/// sign and overshoot.
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
    /// The filter with this number in Pillow.
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

    /// The kernel at distance `x` from its centre, in pixels of the smaller image.
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

    /// The window of each output position, `[to]`. For a smaller output, windows are wider in proportion to
    /// the scale, which prevents aliasing.
    fn windows(self, from: usize, to: usize) -> Vec<Window> {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = self.support() * stretch;
        if self == Self::Nearest {
            // Pillow adds the scale for each step, which rounds differently than a product.
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

/// Where the window of an output position begins in the input, and its weights.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// A weight with `PRECISION_BITS` fractional bits, rounded to nearest, halves away from zero.
fn fixed_point(weight: f64) -> i32 {
    (weight * f64::from(1u32 << PRECISION_BITS) + 0.5f64.copysign(weight)) as i32
}

/// Resizes interleaved RGB `[height, width, 3]` from `from` to `to`, each `(height, width)` in pixels. A side
/// that keeps its length is not filtered.
///
/// # Panics
/// If `rgb` does not hold `[height, width, 3]` values or a side is 0.
pub(super) fn resize(rgb: Vec<u8>, from: (usize, usize), to: (usize, usize), filter: Filter) -> Vec<u8> {
    assert_eq!(rgb.len(), 3 * from.0 * from.1);
    let (mut rgb, mut width) = (rgb, from.1);
    // Pillow filters rows first, unless the height loses more than twice as many pixels as the width. The
    // loss of a side that grows is negative.
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

/// Resizes each row from `width` to `windows.len()` pixels.
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

/// Resizes each column to `windows.len()` pixels; `width` is the length of a row in pixels.
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

    /// Height and width before and after, the filter's number in Pillow, and the beginning of the SHA-256 of
    /// the pixels.
    type Case = ((usize, usize), (usize, usize), u8, String);

    #[derive(serde::Deserialize)]
    struct Fixture {
        pillow: String,
        cases: Vec<Case>,
    }

    /// `[height, width, 3]` of black, white and other values: a hash of the index, as in
    /// `tools/fixtures/input.py`.
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
        fn an_image_of_one_colour_keeps_its_colour(
            height in 1usize..40, width in 1usize..40, to_height in 1usize..40, to_width in 1usize..40, colour: [u8; 3],
        ) {
            let rgb = colour.repeat(height * width);
            for filter in ALL.map(|n| Filter::from_pillow(n).unwrap()) {
                let resized = resize(rgb.clone(), (height, width), (to_height, to_width), filter);
                prop_assert_eq!(&resized, &colour.repeat(to_height * to_width), "{:?}", filter);
            }
        }

        #[test]
        fn black_and_white_pixels_neither_overflow_nor_are_read_out_of_bounds(from in 1usize..200, to in 1usize..200, bits: u64) {
            let row: Vec<u8> = (0..3 * from).map(|i| if bits >> (i % 64) & 1 == 1 { 255 } else { 0 }).collect();
            for filter in ALL.map(|n| Filter::from_pillow(n).unwrap()) {
                prop_assert_eq!(resize(row.clone(), (1, from), (1, to), filter).len(), 3 * to);
                prop_assert_eq!(resize(row.clone(), (from, 1), (to, 1), filter).len(), 3 * to);
            }
        }
    }
}
