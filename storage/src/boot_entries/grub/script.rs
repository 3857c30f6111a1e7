//! GRUB's language, as far as it is understood.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::iter::Peekable;
use core::str::Chars;

/// How deep blocks may be nested.
const DEEPEST: usize = 16;

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// What it says.
    Text(String),
    /// The value of this variable.
    Variable(String),
}

/// A word before its variables are filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// What it is made of.
    pub parts: Vec<Part>,
    /// It counts even if it is empty.
    pub quoted: bool,
}

/// One statement.
#[derive(Debug)]
pub enum Statement {
    /// A command with its arguments, and its block if it has one.
    Command(Vec<Word>, Vec<Statement>),
    /// Conditions with what follows from them, and what follows if none holds.
    If(Vec<(Vec<Statement>, Vec<Statement>)>, Vec<Statement>),
}

#[derive(Debug)]
enum Token {
    Word(Word),
    End,
}

impl Word {
    /// The word, if it is no more than these letters.
    fn plain(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Text(text)] if !self.quoted => Some(text),
            _ => None,
        }
    }

    fn text(&mut self, letter: char) {
        match self.parts.last_mut() {
            Some(Part::Text(text)) => text.push(letter),
            _ => self.parts.push(Part::Text(letter.into())),
        }
    }
}

/// The variable that is named behind a dollar sign.
fn variable(letters: &mut Peekable<Chars<'_>>) -> Part {
    let mut name = String::new();
    if letters.next_if_eq(&'{').is_some() {
        while let Some(letter) = letters.next().filter(|letter| *letter != '}') {
            name.push(letter);
        }
        return Part::Variable(name);
    }
    while let Some(letter) = letters.next_if(|letter| letter.is_ascii_alphanumeric() || *letter == '_') {
        name.push(letter);
    }
    if name.is_empty() {
        // Parameters of functions have names that are no letters, and functions are not called.
        match letters.next_if(|letter| "@*#?".contains(*letter)) {
            Some(sign) => Part::Variable(sign.into()),
            None => Part::Text("$".to_owned()),
        }
    } else {
        Part::Variable(name)
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let mut letters = text.chars().peekable();
    let mut tokens = Vec::new();
    let mut word: Option<Word> = None;
    while let Some(letter) = letters.next() {
        match letter {
            ' ' | '\t' | '\r' | '\n' | ';' => {
                tokens.extend(word.take().map(Token::Word));
                if matches!(letter, '\n' | ';') {
                    tokens.push(Token::End);
                }
            }
            '#' if word.is_none() => while letters.next_if(|letter| *letter != '\n').is_some() {},
            '\\' => match letters.next() {
                // A line goes on behind its end.
                Some('\n') | None => {}
                Some(letter) => word.get_or_insert_default().text(letter),
            },
            '\'' => {
                let word = word.get_or_insert_default();
                word.quoted = true;
                while let Some(letter) = letters.next().filter(|letter| *letter != '\'') {
                    word.text(letter);
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                word.quoted = true;
                while let Some(letter) = letters.next().filter(|letter| *letter != '"') {
                    match letter {
                        '\\' => match letters.next() {
                            Some(letter @ ('"' | '\\' | '$')) => word.text(letter),
                            Some('\n') | None => {}
                            Some(letter) => {
                                word.text('\\');
                                word.text(letter);
                            }
                        },
                        '$' => word.parts.push(variable(&mut letters)),
                        letter => word.text(letter),
                    }
                }
            }
            '$' => {
                let part = variable(&mut letters);
                word.get_or_insert_default().parts.push(part);
            }
            letter => word.get_or_insert_default().text(letter),
        }
    }
    tokens.extend(word.map(Token::Word));
    tokens.push(Token::End);
    tokens
}

/// What a configuration says.
///
/// # Errors
/// It is no program of GRUB's, in plain words.
pub fn parse(text: &str) -> Result<Vec<Statement>, &'static str> {
    let tokens = tokens(text);
    let mut parser = Parser { tokens: &tokens, depth: 0 };
    let (statements, _) = parser.block(&[])?;
    Ok(statements)
}

struct Parser<'a> {
    tokens: &'a [Token],
    depth: usize,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    /// The statements up to one of these words, and which it was.
    fn block(&mut self, ends: &[&'static str]) -> Result<(Vec<Statement>, Option<&'a str>), &'static str> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > DEEPEST {
            return Err("its blocks are nested too deeply");
        }
        let mut statements = Vec::new();
        let end = loop {
            let Some(token) = self.next() else { break None };
            let Token::Word(word) = token else { continue };
            match word.plain() {
                Some(end) if ends.contains(&end) => break Some(end),
                Some("}" | "fi" | "done") => return Err("a block ends that did not begin"),
                Some("if") => statements.push(self.condition()?),
                Some("for" | "while" | "until") => {
                    self.block(&["done"])?;
                }
                Some("then" | "do") => {}
                Some("function") => {
                    self.command(word)?;
                }
                _ => statements.push(self.command(word)?),
            }
        };
        self.depth = self.depth.saturating_sub(1);
        if end.is_none() && !ends.is_empty() {
            return Err("a block does not end");
        }
        Ok((statements, end))
    }

    /// What follows an `if`.
    fn condition(&mut self) -> Result<Statement, &'static str> {
        let mut cases = Vec::new();
        loop {
            let (condition, _) = self.block(&["then"])?;
            let (body, end) = self.block(&["elif", "else", "fi"])?;
            cases.push((condition, body));
            match end {
                Some("elif") => {}
                Some("else") => {
                    let (body, _) = self.block(&["fi"])?;
                    return Ok(Statement::If(cases, body));
                }
                _ => return Ok(Statement::If(cases, Vec::new())),
            }
        }
    }

    /// A command that begins with this word.
    fn command(&mut self, first: &Word) -> Result<Statement, &'static str> {
        let mut words = Vec::from([first.clone()]);
        while let Some(token) = self.next() {
            let Token::Word(word) = token else { break };
            if word.plain() == Some("{") {
                let (body, _) = self.block(&["}"])?;
                return Ok(Statement::Command(words, body));
            }
            words.push(word.clone());
        }
        Ok(Statement::Command(words, Vec::new()))
    }
}
