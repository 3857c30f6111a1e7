//! Bringing a controller up, and its admin queue.

use super::identify;
use super::registers::{Health, Registers};
use super::ring::{Entry, Ring, command};
use crate::dma::Dma;
use crate::driver::Error;
use crate::platform::Platform;
use crate::task::until;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use spin::Mutex;

/// The entries of each admin queue.
const ENTRIES: u16 = 16;

/// How long an admin command may take, in nanoseconds.
const PATIENCE: u64 = 10_000_000_000;

/// Opcodes of admin commands.
const CREATE_SUBMISSIONS: u8 = 0x01;
const CREATE_COMPLETIONS: u8 = 0x05;
const IDENTIFY: u8 = 0x06;
const SET_FEATURES: u8 = 0x09;

/// Identify's CNS: what to identify.
const NAMESPACE: u32 = 0;
const CONTROLLER: u32 = 1;
const ACTIVE_NAMESPACES: u32 = 2;

/// The feature "number of queues".
const NUMBER_OF_QUEUES: u32 = 0x07;

/// A queue's memory is in one piece; completions raise an interrupt.
const CONTIGUOUS: u32 = 1;
const INTERRUPTS: u32 = 2;

/// The side of a controller that it is set up by.
pub struct Admin {
    platform: Arc<dyn Platform>,
    registers: Registers,
    ring: Mutex<Ring>,
    /// What identify answers into.
    answer: Dma,
}

impl Admin {
    /// A controller that is not up yet.
    ///
    /// # Errors
    /// No memory.
    pub fn new(platform: Arc<dyn Platform>, registers: Registers) -> Result<Self, Error> {
        let entries = ENTRIES.min(u16::try_from(registers.queue_entries()).unwrap_or(ENTRIES));
        let ring = Mutex::new(Ring::new(&*platform, &registers, 0, entries)?);
        let answer = Dma::allocate(&*platform, identify::SIZE)?;
        Ok(Self { platform, registers, ring, answer })
    }

    /// The controller's registers.
    pub const fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Stops the controller: once this has ended well it works on no memory.
    ///
    /// # Errors
    /// It does not stop, or is gone.
    pub async fn disable(&self) -> Result<(), Error> {
        self.registers.disable();
        self.become_(Health::Off, "become idle").await
    }

    /// Starts a controller that is off.
    ///
    /// # Errors
    /// It does not start, or is gone.
    pub async fn enable(&self) -> Result<(), Error> {
        {
            let mut ring = self.ring.lock();
            ring.reset();
            let (submissions, completions) = ring.addresses();
            self.registers.enable(ring.entries(), submissions, completions);
        }
        self.become_(Health::Ready, "become ready").await
    }

    async fn become_(&self, wanted: Health, what: &'static str) -> Result<(), Error> {
        let mut seen = Health::Off;
        let end = || {
            seen = self.registers.health();
            // What is fatal for a controller that runs may still be shown by one that stops.
            seen == wanted || seen == Health::Gone || (seen == Health::Fatal && wanted == Health::Ready)
        };
        let in_time = until(&*self.platform, self.registers.timeout(), end).await;
        match seen {
            seen if seen == wanted => Ok(()),
            Health::Gone => Err(Error::Gone),
            _ if in_time => Err(Error::Unusable("it reports a fatal error")),
            _ => Err(Error::Silent(what)),
        }
    }

    /// Has a command done, and gives its result.
    async fn run(&self, entry: Entry, what: &'static str) -> Result<u32, Error> {
        /// Only one command is under way at a time.
        const ID: u16 = 1;
        {
            let mut ring = self.ring.lock();
            ring.write(ID, &entry);
            ring.submit();
        }
        let mut done = None;
        let mut gone = false;
        let end = || {
            let mut ring = self.ring.lock();
            if let Some(completion) = ring.take() {
                ring.release();
                done = Some(completion).filter(|completion| completion.id == ID);
            }
            gone = done.is_none() && self.registers.health() == Health::Gone;
            done.is_some() || gone
        };
        until(&*self.platform, PATIENCE, end).await;
        match done {
            Some(completion) if completion.status == 0 => Ok(completion.result),
            Some(_) => Err(Error::Refused(what)),
            None if gone => Err(Error::Gone),
            None => Err(Error::Silent(what)),
        }
    }

    async fn identify(&self, what: u32, namespace: u32, name: &'static str) -> Result<Vec<u8>, Error> {
        let mut entry = command(IDENTIFY, namespace);
        let [_, _, _, _, _, _, prp1_low, prp1_high, _, _, dword10, ..] = &mut entry;
        let address = self.answer.address();
        (*prp1_low, *prp1_high, *dword10) = (address as u32, (address >> 32) as u32, what);
        self.run(entry, name).await?;
        let mut bytes = vec![0; identify::SIZE];
        self.answer.read(0, &mut bytes);
        Ok(bytes)
    }

    /// What the controller says of itself.
    ///
    /// # Errors
    /// It refuses, does not answer, or is gone.
    pub async fn controller(&self) -> Result<identify::Controller, Error> {
        let bytes = self.identify(CONTROLLER, 0, "identify itself").await?;
        Ok(identify::Controller::read(&bytes))
    }

    /// The numbers of the active namespaces, at most `most`.
    ///
    /// # Errors
    /// It does not answer, or is gone.
    pub async fn namespaces(
        &self,
        controller: &identify::Controller,
        most: usize,
    ) -> Result<Vec<u32>, Error> {
        match self.identify(ACTIVE_NAMESPACES, 0, "list its namespaces").await {
            Ok(bytes) => Ok(identify::active(&bytes).take(most).collect()),
            // Controllers before NVMe 1.1 have no list: the inactive ones identify as nothing.
            Err(Error::Refused(_)) => Ok((1..=controller.namespaces).take(most).collect()),
            Err(error) => Err(error),
        }
    }

    /// What a namespace says of itself.
    ///
    /// # Errors
    /// As [`identify::Namespace::read`], or it does not answer, or is gone.
    pub async fn namespace(&self, number: u32) -> Result<identify::Namespace, Error> {
        identify::Namespace::read(&self.identify(NAMESPACE, number, "identify a namespace").await?)
    }

    /// Asks for so many pairs of I/O queues, and gives how many of these there may be.
    ///
    /// # Errors
    /// It refuses, does not answer, or is gone.
    pub async fn number_of_queues(&self, wanted: u16) -> Result<u16, Error> {
        let mut entry = command(SET_FEATURES, 0);
        let last = u32::from(wanted.saturating_sub(1));
        let [_, _, _, _, _, _, _, _, _, _, dword10, dword11, ..] = &mut entry;
        (*dword10, *dword11) = (NUMBER_OF_QUEUES, last << 16 | last);
        let given = self.run(entry, "give it I/O queues").await?;
        let (submissions, completions) = (given as u16, (given >> 16) as u16);
        Ok(submissions.min(completions).saturating_add(1).min(wanted))
    }

    /// Makes the pair of I/O queues `number`, from 1, where `rings` says, its completions raising interrupt `vector`
    /// if any.
    ///
    /// # Errors
    /// It refuses, does not answer, or is gone.
    pub async fn create(
        &self,
        number: u16,
        rings: (u64, u64, u16),
        vector: Option<u16>,
    ) -> Result<(), Error> {
        let (submissions, completions, entries) = rings;
        let make = |opcode, address: u64, attributes| {
            let mut entry = command(opcode, 0);
            let [_, _, _, _, _, _, prp1_low, prp1_high, _, _, dword10, dword11, ..] = &mut entry;
            (*prp1_low, *prp1_high) = (address as u32, (address >> 32) as u32);
            *dword10 = u32::from(entries.saturating_sub(1)) << 16 | u32::from(number);
            *dword11 = attributes;
            entry
        };
        let interrupts = vector.map_or(0, |vector| u32::from(vector) << 16 | INTERRUPTS);
        let entry = make(CREATE_COMPLETIONS, completions, interrupts | CONTIGUOUS);
        self.run(entry, "make a completion queue").await?;
        let entry = make(CREATE_SUBMISSIONS, submissions, u32::from(number) << 16 | CONTIGUOUS);
        self.run(entry, "make a submission queue").await?;
        Ok(())
    }
}
