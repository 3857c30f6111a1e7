//! GRUB's language, as far as it is understood.

use alloc::string::String;
use alloc::vec::Vec;
use core::iter::Peekable;
use core::str::Chars;

/// How deep blocks may be nested.
const DEEPEST: usize = 16;
/// How many words a configuration may have: they are in the firmware's memory. Debian's has 150 for each kernel.
const MOST_WORDS: usize = 1 << 12;

/// Signs of Unicode's that are nobody's, for what a word has beside its letters: a variable's name is between the
/// first and the second, and the third is in words that count even if they are empty.
const BEGIN: char = '\u{fdd0}';
const END: char = '\u{fdd1}';
const QUOTED: char = '\u{fdd2}';

/// A word before its variables are filled in.
#[derive(Debug, Default)]
pub struct Word(String);

/// A part of a word.
pub enum Part<'a> {
    /// What it says.
    Text(&'a str),
    /// The value of the variable that is called so.
    Variable(&'a str),
}

impl Word {
    /// Whether it counts even if it is empty.
    pub fn is_quoted(&self) -> bool {
        self.0.contains(QUOTED)
    }

    /// What it is made of.
    pub fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        self.0.split(QUOTED).flat_map(|text| text.split(END)).flat_map(|text| {
            let (text, variable) =
                text.split_once(BEGIN).map_or((text, None), |(text, name)| (text, Some(name)));
            [Some(Part::Text(text)), variable.map(Part::Variable)].into_iter().flatten()
        })
    }

    /// Adds a letter.
    fn push(&mut self, letter: char) {
        if !(BEGIN..=QUOTED).contains(&letter) {
            self.0.push(letter);
        }
    }

    /// Adds the variable that is named behind a dollar sign.
    fn variable(&mut self, letters: &mut Peekable<Chars<'_>>) {
        let start = self.0.len();
        self.0.push(BEGIN);
        if letters.next_if_eq(&'{').is_some() {
            while let Some(letter) = letters.next().filter(|letter| *letter != '}') {
                self.push(letter);
            }
        } else if let Some(sign) = letters.next_if(|letter| "@*#?".contains(*letter)) {
            // Parameters of functions have names that are no letters.
            self.0.push(sign);
        } else {
            while let Some(letter) =
                letters.next_if(|letter| letter.is_ascii_alphanumeric() || *letter == '_')
            {
                self.0.push(letter);
            }
            if self.0.ends_with(BEGIN) {
                self.0.truncate(start);
                self.0.push('$');
                return;
            }
        }
        self.0.push(END);
    }
}

/// One statement.
#[derive(Debug)]
pub enum Statement {
    /// A command with its arguments, and its block if it has one.
    Command(Vec<Word>, Vec<Statement>),
    /// Conditions with what follows from them, and what follows if none holds.
    If(Vec<(Vec<Statement>, Vec<Statement>)>, Vec<Statement>),
}

enum Token {
    Word(Word),
    End,
}

/// What a configuration says.
///
/// # Errors
/// It is no program of GRUB's, in plain words.
pub fn parse(text: &str) -> Result<Vec<Statement>, &'static str> {
    let mut parser = Parser { letters: text.chars().peekable(), depth: 0, words: 0 };
    let (statements, _) = parser.block(&[])?;
    Ok(statements)
}

struct Parser<'a> {
    letters: Peekable<Chars<'a>>,
    depth: usize,
    words: usize,
}

impl Parser<'_> {
    /// The next word, or the end of a statement.
    fn next(&mut self) -> Option<Token> {
        let mut word: Option<Word> = None;
        while let Some(letter) = self.letters.peek().copied() {
            let is_end = matches!(letter, '\n' | ';');
            if is_end || matches!(letter, ' ' | '\t' | '\r') {
                if word.is_some() {
                    break;
                }
                self.letters.next();
                if is_end {
                    return Some(Token::End);
                }
                continue;
            }
            self.letters.next();
            match letter {
                '#' if word.is_none() => while self.letters.next_if(|letter| *letter != '\n').is_some() {},
                '\\' => match self.letters.next() {
                    // A line goes on behind its end.
                    Some('\n') | None => {}
                    Some(letter) => word.get_or_insert_default().push(letter),
                },
                '\'' => {
                    let word = word.get_or_insert_default();
                    word.0.push(QUOTED);
                    while let Some(letter) = self.letters.next().filter(|letter| *letter != '\'') {
                        word.push(letter);
                    }
                }
                '"' => self.quoted(word.get_or_insert_default()),
                '$' => word.get_or_insert_default().variable(&mut self.letters),
                letter => word.get_or_insert_default().push(letter),
            }
        }
        word.map(Token::Word)
    }

    /// What is between double quotes.
    fn quoted(&mut self, word: &mut Word) {
        word.0.push(QUOTED);
        while let Some(letter) = self.letters.next().filter(|letter| *letter != '"') {
            match letter {
                '\\' => match self.letters.next() {
                    Some(letter @ ('"' | '\\' | '$')) => word.push(letter),
                    Some('\n') | None => {}
                    Some(letter) => {
                        word.push('\\');
                        word.push(letter);
                    }
                },
                '$' => word.variable(&mut self.letters),
                letter => word.push(letter),
            }
        }
    }

    fn count(&mut self) -> Result<(), &'static str> {
        self.words = self.words.saturating_add(1);
        if self.words > MOST_WORDS { Err("it has too many words") } else { Ok(()) }
    }

    /// The statements up to one of these words, and which it was.
    fn block(&mut self, ends: &[&'static str]) -> Result<(Vec<Statement>, &'static str), &'static str> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > DEEPEST {
            return Err("its blocks are nested too deeply");
        }
        let mut statements = Vec::new();
        let end = loop {
            let Some(token) = self.next() else { break None };
            let Token::Word(word) = token else { continue };
            self.count()?;
            if let Some(end) = ends.iter().find(|end| **end == word.0) {
                break Some(*end);
            }
            match word.0.as_str() {
                "}" | "fi" | "done" => return Err("a block ends that did not begin"),
                "if" => statements.push(self.condition()?),
                "for" | "while" | "until" => drop(self.block(&["done"])?),
                "then" | "do" => {}
                "function" => drop(self.command(word)?),
                _ => statements.push(self.command(word)?),
            }
        };
        self.depth = self.depth.saturating_sub(1);
        if end.is_none() && !ends.is_empty() {
            return Err("a block does not end");
        }
        Ok((statements, end.unwrap_or_default()))
    }

    /// What follows an `if`.
    fn condition(&mut self) -> Result<Statement, &'static str> {
        let mut cases = Vec::new();
        loop {
            let (condition, _) = self.block(&["then"])?;
            let (body, end) = self.block(&["elif", "else", "fi"])?;
            cases.push((condition, body));
            match end {
                "elif" => {}
                "else" => {
                    let (body, _) = self.block(&["fi"])?;
                    return Ok(Statement::If(cases, body));
                }
                _ => return Ok(Statement::If(cases, Vec::new())),
            }
        }
    }

    /// A command that begins with this word.
    fn command(&mut self, first: Word) -> Result<Statement, &'static str> {
        let mut words = Vec::from([first]);
        while let Some(token) = self.next() {
            let Token::Word(word) = token else { break };
            self.count()?;
            if word.0 == "{" {
                let (body, _) = self.block(&["}"])?;
                return Ok(Statement::Command(words, body));
            }
            words.push(word);
        }
        Ok(Statement::Command(words, Vec::new()))
    }
}
