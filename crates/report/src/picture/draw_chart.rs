//! Drawing a chart: axes, grid lines and marks.
use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::{Circle, Color, DrawingArea, DrawingBackend, PathElement, Polygon, Rectangle};
use plotters::style::text_anchor::HPos;

use super::chart::{Axis, Chart, Mark, Panel, Shape, Ticks};
use super::layout::grid;
use super::style::{self, Colour, GRID, INK, SMALL, TEXT, WIDTH, Writing, px};
use super::{Picture, PictureError, drawing};

/// Numbers that are written at an axis, about.
const NUMBERS: f64 = 5.0;
/// Room for a line of text beside an axis, in pixels.
const LINE: f64 = 18.0;

impl Picture for Chart {
    fn size(&self) -> [u32; 2] {
        let rows = self.panels.len().div_ceil(self.columns.max(1));
        [WIDTH, (self.head.height() + rows as f64 * self.panel_height + super::layout::MARGIN).ceil() as u32]
    }

    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<(), PictureError> {
        let below = self.head.draw(area)?;
        for (panel, area) in self.panels.iter().zip(grid(&below, self.panels.len(), self.columns)) {
            Plane::new(&area, panel).draw()?;
        }
        Ok(())
    }
}

/// A panel and where its plane stands in its area, in pixels of the canvas.
struct Plane<'a, B: DrawingBackend> {
    area: &'a DrawingArea<B, Shift>,
    panel: &'a Panel,
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
}

impl<'a, B: DrawingBackend> Plane<'a, B> {
    fn new(area: &'a DrawingArea<B, Shift>, panel: &'a Panel) -> Self {
        let (width, height) = area.dim_in_pixel();
        let widest = ticks(&panel.y).iter().map(|(_, text)| style::width(text, SMALL)).fold(0.0, f64::max);
        let title = |axis: &Axis| if axis.title.is_empty() { 0.0 } else { LINE };
        let below = if panel.x.ticks == Ticks::None { 4.0 } else { LINE + 2.0 };
        Self {
            area,
            panel,
            left: px(title(&panel.y) + widest + 14.0),
            right: width as i32 - px(14.0),
            top: px(if panel.title.is_empty() { 10.0 } else { LINE + 8.0 }),
            bottom: height as i32 - px(below + title(&panel.x) + 8.0),
        }
    }

    /// The place of a value on the canvas.
    fn at(&self, [x, y]: [f64; 2]) -> (i32, i32) {
        let part = |value: f64, axis: &Axis| ((value - axis.low) / (axis.high - axis.low)).clamp(-1.0, 2.0);
        let (x, y) = (part(x, &self.panel.x), part(y, &self.panel.y));
        let place = |from: i32, to: i32, part: f64| (f64::from(from) + f64::from(to - from) * part).round() as i32;
        (place(self.left, self.right, x), place(self.bottom, self.top, y))
    }

    fn draw(&self) -> Result<(), PictureError> {
        if !self.panel.title.is_empty() {
            self.write(&self.panel.title, TEXT, HPos::Left, (self.left, px(LINE / 2.0 + 2.0)))?;
        }
        self.grid()?;
        for mark in &self.panel.marks {
            self.mark(mark)?;
        }
        self.axes()
    }

    /// Grid lines, with what is written at them.
    fn grid(&self) -> Result<(), PictureError> {
        let Panel { x, y, .. } = self.panel;
        for (value, text) in ticks(x) {
            let (at, _) = self.at([value, y.low]);
            if x.ticks == Ticks::Numbers {
                self.path([(at, self.bottom), (at, self.top)], GRID, 1.0)?;
            }
            self.write(&text, SMALL, HPos::Center, (at, self.bottom + px(4.0 + LINE / 2.0)))?;
        }
        for (value, text) in ticks(y) {
            let (_, at) = self.at([x.low, value]);
            if y.ticks == Ticks::Numbers {
                self.path([(self.left, at), (self.right, at)], GRID, 1.0)?;
            }
            self.write(&text, SMALL, HPos::Right, (self.left - px(6.0), at))?;
        }
        Ok(())
    }

    /// The two axes with their titles.
    fn axes(&self) -> Result<(), PictureError> {
        self.path([(self.left, self.top), (self.left, self.bottom)], INK, 1.0)?;
        self.path([(self.left, self.bottom), (self.right, self.bottom)], INK, 1.0)?;
        let below = if self.panel.x.ticks == Ticks::None { 4.0 } else { LINE + 4.0 };
        let middle = ((self.left + self.right) / 2, (self.top + self.bottom) / 2);
        self.write(&self.panel.x.title, SMALL, HPos::Center, (middle.0, self.bottom + px(below + LINE / 2.0)))?;
        if self.panel.y.title.is_empty() {
            return Ok(());
        }
        Writing::new(SMALL).upright().write(self.area, &self.panel.y.title, (px(LINE / 2.0), middle.1))
    }

    fn mark(&self, mark: &Mark) -> Result<(), PictureError> {
        match mark {
            Mark::Line { points, colour, dashed, width } => {
                let points: Vec<(i32, i32)> = points.iter().map(|point| self.at(*point)).collect();
                let stroke = style::stroke(*colour, *width);
                if *dashed {
                    self.area.draw(&DashedPathElement::new(points, px(6.0), px(4.0), stroke)).map_err(drawing)
                } else {
                    self.area.draw(&PathElement::new(points, stroke)).map_err(drawing)
                }
            }
            Mark::Band { points, colour } => {
                let highs = points.iter().map(|[x, _, high]| self.at([*x, *high]));
                let lows = points.iter().rev().map(|[x, low, _]| self.at([*x, *low]));
                self.area.draw(&Polygon::new(highs.chain(lows).collect::<Vec<_>>(), colour.mix(0.2))).map_err(drawing)
            }
            Mark::Block { corners: [left, bottom, right, top], colour, opacity } => {
                let corners = [self.at([*left, *top]), self.at([*right, *bottom])];
                self.area.draw(&Rectangle::new(corners, colour.mix(*opacity).filled())).map_err(drawing)
            }
            Mark::Points { points, colour, shape, radius } => {
                points.iter().try_for_each(|point| self::shape(self.area, *shape, self.at(*point), *radius, *colour))
            }
        }
    }

    fn path(&self, points: [(i32, i32); 2], colour: Colour, width: f64) -> Result<(), PictureError> {
        self.area.draw(&PathElement::new(points, style::stroke(colour, width))).map_err(drawing)
    }

    fn write(&self, text: &str, size: f64, anchor: HPos, at: (i32, i32)) -> Result<(), PictureError> {
        Writing::new(size).anchor(anchor).write(self.area, text, at)
    }
}

/// Draws a point. `radius` is in pixels of the picture.
pub fn shape<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    shape: Shape,
    (x, y): (i32, i32),
    radius: f64,
    colour: Colour,
) -> Result<(), PictureError> {
    let r = px(radius);
    let filled = colour.filled();
    match shape {
        Shape::Circle => area.draw(&Circle::new((x, y), r, filled)).map_err(drawing),
        Shape::Square => area.draw(&Rectangle::new([(x - r, y - r), (x + r, y + r)], filled)).map_err(drawing),
        Shape::Cross => {
            let stroke = style::stroke(colour, 0.45 * radius);
            for dy in [-r, r] {
                area.draw(&PathElement::new([(x - r, y - dy), (x + r, y + dy)], stroke)).map_err(drawing)?;
            }
            Ok(())
        }
        Shape::Diamond => {
            let corners = |r: i32| vec![(x, y - r), (x + r, y), (x, y + r), (x - r, y)];
            area.draw(&Polygon::new(corners(r + px(1.5)), INK.filled())).map_err(drawing)?;
            area.draw(&Polygon::new(corners(r), filled)).map_err(drawing)
        }
    }
}

/// What is written at an axis, by value.
fn ticks(axis: &Axis) -> Vec<(f64, String)> {
    match &axis.ticks {
        Ticks::Numbers => {
            let step = step(axis.high - axis.low, NUMBERS);
            let (first, last) = ((axis.low / step - 1e-6).ceil() as i64, (axis.high / step + 1e-6).floor() as i64);
            let digits = (-step.log10().floor()).max(0.0) as usize;
            (first..=last).map(|i| i as f64 * step).map(|value| (value, number(value, digits))).collect()
        }
        Ticks::Names(names) => names.iter().enumerate().map(|(i, name)| (i as f64, name.clone())).collect(),
        Ticks::None => Vec::new(),
    }
}

/// A number with a true minus sign.
pub fn number(value: f64, digits: usize) -> String {
    format!("{value:.digits$}").replace('-', "−")
}

/// A step of 1, 2 or 5 times a power of ten, so that `length` is at most about `parts` steps.
fn step(length: f64, parts: f64) -> f64 {
    if length <= 0.0 || !length.is_finite() {
        return 1.0;
    }
    let power = 10f64.powf((length / parts).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power * parts >= length);
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(low: f64, high: f64) -> Vec<String> {
        ticks(&Axis::new("x", low, high)).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn axes_have_round_numbers_within_their_ends() {
        assert_eq!(texts(0.0, 1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(texts(-1.0, 1.0), ["−1.0", "−0.5", "0.0", "0.5", "1.0"]);
        assert_eq!(texts(37.0, 61.0), ["40", "45", "50", "55", "60"]);
        assert_eq!(texts(0.0, 1300.0), ["0", "500", "1000"]);
    }

    #[test]
    fn a_name_stands_at_its_index() {
        let axis = Axis::of_names("", vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(ticks(&axis), [(0.0, "a".to_owned()), (1.0, "b".to_owned())]);
        assert!(ticks(&axis.bare()).is_empty());
    }
}
