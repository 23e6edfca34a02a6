//! What can be known about an address: the few distinct answers that a table gives for millions of ranges.

use std::collections::HashMap;

use super::{Action, RuleSet, Verdict};

/// The deciding rule, and the shadow rules that matched before it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Class {
    pub action: Action,
    /// `None`: no rule matched, the default decides.
    pub rule: Option<u16>,
    /// Ascending, all below `rule`.
    pub shadows: Vec<u16>,
}

impl Class {
    pub fn verdict(&self) -> Verdict<'_> {
        let Self { action, rule, shadows } = self;
        Verdict { action: *action, rule: *rule, shadows }
    }

    /// The class of addresses that match `index` besides everything that made this one.
    ///
    /// What is thrown away here can never matter again further in: a rule behind the deciding one stays behind it.
    fn refine(&mut self, index: u16, rule: &RuleSet<'_>) {
        if self.rule.is_some_and(|decided| decided <= index) {
            return;
        }
        if rule.shadow {
            if let Err(place) = self.shadows.binary_search(&index) {
                self.shadows.insert(place, index);
            }
        } else {
            self.rule = Some(index);
            self.action = rule.action;
            self.shadows.retain(|shadow| *shadow < index);
        }
    }
}

/// Hands out one number per distinct class; number 0 is the default.
#[derive(Debug)]
pub struct Classes {
    list: Vec<Class>,
    numbers: HashMap<Class, u32>,
}

impl Classes {
    pub fn new(default: Action) -> Self {
        let mut classes = Self { list: Vec::new(), numbers: HashMap::new() };
        classes.number(Class { action: default, rule: None, shadows: Vec::new() });
        classes
    }

    /// The class of addresses inside `parent` that match the rules `indices` too.
    pub fn refined(&mut self, parent: u32, indices: impl Iterator<Item = u16>, rules: &[RuleSet<'_>]) -> u32 {
        let Some(class) = self.list.get(parent as usize) else { return parent };
        let mut class = class.clone();
        for index in indices {
            if let Some(rule) = rules.get(usize::from(index)) {
                class.refine(index, rule);
            }
        }
        self.number(class)
    }

    pub fn into_list(self) -> Vec<Class> {
        self.list
    }

    fn number(&mut self, class: Class) -> u32 {
        if let Some(number) = self.numbers.get(&class) {
            return *number;
        }
        #[expect(clippy::cast_possible_truncation, reason = "2^32 classes would need 2^32 networks in memory")]
        let number = self.list.len() as u32;
        self.list.push(class.clone());
        self.numbers.insert(class, number);
        number
    }
}
