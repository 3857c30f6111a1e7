//! The console device (virtio 1.2, 5.3) with one port, on the guest's terminal.
//!
//! While its driver is ready, what is typed goes there; before, and without a driver, to the serial port.

use super::device::{Device, Identity, Queues};
use super::queue::{Segments, Token};
use crate::chipset::Context;
use core::task::Waker;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [64, 64];

/// VIRTIO_CONSOLE_F_EMERG_WRITE.
const EMERGENCY_WRITE: u64 = 1 << 2;
const CONFIG_BYTES: usize = 12;
/// The configuration structure's field for that.
const CONFIG_EMERGENCY: usize = 8;

/// How much goes out at a time, so that no exit takes long.
const AT_A_TIME: usize = 1024;

/// A virtio console.
pub struct Console {
    ready: bool,
    /// A buffer of the driver's, part of which has gone out.
    sending: Option<(Token, Segments)>,
    /// A buffer of the driver's that waits for something to be typed.
    receiving: Option<(Token, Segments)>,
    waker: Waker,
}

impl Default for Console {
    fn default() -> Self {
        Self { ready: false, sending: None, receiving: None, waker: Waker::noop().clone() }
    }
}

impl Console {
    /// Sends as long as the terminal has room.
    fn send(&mut self, queues: &mut Queues, ctx: &mut Context) {
        let mut left = AT_A_TIME;
        loop {
            let next = || queues.pop(TRANSMIT).map(|chain| (chain.token, chain.readable));
            let Some((token, mut bytes)) = self.sending.take().or_else(next) else {
                if queues.ask_for_notification(TRANSMIT) {
                    continue;
                }
                return;
            };
            while !bytes.is_empty() {
                if left == 0 || !ctx.console.has_room() {
                    if left == 0 {
                        self.waker.wake_by_ref();
                    }
                    self.sending = Some((token, bytes));
                    return;
                }
                let mut byte = [0];
                bytes.split_front(1).read(queues.memory(), &mut byte);
                let [byte] = byte;
                ctx.console.transmit(byte);
                left = left.saturating_sub(1);
            }
            queues.push(TRANSMIT, token, 0);
        }
    }

    /// Hands out what was typed, as far as the driver has buffers for it.
    fn receive(&mut self, queues: &mut Queues, ctx: &mut Context) {
        loop {
            let next = || queues.pop(RECEIVE).map(|chain| (chain.token, chain.writable));
            let Some((token, mut room)) = self.receiving.take().or_else(next) else {
                if queues.ask_for_notification(RECEIVE) {
                    continue;
                }
                return;
            };
            let mut written = 0_u32;
            while !room.is_empty()
                && let Some(byte) = ctx.console.receive()
            {
                room.split_front(1).write(queues.memory(), &[byte]);
                written = written.saturating_add(1);
            }
            if written == 0 && !room.is_empty() {
                self.receiving = Some((token, room));
                return;
            }
            queues.push(RECEIVE, token, written);
        }
    }
}

impl Device for Console {
    fn identity(&self) -> Identity {
        Identity { name: "virtio console", id: 3, class: 0x07_80_00 }
    }

    fn features(&self) -> u64 {
        EMERGENCY_WRITE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        // No size is known, and there is one port.
        &[0; CONFIG_BYTES]
    }

    fn write_config(&mut self, offset: usize, value: u8, ctx: &mut Context) {
        if offset == CONFIG_EMERGENCY {
            ctx.console.transmit(value);
        }
    }

    fn connect(&mut self, waker: Waker) {
        self.waker = waker;
    }

    fn start(&mut self, _features: u64) {
        self.ready = true;
    }

    fn serve(&mut self, _notified: Option<u16>, queues: &mut Queues, ctx: &mut Context) {
        self.send(queues, ctx);
        self.receive(queues, ctx);
    }

    fn takes_typed(&self) -> bool {
        self.ready
    }

    fn awaits_room(&self) -> bool {
        self.sending.is_some()
    }

    fn reset(&mut self) {
        (self.ready, self.sending, self.receiving) = (false, None, None);
    }

    fn reset_queue(&mut self, queue: u16) {
        match queue {
            RECEIVE => self.receiving = None,
            _ => self.sending = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Width;
    use crate::virtio::queue::RingFeatures;
    use crate::virtio::testing::{DEVICE, Driver, Function, VERSION_1, at};

    fn guest() -> (Function, Driver, Driver) {
        let mut function = Function::new(Console::default());
        function.negotiate(VERSION_1);
        let ring = RingFeatures::default();
        let receive = function.enable_queue(0, 0x4_0000, 8, ring);
        let transmit = function.enable_queue(1, 0x5_0000, 8, ring);
        (function, receive, transmit)
    }

    #[test]
    fn what_is_sent_goes_out_as_there_is_room() {
        let (mut function, _, mut transmit) = guest();
        function.write(DEVICE + 8, Width::Dword, u64::from(b'!'));
        assert_eq!(function.terminal.sent, b"!", "before the driver is ready");
        function.set_status(0xf);
        function.memory.write(at(0x1000), b"hello, world").unwrap();
        transmit.offer(&[(0x1000, 5), (0x1005, 7)], &[], false).unwrap();
        transmit.offer(&[(0x1000, 1)], &[], false).unwrap();
        function.terminal.room = 8;
        function.notify(1);
        assert_eq!((transmit.take(), function.terminal.sent.len()), (None, 9));
        assert!(crate::chipset::PciFunction::awaits_room(&function.pci));
        function.terminal.room = 100;
        function.poll();
        assert_eq!(function.terminal.sent, b"!hello, worldh");
        assert!(!crate::chipset::PciFunction::awaits_room(&function.pci));
        assert!(transmit.take().is_some() && transmit.take().is_some());
        assert_eq!(function.vectors(), [0x42]);
    }

    #[test]
    fn much_goes_out_bit_by_bit() {
        let (mut function, _, mut transmit) = guest();
        function.set_status(0xf);
        transmit.offer(&[(0x1000, 2500)], &[], false).unwrap();
        function.notify(1);
        assert_eq!((function.terminal.sent.len(), function.bell.rings()), (1024, 1));
        function.poll();
        function.poll();
        assert_eq!((function.terminal.sent.len(), function.bell.rings()), (2500, 2));
        assert!(transmit.take().is_some());
    }

    #[test]
    fn what_is_typed_comes_when_there_is_a_buffer() {
        let (mut function, mut receive, _) = guest();
        assert!(!crate::chipset::PciFunction::takes_typed(&function.pci));
        function.set_status(0xf);
        assert!(crate::chipset::PciFunction::takes_typed(&function.pci));
        let first = receive.offer(&[], &[(0x1000, 2), (0x2000, 2)], false).unwrap();
        function.notify(0);
        assert_eq!(receive.take(), None);
        function.terminal.typed.extend(b"abcdefg");
        function.poll();
        assert_eq!(receive.take(), Some((first, 4)));
        assert_eq!(function.memory.read_u16(at(0x2000)), Ok(u16::from_le_bytes(*b"cd")));
        let second = receive.offer(&[], &[(0x1000, 64)], false).unwrap();
        function.notify(0);
        assert_eq!(receive.take(), Some((second, 3)));
        assert_eq!(function.vectors(), [0x41, 0x41]);

        receive.offer(&[], &[(0x1000, 64)], false).unwrap();
        function.notify(0);
        function.set_status(0);
        function.terminal.typed.extend(b"x");
        function.poll();
        assert!(!crate::chipset::PciFunction::takes_typed(&function.pci));
        assert_eq!(function.terminal.typed.len(), 1, "it is the serial port's");
    }
}
