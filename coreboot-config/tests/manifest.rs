//! Manifests as users write them, compiled by the real dtc.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use coreboot_config::manifest::{
    Action, Boot, Cache, Console, DiskBoot, Format, GuestConfig, Manifest, Method, Model, Source,
};

/// The blob that dtc makes of the source, and what dtc had to say.
fn compile(source: &str) -> (Vec<u8>, String) {
    let mut dtc = Command::new("dtc")
        .args(["-I", "dts", "-O", "dtb", "-o", "-", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("dtc (Debian package device-tree-compiler) is needed");
    dtc.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let output = dtc.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    (output.stdout, said)
}

fn project_file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_boards_example_is_sound() {
    let (blob, said) = compile(&project_file("boards/qemu-q35/guests.dts"));
    assert_eq!(said, "");
    let manifest = Manifest::parse(&blob).unwrap();
    assert_eq!(manifest.warnings, []);
    let guests: Vec<_> = manifest.guests.into_iter().map(Result::unwrap).collect();
    let names: Vec<_> = guests.iter().map(|guest| (guest.name.as_str(), guest.cpus)).collect();
    assert_eq!(names, [("debian", 2), ("debian-2", 1), ("memtest", 1), ("ipxe", 1), ("clock", 1)]);
    assert!(guests.iter().all(|guest| guest.autostart));
    let cbfs = |name: &str| Source::Cbfs(name.into());
    for debian in &guests[..2] {
        let files: Vec<_> = debian.boot.files().cloned().collect();
        assert_eq!(files, [cbfs("guests/debian/vmlinuz"), cbfs("guests/debian/initramfs")]);
    }
}

/// The reference's example shows every property; the reference names every one, too.
#[test]
fn the_references_example_means_what_it_says() {
    let reference = project_file("../docs/manifest.md");
    let source = reference.split("```dts\n").nth(1).unwrap().split("```").next().unwrap();
    let (blob, said) = compile(source);
    assert_eq!(said, "");
    let manifest = Manifest::parse(&blob).unwrap();
    assert_eq!(manifest.warnings, []);
    let guests: Vec<_> = manifest.guests.into_iter().map(Result::unwrap).collect();
    let [web, probe, system] = guests.as_slice() else { panic!("{guests:?}") };

    assert_eq!((web.name.as_str(), web.node.as_str()), ("web", "/chosen/guest-1"));
    assert_eq!((web.memory, web.cpus, web.weight), (6 << 30, 2, 512));
    assert_eq!((web.cpu_affinity.as_slice(), web.dedicated_cpus, web.cap), (&[2, 3][..], true, Some(150)));
    let files = |guest: &GuestConfig| match guest.boot.clone() {
        Boot::Files(files) => files,
        boot => panic!("{boot:?}"),
    };
    assert_eq!(files(web).method, Method::Linux(None));
    assert_eq!(files(web).bootargs, "console=ttyS0");
    assert_eq!(files(web).kernel.to_string(), "cbfs:guests/web/vmlinuz");
    assert_eq!(
        (web.on_crash, web.on_reboot, web.on_poweroff),
        (Action::Restart, Action::Restart, Action::Stop)
    );
    assert_eq!((web.console, web.autostart, web.debug_port), (Console::Uart, true, false));
    assert!(web.watchdog && !probe.watchdog);
    let [data, tools] = web.disks.as_slice() else { panic!("{:?}", web.disks) };
    assert_eq!((tools.name.as_str(), tools.read_only), ("tools", true));
    assert_eq!(data.source.to_string(), "disk:WD-1234/part:label/guests/file:/web.qcow2");
    assert_eq!((data.format, data.cache, data.model), (Format::Qcow2, Cache::WriteThrough, Model::Nvme));
    assert_eq!(data.base.as_ref().map(|base| base.source.to_string()).as_deref(), Some("disk:nvme0/part:3"));
    assert_eq!(web.networks[0].switch, "lan");
    assert_eq!(web.networks[0].mac_address, Some([2, 0, 0, 0, 0, 1]));

    assert_eq!((probe.name.as_str(), probe.memory), ("probe", 16 << 20));
    assert_eq!(files(probe).method, Method::Multiboot2);
    assert_eq!(files(probe).modules[0].source.to_string(), "cbfs:guests/rules");
    assert_eq!(files(probe).modules[0].bootargs, "strict");
    assert_eq!((probe.console, probe.debug_port), (Console::None, true));
    let from_disk = DiskBoot { entry: None, bootargs: "console=ttyS0".into() };
    assert_eq!(system.boot, Boot::Disk(from_disk));
    assert!(system.disks[0].snapshot);

    let mut properties = 0;
    for line in
        source.lines().map(str::trim).filter(|line| line.contains(';') && !line.starts_with(['}', '/']))
    {
        let property = line.split([' ', ';']).next().unwrap();
        assert!(reference.contains(&format!("| `{property}` |")), "{property} is not in the reference");
        properties += 1;
    }
    assert_eq!(properties, 48);
}

#[test]
fn what_dtc_adds_on_its_own_is_no_cause_for_warnings() {
    // References to labels make phandles; deleted nodes and comments leave nothing.
    let (blob, _) = compile(
        r#"/dts-v1/;
        / {
            compatible = "peerboot,manifest-v1";
            aliases { first = &g; };
            chosen {
                g: g { compatible = "vendor,special", "peerboot,guest"; memory = <0x10000>; boot = "pvh"; kernel = "cbfs:k"; };
                gone: gone { };
            };
        };
        &g { cpus = <2>; cpu-affinity = <&g>; };
        /delete-node/ &gone;"#,
    );
    let manifest = Manifest::parse(&blob).unwrap();
    let guest = manifest.guests[0].as_ref().unwrap();
    assert_eq!((guest.memory, guest.cpus), (64 << 20, 2));
    let warnings: Vec<_> = manifest.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, ["manifest: node /aliases: unknown here, not used"]);
}

#[test]
fn a_wrong_guest_leaves_the_others() {
    let (blob, _) = compile(
        r#"/dts-v1/;
        / {
            compatible = "peerboot,manifest-v1";
            chosen {
                bad { compatible = "peerboot,guest"; memory = "lots"; boot = "linux"; kernel = "cbfs:k"; };
                good { compatible = "peerboot,guest"; memory = <0x10000>; boot = "linux"; kernel = "cbfs:k"; };
            };
        };"#,
    );
    let manifest = Manifest::parse(&blob).unwrap();
    assert_eq!(
        manifest.guests[0].as_ref().unwrap_err().to_string(),
        "manifest: node /chosen/bad, property memory: found \"lots\", \
         expected KiB in one or two cells, at least 1024, a multiple of 4"
    );
    assert_eq!(manifest.guests[1].as_ref().unwrap().name, "good");
}
