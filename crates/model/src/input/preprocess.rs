//! Makes the backbone's input from RGB pixels, exactly as `ViltImageProcessor` does (transformers 4.57, with
//! Pillow):
//! <https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/vilt/image_processing_vilt.py>
use image::RgbImage;
use serde::Deserialize;

use super::resize::{Filter, resize};
use super::{InputError, Limits, Pixels};

/// `preprocessor_config.json`. A missing or null field has the default of `transformers`; unknown fields are
/// ignored.
#[derive(Debug, Default, Deserialize)]
struct PreprocessorConfig {
    do_resize: Option<bool>,
    size: Option<Size>,
    size_divisor: Option<usize>,
    resample: Option<u8>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<PerChannel>,
    image_std: Option<PerChannel>,
}

/// `"size": 384` or `"size": {"shortest_edge": 384}`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Edge(usize),
    Named { shortest_edge: usize },
}

/// One value for all channels, or one value for each channel.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum PerChannel {
    All(f32),
    Each([f32; 3]),
}

impl PerChannel {
    fn values(&self) -> [f32; 3] {
        match *self {
            Self::All(v) => [v; 3],
            Self::Each(v) => v,
        }
    }
}

/// A checkpoint's preprocessing of images.
#[derive(Debug)]
pub(super) struct ImagePreprocessor {
    do_resize: bool,
    shortest_edge: usize,
    size_divisor: usize,
    patch_size: usize,
    filter: Filter,
    /// `levels[channel][value]`: the normalised value of an 8-bit value.
    levels: [[f32; 256]; 3],
}

impl ImagePreprocessor {
    /// Reads the text of a `preprocessor_config.json`. `{}` gives the defaults of `transformers`: shorter
    /// edge 384, multiples of 32, bicubic, mean and standard deviation 0.5. `patch_size` is in pixels.
    ///
    /// # Errors
    /// A sentence about the wrong setting.
    pub(super) fn new(config: &[u8], patch_size: usize) -> Result<Self, String> {
        let config: PreprocessorConfig = serde_json::from_slice(config).map_err(|e| {
            format!("{e}; `size` is a number or {{\"shortest_edge\": number}}, `image_mean` and `image_std` a number or three")
        })?;
        let shortest_edge = match config.size {
            None => 384,
            Some(Size::Edge(edge) | Size::Named { shortest_edge: edge }) => edge,
        };
        let size_divisor = config.size_divisor.unwrap_or(32);
        if patch_size == 0 || size_divisor == 0 || !(size_divisor..=65_536).contains(&shortest_edge) {
            return Err(format!("the shortest edge {shortest_edge} must be at least size_divisor {size_divisor}, which must not be 0"));
        }
        Ok(Self {
            do_resize: config.do_resize.unwrap_or(true),
            shortest_edge,
            size_divisor,
            patch_size,
            filter: match config.resample {
                None => Filter::Bicubic,
                Some(n) => {
                    Filter::from_pillow(n).ok_or_else(|| format!("`resample` is {n}; it must be one of Pillow's filters, 0 to 5"))?
                }
            },
            levels: levels(&config)?,
        })
    }

    /// The length in pixels to which the shorter edge of an image is resized.
    pub(super) fn shortest_edge(&self) -> usize {
        self.shortest_edge
    }

    /// Resizes and normalises. Both sides of the result are multiples of the patch size: rows and columns
    /// after the last whole patch are left out, as by the backbone's strided convolution.
    ///
    /// # Errors
    /// The image is smaller than a patch, which is possible only where the checkpoint's settings switch
    /// resizing off; or it has more patches than the limit.
    pub(super) fn pixels(&self, image: RgbImage, limits: &Limits) -> Result<Pixels, InputError> {
        let (from_width, from_height) = (image.width() as usize, image.height() as usize);
        let (to_height, to_width) = if self.do_resize { self.output_size(from_height, from_width) } else { (from_height, from_width) };
        let (rows, columns) = (to_height / self.patch_size, to_width / self.patch_size);
        if rows * columns == 0 {
            return Err(InputError::ImageTooSmall { width: from_width, height: from_height, patch: self.patch_size });
        }
        if rows * columns > limits.max_patches {
            return Err(InputError::ImagePatches { patches: rows * columns, limit: limits.max_patches });
        }
        let resized = resize(image.into_raw(), (from_height, from_width), (to_height, to_width), self.filter);
        Ok(self.normalise(&resized, to_width, rows * self.patch_size, columns * self.patch_size))
    }

    /// `(height, width)` after resizing, in pixels. The shorter edge becomes `shortest_edge`, or less where
    /// the longer edge would exceed int(1333/800 · `shortest_edge`); both are rounded, then floored to
    /// multiples of `size_divisor`. In `transformers`, a side of a very long or very high image becomes 0,
    /// which is an error; here, each side keeps at least one patch.
    fn output_size(&self, height: usize, width: usize) -> (usize, usize) {
        let shorter = self.shortest_edge as f64;
        let longer = (1333.0 / 800.0 * shorter).floor();
        let scale = shorter / height.min(width) as f64;
        let (mut to_height, mut to_width) = if height < width { (shorter, scale * width as f64) } else { (scale * height as f64, shorter) };
        if to_height.max(to_width) > longer {
            let scale = longer / to_height.max(to_width);
            (to_height, to_width) = (scale * to_height, scale * to_width);
        }
        let least = self.patch_size.next_multiple_of(self.size_divisor);
        let floored = |side: f64| ((side + 0.5) as usize / self.size_divisor * self.size_divisor).max(least);
        (floored(to_height), floored(to_width))
    }

    /// The upper left `[height, width]` of interleaved rows of `stride` pixels, as normalised planes
    /// `[3, height, width]`.
    fn normalise(&self, rgb: &[u8], stride: usize, height: usize, width: usize) -> Pixels {
        let mut data = Vec::with_capacity(3 * height * width);
        for (channel, levels) in self.levels.iter().enumerate() {
            for row in rgb.chunks_exact(3 * stride).take(height) {
                data.extend(row[..3 * width].iter().skip(channel).step_by(3).map(|&v| levels[usize::from(v)]));
            }
        }
        Pixels { height, width, data }
    }
}

/// The normalised value of every 8-bit value, for each channel: rescaled in f64, then normalised in f32, as
/// in `transformers`.
fn levels(config: &PreprocessorConfig) -> Result<[[f32; 256]; 3], String> {
    let factor = if config.do_rescale.unwrap_or(true) { config.rescale_factor.unwrap_or(1.0 / 255.0) } else { 1.0 };
    let normalise = config.do_normalize.unwrap_or(true);
    let mean = if normalise { config.image_mean.as_ref().map_or([0.5; 3], PerChannel::values) } else { [0.0; 3] };
    let std = if normalise { config.image_std.as_ref().map_or([0.5; 3], PerChannel::values) } else { [1.0; 3] };
    let levels: [[f32; 256]; 3] = std::array::from_fn(|c| std::array::from_fn(|value| ((value as f64 * factor) as f32 - mean[c]) / std[c]));
    if levels.as_flattened().iter().any(|v| !v.is_finite()) {
        return Err("rescale_factor, image_mean and image_std must be finite, and image_std not 0".to_owned());
    }
    Ok(levels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preprocessor(config: &str, patch_size: usize) -> ImagePreprocessor {
        ImagePreprocessor::new(config.as_bytes(), patch_size).unwrap()
    }

    #[test]
    fn sizes_are_those_of_transformers() {
        let p = preprocessor("{}", 32);
        // (height, width) of an image and of the result of transformers.
        for (from, to) in [
            ((384, 384), (384, 384)),
            ((480, 640), (384, 512)),
            ((640, 480), (512, 384)),
            ((600, 512), (448, 384)),
            ((100, 1000), (64, 608)),
        ] {
            assert_eq!(p.output_size(from.0, from.1), to, "{from:?}");
        }
    }

    #[test]
    fn an_extreme_aspect_keeps_one_patch() {
        let p = preprocessor("{}", 32);
        assert_eq!(p.output_size(5000, 1), (608, 32));
        assert_eq!(p.output_size(1, 5000), (32, 608));
        let pixels = p.pixels(RgbImage::new(1, 5000), &Limits::default()).unwrap();
        assert_eq!((pixels.height, pixels.width, pixels.data.len()), (608, 32, 3 * 608 * 32));
    }

    #[test]
    fn a_remainder_that_fills_no_patch_is_left_out() {
        let p = preprocessor(r#"{"size": 40, "size_divisor": 10}"#, 16);
        let image = RgbImage::from_fn(40, 40, |x, y| image::Rgb([x as u8, y as u8, 7]));
        let pixels = p.pixels(image, &Limits::default()).unwrap();
        assert_eq!((pixels.height, pixels.width), (32, 32));
        // The last kept pixel is (31, 31).
        assert!((pixels.data[32 * 32 - 1] - (31.0 / 255.0 - 0.5) / 0.5).abs() < 1e-6);
    }

    #[test]
    fn an_image_that_is_not_to_be_resized_is_bounded() {
        let p = preprocessor(r#"{"do_resize": false}"#, 32);
        assert!(matches!(p.pixels(RgbImage::new(31, 900), &Limits::default()), Err(InputError::ImageTooSmall { .. })));
        let limits = Limits { max_patches: 5, ..Limits::default() };
        assert!(matches!(p.pixels(RgbImage::new(64, 96), &limits), Err(InputError::ImagePatches { patches: 6, limit: 5 })));
    }

    #[test]
    fn settings_are_honoured_and_null_or_unknown_ones_tolerated() {
        let p = preprocessor(
            r#"{"size": {"shortest_edge": 64, "other": 1}, "size_divisor": null, "image_mean": 0, "image_std": [1, 2, 4], "x": []}"#,
            32,
        );
        assert_eq!((p.shortest_edge, p.size_divisor), (64, 32));
        assert_eq!([p.levels[0][255], p.levels[1][255], p.levels[2][255]], [1.0, 0.5, 0.25]);
        assert_eq!(preprocessor(r#"{"do_rescale": false, "do_normalize": false}"#, 32).levels[1][200], 200.0);
    }

    #[test]
    fn impossible_settings_are_refused() {
        for config in [
            r#"{"size": {"height": 384, "width": 384}}"#,
            r#"{"size": 0}"#,
            r#"{"size_divisor": 0}"#,
            r#"{"size": 1000000000}"#,
            r#"{"image_std": 0}"#,
            r#"{"image_mean": [0.5, 0.5]}"#,
            r#"{"resample": 9}"#,
            "[",
        ] {
            assert!(ImagePreprocessor::new(config.as_bytes(), 32).is_err(), "{config}");
        }
    }
}
