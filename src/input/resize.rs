//! Pillow's resampling of 8-bit RGB images, bit for bit: `src/libImaging/Resample.c` of <https://github.com/python-pillow/Pillow>.
//!
//! Each of its two passes rounds and clips to 8 bits. At sharp edges, where a cubic filter overshoots, the order of the passes makes tens of levels of
//! difference, so that the order is kept too.
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
        let window = |position: usize| {
            let center = (position as f64 + 0.5) * scale;
            if self == Self::Nearest {
                return Window { start: (center as usize).min(from - 1), weights: vec![1 << PRECISION_BITS] };
            }
            // A negative bound saturates to 0.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let weights: Vec<f64> = (start..end).map(|x| self.weight((x as f64 - center + 0.5) / stretch)).collect();
            let sum: f64 = weights.iter().sum();
            Window { start, weights: weights.iter().map(|w| (w / sum * f64::from(1u32 << PRECISION_BITS)).round() as i32).collect() }
        };
        (0..to).map(window).collect()
    }
}

struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// Resizes interleaved RGB from `(height, width)` `from` to `to`; a side that keeps its length is not filtered.
///
/// # Panics
/// If `rgb` does not hold `[height, width, 3]` values or a side is 0.
pub(super) fn resize(rgb: Vec<u8>, from: (usize, usize), to: (usize, usize), filter: Filter) -> Vec<u8> {
    assert_eq!(rgb.len(), 3 * from.0 * from.1);
    let (mut rgb, mut width) = (rgb, from.1);
    // Pillow filters rows first, unless that pass would enlarge and the other one shrink.
    let columns_first = to.1 > from.1 && to.0 < from.0;
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

    use super::*;

    const ALL: [u8; 6] = [0, 1, 2, 3, 4, 5];

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
