//! Pictures of plain numbers, as SVG and PNG, drawn by `plotters`.
//!
//! | module | holds |
//! | --- | --- |
//! | `chart` | a chart with two axes: what it shows, as plain data |
//! | `draw_chart` | drawing it |
//! | `heat_map` | matrices as coloured cells |
//! | `layout` | the title, the key and the grid of panels that all pictures share |
//! | `style` | font, colours and sizes |
//!
//! Both formats come from one drawing. It is made on a canvas [`style::SCALE`] times as large as the picture,
//! because `plotters` rounds to whole pixels: the SVG is shown smaller by its view box, and the PNG is the
//! canvas averaged down to twice the picture's size, which also smooths edges.
mod chart;
mod draw_chart;
mod heat_map;
mod layout;
pub mod style;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{RgbImage, imageops};
use plotters::coord::Shift;
use plotters::prelude::{BitMapBackend, DrawingArea, DrawingBackend, IntoDrawingArea, SVGBackend};

pub use chart::{Axis, Chart, Mark, Panel, Shape, Ticks};
pub use heat_map::{HeatMap, HeatPanel};
pub use layout::{Head, KeyEntry};
use style::SCALE;

/// The PNG has this many pixels for each one of the picture, so that it is sharp on dense screens.
const PNG_PIXELS: u32 = 2;

/// Why a picture cannot be drawn.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// `plotters` refuses the drawing.
    #[error("the picture cannot be drawn: {0}")]
    Drawing(String),
    /// The PNG cannot be encoded.
    #[error("the picture cannot be written as PNG: {0}")]
    Png(#[from] image::ImageError),
}

/// What can be drawn.
pub trait Picture {
    /// Width and height, in pixels.
    fn size(&self) -> [u32; 2];

    /// Draws on an area of [`SCALE`] times the size.
    ///
    /// # Errors
    /// [`PictureError::Drawing`].
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<(), PictureError>;

    /// The picture as SVG. Its texts are texts, in the reader's own sans-serif font.
    ///
    /// # Errors
    /// [`PictureError::Drawing`].
    fn svg(&self) -> Result<String, PictureError> {
        let [width, height] = self.size();
        let canvas = (width * SCALE, height * SCALE);
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, canvas).into_drawing_area();
            self.draw(&area)?;
            area.present().map_err(drawing)?;
        }
        let (large, small) = (size_attributes(canvas.0, canvas.1), size_attributes(width, height));
        Ok(svg.replacen(&large, &small, 1))
    }

    /// The picture as PNG.
    ///
    /// # Errors
    /// [`PictureError`].
    fn png(&self) -> Result<Vec<u8>, PictureError> {
        let [width, height] = self.size();
        let canvas = (width * SCALE, height * SCALE);
        let mut pixels = vec![0; 3 * canvas.0 as usize * canvas.1 as usize];
        {
            let area = BitMapBackend::with_buffer(&mut pixels, canvas).into_drawing_area();
            self.draw(&area)?;
            area.present().map_err(drawing)?;
        }
        let canvas = RgbImage::from_raw(canvas.0, canvas.1, pixels)
            .ok_or_else(|| PictureError::Drawing("the canvas has not the size that was asked for".to_owned()))?;
        let small = imageops::thumbnail(&canvas, width * PNG_PIXELS, height * PNG_PIXELS);
        let mut bytes = Vec::new();
        small.write_with_encoder(PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, FilterType::Adaptive))?;
        Ok(bytes)
    }
}

/// The attributes by which `plotters` begins an SVG of this size.
fn size_attributes(width: u32, height: u32) -> String {
    format!("width=\"{width}\" height=\"{height}\"")
}

/// An error of `plotters`, whatever the backend.
fn drawing(error: impl std::fmt::Display) -> PictureError {
    PictureError::Drawing(error.to_string())
}
