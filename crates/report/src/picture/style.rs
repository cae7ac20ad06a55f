//! Font, colours and sizes of all pictures.
use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::{Color, DrawingArea, DrawingBackend, FontStyle, FontTransform, IntoFont, RGBColor, ShapeStyle, TextStyle};
use plotters::style;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{PictureError, drawing};

/// Pixels of the canvas for each pixel of the picture.
pub const SCALE: u32 = 4;

/// The width of a picture, in pixels: that of a README's column.
pub const WIDTH: u32 = 840;

/// Roboto, Apache License 2.0; `assets/README.md` says how the file was made.
const FONT: &[u8] = include_bytes!("../../assets/Roboto-Regular.ttf");
/// The name under which `plotters` knows the font, and by which an SVG asks for a font of the reader's that
/// is about as wide.
const FAMILY: &str = "Roboto, Helvetica, Arial, sans-serif";

/// A colour.
pub type Colour = RGBColor;

/// Texts and axes.
pub const INK: Colour = RGBColor(0x2c, 0x3e, 0x50);
/// Texts that say less, and marks in the background.
pub const GREY: Colour = RGBColor(0x7f, 0x8c, 0x8d);
/// Grid lines.
pub const GRID: Colour = RGBColor(0xe5, 0xe7, 0xe9);

/// Colours of series that are easy to tell apart, also for the colour-blind: the scheme "muted" of Paul Tol
/// (<https://sronpersonalpages.nl/~pault/>), the strongest contrasts first.
pub const SERIES: [Colour; 10] = [
    RGBColor(0x33, 0x22, 0x88),
    RGBColor(0xcc, 0x66, 0x77),
    RGBColor(0x11, 0x77, 0x33),
    RGBColor(0x88, 0xcc, 0xee),
    RGBColor(0x99, 0x99, 0x33),
    RGBColor(0xaa, 0x44, 0x99),
    RGBColor(0x44, 0xaa, 0x99),
    RGBColor(0x88, 0x22, 0x55),
    RGBColor(0xdd, 0xcc, 0x77),
    RGBColor(0x66, 0x66, 0x66),
];

/// Bars, light enough that lines and points on them stand out.
pub const BARS: Colour = SERIES[3];

/// Sizes of texts, in pixels of the picture.
pub const TITLE: f64 = 19.0;
/// See [`TITLE`].
pub const TEXT: f64 = 14.0;
/// See [`TITLE`].
pub const SMALL: f64 = 12.5;

/// The colour of a series; after the last one they begin again.
pub fn series(index: usize) -> Colour {
    SERIES[index % SERIES.len()]
}

/// A length in pixels of the picture, on the canvas.
pub fn px(length: f64) -> i32 {
    (length * f64::from(SCALE)).round() as i32
}

/// A stroke of this width in pixels of the picture.
pub fn stroke(colour: Colour, width: f64) -> ShapeStyle {
    colour.stroke_width(px(width).max(1) as u32)
}

/// How a text is written.
#[derive(Clone, Copy)]
pub struct Writing {
    /// In pixels of the picture.
    pub size: f64,
    /// Its colour.
    pub colour: Colour,
    /// Which part of the text stands at the given place.
    pub anchor: HPos,
    /// Whether it reads from below to above.
    pub upright: bool,
}

impl Writing {
    /// A text in [`INK`] that begins at its place.
    pub fn new(size: f64) -> Self {
        Self { size, colour: INK, anchor: HPos::Left, upright: false }
    }

    /// The same in another colour.
    pub fn colour(self, colour: Colour) -> Self {
        Self { colour, ..self }
    }

    /// The same with another part at its place.
    pub fn anchor(self, anchor: HPos) -> Self {
        Self { anchor, ..self }
    }

    /// The same, centred, from below to above.
    pub fn upright(self) -> Self {
        Self { anchor: HPos::Center, upright: true, ..self }
    }

    /// Writes a text, the middle of its line at a place of the canvas.
    ///
    /// # Errors
    /// [`PictureError::Drawing`].
    pub fn write<B: DrawingBackend>(self, area: &DrawingArea<B, Shift>, text: &str, (x, y): (i32, i32)) -> Result<(), PictureError> {
        // `plotters` places the middle of a line above the middle of its letters, by 0.07 of the size as SVG
        // and 0.21 as PNG.
        let drop = px(0.14 * self.size);
        let (transform, at) = if self.upright { (FontTransform::Rotate270, (x + drop, y)) } else { (FontTransform::None, (x, y + drop)) };
        let font = (family(), self.size * f64::from(SCALE)).into_font();
        let style = TextStyle { color: self.colour.to_backend_color(), ..TextStyle::from(font) };
        let style = style.pos(Pos::new(self.anchor, VPos::Center)).transform(transform);
        area.draw_text(text, &style, at).map_err(drawing)
    }
}

/// The width of a text in pixels of the picture.
pub fn width(text: &str, size: f64) -> f64 {
    let font = (family(), size * f64::from(SCALE)).into_font();
    // Without the font nothing can be drawn at all; half an em a character is near enough for a layout.
    font.box_size(text).map_or(0.5 * size * text.chars().count() as f64, |(width, _)| f64::from(width) / f64::from(SCALE))
}

/// The name of the font, once `plotters` knows it: no font of the system is needed.
fn family() -> &'static str {
    static REGISTERED: Once = Once::new();
    // A damaged font would make every text an error of the drawing.
    REGISTERED.call_once(|| drop(style::register_font(FAMILY, FontStyle::Normal, FONT)));
    FAMILY
}

/// The colour of a value from 0 to 1: white to dark blue, light to dark also without colours. Values outside
/// take the nearest end.
pub fn shade(value: f64) -> Colour {
    const STOPS: [[f64; 3]; 4] = [[255.0, 255.0, 255.0], [158.0, 202.0, 225.0], [33.0, 113.0, 181.0], [8.0, 29.0, 70.0]];
    let place = value.clamp(0.0, 1.0) * (STOPS.len() - 1) as f64;
    let low = (place as usize).min(STOPS.len() - 2);
    let mixed = |channel: usize| {
        let [from, to] = [STOPS[low][channel], STOPS[low + 1][channel]];
        (from + (to - from) * (place - low as f64)).round() as u8
    };
    RGBColor(mixed(0), mixed(1), mixed(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_grow_darker_from_white() {
        let light = |value: f64| {
            let RGBColor(r, g, b) = shade(value);
            0.3 * f64::from(r) + 0.6 * f64::from(g) + 0.1 * f64::from(b)
        };
        assert_eq!((shade(-1.0), shade(0.0)), (RGBColor(255, 255, 255), RGBColor(255, 255, 255)));
        assert_eq!(shade(2.0), shade(1.0));
        assert!((1..=100).all(|i| light(f64::from(i) / 100.0) < light(f64::from(i - 1) / 100.0)));
    }

    #[test]
    fn the_font_has_the_letters_of_our_texts() {
        let missing = width("\u{10ffff}", 100.0);
        for letter in "aZ09ηλατ×−–≥≤äß".chars() {
            let mut buffer = [0; 4];
            assert!((width(letter.encode_utf8(&mut buffer), 100.0) - missing).abs() > f64::EPSILON, "{letter}");
        }
    }
}
