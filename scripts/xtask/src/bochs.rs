//! Bochs as a machine: its configuration, its start, and its serial port on a terminal.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::command;
use crate::error::{Error, Result};
use crate::machine::{Bus, ERRORS, Firmware, Running, Scratch, Spec, text};
use crate::packages;
use crate::ram_files;

/// The board that Bochs plays.
pub const BOARD: &str = "bochs";

/// Instructions in a second of virtual time, and so the frequency of the TSC in Hz. About what Bochs does in a second
/// of wall time on a usual machine.
const INSTRUCTIONS_PER_SECOND: u64 = 100_000_000;

/// Bochs takes more, but runs all in turn, so that each is as much slower.
const MOST_CORES: u32 = 8;

/// How long Bochs may take to connect its serial port.
const PATIENCE: Duration = Duration::from_secs(20);

/// How virtual time passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// As fast as instructions do, and at once where there are none: for programs that wait.
    Free,
    /// No faster than wall time: for people.
    Wall,
}

/// Starts Bochs, which uses `dir` for what it needs beside memory.
pub(crate) fn start(spec: &Spec, dir: &Path) -> Result<Running> {
    let (process, serial) = launch(spec, dir, Pace::Free)?;
    let keyboard = serial.try_clone().map_err(|e| lost(&e))?;
    Ok(Running {
        process,
        keyboard: OwnedFd::from(keyboard).into(),
        output: OwnedFd::from(serial).into(),
        monitor: None,
    })
}

/// Runs the machine with its serial port on this terminal, until it ends or the user types Ctrl-A X.
pub(crate) fn run_on_terminal(spec: &Spec) -> Result<()> {
    let dir = Scratch::make()?;
    let (mut process, mut serial) = launch(spec, dir.path(), Pace::Wall)?;
    let keyboard = serial.try_clone().map_err(|e| lost(&e))?;
    let raw = RawTerminal::begin();
    thread::spawn(move || type_on(&keyboard));
    let ended = show(&mut serial);
    drop(raw);
    let _ = process.kill();
    let _ = process.wait();
    println!();
    ended.map_err(|e| lost(&e))
}

/// Starts the process and waits for its serial port, which is a socket: Bochs has no other way to type on it
/// without a terminal.
fn launch(spec: &Spec, dir: &Path, pace: Pace) -> Result<(Child, TcpStream)> {
    packages::require_bochs()?;
    for disk in &spec.disks {
        // Bochs marks an image that it uses, and is always killed, so that it never takes the mark away.
        let _ = fs::remove_file(disk.file.with_added_extension("lock"));
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| lost(&e))?;
    let port = listener.local_addr().map_err(|e| lost(&e))?.port();

    let write = |name: &str, content: &str| {
        let path = dir.join(name);
        fs::write(&path, content).map_err(|e| Error::file("write", &path, &e)).map(|()| path)
    };
    let configuration = write("bochsrc", &configuration(spec, dir, port, pace)?)?;
    // Debian's Bochs begins in its debugger; this lets the machine run.
    let commands = write("commands", "c\n")?;
    let words = dir.join(ERRORS);
    let errors = File::create(&words).map_err(|e| Error::file("make", &words, &e))?;
    let output = errors.try_clone().map_err(|e| Error::file("make", &words, &e))?;

    let mut bochs = command::mortal(packages::BOCHS);
    bochs.arg("-q").arg("-f").arg(configuration).arg("-rc").arg(commands);
    // The display draws on standard output, which nobody looks at, but it wants to know a terminal.
    bochs.env("TERM", "xterm").stdin(Stdio::null()).stdout(output).stderr(errors);
    let mut process = bochs.spawn().map_err(|e| command::cannot_start(&bochs, &e))?;
    match accept(&listener, &mut process) {
        Some(serial) => Ok((process, serial)),
        None => {
            let _ = process.kill();
            let _ = process.wait();
            let said = fs::read(&words).unwrap_or_default();
            let reason = complaint(&String::from_utf8_lossy(&said));
            Err(Error::setup(if reason.contains("cpu directive malformed") {
                format!("Bochs has no CPU model {:?}; `bochs --help cpu` lists those it has.", spec.cpu)
            } else {
                format!("Bochs does not start: {reason}")
            }))
        }
    }
}

/// The connection that Bochs makes while it starts; `None` if it ends instead, or takes too long.
fn accept(listener: &TcpListener, process: &mut Child) -> Option<TcpStream> {
    listener.set_nonblocking(true).ok()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((serial, _)) => {
                serial.set_nonblocking(false).ok()?;
                serial.set_nodelay(true).ok()?;
                return Some(serial);
            }
            Err(_) if Instant::now() < deadline && matches!(process.try_wait(), Ok(None)) => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(_) => return None,
        }
    }
}

/// What Bochs says was wrong, out of all it says.
fn complaint(said: &str) -> String {
    const MARK: &str = "Bochs is exiting with the following message:";
    let reason = said.lines().skip_while(|line| !line.contains(MARK)).nth(1);
    reason.unwrap_or_else(|| said.trim_end().lines().last().unwrap_or_default()).trim().to_owned()
}

/// Bochs's configuration file for a machine whose serial port connects to TCP port `port` here.
fn configuration(spec: &Spec, dir: &Path, port: u16, pace: Pace) -> Result<String> {
    let Firmware::Rom(rom) = &spec.firmware else {
        return Err(Error::setup("Bochs boots ROMs only: it has no firmware that is handed a kernel."));
    };
    if !(1..=MOST_CORES).contains(&spec.smp) {
        return Err(Error::setup(format!(
            "A machine in Bochs has 1 to {MOST_CORES} cores, not {}.",
            spec.smp
        )));
    }
    let megabytes = megabytes(&spec.memory)?;
    let sync = match pace {
        Pace::Free => "none",
        Pace::Wall => "slowdown",
    };
    let mut lines = vec![
        "display_library: term".to_owned(),
        format!("romimage: file={}", text(rom)),
        format!("memory: guest={megabytes}, host={megabytes}"),
        format!("cpu: model={}, count={}, ips={INSTRUCTIONS_PER_SECOND}", spec.cpu, spec.smp),
        format!("clock: sync={sync}"),
        "pci: enabled=1, chipset=i440fx".to_owned(),
        format!("com1: enabled=1, mode=socket-client, dev=127.0.0.1:{port}"),
        "port_e9_hack: enabled=1".to_owned(),
        format!("log: {}", text(&dir.join("log"))),
        // Each exit of a guest would be a line.
        "info: action=ignore".to_owned(),
        "error: action=ignore".to_owned(),
        "panic: action=fatal".to_owned(),
    ];
    let files = ram_files::beside(rom);
    if let Ok(size) = fs::metadata(&files).map(|meta| meta.len()) {
        ram_files::check_room(size, megabytes << 20)?;
        lines.push(format!("optramimage1: file={}, address={:#x}", text(&files), ram_files::ADDRESS));
    }
    for channel in 0..2 {
        lines.push(format!("ata{channel}: enabled={}", u8::from(spec.disks.len() > 2 * channel)));
    }
    for (number, disk) in spec.disks.iter().enumerate() {
        if disk.bus != Bus::Ata || number > 3 {
            return Err(Error::setup("Bochs takes up to four disks, each with bus=ata."));
        }
        let place = format!("ata{}-{}", number / 2, ["master", "slave"][number % 2]);
        lines.push(format!("{place}: type=disk, mode=flat, cylinders=0, path={}", text(&disk.file)));
    }
    lines.extend(spec.extra.iter().cloned());
    lines.push(String::new());
    Ok(lines.join("\n"))
}

/// Memory in MiB, from what QEMU would take too.
fn megabytes(memory: &str) -> Result<u64> {
    let (number, unit) = match memory.strip_suffix(['G', 'g']) {
        Some(number) => (number, 1024),
        None => (memory.strip_suffix(['M', 'm']).unwrap_or(memory), 1),
    };
    let megabytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    megabytes.filter(|megabytes| (32..=1 << 16).contains(megabytes)).ok_or_else(|| {
        Error::setup(format!("{memory:?} is no memory for Bochs: 32M to 64G, in whole M or G."))
    })
}

/// Copies what the machine sends to standard output, until it ends.
fn show(serial: &mut TcpStream) -> io::Result<()> {
    let mut piece = [0; 4096];
    let mut screen = io::stdout().lock();
    loop {
        // A machine that ends may reset the connection.
        let read = serial.read(&mut piece).unwrap_or(0);
        if read == 0 {
            return Ok(());
        }
        screen.write_all(&piece[..read])?;
        screen.flush()?;
    }
}

/// Types on the machine's serial port what comes from standard input. Ctrl-A X hangs up.
fn type_on(mut serial: &TcpStream) {
    const CONTROL_A: u8 = 1;
    let mut escape = false;
    for byte in io::stdin().lock().bytes().map_while(io::Result::ok) {
        match (escape, byte) {
            (false, CONTROL_A) => escape = true,
            (true, b'x' | b'X') => {
                let _ = serial.shutdown(Shutdown::Both);
                return;
            }
            _ => {
                escape = false;
                if serial.write_all(&[byte]).is_err() {
                    return;
                }
            }
        }
    }
}

/// This terminal, handing on every key as it is pressed; as it was before when this is dropped.
struct RawTerminal {
    before: String,
}

impl RawTerminal {
    /// `None` where standard input is no terminal.
    fn begin() -> Option<Self> {
        let before = stty(&["-g"])?;
        stty(&["raw", "-echo"])?;
        Some(Self { before: before.trim().to_owned() })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        stty(&[&self.before]);
    }
}

fn stty(arguments: &[&str]) -> Option<String> {
    let output = Command::new("stty").args(arguments).stdin(Stdio::inherit()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn lost(error: &io::Error) -> Error {
    Error::failed(format!("the serial port's connection: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Disk, Emulator};
    use std::path::PathBuf;

    fn spec() -> Spec {
        Spec::on(Emulator::Bochs, Firmware::Rom(PathBuf::from("/no/bochs.rom")))
    }

    fn lines(spec: &Spec) -> Result<String> {
        configuration(spec, Path::new("/tmp"), 4321, Pace::Free)
    }

    #[test]
    fn the_configuration_is_the_machine() {
        let mut spec = spec();
        spec.memory = "512M".to_owned();
        for name in ["a.img", "b.img", "c.img"] {
            spec.disks.push(Disk::new(PathBuf::from(name), Bus::Ata));
        }
        let lines = lines(&spec).expect("a configuration");
        for line in [
            "romimage: file=/no/bochs.rom\n",
            "memory: guest=512, host=512\n",
            "dev=127.0.0.1:4321\n",
            "ata1: enabled=1\n",
            "ata0-slave: type=disk, mode=flat, cylinders=0, path=b.img\n",
            "ata1-master: type=disk, mode=flat, cylinders=0, path=c.img\n",
        ] {
            assert!(lines.contains(line), "{line} in {lines}");
        }
        assert!(!lines.contains("optramimage1"));
    }

    #[test]
    fn what_bochs_cannot_be_is_refused() {
        let refused = |change: fn(&mut Spec)| {
            let mut spec = spec();
            change(&mut spec);
            lines(&spec).expect_err("a refusal").to_string()
        };
        assert!(refused(|spec| spec.smp = 9).contains("8 cores, not 9"));
        assert!(refused(|spec| spec.memory = "2T".to_owned()).contains("2T"));
        assert!(refused(|spec| spec.memory = "8M".to_owned()).contains("8M"));
        assert!(refused(|spec| spec.disks.push(Disk::new(PathBuf::new(), Bus::Nvme))).contains("bus=ata"));
    }

    #[test]
    fn the_reason_is_found_in_what_bochs_says() {
        let said = "banner\n====\nBochs is exiting with the following message:\n[ROM ] too large\n====\n";
        assert_eq!(complaint(said), "[ROM ] too large");
        assert_eq!(complaint("one\nlast\n"), "last");
    }
}
