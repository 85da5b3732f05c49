//! Sentences out of word lists: each corpus brings lists and patterns of its own.

use super::dice::Dice;

/// What one corpus writes with.
pub struct Prose {
    nouns: Vec<&'static str>,
    verbs: Vec<&'static str>,
    adjectives: Vec<&'static str>,
    adverbs: Vec<&'static str>,
    syllables: Vec<&'static str>,
    patterns: &'static [&'static str],
}

/// The material of a corpus: words apart by spaces.
pub struct Material {
    pub nouns: &'static str,
    /// Regular ones, without an ending.
    pub verbs: &'static str,
    pub adjectives: &'static str,
    pub adverbs: &'static str,
    /// For names of people and places, which no list holds.
    pub syllables: &'static str,
    /// Letters stand for words: `N` noun, `S` nouns, `V` verb, `D` verb in the past, `G` verb with -ing, `A` adjective, `B` adverb,
    /// `P` a name, `0` a number.
    pub patterns: &'static [&'static str],
}

impl Material {
    pub fn words(&self) -> impl Iterator<Item = &'static str> {
        [self.nouns, self.verbs, self.adjectives, self.adverbs, self.syllables]
            .into_iter()
            .flat_map(str::split_whitespace)
    }
}

impl Prose {
    pub fn new(material: &Material) -> Self {
        let words = |list: &'static str| list.split_whitespace().collect();
        Self {
            nouns: words(material.nouns),
            verbs: words(material.verbs),
            adjectives: words(material.adjectives),
            adverbs: words(material.adverbs),
            syllables: words(material.syllables),
            patterns: material.patterns,
        }
    }

    /// So many sentences.
    pub fn text(&self, dice: &mut Dice, sentences: usize) -> String {
        let all: Vec<String> = (0..sentences).map(|_| self.sentence(dice)).collect();
        all.join(" ")
    }

    pub fn sentence(&self, dice: &mut Dice) -> String {
        let mut out = String::new();
        for letter in dice.one_of(self.patterns).chars() {
            match letter {
                'A'..='Z' | '0' => out.push_str(&self.word(letter, dice)),
                other => out.push(other),
            }
        }
        capital(&out)
    }

    /// A few words without a full stop.
    pub fn title(&self, dice: &mut Dice) -> String {
        let (adjective, noun) = (self.word('A', dice), self.word('N', dice));
        match dice.below(4) {
            0 => capital(&noun),
            1 => capital(&format!("{adjective} {noun}")),
            2 => format!("{} {}", capital(&self.word('G', dice)), self.word('S', dice)),
            _ => format!("{} {noun}", self.name(dice)),
        }
    }

    /// A name that is on no list.
    pub fn name(&self, dice: &mut Dice) -> String {
        let count = 2 + dice.below(2);
        capital(&(0..count).map(|_| *dice.one_of(&self.syllables)).collect::<String>())
    }

    pub fn word(&self, letter: char, dice: &mut Dice) -> String {
        let noun = *dice.one_of(&self.nouns);
        let verb = *dice.one_of(&self.verbs);
        let stem = verb.strip_suffix('e');
        match letter {
            'N' => noun.to_owned(),
            'S' => plural(noun),
            'V' => verb.to_owned(),
            'D' => format!("{}ed", stem.unwrap_or(verb)),
            'G' => format!("{}ing", stem.unwrap_or(verb)),
            'A' => (*dice.one_of(&self.adjectives)).to_owned(),
            'B' => (*dice.one_of(&self.adverbs)).to_owned(),
            'P' => self.name(dice),
            '0' => (2 + dice.below(97)).to_string(),
            other => panic!("{other} stands for no word"),
        }
    }
}

fn plural(noun: &str) -> String {
    match noun.as_bytes() {
        [.., b's' | b'x' | b'z'] | [.., b'c' | b's', b'h'] => format!("{noun}es"),
        [.., before, b'y'] if !b"aeiou".contains(before) => {
            format!("{}ies", noun.trim_end_matches('y'))
        }
        _ => format!("{noun}s"),
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}
