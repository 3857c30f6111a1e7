//! Time passes in a guest as it does outside, and a guest with nothing to do leaves the host's cores halted.

use std::thread;
use std::time::{Duration, Instant};

use xtask::error::{Error, Result};
use xtask::machine::{Emulator, Machine};
use xtask::suite::Outcome;

use crate::console::{ANSWER, command, wait_for_shell};
use crate::lab::Lab;

/// `sleep 5` takes five seconds, by the guest's clock and by ours.
pub fn sleep_takes_its_time(lab: &Lab) -> Result<Outcome> {
    let mut machine = Machine::spawn(&lab.example(Emulator::Qemu))?;
    wait_for_shell(&mut machine)?;
    let start = Instant::now();
    let uptimes = command(&mut machine, "cat /proc/uptime; sleep 5; cat /proc/uptime", ANSWER)?;
    let outside = start.elapsed().as_secs_f64();
    let seconds: Vec<f64> =
        uptimes.iter().filter_map(|line| line.split(' ').next()?.parse::<f64>().ok()).collect();
    let [before, after] = seconds.as_slice() else {
        return Err(Error::failed(format!("no two uptimes in {uptimes:?}")));
    };
    let inside = after - before;
    // Typing and three programs started come on top of the sleep, by as much as the machine is slow.
    if (4.9..7.0).contains(&inside) && (4.9..9.0).contains(&outside) {
        Ok(Outcome::Passed)
    } else {
        Err(Error::failed(format!("sleep 5 took {inside:.2} s in the guest, {outside:.2} s outside")))
    }
}

/// With the guest at its prompt every core of the host is in HLT nearly always, and QEMU uses nearly no time.
pub fn idle_guest_halts_the_host(lab: &Lab) -> Result<Outcome> {
    let mut machine = Machine::spawn(&lab.example(Emulator::Qemu))?;
    wait_for_shell(&mut machine)?;
    command(&mut machine, "true", ANSWER)?;
    cores_are_halted(&mut machine)
}

/// Every core is in HLT nearly always, and QEMU uses nearly no time.
pub fn cores_are_halted(machine: &mut Machine) -> Result<Outcome> {
    const SAMPLES: u32 = 50;
    let (start, used) = (Instant::now(), machine.cpu_time()?);
    let (mut cores, mut halted) = (0, 0);
    for _ in 0..SAMPLES {
        let registers = machine.monitor("info registers -a")?;
        cores += registers.matches("HLT=").count();
        halted += registers.matches("HLT=1").count();
        thread::sleep(Duration::from_millis(60));
    }
    let busy = (machine.cpu_time()? - used).as_secs_f64() / start.elapsed().as_secs_f64();
    if halted * 10 >= cores * 9 && cores > 0 && busy < 0.2 {
        Ok(Outcome::Passed)
    } else {
        let busy = busy * 100.0;
        Err(Error::failed(format!("{halted} of {cores} samples halted; QEMU used {busy:.0} % of a core")))
    }
}
