//! Figures over memory sizes as a picture (SVG): both axes in powers, so that small and large
//! show.

use std::fmt::Write;

/// Points with a name.
pub(super) struct Line {
    pub(super) name: String,
    /// MiB and milliseconds.
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines in one frame.
pub(super) struct Plot {
    pub(super) title: &'static str,
    pub(super) lines: Vec<Line>,
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 360.0;
/// Around a frame.
const MARGIN: f64 = 60.0;
/// Of lines, in order.
const COLOURS: [&str; 4] = ["#b2182b", "#ef8a62", "#2166ac", "#67a9cf"];

/// Where a value lies between two others, by its logarithm: from 0 to 1.
fn place(value: f64, (least, most): (f64, f64)) -> f64 {
    (value / least).ln() / (most / least).ln()
}

/// Powers of ten around all values.
fn decades(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let least = values.clone().fold(f64::INFINITY, f64::min).max(1.0);
    let most = values.fold(least, f64::max);
    let from = least.log10().floor();
    (10_f64.powf(from), 10_f64.powf(most.log10().ceil().max(from + 1.0)))
}

/// Draws plots side by side.
pub(super) fn draw(plots: &[Plot]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        WIDTH * plots.len() as f64
    );
    for (index, plot) in plots.iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate({} 0)\">", WIDTH * index as f64);
        frame(&mut svg, plot);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

// Writing into a string cannot fail.
fn frame(svg: &mut String, plot: &Plot) {
    let points = || plot.lines.iter().flat_map(|line| line.points.iter().copied());
    let sizes =
        points().fold((f64::INFINITY, 0.0_f64), |(least, most), (mib, _)| (least.min(mib), most.max(mib)));
    // One size alone would have no place.
    let sizes = (sizes.0 / 1.5, sizes.1 * 1.5);
    let times = decades(points().map(|(_, ms)| ms));
    let (right, bottom) = (WIDTH - MARGIN / 3.0, HEIGHT - MARGIN);
    let x = |mib: f64| MARGIN + place(mib, sizes) * (right - MARGIN);
    let y = |ms: f64| bottom - place(ms, times) * (bottom - MARGIN);
    let _ = writeln!(svg, "<text x=\"{MARGIN}\" y=\"24\" font-size=\"15\">{}</text>", plot.title);
    let mut power = times.0;
    while power <= times.1 * 1.01 {
        let at = y(power);
        let _ = writeln!(
            svg,
            "<path d=\"M{MARGIN} {at:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{power} ms</text>",
            MARGIN - 6.0,
            at + 4.0
        );
        power *= 10.0;
    }
    let mut marks: Vec<f64> = points().map(|(mib, _)| mib).collect();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    for mib in marks {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{mib} MiB</text>",
            x(mib),
            bottom + 18.0
        );
    }
    for (index, (line, colour)) in plot.lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let path: Vec<String> =
            line.points.iter().map(|&(mib, ms)| format!("{:.1},{:.1}", x(mib), y(ms.max(times.0)))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for point in &path {
            let (x, y) = point.split_once(',').unwrap_or_default();
            let _ = writeln!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let (column, row) = ((index % 2) as f64, (index / 2) as f64);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>",
            MARGIN + column * 170.0,
            HEIGHT - 22.0 + row * 14.0,
            line.name
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_in_the_frame() {
        let points = vec![(16.0, 120.0), (512.0, 9_000.0)];
        let svg = draw(&[Plot { title: "Total", lines: vec![Line { name: "one".into(), points }] }]);
        assert!(svg.contains("100 ms") && svg.contains("10000 ms") && svg.contains("512 MiB"), "{svg}");
        let circles: Vec<f64> =
            svg.split("cy=\"").skip(1).map(|rest| rest.split('"').next().unwrap().parse().unwrap()).collect();
        assert_eq!(circles.len(), 2);
        assert!(circles.iter().all(|y| (MARGIN..=HEIGHT - MARGIN).contains(y)), "{circles:?}");
        assert!(circles[0] > circles[1], "what took longer is further up");
    }
}
