//! The table of a run: a column for each server.

use super::{Column, Cost};
use crate::report::{Table, number};

type Row = (&'static str, fn(&Column) -> Option<f64>, usize);

pub fn table(columns: &[Column]) -> Table {
    let mut table = Table::new("what one costs: medians of times, means of CPU and bytes");
    table.row("", columns.iter().map(|column| column.server));
    for (name, of, decimals) in CHANGES {
        table.row(name, columns.iter().map(|column| number(of(column), decimals)));
    }
    type Kind = fn(&Column) -> Option<&Cost>;
    let kinds: [(&str, Kind); 3] = [
        ("all items", |column| Some(&column.whole)),
        ("resume", |column| Some(&column.resume)),
        ("upload", |column| column.upload.as_ref()),
    ];
    for (kind, of) in kinds {
        let Some(first) = columns.first().and_then(of) else { continue };
        table.row(format!("{kind}: {} items, {} times", first.items_each, first.times), [""; 0]);
        type Of = fn(&Cost) -> f64;
        let rows: [(&str, Of, usize); 8] = [
            ("ms", |cost| cost.seconds_median * 1e3, 1),
            ("items/s", |cost| cost.items_each as f64 / cost.seconds_median, 0),
            ("ms, the slowest", |cost| cost.seconds_max * 1e3, 1),
            ("server CPU ms", |cost| cost.server_cpu_s * 1e3, 1),
            ("device CPU ms", |cost| cost.client_cpu_s * 1e3, 1),
            ("bytes from the server", |cost| cost.bytes_down, 0),
            ("bytes from the device", |cost| cost.bytes_up, 0),
            (
                "bytes per item, both ways",
                |cost| (cost.bytes_down + cost.bytes_up) / cost.items_each as f64,
                1,
            ),
        ];
        for (name, figure, decimals) in rows {
            let cells = columns.iter().map(|column| number(of(column).map(figure), decimals));
            table.row(format!("  {name}"), cells);
        }
    }
    table.note("PouchDB server: LevelDB without sync at both ends, plain HTTP for the app server.");
    table
}

const CHANGES: [Row; 4] = [
    ("app server's changes/s", |column| per_s(column, Some(column.changes.seconds)), 0),
    (
        "  until they are in long-term storage",
        |column| per_s(column, column.changes.folded_seconds),
        0,
    ),
    ("  server CPU µs each", |column| Some(column.changes.server_cpu_s / count(column) * 1e6), 1),
    (
        "  bytes of an item as JSON",
        |column| Some(column.changes.item_bytes as f64 / count(column)),
        1,
    ),
];

fn per_s(column: &Column, seconds: Option<f64>) -> Option<f64> {
    seconds.map(|seconds| count(column) / seconds)
}

fn count(column: &Column) -> f64 {
    column.changes.changes as f64
}
