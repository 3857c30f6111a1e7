//! What runs a configuration.

use super::script::{Part, Statement, Word};
use crate::boot_entries::MOST_RAMDISKS;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// What GRUB's name of a device begins with here if a search has found it; a volume's number follows.
pub const FOUND: &str = "volume";
/// How many bytes one command's words may have.
const LONGEST_COMMAND: usize = 8 << 10;
/// How many variables there may be, and how many bytes they may have together.
const MOST_VARIABLES: usize = 256;
const MOST_BYTES: usize = 16 << 10;
/// How many bytes all entries may have together.
const ENTRIES_BYTES: usize = 256 << 10;

/// Names and values; few enough to be looked through.
pub type Variables = Vec<(String, String)>;

/// A file, and the device where it is looked for if its name does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    pub root: String,
    pub path: String,
}

/// What an entry boots.
#[derive(Debug, Default)]
pub struct Boot {
    pub kernel: Option<Named>,
    pub arguments: String,
    pub ramdisks: Vec<Named>,
}

/// An entry of a menu, or a menu in it.
#[derive(Debug, Default)]
pub struct Item {
    pub title: String,
    pub id: String,
    pub boot: Boot,
    pub items: Vec<Item>,
}

impl Item {
    /// How many bytes it has, those of the items in it not counted.
    fn len(&self) -> usize {
        let files = self.boot.kernel.iter().chain(&self.boot.ramdisks);
        let texts = files.flat_map(|file| [&file.root, &file.path]);
        let texts = texts.chain([&self.title, &self.id, &self.boot.arguments]);
        texts.fold(size_of::<Self>(), |len, text| {
            len.saturating_add(text.len()).saturating_add(size_of::<String>())
        })
    }
}

/// The state of a configuration that is run.
pub struct Machine {
    variables: Variables,
    /// What `load_env` loads, if there is such a file.
    environment: Option<Variables>,
    /// Identifiers and labels of the file systems.
    pub volumes: Vec<(String, String)>,
    /// How many bytes entries may still have.
    left: usize,
}

impl Machine {
    /// Before the configuration in `directory` of this volume is run.
    pub fn new(directory: &str, volume: usize, environment: Option<Variables>) -> Self {
        let root = format!("{FOUND}{volume}");
        let mut machine =
            Self { variables: Vec::new(), environment, volumes: Vec::new(), left: ENTRIES_BYTES };
        // What GRUB 2.06 says of itself.
        for feature in ["menuentry_id", "platform_search_hint", "timeout_style", "default_font_path"] {
            machine.set(&format!("feature_{feature}"), "y");
        }
        machine.set("prefix", &format!("({root}){directory}"));
        machine.set("root", &root);
        machine.set("grub_platform", "pc");
        machine.set("grub_cpu", "i386");
        machine
    }

    /// A variable's value; empty where it has none.
    pub fn variable(&self, name: &str) -> &str {
        self.variables.iter().find(|(own, _)| own == name).map_or("", |(_, value)| value)
    }

    /// Runs a configuration; what its menu has then.
    pub fn menu(&mut self, script: &[Statement]) -> Vec<Item> {
        let mut items = Vec::new();
        self.run(script, &mut Boot::default(), &mut items);
        items
    }

    /// Runs statements; whether the last one succeeded.
    fn run(&mut self, statements: &[Statement], boot: &mut Boot, items: &mut Vec<Item>) -> bool {
        let mut succeeded = true;
        for statement in statements {
            succeeded = match statement {
                Statement::Command(words, body) => self.command(words, body, boot, items),
                Statement::If(cases, otherwise) => {
                    let mut chosen = otherwise;
                    for (condition, body) in cases {
                        if self.run(condition, boot, items) {
                            chosen = body;
                            break;
                        }
                    }
                    self.run(chosen, boot, items)
                }
            };
        }
        succeeded
    }

    /// The words of a command; `None` if they are too long.
    fn expand(&self, words: &[Word]) -> Option<Vec<String>> {
        let mut expanded = Vec::new();
        let mut left = LONGEST_COMMAND;
        for word in words {
            let mut text = String::new();
            for part in word.parts() {
                let part = match part {
                    Part::Text(own) => own,
                    Part::Variable(name) => self.variable(name),
                };
                left = left.checked_sub(part.len())?;
                text.push_str(part);
            }
            if word.is_quoted() || !text.is_empty() {
                expanded.push(text);
            }
        }
        Some(expanded)
    }

    fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(own, _)| own != name);
        let len = |pair: &(String, String)| pair.0.len().saturating_add(pair.1.len());
        let others: usize = self.variables.iter().map(len).sum();
        let all = others.saturating_add(name.len()).saturating_add(value.len());
        if all <= MOST_BYTES && self.variables.len() < MOST_VARIABLES {
            self.variables.push((name.to_owned(), value.to_owned()));
        }
    }

    fn command(
        &mut self,
        words: &[Word],
        body: &[Statement],
        boot: &mut Boot,
        items: &mut Vec<Item>,
    ) -> bool {
        let Some(words) = self.expand(words) else { return false };
        let Some((name, arguments)) = words.split_first() else { return true };
        let named = |path: &String| Named { root: self.variable("root").to_owned(), path: path.clone() };
        match (name.as_str(), arguments) {
            ("menuentry" | "submenu", _) => {
                let item = self.item(name == "submenu", arguments, body);
                let left = self.left.checked_sub(item.len());
                items.extend(left.map(|_| item));
                self.left = left.unwrap_or(0);
                left.is_some()
            }
            ("set", [pair, ..]) => match pair.split_once('=') {
                Some((name, value)) => {
                    self.set(name, value);
                    true
                }
                None => false,
            },
            ("unset", [name, ..]) => {
                self.variables.retain(|(own, _)| own != name);
                true
            }
            ("load_env", _) => {
                let Some(environment) = self.environment.clone() else { return false };
                environment.iter().for_each(|(name, value)| self.set(name, value));
                true
            }
            ("[" | "test", _) => {
                let end = arguments.strip_suffix(&["]".to_owned()]).unwrap_or(arguments);
                self.test(end)
            }
            ("search", _) => self.search(arguments),
            ("linux" | "linux16" | "linuxefi", [path, rest @ ..]) => {
                *boot = Boot { kernel: Some(named(path)), arguments: rest.join(" "), ramdisks: Vec::new() };
                true
            }
            ("initrd" | "initrd16" | "initrdefi", paths) => {
                let paths = paths.iter().filter(|path| !path.starts_with("--"));
                boot.ramdisks = paths.take(MOST_RAMDISKS.saturating_add(1)).map(named).collect();
                true
            }
            ("true" | "insmod" | "export" | "save_env" | "echo", _) => true,
            (assignment, []) => match assignment.split_once('=') {
                Some((name, value)) => {
                    self.set(name, value);
                    true
                }
                None => false,
            },
            _ => false,
        }
    }

    /// An entry of the menu. What it changes is its own.
    fn item(&mut self, is_menu: bool, arguments: &[String], body: &[Statement]) -> Item {
        let mut item = Item::default();
        let mut arguments = arguments.iter();
        let mut title = None;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--id" => item.id = arguments.next().cloned().unwrap_or_default(),
                "--class" | "--users" | "--hotkey" | "--source" => drop(arguments.next()),
                option if option.starts_with("--id=") => item.id = option.split_at(5).1.to_owned(),
                option if option.starts_with("--") => {}
                _ => title = title.or(Some(argument)),
            }
        }
        item.title = title.cloned().unwrap_or_default();
        let before = self.variables.clone();
        let mut items = Vec::new();
        self.run(body, &mut item.boot, &mut items);
        self.variables = before;
        if is_menu {
            item = Item { boot: Boot::default(), items, ..item };
        }
        item
    }

    /// `search`: finds a file system, and keeps its name in a variable.
    fn search(&mut self, arguments: &[String]) -> bool {
        let (mut by_label, mut by_id) = (false, false);
        let (mut variable, mut wanted) = (None, None);
        for argument in arguments {
            match argument.as_str() {
                "-l" | "--label" => by_label = true,
                "-u" | "--fs-uuid" => by_id = true,
                "-s" | "--set" => variable = Some("root"),
                option if option.starts_with("--set=") => variable = option.strip_prefix("--set="),
                option if option.starts_with('-') => {}
                _ => wanted = Some(argument),
            }
        }
        let Some(wanted) = wanted else { return false };
        let found = self.volumes.iter().position(|(id, label)| {
            (by_id && id.eq_ignore_ascii_case(wanted)) || (by_label && label == wanted)
        });
        let Some(found) = found else { return false };
        if let Some(variable) = variable {
            self.set(variable, &format!("{FOUND}{found}"));
        }
        true
    }

    /// Whether a condition of `[` holds.
    fn test(&self, arguments: &[String]) -> bool {
        let mut any = arguments.split(|word| word == "-o");
        any.any(|all| all.split(|word| word == "-a").all(|one| self.holds(one)))
    }

    fn holds(&self, words: &[String]) -> bool {
        let negations = words.iter().take_while(|word| *word == "!").count();
        let words: Vec<&str> = words.iter().skip(negations).map(String::as_str).collect();
        self.holds_plainly(&words) == negations.is_multiple_of(2)
    }

    fn holds_plainly(&self, words: &[&str]) -> bool {
        let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
        match *words {
            [] | ["-n"] => false,
            ["-z"] => true,
            ["-z", text] => text.is_empty(),
            ["-n", text] | [text] => !text.is_empty(),
            // The environment is the only file that is asked for and matters.
            ["-e" | "-f" | "-s", path] => {
                self.environment.is_some() && path.strip_suffix("/grubenv") == Some(self.variable("prefix"))
            }
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            [a, "-eq", b] => number(a) == number(b),
            [a, "-ne", b] => number(a) != number(b),
            [a, "-lt", b] => number(a) < number(b),
            [a, "-le", b] => number(a) <= number(b),
            [a, "-gt", b] => number(a) > number(b),
            [a, "-ge", b] => number(a) >= number(b),
            _ => false,
        }
    }
}
