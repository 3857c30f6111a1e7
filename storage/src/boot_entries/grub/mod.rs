//! `grub.cfg` as Debian's `grub-mkconfig` writes it.
//!
//! GRUB's configuration is a program. What is run of it is what decides which entries there are and what they load:
//! variables, conditions, menus and `search`. Functions, loops, modules and screens are passed over.

mod machine;
mod script;

use super::{BootDisk, Entry, Findings, Image, Source, Volume};
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::vec::Vec;
use machine::{Item, Machine, Variables};

/// Where GRUB's directory may be.
const PLACES: [&str; 4] = ["/boot/grub", "/grub", "/boot/grub2", "/grub2"];
/// What the environment begins with.
const ENVIRONMENT: &str = "# GRUB Environment Block";

/// Looks on all partitions.
pub async fn find(disk: &BootDisk, findings: &mut Findings) {
    for (index, volume) in disk.volumes.iter().enumerate() {
        for directory in PLACES {
            let path = format!("{directory}/grub.cfg");
            let Some(text) = volume.text(&path, findings).await else { continue };
            let environment = volume.text(&format!("{directory}/grubenv"), findings).await;
            match script::parse(&text) {
                Ok(script) => {
                    let mut machine =
                        Machine::new(directory, index, environment.map(|text| variables(&text)));
                    machine.volumes =
                        disk.volumes.iter().map(|volume| (volume.id.clone(), volume.label.clone())).collect();
                    let items = machine.menu(&script);
                    add(disk, volume, index, &path, &items, machine.variable("default"), findings);
                }
                Err(why) => findings.remark(volume, &path, why),
            }
        }
    }
}

/// How many variables of an environment block are taken.
const MOST_VARIABLES: usize = 64;

/// The variables of an environment block.
fn variables(text: &str) -> Variables {
    let lines =
        text.strip_prefix(ENVIRONMENT).unwrap_or_default().lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('=')).take(MOST_VARIABLES);
    // It is for one boot, after which GRUB removes it: we do not write.
    let lasting = pairs.filter(|(name, _)| *name != "next_entry");
    lasting.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Makes entries of a menu and those below it.
fn add(
    disk: &BootDisk,
    volume: &Volume,
    index: usize,
    path: &str,
    items: &[Item],
    default: &str,
    findings: &mut Findings,
) {
    let image = |name: &str, root: &str| {
        let (root, path) = match name.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((device, path)) => (device, path),
            None => (root, name),
        };
        Image { volume: device(disk, root).unwrap_or(index), path: path.to_owned(), section: None }
    };
    // All items, those of a menu after it, and where each is found again.
    let mut flat: Vec<(&Item, Vec<usize>)> = Vec::new();
    let mut rest: Vec<(&Item, Vec<usize>)> =
        items.iter().enumerate().rev().map(|(n, item)| (item, Vec::from([n]))).collect();
    while let Some((item, place)) = rest.pop() {
        let below = item.items.iter().enumerate().rev();
        rest.extend(below.map(|(n, item)| (item, [place.as_slice(), &[n]].concat())));
        flat.push((item, place));
    }
    let wanted = place_of(items, default);
    let mut chosen = None;
    let mut entries: Vec<Entry> = Vec::new();
    for (item, place) in flat {
        let Some(kernel) = &item.boot.kernel else { continue };
        // A menu that is the default boots what it has first.
        let is_wanted = !wanted.is_empty() && place.starts_with(&wanted);
        let entry = Entry {
            title: item.title.clone(),
            id: if item.id.is_empty() { item.title.clone() } else { item.id.clone() },
            source: Source::Grub,
            partition: volume.number(),
            path: path.to_owned(),
            kernel: image(&kernel.path, &kernel.root),
            ramdisks: item.boot.ramdisks.iter().map(|file| image(&file.path, &file.root)).collect(),
            arguments: item.boot.arguments.clone(),
        };
        let place = entries.len();
        findings.push(volume, &mut entries, entry);
        if is_wanted && chosen.is_none() && entries.len() > place {
            chosen = Some(place);
        }
    }
    findings.add(entries, chosen.unwrap_or(0));
}

/// Where the item is that `default` names: numbers, titles or identifiers, one for each menu on the way.
fn place_of(items: &[Item], default: &str) -> Vec<usize> {
    let mut place = Vec::new();
    let mut here = items;
    for step in default.split('>') {
        let named =
            || here.iter().position(|item| item.title == step || (!item.id.is_empty() && item.id == step));
        let number = step.trim().parse().ok().or_else(named);
        let Some((number, item)) = number.and_then(|number| Some((number, here.get(number)?))) else { break };
        place.push(number);
        here = &item.items;
    }
    place
}

/// The file system that GRUB's name of a device means: a partition of this disk, whatever number that has.
fn device(disk: &BootDisk, name: &str) -> Option<usize> {
    if let Some(number) = name.strip_prefix(machine::FOUND) {
        return number.parse().ok();
    }
    let partition = name.split_once(',').map_or("0", |(_, partition)| partition);
    let digits = partition.trim_start_matches(|letter: char| !letter.is_ascii_digit());
    let number: u32 = digits.parse().ok()?;
    disk.volumes.iter().position(|volume| volume.number() == number)
}

/// Whether this is no program.
#[cfg(test)]
pub fn is_wrong(text: &str) -> bool {
    script::parse(text).is_err()
}
