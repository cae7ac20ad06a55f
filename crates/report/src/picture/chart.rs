//! A chart with two axes, as plain data.
use super::layout::Head;
use super::style::Colour;

/// Panels with two axes under one head.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// Title, data and key.
    pub head: Head,
    /// Row by row.
    pub panels: Vec<Panel>,
    /// The number of panels in a row.
    pub columns: usize,
    /// The height of a panel, in pixels.
    pub panel_height: f64,
}

/// A plane with two axes and what is drawn in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// Above the panel; empty where the picture's title says it all.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// In the order of drawing.
    pub marks: Vec<Mark>,
}

/// One axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it shows, with the unit.
    pub title: String,
    /// The value at its beginning.
    pub low: f64,
    /// The value at its end, above `low`.
    pub high: f64,
    /// What is written at it.
    pub ticks: Ticks,
}

/// What is written at an axis.
#[derive(Clone, Debug, PartialEq)]
pub enum Ticks {
    /// Round numbers.
    Numbers,
    /// The i-th name at the value i.
    Names(Vec<String>),
    /// Nothing: the values have no meaning of their own.
    None,
}

/// Something drawn in a panel, in the values of its axes.
#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// A line through points.
    Line {
        /// (x, y), in the order of drawing.
        points: Vec<[f64; 2]>,
        /// Its colour.
        colour: Colour,
        /// Whether it is dashed.
        dashed: bool,
        /// In pixels.
        width: f64,
    },
    /// An area between two lines.
    Band {
        /// (x, low, high), by rising x.
        points: Vec<[f64; 3]>,
        /// Its colour; it is drawn half transparent.
        colour: Colour,
    },
    /// A rectangle.
    Block {
        /// (left, bottom, right, top).
        corners: [f64; 4],
        /// Its colour.
        colour: Colour,
        /// From 0, invisible, to 1.
        opacity: f64,
    },
    /// Points.
    Points {
        /// (x, y).
        points: Vec<[f64; 2]>,
        /// Their colour.
        colour: Colour,
        /// Their shape.
        shape: Shape,
        /// Their radius, in pixels.
        radius: f64,
    },
}

/// The shape of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A filled circle.
    Circle,
    /// A filled square.
    Square,
    /// Two crossing lines.
    Cross,
    /// A filled diamond with a dark edge, for points that stand out.
    Diamond,
}

impl Axis {
    /// An axis from `low` to `high`, with round numbers.
    pub fn new(title: impl Into<String>, low: f64, high: f64) -> Self {
        Self { title: title.into(), low, high, ticks: Ticks::Numbers }
    }

    /// An axis on which the i-th name stands at the value i.
    pub fn of_names(title: impl Into<String>, names: Vec<String>) -> Self {
        Self { title: title.into(), low: -0.5, high: names.len() as f64 - 0.5, ticks: Ticks::Names(names) }
    }

    /// An axis that spans these values with a little room at both ends; from 0 to 1 where there are none.
    pub fn spanning(title: impl Into<String>, values: impl Iterator<Item = f64>) -> Self {
        let finite = values.filter(|x| x.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        if low > high {
            return Self::new(title, 0.0, 1.0);
        }
        let room = if high > low { 0.05 * (high - low) } else { 0.5 };
        Self::new(title, low - room, high + room)
    }

    /// The same axis without numbers.
    #[must_use]
    pub fn bare(self) -> Self {
        Self { ticks: Ticks::None, ..self }
    }
}

impl Mark {
    /// A solid line.
    pub fn line(points: Vec<[f64; 2]>, colour: Colour) -> Self {
        Self::Line { points, colour, dashed: false, width: 2.0 }
    }

    /// A dashed line.
    pub fn dashes(points: Vec<[f64; 2]>, colour: Colour) -> Self {
        Self::Line { points, colour, dashed: true, width: 1.5 }
    }

    /// An opaque rectangle.
    pub fn block(corners: [f64; 4], colour: Colour) -> Self {
        Self::Block { corners, colour, opacity: 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_spans_its_values_with_room_and_needs_none() {
        let axis = Axis::spanning("x", [3.0, f64::NAN, 1.0].into_iter());
        assert!((axis.low - 0.9).abs() < 1e-9 && (axis.high - 3.1).abs() < 1e-9, "{axis:?}");
        let of = |values: &[f64]| Axis::spanning("x", values.iter().copied());
        assert_eq!((of(&[]).low, of(&[]).high), (0.0, 1.0));
        assert_eq!((of(&[2.0]).low, of(&[2.0]).high), (1.5, 2.5));
    }
}
