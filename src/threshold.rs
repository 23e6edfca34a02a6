//! From answers to a state. Pure: a simulation can run it.

/// How many answers in a row change the state.
#[derive(Debug, Clone)]
pub struct Threshold {
    rise: u32,
    fall: u32,
    /// `None`: nothing is known yet.
    up: Option<bool>,
    /// Answers in a row that speak against the state.
    against: u32,
}

/// What an answer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The first answer of all.
    First {
        up: bool,
    },
    Turned {
        up: bool,
    },
}

impl Threshold {
    pub fn new(rise: u32, fall: u32) -> Self {
        Self { rise, fall, up: None, against: 0 }
    }

    /// Continues from a state that is known already.
    #[must_use]
    pub fn knowing(self, up: bool) -> Self {
        Self { up: Some(up), against: 0, ..self }
    }

    /// Takes an answer. The first decides at once, later ones only in a row: one answer that fits the state and counting
    /// begins anew, so that a backend at the edge changes at most once in a whole window (traps B5).
    pub fn take(&mut self, good: bool) -> Option<Change> {
        let Some(up) = self.up else {
            self.up = Some(good);
            return Some(Change::First { up: good });
        };
        if good == up {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if good { self.rise } else { self.fall };
        if self.against < needed {
            return None;
        }
        (self.up, self.against) = (Some(good), 0);
        Some(Change::Turned { up: good })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(threshold: &mut Threshold, answers: &str) -> Vec<(usize, Change)> {
        let answers = answers.chars().enumerate();
        answers.filter_map(|(index, answer)| Some((index, threshold.take(answer == '+')?))).collect()
    }

    #[test]
    fn b3_the_first_answer_decides_at_once() {
        for (answer, up) in [("+", true), ("-", false)] {
            assert_eq!(changes(&mut Threshold::new(3, 3), answer), [(0, Change::First { up })]);
        }
    }

    #[test]
    fn b5_only_answers_in_a_row_count() {
        let mut threshold = Threshold::new(2, 3).knowing(true);
        let expected = [(7, Change::Turned { up: false }), (11, Change::Turned { up: true })];
        assert_eq!(changes(&mut threshold, "-+--+---+-++-"), expected);
        assert_eq!(changes(&mut Threshold::new(2, 2).knowing(true), &"-+".repeat(100)), []);
    }

    #[test]
    fn b5_each_change_costs_a_whole_window() {
        // Whatever the answers are: every sequence of twelve.
        for bits in 0..1_u32 << 12 {
            let answers: String = (0..12).map(|bit| if bits >> bit & 1 == 1 { '+' } else { '-' }).collect();
            let found = changes(&mut Threshold::new(2, 3).knowing(true), &answers);
            let mut last = 0;
            for (index, change) in found {
                let window = if change == (Change::Turned { up: true }) { 2 } else { 3 };
                assert!(index + 1 >= last + window, "{answers}: {change:?} at {index}");
                last = index + 1;
            }
        }
    }
}
