//! Matrices as coloured cells.
use plotters::coord::Shift;
use plotters::prelude::{Color, DrawingArea, DrawingBackend, Rectangle, WHITE};
use plotters::style::text_anchor::HPos;

use super::draw_chart::number;
use super::layout::{Head, MARGIN, grid};
use super::style::{self, INK, SMALL, TEXT, WIDTH, Writing, px, shade};
use super::{Picture, PictureError, drawing};

/// Room for a line of text, in pixels.
const LINE: f64 = 18.0;
/// The width of the bar that shows which colour is which value, and of the numbers beside it.
const BAR: f64 = 12.0;
const BAR_ROOM: f64 = 66.0;
/// Colours of the bar.
const BAR_STEPS: usize = 40;

/// Matrices under one head and one scale of colours.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    /// Title and data; a key has no place here.
    pub head: Head,
    /// Row by row.
    pub panels: Vec<HeatPanel>,
    /// The number of panels in a row.
    pub columns: usize,
    /// The height of a panel, in pixels.
    pub panel_height: f64,
    /// The values of the lightest and the darkest colour.
    pub range: [f64; 2],
    /// What a value is, with the unit.
    pub unit: String,
    /// The decimals of the values that are written into the cells; `None`: none is written.
    pub written: Option<usize>,
}

/// One matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatPanel {
    /// Above the matrix.
    pub title: String,
    /// What its rows are.
    pub rows_title: String,
    /// What its columns are.
    pub columns_title: String,
    /// A name for each row; an empty one is not written.
    pub rows: Vec<String>,
    /// A name for each column; an empty one is not written.
    pub columns: Vec<String>,
    /// `[rows][columns]`; the cell of `None` stays empty.
    pub values: Vec<Vec<Option<f64>>>,
}

impl Picture for HeatMap {
    fn size(&self) -> [u32; 2] {
        let rows = self.panels.len().div_ceil(self.columns.max(1));
        [WIDTH, (self.head.height() + rows as f64 * self.panel_height + MARGIN).ceil() as u32]
    }

    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<(), PictureError> {
        let below = self.head.draw(area)?;
        let (width, _) = below.dim_in_pixel();
        let (panels, bar) = below.split_horizontally(width as i32 - px(BAR_ROOM));
        for (panel, area) in self.panels.iter().zip(grid(&panels, self.panels.len(), self.columns)) {
            self.panel(&area, panel)?;
        }
        self.bar(&bar)
    }
}

impl HeatMap {
    /// The place of a value between the lightest colour, 0, and the darkest, 1.
    fn place(&self, value: f64) -> f64 {
        let [low, high] = self.range;
        if high > low { (value - low) / (high - low) } else { 0.0 }
    }

    fn panel<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, panel: &HeatPanel) -> Result<(), PictureError> {
        let (width, height) = area.dim_in_pixel();
        let widest = panel.rows.iter().map(|name| style::width(name, SMALL)).fold(0.0, f64::max);
        let title = |text: &str| if text.is_empty() { 0.0 } else { LINE };
        let left = px(title(&panel.rows_title) + widest + 12.0);
        let top = px(title(&panel.title) + 6.0);
        let (right, bottom) = (width as i32 - px(10.0), height as i32 - px(LINE + title(&panel.columns_title) + 8.0));
        let (rows, columns) = (panel.rows.len(), panel.columns.len());
        let x = |column: usize| left + (right - left) * column as i32 / columns.max(1) as i32;
        let y = |row: usize| top + (bottom - top) * row as i32 / rows.max(1) as i32;
        let write = |text: &str, size: f64, anchor: HPos, at: (i32, i32)| Writing::new(size).anchor(anchor).write(area, text, at);

        write(&panel.title, TEXT, HPos::Left, (left, px(LINE / 2.0 + 1.0)))?;
        for (row, values) in panel.values.iter().enumerate() {
            for (column, value) in values.iter().enumerate().filter_map(|(column, value)| Some((column, (*value)?))) {
                let corners = [(x(column), y(row)), (x(column + 1), y(row + 1))];
                let colour = shade(self.place(value));
                if colour != WHITE {
                    area.draw(&Rectangle::new(corners, colour.filled())).map_err(drawing)?;
                }
                if let Some(digits) = self.written {
                    let middle = ((corners[0].0 + corners[1].0) / 2, (corners[0].1 + corners[1].1) / 2);
                    let colour = if self.place(value) > 0.5 { WHITE } else { INK };
                    let writing = Writing::new(SMALL).anchor(HPos::Center).colour(colour);
                    writing.write(area, &number(value, digits), middle)?;
                }
            }
        }
        area.draw(&Rectangle::new([(left, top), (right, bottom)], style::stroke(style::GREY, 0.5))).map_err(drawing)?;
        for (row, name) in panel.rows.iter().enumerate() {
            write(name, SMALL, HPos::Right, (left - px(6.0), (y(row) + y(row + 1)) / 2))?;
        }
        for (column, name) in panel.columns.iter().enumerate() {
            write(name, SMALL, HPos::Center, ((x(column) + x(column + 1)) / 2, bottom + px(3.0 + LINE / 2.0)))?;
        }
        write(&panel.columns_title, SMALL, HPos::Center, ((left + right) / 2, bottom + px(3.0 + 1.5 * LINE)))?;
        if panel.rows_title.is_empty() {
            return Ok(());
        }
        Writing::new(SMALL).upright().write(area, &panel.rows_title, (px(LINE / 2.0), (top + bottom) / 2))
    }

    /// The scale of colours, from the lightest below to the darkest above.
    fn bar<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<(), PictureError> {
        let (_, height) = area.dim_in_pixel();
        let (top, bottom) = (px(24.0), (height as i32 - px(46.0)).min(px(260.0)));
        let y = |step: usize| bottom - (bottom - top) * step as i32 / BAR_STEPS as i32;
        for step in 0..BAR_STEPS {
            let colour = shade(step as f64 / (BAR_STEPS - 1) as f64);
            area.draw(&Rectangle::new([(0, y(step + 1)), (px(BAR), y(step))], colour.filled())).map_err(drawing)?;
        }
        area.draw(&Rectangle::new([(0, top), (px(BAR), bottom)], style::stroke(style::GREY, 0.5))).map_err(drawing)?;
        let [low, high] = self.range;
        let digits = if high - low >= 5.0 { 0 } else { 2 };
        let beside = |text: &str, y: i32| Writing::new(SMALL).write(area, text, (px(BAR + 5.0), y));
        beside(&number(high, digits), top + px(4.0))?;
        beside(&number(low, digits), bottom - px(4.0))?;
        Writing::new(SMALL).upright().write(area, &self.unit, (px(BAR + 14.0), (top + bottom) / 2))
    }
}
