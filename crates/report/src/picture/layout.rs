//! What all pictures share: a title, a line under it, a key of the series, and panels in a grid.
use plotters::coord::Shift;
use plotters::prelude::{Circle, Color, DrawingArea, DrawingBackend, PathElement, Rectangle, WHITE};

use super::chart::Shape;
use super::draw_chart::shape;
use super::style::{self, Colour, GREY, TEXT, TITLE, WIDTH, Writing, px};
use super::{PictureError, drawing};

/// The margin around a picture, in pixels.
pub const MARGIN: f64 = 14.0;
/// Heights of the lines of the head.
const TITLE_LINE: f64 = 26.0;
const TEXT_LINE: f64 = 19.0;
const KEY_LINE: f64 = 21.0;
/// The mark of an entry of the key, and the space after an entry.
const SWATCH: f64 = 22.0;
const BETWEEN: f64 = 18.0;

/// The head of a picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Head {
    /// What the picture shows.
    pub title: String,
    /// On which data, and how to read it; broken into lines where it is long.
    pub subtitle: String,
    /// The series of the panels.
    pub key: Vec<KeyEntry>,
}

/// A series in the key of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyEntry {
    /// The series' name.
    pub name: String,
    /// Its colour.
    pub colour: Colour,
    /// `None`: it is drawn as a line.
    pub shape: Option<Shape>,
    /// Whether its line is dashed.
    pub dashed: bool,
}

impl KeyEntry {
    /// A series that is drawn as a solid line.
    pub fn line(name: impl Into<String>, colour: Colour) -> Self {
        Self { name: name.into(), colour, shape: None, dashed: false }
    }

    /// A series that is drawn as points.
    pub fn points(name: impl Into<String>, colour: Colour, shape: Shape) -> Self {
        Self { shape: Some(shape), ..Self::line(name, colour) }
    }

    fn width(&self) -> f64 {
        SWATCH + 6.0 + 1.05 * style::width(&self.name, TEXT) + BETWEEN
    }
}

impl Head {
    /// The entries of the key, line by line.
    fn key_lines(&self) -> Vec<Vec<&KeyEntry>> {
        let room = f64::from(WIDTH) - 2.0 * MARGIN;
        let mut lines: Vec<Vec<&KeyEntry>> = Vec::new();
        let mut used = room;
        for entry in &self.key {
            if used + entry.width() > room {
                lines.push(Vec::new());
                used = 0.0;
            }
            used += entry.width();
            lines.last_mut().into_iter().for_each(|line| line.push(entry));
        }
        lines
    }

    fn subtitle_lines(&self) -> Vec<String> {
        // The font of an SVG's reader may be wider.
        let room = 0.88 * (f64::from(WIDTH) - 2.0 * MARGIN);
        let mut lines: Vec<String> = Vec::new();
        for word in self.subtitle.split_whitespace() {
            match lines.last_mut() {
                Some(line) if style::width(&format!("{line} {word}"), TEXT) <= room => line.extend([" ", word]),
                _ => lines.push(word.to_owned()),
            }
        }
        lines
    }

    /// Its height, in pixels.
    pub fn height(&self) -> f64 {
        let (text, key) = (self.subtitle_lines().len(), self.key_lines().len());
        let space = if key > 0 { 6.0 } else { 0.0 };
        MARGIN + TITLE_LINE + text as f64 * TEXT_LINE + space + key as f64 * KEY_LINE
    }

    /// Draws it, and gives the area below it.
    ///
    /// # Errors
    /// [`PictureError::Drawing`].
    pub fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<DrawingArea<B, Shift>, PictureError> {
        area.fill(&WHITE).map_err(drawing)?;
        let mut y = MARGIN + TITLE_LINE / 2.0 - 3.0;
        Writing::new(TITLE).write(area, &self.title, (px(MARGIN), px(y)))?;
        y += TITLE_LINE / 2.0 + 3.0 + TEXT_LINE / 2.0;
        for line in self.subtitle_lines() {
            Writing::new(TEXT).colour(GREY).write(area, &line, (px(MARGIN), px(y)))?;
            y += TEXT_LINE;
        }
        y += 6.0;
        for line in self.key_lines() {
            let mut x = MARGIN;
            for entry in line {
                swatch(area, entry, x, y)?;
                Writing::new(TEXT).write(area, &entry.name, (px(x + SWATCH + 6.0), px(y)))?;
                x += entry.width();
            }
            y += KEY_LINE;
        }
        Ok(area.split_vertically(px(self.height())).1)
    }
}

fn swatch<B: DrawingBackend>(area: &DrawingArea<B, Shift>, entry: &KeyEntry, x: f64, y: f64) -> Result<(), PictureError> {
    let KeyEntry { colour, .. } = *entry;
    match entry.shape {
        None if entry.dashed => {
            for from in [x, x + 0.4 * SWATCH, x + 0.8 * SWATCH] {
                let dash = [(px(from), px(y)), (px(from + 0.22 * SWATCH), px(y))];
                area.draw(&PathElement::new(dash, style::stroke(colour, 2.5))).map_err(drawing)?;
            }
            Ok(())
        }
        None => area.draw(&PathElement::new([(px(x), px(y)), (px(x + SWATCH), px(y))], style::stroke(colour, 3.0))).map_err(drawing),
        Some(Shape::Square) => {
            let corners = [(px(x + 4.0), px(y - 6.0)), (px(x + 18.0), px(y + 6.0))];
            area.draw(&Rectangle::new(corners, colour.filled())).map_err(drawing)
        }
        Some(Shape::Circle) => area.draw(&Circle::new((px(x + SWATCH / 2.0), px(y)), px(5.0), colour.filled())).map_err(drawing),
        Some(other) => shape(area, other, (px(x + SWATCH / 2.0), px(y)), 5.5, colour),
    }
}

/// The areas of this many panels, row by row.
pub fn grid<B: DrawingBackend>(area: &DrawingArea<B, Shift>, panels: usize, columns: usize) -> Vec<DrawingArea<B, Shift>> {
    let columns = columns.max(1);
    area.margin(0, 0, px(MARGIN / 2.0), px(MARGIN / 2.0)).split_evenly((panels.div_ceil(columns).max(1), columns))
}
