//! The table: a row for each figure, a column for each target.

use std::fmt;

use crate::target::Target;

/// Everything that was measured.
pub struct Table {
    targets: Vec<(String, bool)>,
    rows: Vec<Row>,
    /// Share of the machine that was used by processes that do not belong to the run.
    others: Vec<f64>,
}

struct Row {
    name: &'static str,
    cells: Vec<Cell>,
}

#[derive(Clone, Default)]
struct Cell {
    values: Vec<f64>,
    errors: u64,
}

impl Table {
    pub fn new(targets: &[Target]) -> Self {
        let names = targets.iter().map(|t| (t.name.clone(), t.is_peer()));
        Self {
            targets: names.collect(),
            rows: Vec::new(),
            others: Vec::new(),
        }
    }

    pub fn add(&mut self, name: &'static str, target: usize, value: f64, others: f64, errors: u64) {
        let at = self.rows.iter().position(|row| row.name == name);
        let at = at.unwrap_or_else(|| {
            let cells = vec![Cell::default(); self.targets.len()];
            self.rows.push(Row { name, cells });
            self.rows.len() - 1
        });
        let cell = &mut self.rows[at].cells[target];
        cell.values.push(value);
        cell.errors += errors;
        self.others.push(others);
    }

    /// The best median of a peer that made no error.
    fn best(&self, row: &Row) -> Option<f64> {
        let peers = row.cells.iter().zip(&self.targets).filter(|(_, t)| t.1);
        let sound = peers.filter(|(cell, _)| cell.errors == 0);
        let medians = sound.filter_map(|(cell, _)| cell.median());
        medians.reduce(if row.more_is_better() {
            f64::max
        } else {
            f64::min
        })
    }
}

impl Row {
    fn more_is_better(&self) -> bool {
        self.name.ends_with("/s")
    }

    /// How much better than `best` this is: above 1 is better, whatever the unit.
    fn advantage(&self, value: f64, best: f64) -> Option<f64> {
        let (over, under) = if self.more_is_better() {
            (value, best)
        } else {
            (best, value)
        };
        (over > 0.0 && under > 0.0).then(|| over / under)
    }
}

impl Cell {
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let upper = sorted.get(sorted.len() / 2)?;
        let lower = sorted.get(sorted.len().saturating_sub(1) / 2)?;
        Some(f64::midpoint(*lower, *upper))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.targets.iter().map(|t| t.0.as_str()).collect();
        writeln!(
            f,
            "\nMedian [least..most], xR: advantage over the best peer of the row.\n"
        )?;
        writeln!(f, "| | {} |", names.join(" | "))?;
        writeln!(f, "|---|{}", "---:|".repeat(names.len()))?;
        for row in &self.rows {
            write!(f, "| {} |", row.name)?;
            let best = self.best(row);
            for (cell, (name, _)) in row.cells.iter().zip(&self.targets) {
                let advantage = cell
                    .median()
                    .zip(best)
                    .and_then(|(v, b)| row.advantage(v, b));
                let shown = advantage.filter(|_| name != "direct");
                write!(f, " {} |", cell_text(cell, shown))?;
            }
            writeln!(f)?;
        }
        let mut others = self.others.clone();
        others.sort_by(f64::total_cmp);
        let at = |share: f64| (others.len().saturating_sub(1) as f64 * share) as usize;
        let percent = |share| others.get(at(share)).copied().unwrap_or_default() * 100.0;
        write!(
            f,
            "\nOther processes used {:.0} % of the machine in the median run, {:.0} % at most.",
            percent(0.5),
            percent(1.0)
        )
    }
}

fn cell_text(cell: &Cell, advantage: Option<f64>) -> String {
    let (sorted, Some(median)) = (cell.sorted(), cell.median()) else {
        return "-".to_owned();
    };
    let mut text = number(median);
    if sorted.len() > 1 {
        text += &format!(
            " [{}..{}]",
            number(sorted[0]),
            number(sorted[sorted.len() - 1])
        );
    }
    if let Some(advantage) = advantage {
        text += &format!(" x{advantage:.2}");
    }
    if cell.errors > 0 {
        text += &format!(" ({} errors)", cell.errors);
    }
    text
}

/// Three significant digits are more than the machine is good for.
fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}
