//! Which pictures there are. Each is a pure function of plain numbers.
//!
//! | module | shows |
//! | --- | --- |
//! | [`training`] | the losses, step by step |
//! | [`scores`] | a_{i,j}: each task's score after each session |
//! | [`selection`] | how often each factor is selected |
//! | [`queries`] | samples and task keys in two dimensions, and how similar the two queries of a sample are |
//! | [`confidence`] | the reliability of the task's probability, and accuracy against coverage |
//! | [`comparison`] | several methods: AP with intervals, and AP against the missing ratio |
pub mod comparison;
pub mod confidence;
pub mod queries;
pub mod scores;
pub mod selection;
pub mod training;

use crate::picture::{Chart, HeatMap, Picture, PictureError};

/// A picture with what a page says of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The name of its files, without an extension.
    pub name: &'static str,
    /// What it shows and how to read it, in one or two sentences.
    pub caption: String,
    /// What is drawn.
    pub drawing: Drawing,
}

/// The two kinds of pictures.
#[derive(Clone, Debug, PartialEq)]
pub enum Drawing {
    /// Panels with two axes.
    Chart(Chart),
    /// Matrices.
    HeatMap(HeatMap),
}

impl Figure {
    /// The title of the picture.
    pub fn title(&self) -> &str {
        match &self.drawing {
            Drawing::Chart(chart) => &chart.head.title,
            Drawing::HeatMap(map) => &map.head.title,
        }
    }

    /// The picture as SVG.
    ///
    /// # Errors
    /// [`PictureError`].
    pub fn svg(&self) -> Result<String, PictureError> {
        match &self.drawing {
            Drawing::Chart(chart) => chart.svg(),
            Drawing::HeatMap(map) => map.svg(),
        }
    }

    /// The picture as PNG.
    ///
    /// # Errors
    /// [`PictureError`].
    pub fn png(&self) -> Result<Vec<u8>, PictureError> {
        match &self.drawing {
            Drawing::Chart(chart) => chart.png(),
            Drawing::HeatMap(map) => map.png(),
        }
    }
}

/// The least and the greatest of some values; `None` without any.
fn extent(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    values.fold(None, |extent, x| extent.map_or(Some([x, x]), |[low, high]: [f64; 2]| Some([low.min(x), high.max(x)])))
}
