//! Reads and writes lines of text on its disk, one a sector.
#![no_std]
#![no_main]

use runtime::{console, print, println, virtio};

runtime::app!(main);

fn main(_: &runtime::Machine) {
    let Some(mut disk) = virtio::disks().pop() else { return println!("disk: this guest has none") };
    println!("disk: {} sectors. Ask for read NUMBER, or write NUMBER TEXT; quit ends it.", disk.capacity());
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
            (Some("quit"), None, None) => return println!("good-bye"),
            _ => {
                println!("{line:?} is none of read, write, quit");
                continue;
            }
        };
        match (result, core::str::from_utf8(&sector)) {
            (Ok(()), Ok(text)) => println!("{}", text.trim_end_matches('\0')),
            (result, _) => println!("no text: {result:?}"),
        }
    }
}
