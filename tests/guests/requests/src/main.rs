//! Asks a disk for blocks, and says how many instructions that took, the kernel's and the hypervisor's included. A
//! program for Linux on one CPU, as init starts it from an initramfs: what it says in instructions is true where the
//! time-stamp counter counts them.
//!
//! `requests DEVICE` reads a line `rs 32 4 2000` for each measurement: read or write, sequential or random, how many
//! at a time, KiB of each, how many in all. `cached 16` reads as many MiB as most programs do, through the page cache;
//! `nothing 16` does nothing for as many million instructions.
#![no_std]
#![no_main]
#![allow(unsafe_code)] // What Linux reads and writes in this program's memory it is told by address.

mod aio;
mod linux;
mod soak;

use aio::{Direction, Request, Requests};
use core::ffi::CStr;
use core::panic::PanicInfo;
use linux::{Descriptor, Pages, println};
use soak::Soak;

/// Where each request begins is a multiple of this, as its buffer's address is.
const BLOCK: u64 = 4096;
const MIB: usize = 1 << 20;

/// How the measurements go over the disk.
#[derive(Clone, Copy)]
enum Order {
    Sequential,
    Random,
}

/// One measurement.
struct Measurement {
    direction: Direction,
    order: Order,
    depth: usize,
    bytes: usize,
    count: u64,
}

impl Measurement {
    /// From a line's words.
    fn from_line(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (direction, order) = match words.next()? {
            "rs" => (Direction::Read, Order::Sequential),
            "rr" => (Direction::Read, Order::Random),
            "ws" => (Direction::Write, Order::Sequential),
            "wr" => (Direction::Write, Order::Random),
            _ => return None,
        };
        let depth = words.next()?.parse().ok().filter(|depth| (1..=aio::MOST).contains(depth))?;
        let kib: usize = words.next()?.parse().ok()?;
        Some(Self { direction, order, depth, bytes: kib << 10, count: words.next()?.parse().ok()? })
    }
}

fn main(arguments: linux::Arguments) {
    let Some(device) = arguments.get(1) else { return println!("requests: of which disk?") };
    if let Err(error) = serve(device) {
        println!("requests: {device:?}: error {error}");
    }
}

/// Does what the lines ask for, until there are no more.
fn serve(device: &CStr) -> Result<(), i64> {
    let (direct, cached) = (Descriptor::open(device, true)?, Descriptor::open(device, false)?);
    let blocks = direct.disk_bytes() / BLOCK;
    let soak = Soak::start()?;
    println!("requests: ready, {blocks} blocks of {BLOCK}");
    let mut text = [0; 64];
    while let Some(line) = linux::read_line(&mut text) {
        if cached.forget().is_err() {
            println!("requests: the page cache stays");
        }
        let (start, soaked) = (linux::tsc(), soak.count());
        let number = |word| line.strip_prefix(word).and_then(|number| number.trim().parse().ok());
        let done = match (Measurement::from_line(line), number("cached "), number("nothing ")) {
            (Some(measurement), ..) => measure(&direct, blocks, &measurement),
            (_, Some(mib), _) => read_cached(&cached, mib),
            (.., Some(millions)) => Ok(wait(millions)),
            _ => Err(linux::INVALID),
        };
        let (passed, soaked) = (linux::tsc() - start, soak.count() - soaked);
        match done {
            Ok(count) => {
                println!("requests: {line}: {count} took {} instructions of {passed}", passed - soaked)
            }
            Err(error) => println!("requests: {line}: error {error}"),
        }
    }
    Ok(())
}

/// Makes the requests of a measurement, and gives their number.
fn measure(disk: &Descriptor, blocks: u64, wanted: &Measurement) -> Result<u64, i64> {
    let room = Pages::map(wanted.depth * wanted.bytes)?;
    let mut requests = Requests::new()?;
    let (mut begun, mut ended, mut place, mut random) = (0, 0, 0, 0x9e37_79b9_7f4a_7c15_u64);
    let step = (wanted.bytes as u64).div_ceil(BLOCK);
    // So that none reaches past the end.
    let places = blocks / step;
    let mut next = |buffer: u64| {
        place = match wanted.order {
            Order::Sequential => (place + 1) % places,
            Order::Random => {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % places
            }
        };
        Request {
            direction: wanted.direction,
            disk: disk.number(),
            offset: place * step * BLOCK,
            buffer: room.address() + buffer * wanted.bytes as u64,
            bytes: wanted.bytes as u64,
            number: buffer,
        }
    };
    for buffer in 0..(wanted.depth as u64).min(wanted.count) {
        requests.add(next(buffer));
        begun += 1;
    }
    while ended < wanted.count {
        requests.submit()?;
        requests.wait()?;
        while let Some((buffer, result)) = requests.ended() {
            if result != wanted.bytes as i64 {
                return Err(result);
            }
            ended += 1;
            if begun < wanted.count {
                requests.add(next(buffer));
                begun += 1;
            }
        }
    }
    Ok(ended)
}

/// Reads from the disk's beginning through the page cache, 1 MiB a call, and gives the MiB.
fn read_cached(disk: &Descriptor, mib: u64) -> Result<u64, i64> {
    let room = Pages::map(MIB)?;
    for number in 0..mib {
        disk.read_at(&room, MIB, number << 20)?;
    }
    Ok(mib)
}

/// Lets so many million instructions pass.
fn wait(millions: u64) -> u64 {
    let start = linux::tsc();
    while linux::tsc() - start < millions * 1_000_000 {}
    millions
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    println!("requests: {info}");
    linux::exit()
}
