//! The Boot Loader Specification (UAPI.1): entries of type 1 and unified kernel images, in the order of systemd-boot.

use super::{
    BootDisk, Entry, Findings, Image, LONGEST_ENTRY, MOST_ENTRIES, MOST_RAMDISKS, Source, Volume, unified,
    version,
};
use crate::files::FileError;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cmp::Ordering;

/// An entry, and what its place in the menu hangs on.
struct Sortable {
    entry: Entry,
    /// All attempts to boot it are used up.
    is_bad: bool,
    sort_key: Option<String>,
    machine: String,
    version: String,
}

impl Sortable {
    /// The length of what its place hangs on.
    fn len(&self) -> usize {
        let key = self.sort_key.as_ref().map_or(0, String::len);
        key.saturating_add(self.machine.len()).saturating_add(self.version.len())
    }

    fn compare(&self, other: &Self) -> Ordering {
        let keyed = match (&self.sort_key, &other.sort_key) {
            (Some(own), Some(others)) => own
                .cmp(others)
                .then_with(|| self.machine.cmp(&other.machine))
                .then_with(|| version::compare(&other.version, &self.version)),
            (own, others) => others.is_some().cmp(&own.is_some()),
        };
        let by_name = || version::compare(&other.entry.id, &self.entry.id);
        self.is_bad.cmp(&other.is_bad).then(keyed).then_with(by_name)
    }
}

/// Looks on all partitions that boot loaders for EFI look at.
pub async fn find(disk: &BootDisk, findings: &mut Findings) {
    let mut found = Vec::new();
    let mut default = None;
    for (index, volume) in disk.volumes.iter().enumerate().filter(|(_, volume)| volume.is_for_boot_loaders())
    {
        for name in volume.names("/loader/entries", ".conf", findings).await {
            let path = format!("/loader/entries/{name}");
            let Some(text) = volume.text(&path, findings).await else { continue };
            match parse(&text, &path, &name, index, volume.number()) {
                Ok(entry) => insert(&mut found, entry, volume, findings),
                Err(why) => findings.remark(volume, &path, why),
            }
        }
        for name in volume.names("/EFI/Linux", ".efi", findings).await {
            let path = format!("/EFI/Linux/{name}");
            match unify(volume, index, &path, &name).await {
                Ok(Some(entry)) => insert(&mut found, entry, volume, findings),
                Ok(None) => findings.remark(volume, &path, "no unified kernel image for x86-64"),
                Err(error) => findings.remark(volume, &path, &error.to_string()),
            }
        }
        if default.is_none()
            && let Some(text) = volume.text("/loader/loader.conf", findings).await
        {
            default =
                pairs(&text).filter(|(key, _)| *key == "default").last().map(|(_, value)| value.to_owned());
        }
    }
    let fits = |entry: &Entry| {
        let pattern = default.as_deref()?.as_bytes();
        let stem = entry.id.rsplit_once('.').map_or("", |(stem, _)| stem);
        Some(matches(pattern, entry.id.as_bytes()) || matches(pattern, stem.as_bytes()))
    };
    let chosen = found.iter().position(|one| fits(&one.entry) == Some(true)).unwrap_or(0);
    findings.add(found.into_iter().map(|one| one.entry).collect(), chosen);
}

/// Puts an entry behind those that come before it.
fn insert(found: &mut Vec<Sortable>, entry: Sortable, volume: &Volume, findings: &mut Findings) {
    if found.len() >= MOST_ENTRIES || !entry.entry.is_short() || entry.len() > LONGEST_ENTRY {
        findings.remark(volume, &entry.entry.path, "it is too long, or one of too many, and left out");
        return;
    }
    let place = found.partition_point(|other| other.compare(&entry) != Ordering::Greater);
    found.insert(place, entry);
}

/// The keys and values of a file's lines.
fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once([' ', '\t'])).map(|(key, value)| (key, value.trim()))
}

/// A file's name without the attempts that are counted in it, and whether none is left.
fn counted(name: &str) -> (String, bool) {
    let parts = || {
        let (stem, suffix) = name.rsplit_once('.')?;
        let (stem, count) = stem.rsplit_once('+')?;
        let (left, done) = count.split_once('-').unwrap_or((count, "0"));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let is_count = is_number(left) && is_number(done);
        is_count.then(|| (format!("{stem}.{suffix}"), left.bytes().all(|byte| byte == b'0')))
    };
    parts().unwrap_or((name.to_owned(), false))
}

/// An entry of type 1.
fn parse(
    text: &str,
    path: &str,
    name: &str,
    volume: usize,
    partition: u32,
) -> Result<Sortable, &'static str> {
    let (id, is_bad) = counted(name);
    let value = |wanted: &str| pairs(text).find(|(key, _)| *key == wanted).map(|(_, value)| value.to_owned());
    let values =
        |wanted: &'static str| pairs(text).filter(move |(key, _)| *key == wanted).map(|(_, value)| value);
    if value("architecture").is_some_and(|name| !name.eq_ignore_ascii_case("x64")) {
        return Err("it is for another architecture");
    }
    let image = |path: &str| Image { volume, path: super::join("/", path), section: None };
    let kernel = value("linux").ok_or("it names no kernel (linux)")?;
    let version = value("version").unwrap_or_default();
    let ramdisks = values("initrd").flat_map(str::split_ascii_whitespace);
    let entry = Entry {
        title: value("title").unwrap_or_else(|| id.clone()),
        id,
        source: Source::LoaderEntry,
        partition,
        path: path.to_owned(),
        kernel: image(&kernel),
        ramdisks: ramdisks.take(MOST_RAMDISKS.saturating_add(1)).map(image).collect(),
        arguments: values("options").collect::<Vec<_>>().join(" "),
    };
    let machine = value("machine-id").unwrap_or_default();
    Ok(Sortable { entry, is_bad, sort_key: value("sort-key"), machine, version })
}

/// A unified kernel image.
async fn unify(volume: &Volume, index: usize, path: &str, name: &str) -> Result<Option<Sortable>, FileError> {
    let Some(image) = unified::read(&volume.files.file(path).await?).await? else { return Ok(None) };
    let (id, is_bad) = counted(name);
    let release = |keys: &[&str]| keys.iter().find_map(|key| image.release(key));
    let part = |section| Image { volume: index, path: path.to_owned(), section: Some(section) };
    let version = release(&["IMAGE_VERSION", "VERSION_ID", "BUILD_ID"]).unwrap_or_default();
    let title = release(&["PRETTY_NAME", "NAME"]).unwrap_or_else(|| id.clone());
    let entry = Entry {
        title: if image.uname.is_empty() { title } else { format!("{title} ({})", image.uname) },
        id,
        source: Source::UnifiedKernel,
        partition: volume.number(),
        path: path.to_owned(),
        kernel: part(image.kernel),
        ramdisks: image.ramdisks.iter().copied().map(part).collect(),
        arguments: image.arguments.clone(),
    };
    let sort_key = release(&["IMAGE_ID", "ID"]);
    Ok(Some(Sortable { entry, is_bad, sort_key, machine: String::new(), version }))
}

/// Whether `name` fits a pattern of the shell's.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    // What to try again with after the last star, with one more letter in it.
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        let fits = match (pattern.split_first(), name.split_first()) {
            (Some((b'*', rest)), _) => {
                again = Some((rest, name));
                Some((rest, name))
            }
            (None, None) => return true,
            (Some((wanted, pattern)), Some((letter, name))) => {
                (*wanted == b'?' || wanted.eq_ignore_ascii_case(letter)).then_some((pattern, name))
            }
            _ => None,
        };
        (pattern, name) = match (fits, again) {
            (Some(next), _) => next,
            (None, Some((after_star, [_, rest @ ..]))) => {
                again = Some((after_star, rest));
                (after_star, rest)
            }
            _ => return false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_a_shell() {
        for (pattern, name) in
            [("debian-*", "debian-6.1.conf"), ("*", ""), ("a?c*e", "abcdde"), ("**b", "ab"), ("Ab", "aB")]
        {
            assert!(matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        for (pattern, name) in [("debian", "debian-6"), ("", "a"), ("?", ""), ("a*b", "ac"), ("*a", "ab")] {
            assert!(!matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
    }

    #[test]
    fn attempts_are_counted_in_names() {
        assert_eq!(counted("a+3.conf"), ("a.conf".to_owned(), false));
        assert_eq!(counted("a+0-3.efi"), ("a.efi".to_owned(), true));
        assert_eq!(counted("a+b.conf"), ("a+b.conf".to_owned(), false));
        assert_eq!(counted("6.1.0+deb12.conf"), ("6.1.0+deb12.conf".to_owned(), false));
    }
}
