//! What travels between interrupt sources and local APICs.

/// Which local APICs a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The local APIC with this ID, or all of them: [`Destination::BROADCAST`].
    Physical(u32),
    /// Those whose logical ID matches this set (SDM 11.6.2.2, 11.12.10).
    Logical(u32),
    /// All.
    All,
    /// All but the one with this ID.
    AllExcept(u32),
}

impl Destination {
    /// The physical ID that means everyone. A source whose destination field has eight bits turns 0xFF into
    /// it.
    pub const BROADCAST: u32 = u32::MAX;

    /// The destination that an eight-bit field of an IOAPIC entry, an MSI address or an xAPIC's ICR names.
    pub const fn from_xapic(field: u8, logical: bool) -> Self {
        match (logical, field) {
            (true, set) => Self::Logical(set as u32),
            (false, 0xff) => Self::Physical(Self::BROADCAST),
            (false, id) => Self::Physical(id as u32),
        }
    }
}

/// What a message asks of its destination (SDM 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the manual's names")]
pub enum DeliveryMode {
    Fixed,
    /// Fixed, at the one of the destinations that runs at the lowest priority.
    LowestPriority,
    Smi,
    Nmi,
    Init,
    /// Start at 4 KiB times the message's vector.
    Startup,
    /// Ask the 8259 pair for the vector.
    ExtInt,
}

impl DeliveryMode {
    /// The mode with this number in an ICR, an LVT or an IOAPIC entry; `None` where it is reserved.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }
}

/// How a source signals, and so whether the end of the interrupt must be told to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A moment.
    Edge,
    /// A state: the IOAPIC waits for the EOI.
    Level,
}

/// An interrupt on its way to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicMessage {
    /// To whom.
    pub destination: Destination,
    /// What for.
    pub delivery: DeliveryMode,
    /// The vector, or the start-up page.
    pub vector: u8,
    /// Edge or level.
    pub trigger: Trigger,
}

impl ApicMessage {
    /// What a message-signalled interrupt means (SDM 11.11); `None` where the address or mode means nothing.
    pub const fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        let Some(delivery) = DeliveryMode::from_bits(data >> 8) else { return None };
        Some(Self {
            destination: Destination::from_xapic((address >> 12) as u8, address & (1 << 2) != 0),
            delivery,
            vector: data as u8,
            trigger: if data & (1 << 15) == 0 { Trigger::Edge } else { Trigger::Level },
        })
    }
}

/// The way to a guest's local APICs, for IOAPIC, message-signalled and inter-processor interrupts.
pub trait ApicBus {
    /// Delivers `message`; says whether any local APIC took it.
    fn deliver(&self, message: ApicMessage) -> bool;

    /// The 8259 pair's INTR wire, which ends at every local APIC's LINT0, is now high or low.
    fn set_intr(&self, high: bool);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_msi_names_its_target() {
        let message = ApicMessage::from_msi(0xfee0_3000, 0x41).unwrap();
        assert_eq!(message.destination, Destination::Physical(3));
        assert_eq!(message.delivery, DeliveryMode::Fixed);
        assert_eq!((message.vector, message.trigger), (0x41, Trigger::Edge));

        let message = ApicMessage::from_msi(0xfeef_f00c, 0xc130).unwrap();
        assert_eq!(message.destination, Destination::Logical(0xff));
        assert_eq!(message.delivery, DeliveryMode::LowestPriority);
        assert_eq!((message.vector, message.trigger), (0x30, Trigger::Level));

        let everyone = ApicMessage::from_msi(0xfeef_f000, 0x41).unwrap();
        assert_eq!(everyone.destination, Destination::Physical(Destination::BROADCAST));
        assert_eq!(ApicMessage::from_msi(0xfed0_0000, 0x41), None);
        assert_eq!(ApicMessage::from_msi(0xfee0_0000, 0x341), None);
    }
}
