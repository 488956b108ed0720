//! Plots as SVG: lines over two axes, and horizontal bars. Pure: values in, text out.

use std::fmt::Write;

use crate::book::rounded;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 170.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 44.0;

/// Readable on light and on dark pages; GitHub shows an SVG with the reader's preference.
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-size:14px;font-weight:600}\
.grid{stroke:#8c959f;stroke-opacity:.25}.strong{font-weight:600}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}}";

/// One line or bar.
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) color: &'static str,
    /// Drawn stronger.
    pub(crate) strong: bool,
    /// Places on the axes; a bar has one, whose second is its length.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A logarithmic axis.
#[derive(Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// Whole decades around the values.
    fn around(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Option<Self> {
        let logs: Vec<f64> = values.filter(|value| *value > 0.0).map(f64::log10).collect();
        let low = logs.iter().copied().reduce(f64::min)?.floor();
        let high = logs.iter().copied().reduce(f64::max)?.ceil().max(low + 1.0);
        Some(Self { low, high, from, to })
    }

    fn place(self, value: f64) -> f64 {
        let share = (value.max(1e-9).log10() - self.low) / (self.high - self.low);
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn decades(self) -> impl Iterator<Item = f64> {
        (self.low as i32..=self.high as i32).map(|decade| 10_f64.powi(decade))
    }
}

/// Lines over two logarithmic axes; none without a point.
pub(crate) fn lines(title: &str, x_name: &str, y_name: &str, series: &[Series]) -> Option<String> {
    const HEIGHT: f64 = 380.0;
    let points = || series.iter().flat_map(|series| &series.points);
    let x = Axis::around(points().map(|point| point.0), LEFT, WIDTH - RIGHT)?;
    let y = Axis::around(points().map(|point| point.1), HEIGHT - BOTTOM, TOP)?;
    let mut svg = begin(title, HEIGHT);
    for value in x.decades() {
        let at = x.place(value);
        line(&mut svg, (at, TOP), (at, HEIGHT - BOTTOM));
        text(&mut svg, at, HEIGHT - BOTTOM + 16.0, "middle", "", &short(value));
    }
    for value in y.decades() {
        let at = y.place(value);
        line(&mut svg, (LEFT, at), (WIDTH - RIGHT, at));
        text(&mut svg, LEFT - 6.0, at + 4.0, "end", "", &short(value));
    }
    text(&mut svg, f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 8.0, "middle", "", x_name);
    text(&mut svg, 8.0, TOP - 8.0, "start", "", y_name);
    let shown: Vec<&Series> = series.iter().filter(|series| !series.points.is_empty()).collect();
    for (at, Series { name, color, strong, points }) in shown.into_iter().enumerate() {
        let width = if *strong { 3.5 } else { 1.75 };
        let places: Vec<(f64, f64)> =
            points.iter().map(|point| (x.place(point.0), y.place(point.1))).collect();
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = write!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{color}" stroke-width="{width}"/>"#,
            path.join(" ")
        );
        for (x, y) in places {
            let _ = write!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="{width}" fill="{color}"/>"#);
        }
        let top = TOP + 10.0 + 20.0 * at as f64;
        let left = WIDTH - RIGHT + 14.0;
        let _ = write!(svg, r#"<rect x="{left}" y="{}" width="14" height="4" fill="{color}"/>"#, top - 6.0);
        text(&mut svg, left + 20.0, top, "start", if *strong { "strong" } else { "" }, name);
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

/// Bars on a logarithmic axis, each with its value beside it; none without a value.
pub(crate) fn bars(title: &str, unit: &str, series: &[Series]) -> Option<String> {
    let shown: Vec<(&Series, f64)> =
        series.iter().filter_map(|series| Some((series, series.points.first()?.1))).collect();
    let height = TOP + 26.0 * shown.len() as f64 + BOTTOM;
    let axis = Axis::around(shown.iter().map(|(_, value)| *value), LEFT + 100.0, WIDTH - 110.0)?;
    let mut svg = begin(title, height);
    for value in axis.decades() {
        let at = axis.place(value);
        line(&mut svg, (at, TOP - 6.0), (at, height - BOTTOM));
        text(&mut svg, at, height - BOTTOM + 16.0, "middle", "", &short(value));
    }
    text(&mut svg, f64::midpoint(LEFT + 100.0, WIDTH - 110.0), height - 8.0, "middle", "", unit);
    for (at, (Series { name, color, strong, .. }, value)) in shown.into_iter().enumerate() {
        let top = TOP + 26.0 * at as f64;
        let (left, end) = (axis.from, axis.place(value));
        let class = if *strong { "strong" } else { "" };
        text(&mut svg, left - 8.0, top + 14.0, "end", class, name);
        let _ = write!(
            svg,
            r#"<rect x="{left}" y="{top}" width="{:.1}" height="18" rx="2" fill="{color}"/>"#,
            (end - left).max(1.0)
        );
        text(&mut svg, end + 6.0, top + 14.0, "start", class, &rounded(value));
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn begin(title: &str, height: f64) -> String {
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"><title>{title}</title><style>{STYLE}</style>"#
    );
    text(&mut svg, 8.0, 18.0, "start", "title", title);
    svg
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = write!(
        svg,
        r#"<line class="grid" x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}"/>"#,
        from.0, from.1, to.0, to.1
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
    let _ =
        write!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{text}</text>"#);
}

/// A power of ten for an axis.
fn short(value: f64) -> String {
    match value {
        mega if mega >= 1e6 => format!("{} M", mega / 1e6),
        kilo if kilo >= 1e3 => format!("{} k", kilo / 1e3),
        _ => format!("{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(points: &[(f64, f64)]) -> Series {
        Series { name: "Fanout", color: "#0969da", strong: true, points: points.to_vec() }
    }

    #[test]
    fn an_axis_goes_over_whole_decades() {
        let axis = Axis::around([30.0, 2_000.0].into_iter(), 0.0, 300.0).unwrap();
        assert_eq!(axis.decades().collect::<Vec<_>>(), [10.0, 100.0, 1_000.0, 10_000.0]);
        assert!((axis.place(100.0) - 100.0).abs() < 1e-9);
    }

    #[test]
    fn a_line_has_as_many_points_as_values() {
        let svg = lines("t", "x", "y", &[series(&[(10.0, 1.0), (100.0, 5.0)])]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn a_plot_without_values_is_left_out() {
        assert!(lines("t", "x", "y", &[series(&[])]).is_none());
        assert!(bars("t", "B", &[]).is_none());
    }
}
