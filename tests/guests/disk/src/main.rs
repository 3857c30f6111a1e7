//! Reads and writes lines of text on its disk, one a sector; and counts there until the power goes.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::vec::Vec;

use runtime::{console, print, println, virtio};

runtime::app!(main);

fn main(_: &runtime::Machine) {
    let Some(mut disk) = virtio::disks().pop() else { return println!("disk: this guest has none") };
    println!(
        "disk: {} sectors. Ask for read NUMBER, write NUMBER TEXT, or count FROM STEP;",
        disk.capacity()
    );
    println!("quit ends it.");
    loop {
        print!("disk> ");
        let line = console::read_line();
        let (mut words, mut sector) = (line.trim().splitn(3, ' '), [0; 512]);
        let (verb, number) = (words.next(), words.next().and_then(|word| word.parse().ok()));
        let result = match (verb, number, words.next()) {
            (Some("read"), Some(number), None) => disk.read_blocks(number, &mut sector),
            (Some("write"), Some(number), Some(text)) => {
                sector.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
                disk.write_blocks(number, &sector).and_then(|()| disk.flush())
            }
            (Some("count"), Some(from), Some(step)) => match step.parse() {
                Ok(step) => count(&mut disk, from, step),
                Err(_) => {
                    println!("{step:?} is no number");
                    continue;
                }
            },
            (Some("quit"), None, None) => return println!("good-bye"),
            _ => {
                println!("{line:?} is none of read, write, count, quit");
                continue;
            }
        };
        match (result, core::str::from_utf8(&sector)) {
            (Ok(()), Ok(text)) => println!("{}", text.trim_end_matches('\0')),
            (result, _) => println!("no text: {result:?}"),
        }
    }
}

/// The size of what is written with one number in front, in bytes.
const BLOCK: usize = 4096;

/// Writes the numbers from `first` on, several at once, one every `step` sectors, and says up to which they are safe:
/// until the disk ends, or the power goes.
fn count(disk: &mut virtio::Disk, first: usize, step: usize) -> virtio::Result {
    let end = disk.capacity() as usize / step.max(BLOCK / 512);
    for batch in (first..end).step_by(virtio::AT_ONCE) {
        let numbers = batch..end.min(batch + virtio::AT_ONCE);
        let block = |number| {
            let mut block = format!("{number:016}").into_bytes();
            block.resize(BLOCK, 0);
            (number * step, block)
        };
        virtio::write_at_once(disk, &numbers.clone().map(block).collect::<Vec<_>>())?;
        disk.flush()?;
        println!("safe:{}:", numbers.end - 1);
    }
    Ok(())
}
