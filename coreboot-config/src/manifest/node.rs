//! A node of the tree, its path, and its properties as the manifest's types.

use alloc::{
    boxed::Box,
    format,
    string::{String, ToString},
    vec::Vec,
};

use fdt::{Fdt, node::FdtNode};

use super::{
    error::{GuestError, Result, Warning},
    source::Source,
};

/// dtc adds these on its own.
const SILENT_PROPERTIES: [&str; 2] = ["phandle", "linux,phandle"];
/// How much of a text is repeated in a message, in characters.
const SHOWN_TEXT: usize = 60;
/// How many cells are.
const SHOWN_CELLS: usize = 8;

/// A node, which comes from a blob that was checked.
pub(super) struct Node<'b, 'a> {
    node: FdtNode<'b, 'a>,
    path: String,
}

impl<'b, 'a> Node<'b, 'a> {
    /// The root, which a checked blob has.
    pub(super) fn root(tree: &'b Fdt<'a>) -> Option<Self> {
        Some(Self { node: tree.find_node("/")?, path: "/".into() })
    }

    /// The last part of the path, with its unit address.
    pub(super) fn name(&self) -> &'a str {
        self.node.name
    }

    /// From the root on, as in `/chosen/debian`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn children(&self) -> impl Iterator<Item = Node<'b, 'a>> {
        let parent = self.path.trim_end_matches('/');
        self.node.children().map(move |node| Node { path: format!("{parent}/{}", node.name), node })
    }

    /// Whether the list of strings `compatible` has this one.
    pub(super) fn is_compatible(&self, with: &str) -> bool {
        let list = self.value("compatible").unwrap_or(&[]);
        list.split(|byte| *byte == 0).any(|entry| entry == with.as_bytes())
    }

    /// A property's value in words.
    pub(super) fn describe(&self, property: &str) -> String {
        self.value(property).map_or_else(|| "nothing".into(), describe)
    }

    pub(super) fn unknown(&self) -> Warning {
        Warning { node: self.path.clone(), property: None }
    }

    pub(super) fn warn_of_unknown_properties(&self, known: &[&str], warnings: &mut Vec<Warning>) {
        let names = self.node.properties().map(|property| property.name);
        let unknown = names.filter(|name| !known.contains(name) && !SILENT_PROPERTIES.contains(name));
        warnings.extend(
            unknown.map(|name| Warning { node: self.path.clone(), property: Some(name.to_string()) }),
        );
    }

    /// The error that this property is not as expected.
    pub(super) fn wrong(&self, property: &'static str, expected: impl Into<String>) -> Box<GuestError> {
        Box::new(GuestError {
            node: self.path.clone(),
            property: Some(property),
            found: self.describe(property),
            expected: expected.into(),
        })
    }

    /// A property without a value: whether it is there.
    pub(super) fn flag(&self, property: &'static str) -> Result<bool> {
        match self.value(property) {
            None => Ok(false),
            Some([]) => Ok(true),
            // `autostart = <0>` would otherwise mean the contrary of what it says.
            Some(_) => Err(self.wrong(property, "no value (its presence means yes)")),
        }
    }

    /// One text without control characters.
    pub(super) fn text(&self, property: &'static str) -> Result<Option<&'a str>> {
        let Some(value) = self.value(property) else { return Ok(None) };
        let text = single_text(value).ok_or_else(|| self.wrong(property, "one string of printable text"))?;
        Ok(Some(text))
    }

    /// One of these words.
    pub(super) fn word<T: Copy>(&self, property: &'static str, words: &[(&str, T)]) -> Result<Option<T>> {
        let Some(text) = self.text(property)? else { return Ok(None) };
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        found.map(Some).ok_or_else(|| self.wrong(property, one_of(words)))
    }

    /// One of these words, which there must be.
    pub(super) fn needed_word<T: Copy>(&self, property: &'static str, words: &[(&str, T)]) -> Result<T> {
        self.word(property, words)?.ok_or_else(|| self.wrong(property, one_of(words)))
    }

    /// A file.
    pub(super) fn source(&self, property: &'static str) -> Result<Option<Source>> {
        let Some(text) = self.text(property)? else { return Ok(None) };
        Source::parse(text).map(Some).ok_or_else(|| self.wrong(property, Source::EXPECTED))
    }

    /// A file that there must be.
    pub(super) fn needed_source(&self, property: &'static str) -> Result<Source> {
        self.source(property)?.ok_or_else(|| self.wrong(property, Source::EXPECTED))
    }

    /// A number of one cell within a range.
    pub(super) fn number(
        &self,
        property: &'static str,
        range: core::ops::RangeInclusive<u32>,
    ) -> Result<Option<u32>> {
        let Some(value) = self.value(property) else { return Ok(None) };
        let number = <[u8; 4]>::try_from(value).ok().map(u32::from_be_bytes);
        let number = number.filter(|number| range.contains(number));
        let expected = || format!("one cell from {} to {}", range.start(), range.end());
        number.map(Some).ok_or_else(|| self.wrong(property, expected()))
    }

    /// The cells of a property; `None` also when they are not whole.
    pub(super) fn cells(&self, property: &str) -> Option<Vec<u32>> {
        cells(self.value(property)?)
    }

    /// The bytes of a property.
    pub(super) fn value(&self, property: &str) -> Option<&'a [u8]> {
        self.node.property(property).map(|property| property.value)
    }
}

fn one_of<T>(words: &[(&str, T)]) -> String {
    let words: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    format!("one of {}", words.join(", "))
}

fn cells(value: &[u8]) -> Option<Vec<u32>> {
    let (cells, rest) = value.as_chunks::<4>();
    rest.is_empty().then(|| cells.iter().map(|cell| u32::from_be_bytes(*cell)).collect())
}

fn single_text(value: &[u8]) -> Option<&str> {
    let text = core::str::from_utf8(value.strip_suffix(&[0])?).ok()?;
    (!text.chars().any(char::is_control)).then_some(text)
}

/// A value as a reader of the source would recognize it.
fn describe(value: &[u8]) -> String {
    if value.is_empty() {
        return "a property without a value".into();
    }
    if let Some(text) = single_text(value).filter(|text| !text.is_empty()) {
        let shown: String = text.chars().take(SHOWN_TEXT).collect();
        let more = if text.chars().nth(SHOWN_TEXT).is_some() { "…" } else { "" };
        return format!("\"{shown}\"{more}");
    }
    match cells(value).filter(|cells| cells.len() <= SHOWN_CELLS) {
        Some(cells) => {
            let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:#x}")).collect();
            format!("<{}>", cells.join(" "))
        }
        None => format!("{} bytes", value.len()),
    }
}
