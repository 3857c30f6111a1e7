//! What Peerboot promises, held against real ROMs in an emulator. `scripts/test` runs this.

mod console;
mod lab;
pub(crate) use xtask::manifest;
mod multiplexer;

mod apps;
mod bad_input;
mod bochs;
mod boot;
mod boot_protocols;
mod cores;
mod devices;
mod disks;
mod figures;
mod guest_suite;
mod host_disks;
mod hostile;
mod lifecycle;
mod nvme;
mod other_guests;
mod power_cuts;
mod quiet;
mod scale;
mod shares;
mod six_guests;
mod small_payload;
mod stage;
mod time;
mod unikernel;
mod virtio;

use std::process::ExitCode;

use lab::Lab;
use xtask::error::Result;
use xtask::machine::{Bus, Emulator};
use xtask::suite::{Case, Selection, run_cases};

/// Every test. The name is what filters see; the longest are first, so that two at a time end together.
fn cases(selection: &Selection) -> Vec<Case<Lab>> {
    let mut cases = vec![
        Case::new("emulator/memtest86+", other_guests::memtest),
        // On a machine with nothing else to do it meets QEMU's fault (xtask::fault) more often than not.
        Case::new("emulator/six-guests", six_guests::six_guests).long(),
        Case::new("emulator/shares/sixteen-cpus", shares::sixteen_cpus),
        Case::new("emulator/shares/admission", shares::admission),
        Case::new("emulator/quiet-dmesg", quiet::dmesg_is_as_on_bare_hardware),
        Case::new("emulator/full-kernel", other_guests::full_kernel),
        Case::new("emulator/real-coreboot", other_guests::real_coreboot),
        Case::new("emulator/unikernel", unikernel::image),
        Case::new("emulator/linux-16-bit", boot_protocols::linux_from_real_mode),
        Case::new("emulator/memtest86+-32-bit", boot_protocols::memtest_32_bit),
        Case::new("emulator/ipxe", |lab: &Lab| {
            boot_protocols::ipxe(lab, Emulator::Qemu, Emulator::Qemu.cpu())
        }),
        Case::new("emulator/bios-services", |lab: &Lab| {
            boot_protocols::bios_services(lab, Emulator::Qemu, Emulator::Qemu.cpu())
        }),
        Case::new("emulator/console/two-guests", multiplexer::two_guests),
        Case::new("emulator/console/lost-interrupts", multiplexer::interrupts_that_never_come),
        Case::new("emulator/console/open-prompt", multiplexer::open_prompt_keeps_the_machine_on),
        Case::new("emulator/app", |lab: &Lab| apps::clock(lab, Emulator::Qemu, Emulator::Qemu.cpu())),
        Case::new("emulator/app-disk", |lab: &Lab| {
            apps::disk(lab, Emulator::Qemu, Emulator::Qemu.cpu(), (Bus::Ahci, "ahci0"))
        }),
        Case::new("emulator/boot-protocols", boot_protocols::protocols),
        Case::new("emulator/small-payload", small_payload::small_payload),
        Case::new("emulator/shell-answers", boot::shell_answers),
        Case::new("emulator/poweroff", boot::poweroff),
        Case::new("emulator/reboot", boot::reboot),
        Case::new("emulator/lifecycle/start-up", lifecycle::start_up),
        Case::new("emulator/lifecycle/delivered-once", lifecycle::delivered_once),
        Case::new("emulator/lifecycle/lives-leave-nothing", lifecycle::lives_leave_nothing),
        Case::new("emulator/lifecycle/slow-start", lifecycle::slow_start),
        Case::new("emulator/lifecycle/deaf-guest", lifecycle::deaf_guest),
        Case::new("emulator/memory-above-4-gib", boot::memory_above_4_gib),
        Case::new("emulator/lifecycle/watchdog", lifecycle::watchdog),
        Case::new("emulator/bad-guests", bad_input::bad_guests_cost_themselves),
        Case::new("emulator/damaged-cbfs", bad_input::damaged_cbfs),
        Case::new("emulator/damaged-manifest", bad_input::damaged_manifest),
        Case::new("emulator/truncated-manifest", bad_input::truncated_manifest),
        Case::new("emulator/no-manifest", bad_input::no_manifest),
        Case::new("emulator/small-machine", bad_input::small_machine),
        Case::new("emulator/figures/boot-time", figures::boot_time),
        Case::new("emulator/figures/exit-cost", figures::exit_cost),
        Case::new("emulator/figures/disk-read", figures::disk_read),
        Case::new("emulator/figures/disk-exits", figures::disk_exits),
        Case::new("emulator/stage-hand-over", stage::payload_entry_is_as_coreboot_leaves_it),
        Case::new("emulator/stage-refusals", stage::unbootable_roms_are_explained),
        Case::new("emulator/cores/all-run", cores::all_run),
        Case::new("emulator/cores/unlisted-run", cores::unlisted_run),
        Case::new("emulator/cores/errors-are-told", cores::errors_are_told),
        Case::new("emulator/cores/nmi-in-a-guest", cores::nmi_in_a_guest),
        Case::new("emulator/no-virtualization", boot::no_virtualization),
        Case::new("emulator/sleep", time::sleep_takes_its_time).alone(),
        Case::new("emulator/shares/weights-and-caps", |lab: &Lab| {
            shares::weights_and_caps(lab, Emulator::Qemu)
        })
        .alone(),
        Case::new("emulator/shares/weights-and-caps-bochs", |lab: &Lab| {
            shares::weights_and_caps(lab, Emulator::Bochs)
        })
        .alone(),
        Case::new("emulator/scale", scale::many_guests).alone(),
        Case::new("emulator/idle", time::idle_guest_halts_the_host).alone(),
    ];
    cases.extend(bochs::cases());
    cases.extend(disks::cases());
    cases.extend(host_disks::cases());
    cases.extend(power_cuts::cases());
    cases.extend(nvme::cases());
    cases.extend(devices::cases());
    cases.extend(virtio::cases());
    cases.extend(hostile::cases());
    cases.extend(guest_suite::cases(selection));
    cases
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
    match run(&selection, list) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.status())
        }
    }
}

fn run(selection: &Selection, list: bool) -> Result<ExitCode> {
    let cases = cases(selection);
    if list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return Ok(ExitCode::SUCCESS);
    }
    let tally = run_cases(&cases, selection, &Lab::open()?);
    println!("{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
