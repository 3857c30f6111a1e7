//! Devices by virtio, through the crate virtio-drivers: what it has to know of this machine.

use alloc::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
use alloc::vec::Vec;
use core::alloc::Layout;
use core::ptr::NonNull;
use virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess, DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::cpu;

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;

/// A disk.
pub type Disk = VirtIOBlk<Identity, PciTransport>;

/// What the drivers' functions give.
pub use virtio_drivers::Result;

/// As many requests as [`write_at_once`] takes: a third of the driver's queue, for each may need three of its places.
pub const AT_ONCE: usize = 5;

/// Writes blocks at sectors, all under way at the same time; at most [`AT_ONCE`].
///
/// # Errors
/// The disk refuses one of them.
///
/// # Panics
/// There are more.
pub fn write_at_once(disk: &mut Disk, blocks: &[(usize, Vec<u8>)]) -> Result {
    assert!(blocks.len() <= AT_ONCE, "{} requests at once", blocks.len());
    let mut headers: [(BlkReq, BlkResp); AT_ONCE] = Default::default();
    let mut tokens = [None; AT_ONCE];
    for (((sector, block), (request, response)), token) in blocks.iter().zip(&mut headers).zip(&mut tokens) {
        // SAFETY: all three live, and nobody touches them, until the request is completed below.
        *token = Some(unsafe { disk.write_blocks_nb(*sector, request, block, response) }?);
    }
    let mut result = Ok(());
    for _ in blocks {
        let done = loop {
            match disk.peek_used() {
                Some(token) => break token,
                None => core::hint::spin_loop(),
            }
        };
        let n = tokens.iter().position(|token| *token == Some(done)).expect("a request of somebody else's");
        let (request, response) = &mut headers[n];
        // SAFETY: these are what the request of this token was made with.
        let ended = unsafe { disk.complete_write_blocks(done, request, &blocks[n].1, response) };
        result = result.and(ended);
    }
    result
}

/// Every disk on bus 0, in the order of their slots.
pub fn disks() -> Vec<Disk> {
    let mut root = PciRoot::new(Ports);
    let functions: Vec<_> = root
        .enumerate_bus(0)
        .filter(|(_, info)| virtio_device_type(info) == Some(DeviceType::Block))
        .map(|(function, _)| function)
        .collect();
    let open = |function| {
        root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
        let transport = PciTransport::new::<Identity, _>(&mut root, function).ok()?;
        VirtIOBlk::new(transport).ok()
    };
    functions.into_iter().filter_map(open).collect()
}

/// Configuration space through its two ports.
struct Ports;

impl Ports {
    fn select(function: DeviceFunction, register: u8) {
        let place = u32::from(function.bus) << 16
            | u32::from(function.device) << 11
            | u32::from(function.function) << 8
            | u32::from(register & 0xfc);
        cpu::write_port_u32(ADDRESS_PORT, 1 << 31 | place);
    }
}

impl ConfigurationAccess for Ports {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        Self::select(function, register);
        cpu::read_port_u32(DATA_PORT)
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, data: u32) {
        Self::select(function, register);
        cpu::write_port_u32(DATA_PORT, data);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// Memory for devices: everything below 4 GiB is where its address says, for devices too.
pub struct Identity;

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap_or(Layout::new::<u64>())
}

// SAFETY: pages come from the heap, zeroed and aligned; registers and buffers are mapped where they are.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the layout has at least a page; nobody asks for none.
        let start = NonNull::new(unsafe { alloc_zeroed(layout(pages)) });
        let start = start.unwrap_or_else(|| handle_alloc_error(layout(pages)));
        (start.as_ptr() as PhysAddr, start)
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, start: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller gives back what `dma_alloc` gave.
        unsafe { dealloc(start.as_ptr(), layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::new(paddr as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}
