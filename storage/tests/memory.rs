//! Images keep within the memory that they say they take.

use std::alloc::System;
use std::future::Future;
use std::pin::{Pin, pin};
use std::process::Command;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::{env, fs, process};

use cap::Cap;
use storage::image::{self, Format};
use storage::testing::RamDisk;
use storage::{BlockDevice, BlockError, Buffer, Geometry, Reply, pause};

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// What a request has in this test's disk, and in the test.
const OWN: usize = 1 << 10;
/// How many requests are under way.
const AT_ONCE: usize = 64;
/// How far apart they are, in bytes.
const SPACE: usize = 512 << 10;

/// A disk that answers late, so that requests overlap.
struct Late(RamDisk);

impl Late {
    fn late<'a>(&'a self, reply: Reply<'a>) -> Reply<'a> {
        Box::pin(async move {
            pause().await;
            reply.await
        })
    }
}

impl BlockDevice for Late {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn read(&self, at: u64, into: Buffer) -> Reply<'_> {
        self.late(self.0.read(at, into))
    }
    fn write(&self, at: u64, from: Buffer) -> Reply<'_> {
        self.late(self.0.write(at, from))
    }
    fn flush(&self) -> Reply<'_> {
        self.late(self.0.flush())
    }
    fn discard(&self, at: u64, len: u64) -> Reply<'_> {
        self.late(self.0.discard(at, len))
    }
    fn write_zeroes(&self, at: u64, len: u64) -> Reply<'_> {
        self.late(self.0.write_zeroes(at, len))
    }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        if let Poll::Ready(result) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return result;
        }
    }
}

/// Waits for these requests, which overlap.
fn all(mut replies: Vec<Option<Reply<'_>>>) -> Result<(), BlockError> {
    while replies.iter().any(Option::is_some) {
        for slot in &mut replies {
            let Some(reply) = slot else { continue };
            match Pin::new(reply).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(())) => *slot = None,
                Poll::Pending => {}
            }
        }
    }
    Ok(())
}

/// An image as qemu-img makes it, in a file with some room.
fn made(options: &[&str], content: &[u8]) -> Vec<u8> {
    let [raw, image] = ["raw", "image"]
        .map(|name| env::temp_dir().join(format!("peerboot-memory-{}-{name}", process::id())));
    fs::write(&raw, content).unwrap();
    let mut convert = Command::new("qemu-img");
    let output = convert.args(["convert", "-f", "raw"]).args(options).arg(&raw).arg(&image).output();
    let output = output.expect("qemu-img; it is in Debian's package qemu-utils");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut bytes = fs::read(&image).unwrap();
    let _ = (fs::remove_file(raw), fs::remove_file(image));
    bytes.resize((bytes.len() + (80 << 20)).next_multiple_of(4096), 0);
    bytes
}

/// Opens the image, and reads and writes all over it.
async fn is_used(format: Format, container: Arc<dyn BlockDevice>, buffers: &[Buffer]) {
    let disk = image::open(format, container, None).await.unwrap().disk;
    let size = disk.geometry().size();
    let reads = |at: u64| {
        let reads = (at..size).step_by(SPACE).zip(buffers);
        all(reads.map(|(at, buffer)| Some(disk.read(at, buffer.clone()))).collect())
    };
    (0..8).for_each(|n| reads(n * 65536).unwrap());
    if disk.geometry().read_only {
        return;
    }
    for round in 0..12_u64 {
        // Parts of clusters, so that the rest is copied; later what is there already, and what is not.
        let places =
            (0..buffers.len() as u64).map(|n| (n * SPACE as u64 + round * 90112 + 512) % (size - 65536));
        let writes = places.zip(buffers).map(|(at, buffer)| Some(disk.write(at / 512 * 512, buffer.clone())));
        all(writes.collect()).unwrap();
        if round % 4 == 3 {
            disk.flush().await.unwrap();
        }
        if disk.geometry().discards {
            disk.discard(round << 20, 1 << 20).await.unwrap();
        }
    }
    disk.write_zeroes(0, size / 2).await.unwrap();
    disk.flush().await.unwrap();
}

/// An image: what it is like, and how qemu-img is told to make it.
const IMAGES: [(&str, Format, &[&str]); 9] = [
    ("small clusters", Format::Qcow2, &["-O", "qcow2", "-o", "cluster_size=512"]),
    ("usual clusters", Format::Qcow2, &["-O", "qcow2", "-o", "cluster_size=65536"]),
    ("large clusters", Format::Qcow2, &["-O", "qcow2", "-o", "cluster_size=2M"]),
    ("narrow refcounts", Format::Qcow2, &["-O", "qcow2", "-o", "cluster_size=4096,refcount_bits=1"]),
    ("zlib", Format::Qcow2, &["-c", "-O", "qcow2", "-o", "cluster_size=65536"]),
    ("large zlib", Format::Qcow2, &["-c", "-O", "qcow2", "-o", "cluster_size=2M"]),
    ("zstd", Format::Qcow2, &["-c", "-O", "qcow2", "-o", "cluster_size=65536,compression_type=zstd"]),
    ("large zstd", Format::Qcow2, &["-c", "-O", "qcow2", "-o", "cluster_size=2M,compression_type=zstd"]),
    ("vhd", Format::Vhd, &["-O", "vpc"]),
];

/// What names the image to the process that uses it.
const NAME: &str = "PEERBOOT_IMAGE";

#[test]
fn images_take_no_more_memory_than_they_say() {
    if let Ok(name) = env::var(NAME) {
        return is_used_within_its_memory(&name);
    }
    // Who asks for more is aborted: each has a process for itself.
    for (name, ..) in IMAGES {
        let mut test = Command::new(env::current_exe().unwrap());
        let output = test.arg("--nocapture").env(NAME, name).env("RUST_BACKTRACE", "0").output().unwrap();
        let said = [&output.stdout[..], &output.stderr].concat();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&said));
    }
}

fn is_used_within_its_memory(name: &str) {
    let (_, format, options) = IMAGES.into_iter().find(|(known, ..)| *known == name).unwrap();
    // Nothing that is compressed away altogether, and half of it absent.
    let mut content: Vec<u8> =
        (0..16_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 20) as u8).collect();
    content.resize(32 << 20, 0);
    let image = made(options, &content);
    let buffers: Vec<Buffer> = (0..AT_ONCE).map(|n| Buffer::holding(&[n as u8; 65536])).collect();
    for read_only in [true, false] {
        let disk = RamDisk::new(512, image.clone());
        let disk = if read_only { disk.sealed() } else { disk };
        let container: Arc<dyn BlockDevice> = Arc::new(Late(disk));
        let memory = wait(image::memory(format, Arc::clone(&container), AT_ONCE as u64)).unwrap();
        println!("{} takes {memory} bytes", if read_only { "reading" } else { "writing" });
        HEAP.set_limit(HEAP.allocated() + memory as usize + AT_ONCE * OWN).unwrap();
        wait(is_used(format, container, &buffers));
        HEAP.set_limit(usize::MAX).unwrap();
    }
}
