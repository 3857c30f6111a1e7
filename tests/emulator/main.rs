//! What Peerboot promises, held against real ROMs in an emulator. `scripts/test` runs this.

mod console;
mod lab;
mod manifest;

mod bad_input;
mod boot;
mod other_guests;
mod quiet;
mod time;

use std::process::ExitCode;

use lab::Lab;
use xtask::suite::{Case, Selection, run_cases};

/// Every test. The name is what filters see.
const CASES: &[Case<Lab>] = &[
    case("emulator/shell-answers", boot::shell_answers),
    case("emulator/poweroff", boot::poweroff),
    case("emulator/reboot", boot::reboot),
    case("emulator/no-virtualization", boot::no_virtualization),
    case("emulator/memtest86+", other_guests::memtest),
    case("emulator/full-kernel", other_guests::full_kernel),
    case("emulator/real-coreboot", other_guests::real_coreboot),
    case("emulator/bad-guests", bad_input::bad_guests_cost_themselves),
    case("emulator/damaged-manifest", bad_input::damaged_manifest),
    case("emulator/truncated-manifest", bad_input::truncated_manifest),
    case("emulator/no-manifest", bad_input::no_manifest),
    case("emulator/damaged-cbfs", bad_input::damaged_cbfs),
    case("emulator/small-machine", bad_input::small_machine),
    case("emulator/quiet-dmesg", quiet::dmesg_is_as_on_bare_hardware),
    alone("emulator/sleep", time::sleep_takes_its_time),
    alone("emulator/idle", time::idle_guest_halts_the_host),
];

const fn case(name: &'static str, body: xtask::suite::Body<Lab>) -> Case<Lab> {
    Case { name, body, alone: false, long: false }
}

const fn alone(name: &'static str, body: xtask::suite::Body<Lab>) -> Case<Lab> {
    Case { name, body, alone: true, long: false }
}

fn main() -> ExitCode {
    let mut selection = Selection::default();
    let mut list = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--long" => selection.long = true,
            "--list" => list = true,
            _ => selection.filters.push(argument),
        }
    }
    if list {
        CASES.iter().for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    }
    let lab = match Lab::open() {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(error.status());
        }
    };
    let tally = run_cases(CASES, &selection, &lab);
    println!("{tally}");
    if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
