//! An SVG picture of a run over time: latency, rates, memory.
use std::fmt::Write as _;

use crate::report::Report;
use crate::tally::{Second, Tally};

/// Sizes in pixels of the picture, and the places of the panels in it.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 82.0;
const PANEL: f64 = 190.0;
const GAP: f64 = 66.0;

/// One curve with one value for each second; `None` where there is no value.
struct Curve {
    name: &'static str,
    colour: &'static str,
    values: Vec<Option<f64>>,
}

/// Curves over one vertical axis.
struct Panel {
    /// What the axis shows, with its unit.
    axis: &'static str,
    curves: Vec<Curve>,
}

/// The picture of a run.
pub fn svg(report: &Report, tally: &Tally) -> String {
    let panels = panels(report, &tally.seconds);
    let seconds = panels.iter().flat_map(|p| &p.curves).map(|c| c.values.len()).max().unwrap_or(0).max(2) - 1;
    let height = TOP + panels.len() as f64 * (PANEL + GAP);
    let title = format!(
        "{}: {:.0} requests/s, goodput {:.0}/s, {} of {} answered",
        report.scenario, report.rate, report.goodput, report.ok, report.offered
    );
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"32\" font-size=\"17\">{}</text>\n",
        escaped(&title)
    );
    for (i, panel) in panels.iter().enumerate() {
        draw(&mut out, panel, TOP + i as f64 * (PANEL + GAP), seconds);
    }
    out.push_str("</svg>\n");
    out
}

fn panels(report: &Report, seconds: &[Second]) -> Vec<Panel> {
    let quantile = |q: f64| seconds.iter().map(|s| quantile(&s.ok, q)).collect();
    let count = |of: fn(&Second) -> f64| seconds.iter().map(|s| Some(of(s))).collect();
    let mut panels = vec![
        Panel {
            axis: "latency of good answers, ms, by when they were due",
            curves: vec![
                Curve { name: "p99", colour: "#c0392b", values: quantile(0.99) },
                Curve { name: "p90", colour: "#d68910", values: quantile(0.9) },
                Curve { name: "p50", colour: "#2471a3", values: quantile(0.5) },
            ],
        },
        Panel {
            axis: "requests per second, by when they were due",
            curves: vec![
                Curve { name: "sent", colour: "#7f8c8d", values: count(|s| s.ok.len() as f64 + s.others as f64) },
                Curve { name: "good answers", colour: "#1e8449", values: count(|s| s.ok.len() as f64) },
                Curve { name: "refused, failed", colour: "#c0392b", values: count(|s| s.others as f64) },
            ],
        },
    ];
    if let Some(series) = &report.memory_series {
        let values = series.0.iter().map(|bytes| Some(*bytes as f64 / f64::from(1 << 20))).collect();
        panels.push(Panel { axis: "server's memory, MiB", curves: vec![Curve { name: "resident", colour: "#6c3483", values }] });
    }
    panels
}

/// A percentile in milliseconds, by nearest rank.
fn quantile(micros: &[u32], q: f64) -> Option<f64> {
    let mut sorted = micros.to_vec();
    sorted.sort_unstable();
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).map(|us| f64::from(*us) / 1000.0)
}

fn draw(out: &mut String, panel: &Panel, top: f64, seconds: usize) {
    let (width, bottom) = (WIDTH - LEFT - RIGHT, top + PANEL);
    let most = panel.curves.iter().flat_map(|c| c.values.iter().flatten()).fold(0.0f64, |a, b| a.max(*b));
    let step = step(most, 4.0);
    let ceiling = (most / step).ceil().max(1.0) * step;
    let (x, y) = (|second: f64| LEFT + width * second / seconds as f64, |value: f64| bottom - PANEL * value / ceiling);
    let mut write = |line: std::fmt::Arguments<'_>| {
        // Writing to a string can't fail.
        let _ = out.write_fmt(line);
        out.push('\n');
    };
    write(format_args!("<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>", top - 10.0, panel.axis));
    for value in ticks(ceiling, step) {
        let (at, right) = (y(value), LEFT + width);
        write(format_args!("<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#e5e7e9\"/>"));
        write(format_args!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 8.0, at + 4.0, number(value, step)));
    }
    let every = self::step(seconds as f64, 8.0).max(1.0);
    for second in ticks(seconds as f64, every) {
        let at = x(second);
        write(format_args!("<line x1=\"{at:.1}\" y1=\"{bottom}\" x2=\"{at:.1}\" y2=\"{}\" stroke=\"#566573\"/>", bottom + 5.0));
        write(format_args!("<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>", bottom + 19.0, number(second, every)));
    }
    write(format_args!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">time, s</text>", LEFT + width, bottom + 36.0));
    write(format_args!("<path d=\"M{LEFT} {top}V{bottom}H{}\" fill=\"none\" stroke=\"#566573\"/>", LEFT + width));
    for (i, curve) in panel.curves.iter().enumerate() {
        let (key, at) = (LEFT + width + 14.0, top + 14.0 + 20.0 * i as f64);
        write(format_args!("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"/>", path(&curve.values, x, y), curve.colour));
        write(format_args!(
            "<line x1=\"{key}\" y1=\"{at}\" x2=\"{}\" y2=\"{at}\" stroke=\"{}\" stroke-width=\"3\"/>",
            key + 18.0,
            curve.colour
        ));
        write(format_args!("<text x=\"{}\" y=\"{}\">{}</text>", key + 24.0, at + 4.0, curve.name));
    }
}

/// A line through the values, broken at seconds without one. A value without neighbours is a short stroke.
fn path(values: &[Option<f64>], x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let mut path = String::new();
    let mut pen = 'M';
    for (second, value) in values.iter().enumerate() {
        let Some(value) = value else {
            pen = 'M';
            continue;
        };
        let _ = write!(path, "{pen}{:.1} {:.1}", x(second as f64), y(*value));
        if pen == 'M' {
            path.push_str("h0.5");
        }
        pen = 'L';
    }
    path
}

/// A step of 1, 2 or 5 times a power of ten, such that `most` is about `parts` steps.
fn step(most: f64, parts: f64) -> f64 {
    if most <= 0.0 || !most.is_finite() {
        return 1.0;
    }
    let power = 10f64.powf((most / parts).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power * parts >= most);
    factor.unwrap_or(10.0) * power
}

fn ticks(to: f64, step: f64) -> impl Iterator<Item = f64> {
    (0..=(to / step + 1e-9) as usize).map(move |i| i as f64 * step)
}

fn number(value: f64, step: f64) -> String {
    let digits = (-step.log10().floor()).max(0.0) as usize;
    format!("{value:.digits$}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::memory::Series;
    use crate::report::Seen;
    use crate::tally::Call;
    use crate::target::Truth;

    #[test]
    fn the_picture_has_every_curve_its_axes_and_units() {
        let scenario = "name = 'a<b'\ndata = 'd'\nrate = 10\nduration_seconds = 5\n[mix]\nboth = 1.0";
        let mut tally = Tally { offered: 50, elapsed: Duration::from_secs(5), ..Tally::default() };
        for n in 0..50u64 {
            let code = if n % 10 == 0 { tonic::Code::ResourceExhausted } else { tonic::Code::Ok };
            let (due, latency) = (Duration::from_millis(100 * n), Duration::from_millis(20 + n));
            tally.record(Call { end: code.into(), due, latency, lag: Duration::ZERO });
        }
        let seen = Seen { memory_series: Some(Series(vec![1 << 20; 6])), ..Seen::default() };
        let svg = svg(&Report::new(&toml::from_str(scenario).unwrap(), 10.0, &tally, &Truth::default(), seen), &tally);
        for text in [
            "a&lt;b: 10 requests/s",
            "latency of good answers, ms",
            "p99",
            "requests per second",
            "refused, failed",
            "memory, MiB",
            "time, s",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg.matches("<path").count(), 3 + 7, "three pairs of axes and seven curves");
        assert_eq!(svg.matches("NaN").count() + svg.matches("inf").count(), 0);
    }

    #[test]
    fn axes_have_round_steps() {
        for (most, parts, expected) in [(100.0, 4.0, 50.0), (7.0, 4.0, 2.0), (0.09, 4.0, 0.05), (60.0, 8.0, 10.0), (0.0, 4.0, 1.0)] {
            assert!((step(most, parts) - expected).abs() < 1e-9, "{most}: {}", step(most, parts));
        }
        assert_eq!((number(0.25, 0.05), number(20.0, 10.0)), ("0.25".to_owned(), "20".to_owned()));
    }

    #[test]
    fn seconds_without_answers_leave_a_gap() {
        assert_eq!(path(&[Some(1.0), None, Some(2.0), Some(3.0)], |x| x, |y| y), "M0.0 1.0h0.5M2.0 2.0h0.5L3.0 3.0");
        assert_eq!((quantile(&[], 0.5), quantile(&[3000, 1000, 2000], 0.5)), (None, Some(2.0)));
    }
}
