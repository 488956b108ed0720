//! Which form of the metrics page a scraper wants.

/// A form of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// [OpenMetrics](https://prometheus.io/docs/specs/om/open_metrics_spec/) text.
    Text,
    /// Prometheus' protobuf, the only form that carries native histograms.
    Protobuf,
}

impl Format {
    /// Protobuf where `accept`, an `Accept` header, prefers it to every text; else text.
    pub fn of(accept: &str) -> Self {
        let (mut protobuf, mut text) = (0.0_f64, 0.0_f64);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let (mut quality, mut is_ours) = (1.0_f64, true);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "proto" => is_ours &= value == "io.prometheus.client.MetricFamily",
                    "encoding" => is_ours &= value == "delimited",
                    _ => {}
                }
            }
            match kind {
                "application/vnd.google.protobuf" if is_ours => protobuf = quality.max(protobuf),
                "application/vnd.google.protobuf" => {}
                _ => text = quality.max(text),
            }
        }
        if protobuf > text { Self::Protobuf } else { Self::Text }
    }

    /// Its content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protobuf_goes_to_whoever_prefers_it() {
        let ours =
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        for (accept, format) in [
            (String::new(), Format::Text),
            ("*/*".into(), Format::Text),
            (ours.into(), Format::Protobuf),
            // Prometheus, native histograms on.
            (
                format!("{ours};q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.2"),
                Format::Protobuf,
            ),
            (
                format!("application/openmetrics-text;version=1.0.0;q=0.6,{ours};q=0.5,*/*;q=0.2"),
                Format::Text,
            ),
            ("application/vnd.google.protobuf;proto=other;encoding=delimited".into(), Format::Text),
        ] {
            assert_eq!(Format::of(&accept), format, "{accept}");
        }
    }
}
