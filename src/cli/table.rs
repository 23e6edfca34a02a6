//! Words in columns, and numbers as people read them.

use std::fmt::Write;

/// Rows of cells in columns as wide as their widest cell; nothing stands behind the last one.
pub(in crate::cli) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..count).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.extend([line.trim_end(), "\n"]);
    }
    text
}

/// `1 line`, `2 lines`
pub(in crate::cli) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// `950 B`, `1.2 KiB`, `3.4 GiB`
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    format!("{value:.1} {unit}")
}

/// `0.4s`, `12s`, `3m20s`, `5h2m`, `3d4h`
pub(super) fn age(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{seconds:.1}s");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an age, and not of geology")]
    let seconds = seconds as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_like_words() {
        assert_eq!(
            [0, 1023, 1024, 1_234_567, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.2 MiB", "16384.0 PiB"]
        );
        assert_eq!(
            [0.04, 9.0, 12.7, 200.0, 18_120.0, 273_600.0].map(age),
            ["0.0s", "9.0s", "12s", "3m20s", "5h2m", "3d4h"]
        );
    }

    #[test]
    fn columns_are_as_wide_as_they_have_to_be() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned()]];
        assert_eq!(columns(&rows), "a     b\nlong\n");
    }
}
