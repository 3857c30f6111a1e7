//! Tests on blobs made here; `tests/manifest.rs` has those that dtc compiles.

use super::boot::MODULE;
use super::*;
use proptest::prelude::*;

/// A node to be flattened.
#[derive(Clone, Debug, Default)]
struct Tree {
    name: String,
    properties: Vec<(String, Vec<u8>)>,
    children: Vec<Tree>,
}

impl Tree {
    fn new(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    fn with(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.properties.retain(|(other, _)| other != name);
        self.properties.push((name.into(), value.into()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.properties.retain(|(other, _)| other != name);
        self
    }

    fn text(self, name: &str, text: &str) -> Self {
        self.with(name, [text.as_bytes(), &[0]].concat())
    }

    fn cells(self, name: &str, cells: &[u32]) -> Self {
        self.with(name, cells.iter().flat_map(|cell| cell.to_be_bytes()).collect::<Vec<u8>>())
    }

    fn child(mut self, child: Tree) -> Self {
        self.children.push(child);
        self
    }

    fn flatten(&self, structure: &mut Vec<u8>, strings: &mut Vec<u8>) {
        let pad = |structure: &mut Vec<u8>| structure.resize(structure.len().next_multiple_of(4), 0);
        structure.extend(1_u32.to_be_bytes());
        structure.extend(self.name.bytes().chain([0]));
        pad(structure);
        for (name, value) in &self.properties {
            structure.extend(3_u32.to_be_bytes());
            structure.extend((value.len() as u32).to_be_bytes());
            structure.extend((strings.len() as u32).to_be_bytes());
            strings.extend(name.bytes().chain([0]));
            structure.extend(value);
            pad(structure);
        }
        self.children.iter().for_each(|child| child.flatten(structure, strings));
        structure.extend(2_u32.to_be_bytes());
    }

    fn blob(&self) -> Vec<u8> {
        let (mut structure, mut strings) = (Vec::new(), Vec::new());
        self.flatten(&mut structure, &mut strings);
        structure.extend(9_u32.to_be_bytes());
        let strings_at = 56 + structure.len();
        let header = [
            0xd00d_feed,
            strings_at + strings.len(),
            56,
            strings_at,
            40,
            17,
            16,
            0,
            strings.len(),
            structure.len(),
        ];
        let mut blob: Vec<u8> = header.iter().flat_map(|word| (*word as u32).to_be_bytes()).collect();
        // No memory reservations.
        blob.extend([0; 16]);
        blob.extend(structure);
        blob.extend(strings);
        blob
    }
}

fn guest(name: &str) -> Tree {
    Tree::new(name)
        .text("compatible", "peerboot,guest")
        .cells("memory", &[0, 0x8_0000])
        .text("boot", "linux")
        .text("kernel", "cbfs:guests/vmlinuz")
}

fn manifest(guests: impl IntoIterator<Item = Tree>) -> Tree {
    let chosen = guests.into_iter().fold(Tree::new("chosen"), Tree::child);
    Tree::new("").text("compatible", COMPATIBLE).child(chosen)
}

fn parse(guests: impl IntoIterator<Item = Tree>) -> Manifest {
    Manifest::parse(&manifest(guests).blob()).unwrap()
}

/// What the one guest, wrong as it is, says.
fn error(guest: Tree) -> String {
    let manifest = parse([guest]);
    assert_eq!(manifest.guests.len(), 1);
    manifest.guests[0].clone().unwrap_err().to_string()
}

#[test]
fn a_plain_guest_gets_the_defaults() {
    let manifest = parse([guest("debian")]);
    let expected = GuestConfig {
        name: "debian".into(),
        node: "/chosen/debian".into(),
        memory: 512 << 20,
        cpus: 1,
        cpu_affinity: vec![],
        weight: DEFAULT_WEIGHT,
        cap: None,
        dedicated_cpus: false,
        boot: Boot::Files(Files {
            method: Method::Linux(None),
            kernel: Source::Cbfs("guests/vmlinuz".into()),
            ramdisk: None,
            modules: vec![],
            bootargs: String::new(),
        }),
        disks: vec![],
        networks: vec![],
        console: Console::Uart,
        on_crash: Action::Stop,
        on_reboot: Action::Restart,
        on_poweroff: Action::Stop,
        autostart: false,
        debug_port: false,
        watchdog: false,
        entropy: false,
    };
    assert_eq!(manifest.guests, [Ok(expected)]);
    assert_eq!(manifest.warnings, []);
}

/// The files of a sound guest.
fn files(guest: Tree) -> Files {
    match parse([guest]).guests[0].clone().unwrap().boot {
        Boot::Files(files) => files,
        boot => panic!("{boot:?}"),
    }
}

fn disk(name: &str, source: &str) -> Tree {
    Tree::new(name).text("source", source)
}

#[test]
fn a_guest_may_start_from_its_disks() {
    let guest = |guest: Tree| guest.without("kernel").text("boot", "disk").child(disk("disk0", "disk:nvme0"));
    let boot = |tree: Tree| parse([guest(tree)]).guests[0].clone().unwrap().boot;
    let plain = self::guest("g");
    let expected = |entry: Option<&str>, bootargs: &str| {
        Boot::Disk(DiskBoot { entry: entry.map(Into::into), bootargs: bootargs.into() })
    };
    assert_eq!(boot(plain.clone()), expected(None, ""));
    let chosen = plain.clone().text("entry", "debian-6.1").text("bootargs", "quiet");
    assert_eq!(boot(chosen), expected(Some("debian-6.1"), "quiet"));
    assert_eq!(
        error(guest(plain.clone()).text("ramdisk", "cbfs:r")),
        "manifest: node /chosen/g, property ramdisk: found \"cbfs:r\", expected none with boot = \"disk\", which \
         finds it on the guest's disks"
    );
    assert!(error(guest(plain.clone()).text("entry", "")).ends_with("expected an entry's name"));
    assert!(error(guest(plain.clone()).child(module("m"))).contains("expected one that has nodes"));
    assert_eq!(
        error(plain.without("kernel").text("boot", "disk")),
        "manifest: node /chosen/g, property boot: found \"disk\", expected another where the guest has no disk"
    );
}

#[test]
fn a_plain_disk_gets_the_defaults() {
    let manifest = parse([guest("g")
        .child(disk("disk0", "disk:nvme0/part:2"))
        .child(disk("root", "disk:a/file:/b").text("compatible", "peerboot,disk").text("model", "nvme"))]);
    let disks = &manifest.guests[0].as_ref().unwrap().disks;
    let partition = Some(PartitionName::Number(2));
    let expected = Disk {
        name: "disk0".into(),
        source: DiskSource::Disk(DiskPlace { disk: "nvme0".into(), partition, file: None }),
        format: Format::Raw,
        base: None,
        read_only: false,
        snapshot: false,
        cache: Cache::WriteBack,
        serial: None,
        model: Model::Virtio,
    };
    let place = DiskPlace { disk: "a".into(), partition: None, file: Some("/b".into()) };
    let second =
        Disk { name: "root".into(), source: DiskSource::Disk(place), model: Model::Nvme, ..expected.clone() };
    assert_eq!(*disks, [expected, second]);
    assert_eq!(manifest.warnings, []);
}

#[test]
fn files_on_disks_are_among_those_that_a_guest_needs() {
    let image = disk("disk0", "disk:nvme0").text("format", "qcow2").text("base", "memory:0x1000+0x200");
    let config = parse([guest("g").child(image).child(disk("disk1", "cbfs:tools").with("snapshot", []))]);
    let files: Vec<_> = config.guests[0].as_ref().unwrap().files().map(ToString::to_string).collect();
    assert_eq!(files, ["cbfs:guests/vmlinuz", "memory:0x1000+0x200", "cbfs:tools"]);
}

#[test]
fn an_entry_is_for_linux_alone() {
    let method = |guest: Tree| files(guest).method;
    for (text, entry) in [("16-bit", Entry::Bits16), ("32-bit", Entry::Bits32), ("64-bit", Entry::Bits64)] {
        assert_eq!(method(guest("a").text("entry", text)), Method::Linux(Some(entry)));
    }
    assert_eq!(method(guest("a").text("boot", "multiboot")), Method::Multiboot);
    assert_eq!(method(guest("a").text("boot", "multiboot2")), Method::Multiboot2);
    assert_eq!(method(guest("a").text("boot", "hermit")), Method::Hermit);
    assert_eq!(
        error(guest("a").text("entry", "8-bit")),
        "manifest: node /chosen/a, property entry: found \"8-bit\", expected one of \"16-bit\", \"32-bit\", \
         \"64-bit\""
    );
    assert_eq!(
        error(guest("a").text("boot", "pvh").text("entry", "32-bit")),
        "manifest: node /chosen/a, property entry: found \"32-bit\", expected it only with boot = \"linux\" or \
         \"disk\""
    );
}

fn module(name: &str) -> Tree {
    Tree::new(name).text("compatible", MODULE).text("source", &format!("cbfs:{name}"))
}

#[test]
fn modules_are_child_nodes() {
    let nodes = |boot: &str| {
        guest("a").text("boot", boot).child(module("one").text("bootargs", "first one")).child(module("two"))
    };
    let manifest = parse([nodes("multiboot2")]);
    let boot = &manifest.guests[0].as_ref().unwrap().boot;
    let modules = [("one", "first one"), ("two", "")];
    assert_eq!(
        files(nodes("multiboot2")).modules,
        modules
            .map(|(name, bootargs)| Module { source: Source::Cbfs(name.into()), bootargs: bootargs.into() })
    );
    let files: Vec<_> = boot.files().map(ToString::to_string).collect();
    assert_eq!(files, ["cbfs:guests/vmlinuz", "cbfs:one", "cbfs:two"]);
    assert_eq!(manifest.warnings, []);

    assert_eq!(
        error(nodes("linux")),
        "manifest: node /chosen/a, property boot: found \"linux\", expected one that has nodes \
         \"peerboot,module\""
    );
    let nameless = guest("a").text("boot", "pvh").child(module("one").without("source"));
    assert!(error(nameless).starts_with("manifest: node /chosen/a/one, property source: found nothing"));
    let misspelled = parse([guest("a").text("boot", "pvh").child(module("one").text("cmdline", "x"))]);
    assert_eq!(
        misspelled.warnings[0].to_string(),
        "manifest: node /chosen/a/one, property cmdline: unknown here, not used"
    );
}

#[test]
fn names_come_from_label_or_node() {
    let name = |guest| parse([guest]).guests[0].clone().unwrap().name;
    assert_eq!(name(guest("web@2")), "web");
    assert_eq!(name(guest("web@2").text("label", "shop.example")), "shop.example");
    assert_eq!(
        error(guest("a,b")),
        "manifest: node /chosen/a,b: found a node name that cannot be a guest's, \
         expected 1 to 31 letters, digits, '-', '_' and '.', or a property label of these"
    );
    assert_eq!(
        error(guest("web").text("label", "two words")),
        "manifest: node /chosen/web, property label: found \"two words\", \
         expected 1 to 31 letters, digits, '-', '_' and '.'"
    );
}

#[test]
fn errors_name_node_property_found_and_expected() {
    let cases: [(Tree, &str); 26] = [
        (guest("g").without("memory"), "property memory: found nothing, expected KiB in one or two cells"),
        (guest("g").cells("memory", &[1, 2, 3]), "property memory: found <0x1 0x2 0x3>, expected KiB"),
        (guest("g").cells("memory", &[1023]), "property memory: found <0x3ff>, expected KiB"),
        (guest("g").cells("memory", &[1026]), "property memory: found <0x402>, expected KiB"),
        (guest("g").cells("memory", &[u32::MAX, 0]), "property memory: found <0xffffffff 0x0>, expected KiB"),
        (guest("g").text("memory", "512M"), "property memory: found \"512M\", expected KiB"),
        (guest("g").cells("cpus", &[0]), "property cpus: found <0x0>, expected one cell from 1 to 255"),
        (
            guest("g").cells("cpus", &[0, 2]),
            "property cpus: found <0x0 0x2>, expected one cell from 1 to 255",
        ),
        (
            guest("g").cells("weight", &[65_536]),
            "property weight: found <0x10000>, expected one cell from 1 to 65535",
        ),
        (guest("g").cells("cap", &[0]), "property cap: found <0x0>, expected one cell from 1 to 25500"),
        (
            guest("g").cells("cpu-affinity", &[3, 1, 3]),
            "property cpu-affinity: found <0x3 0x1 0x3>, expected numbers",
        ),
        (
            guest("g").with("cpu-affinity", []),
            "property cpu-affinity: found a property without a value, expected",
        ),
        (
            guest("g").text("boot", "bios"),
            "property boot: found \"bios\", expected one of \"linux\", \"pvh\"",
        ),
        (guest("g").without("boot"), "property boot: found nothing, expected one of"),
        (guest("g").without("kernel"), "property kernel: found nothing, expected \"cbfs:\" and the name"),
        (guest("g").text("kernel", "vmlinuz"), "property kernel: found \"vmlinuz\", expected \"cbfs:\""),
        (
            guest("g").text("kernel", "nvme:vmlinuz"),
            "property kernel: found \"nvme:vmlinuz\", expected \"cbfs:\"",
        ),
        (guest("g").text("ramdisk", "cbfs:"), "property ramdisk: found \"cbfs:\", expected \"cbfs:\" and"),
        (
            guest("g").cells("bootargs", &[0x8080_8080]),
            "property bootargs: found <0x80808080>, expected one string",
        ),
        (guest("g").text("bootargs", "a\0b"), "property bootargs: found <0x61006200>, expected one string"),
        (
            guest("g").text("console", "vga"),
            "property console: found \"vga\", expected one of \"uart\", \"virtio\", \"none\"",
        ),
        (
            guest("g").text("on-crash", "panic"),
            "property on-crash: found \"panic\", expected one of \"stop\"",
        ),
        (guest("g").cells("autostart", &[0]), "property autostart: found <0x0>, expected no value"),
        (guest("g").text("debug-port", "yes"), "property debug-port: found \"yes\", expected no value"),
        (guest("g").cells("watchdog", &[30]), "property watchdog: found <0x1e>, expected no value"),
        (guest("g").text("on-reboot", &"x".repeat(100)), "xxx\"…, expected one of"),
    ];
    for (guest, expected) in cases {
        let error = error(guest);
        assert!(error.starts_with("manifest: node /chosen/g, property "), "{error}");
        assert!(error.contains(expected), "{error}\nshould say\n{expected}");
    }
}

#[test]
fn errors_in_devices_name_the_device() {
    let disk = |node: Tree| error(guest("g").child(node.text("compatible", "peerboot,disk")));
    assert!(
        disk(Tree::new("root")).starts_with("manifest: node /chosen/g/root, property source: found nothing")
    );
    assert!(
        disk(Tree::new("root").text("source", "cbfs:image"))
            .starts_with("manifest: node /chosen/g/root, property read-only: found nothing")
    );
    let on_nvme = || Tree::new("root").text("source", "disk:nvme0");
    for (node, expected) in [
        (
            Tree::new("root").text("source", "nvme0"),
            "source: found \"nvme0\", expected \"disk:\" and a disk's",
        ),
        (Tree::new("root").text("source", "memory:0x1000+0x200"), "read-only: found nothing, expected it or"),
        (
            on_nvme().text("format", "vmdk"),
            "format: found \"vmdk\", expected one of \"raw\", \"qcow2\", \"vhd\"",
        ),
        (on_nvme().with("read-only", []).with("snapshot", []), "snapshot: found a property without a value"),
        (
            on_nvme().text("cache", "none"),
            "cache: found \"none\", expected one of \"write-back\", \"write-th",
        ),
        (on_nvme().text("model", "ide"), "model: found \"ide\", expected one of \"virtio\", \"nvme\""),
        (on_nvme().text("serial", "a b"), "serial: found \"a b\", expected 1 to 20 letters"),
        (on_nvme().text("serial", &"9".repeat(21)), "expected 1 to 20 letters"),
        (
            on_nvme().text("base", "disk:a"),
            "base: found \"disk:a\", expected it only with format = \"qcow2\"",
        ),
        (on_nvme().text("base", "b").text("format", "vhd"), "base: found \"b\", expected \"disk:\" and a"),
        (on_nvme().text("base-format", "raw"), "base-format: found \"raw\", expected it only beside base"),
    ] {
        let error = disk(node);
        assert!(error.starts_with("manifest: node /chosen/g/root, property "), "{error}");
        assert!(error.contains(expected), "{error}\nshould say\n{expected}");
    }
    let network = |node: Tree| error(guest("g").child(node.text("compatible", "peerboot,network")));
    assert!(network(Tree::new("lan")).contains("/chosen/g/lan, property switch: found nothing"));
    for address in [&[2, 0, 0, 0, 1][..], &[1, 2, 3, 4, 5, 6], &[0; 6]] {
        let node = Tree::new("lan").text("switch", "lan").with("mac-address", address);
        assert!(network(node).contains("property mac-address: found "));
    }
}

#[test]
fn the_other_guests_still_come_out() {
    let manifest = parse([guest("one"), guest("two").cells("cpus", &[0]), guest("three")]);
    let names: Vec<_> =
        manifest.guests.iter().map(|guest| guest.as_ref().ok().map(|guest| guest.name.as_str())).collect();
    assert_eq!(names, [Some("one"), None, Some("three")]);
}

#[test]
fn the_second_of_a_name_is_refused() {
    let manifest =
        parse([guest("web@0"), guest("shop").text("label", "web"), guest("web@1").without("boot")]);
    assert!(manifest.guests[0].is_ok());
    assert_eq!(
        manifest.guests[1].clone().unwrap_err().to_string(),
        "manifest: node /chosen/shop: found a second guest named web, expected another name than that of /chosen/web@0"
    );
    assert!(manifest.guests[2].clone().unwrap_err().to_string().contains("property boot"));
}

#[test]
fn the_unknown_is_warned_of() {
    let guest = guest("g").text("memroy", "512M").cells("phandle", &[1]).child(Tree::new("floppy")).child(
        Tree::new("d")
            .text("compatible", "peerboot,disk")
            .text("source", "cbfs:d")
            .with("read-only", [])
            .with("fast", []),
    );
    let tree = manifest([guest.cells("cpus", &[0])]).text("vendor", "x").child(Tree::new("memory"));
    let mut chosen = tree.children[0].clone().text("bootargs", "x");
    chosen.children.push(Tree::new("other"));
    let tree = Tree { children: vec![chosen, tree.children[1].clone()], ..tree };
    let manifest = Manifest::parse(&tree.blob()).unwrap();
    let warnings: Vec<_> = manifest.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "manifest: node /, property vendor: unknown here, not used",
            "manifest: node /chosen, property bootargs: unknown here, not used",
            "manifest: node /chosen/g, property memroy: unknown here, not used",
            "manifest: node /chosen/g/floppy: unknown here, not used",
            "manifest: node /chosen/g/d, property fast: unknown here, not used",
            "manifest: node /chosen/other: unknown here, not used",
            "manifest: node /memory: unknown here, not used",
        ]
    );
    assert!(manifest.guests[0].is_err());
}

#[test]
fn other_trees_are_no_manifests() {
    let message = |tree: Tree| Manifest::parse(&tree.blob()).unwrap_err().to_string();
    assert_eq!(
        message(Tree::new("")),
        "manifest: node /, property compatible: found nothing, expected \"peerboot,manifest-v1\""
    );
    assert_eq!(
        message(Tree::new("").text("compatible", "peerboot,manifest-v2")),
        "manifest: node /, property compatible: found \"peerboot,manifest-v2\", expected \"peerboot,manifest-v1\""
    );
    assert_eq!(
        message(Tree::new("").text("compatible", COMPATIBLE)),
        "manifest: found no node /chosen, expected one with the guests in it"
    );
}

#[test]
fn unsound_blobs_say_where() {
    let blob = manifest([guest("g")]).blob();
    let changed = |at: usize, value: u8| {
        let mut blob = blob.clone();
        blob[at] = value;
        Manifest::parse(&blob).unwrap_err().to_string()
    };
    assert_eq!(
        changed(0, 0),
        "manifest: device tree blob at offset 0x0: found 0xdfeed as the header's magic, expected what dtc writes"
    );
    assert!(changed(23, 16).contains("found 0x10 as the header's version"));
    assert!(changed(4, 1).contains("header's totalsize"));
    assert!(changed(11, 57).contains("header's off_dt_struct"));
    assert!(changed(36, 1).contains("header's size_dt_struct"));
    assert!(changed(32, 1).contains("header's size_dt_strings"));
    assert!(changed(56 + 3, 4).contains("at offset 0x38: found token 0x4"));
    assert!(changed(56 + 4, b'x').contains("found a name"));
    assert!(changed(56 + 12, 1).contains("found a value of"));
    assert!(changed(56 + 16, 1).contains("found a name"));
    for len in 0..blob.len() {
        assert!(Manifest::parse(&blob[..len]).is_err(), "{len} of {} bytes", blob.len());
    }
    let deep = (0..20).fold(Tree::new("x"), |tree, _| Tree::new("x").child(tree));
    let error = Manifest::parse(&Tree::new("").child(deep).blob()).unwrap_err().to_string();
    assert!(error.ends_with("found nodes nested deeper than 16"), "{error}");
}

#[test]
fn properties_behind_child_nodes_are_refused() {
    // dtc never writes them so, and the crate fdt would pass over them.
    let mut blob = Tree::new("").child(Tree::new("a")).with("p", []).blob();
    let structure: Vec<u8> =
        [1, 0, 1, 0x6100_0000, 2, 3, 0, 0, 2, 9].iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
    blob[56..56 + structure.len()].copy_from_slice(&structure);
    let error = Manifest::parse(&blob).unwrap_err().to_string();
    assert_eq!(
        error,
        "manifest: device tree blob at offset 0x4c: found token 0x3, expected a node's or property's as dtc orders them"
    );
}

/// A disk without a name.
fn any_disk() -> impl Strategy<Value = (Tree, Disk)> {
    let partition = prop_oneof![
        (1..=u32::MAX).prop_map(PartitionName::Number),
        "[ -.0-~]{1,36}".prop_map(PartitionName::Label),
        "[0-9a-f-]{1,36}".prop_map(PartitionName::Uuid),
    ];
    let file = proptest::option::of("/[a-z.]{1,8}(/[a-z ]{1,8}){0,3}");
    let place = ("[A-Za-z0-9 .:_-]{1,20}", proptest::option::of(partition), file)
        .prop_map(|(disk, partition, file)| DiskSource::Disk(DiskPlace { disk, partition, file }));
    let source = prop_oneof![place, Just(DiskSource::File(Source::Cbfs("d".into())))];
    let format =
        prop_oneof![Just(("raw", Format::Raw)), Just(("qcow2", Format::Qcow2)), Just(("vhd", Format::Vhd)),];
    let serial = proptest::option::of("[A-Za-z0-9._-]{1,20}");
    (source, format, serial, any::<[bool; 4]>()).prop_map(
        |(source, (word, format), serial, [read_only, snapshot, through, nvme])| {
            let is_file = matches!(source, DiskSource::File(_));
            let read_only = (read_only || is_file) && !snapshot;
            let mut tree =
                Tree::new("").text("compatible", "peerboot,disk").text("source", &source.to_string());
            let mut base = None;
            if format != Format::Raw {
                tree = tree.text("format", word).text("base", &source.to_string()).text("base-format", word);
                base = Some(Base { source: source.clone(), format });
            }
            for (name, set) in [("read-only", read_only), ("snapshot", snapshot)] {
                tree = if set { tree.with(name, []) } else { tree };
            }
            if let Some(serial) = &serial {
                tree = tree.text("serial", serial);
            }
            let cache = if through { Cache::WriteThrough } else { Cache::WriteBack };
            let model = if nvme { Model::Nvme } else { Model::Virtio };
            tree = tree.text("cache", if through { "write-through" } else { "write-back" });
            tree = tree.text("model", if nvme { "nvme" } else { "virtio" });
            let name = String::new();
            (tree, Disk { name, source, format, base, read_only, snapshot, cache, serial, model })
        },
    )
}

fn any_guest() -> impl Strategy<Value = (Tree, GuestConfig)> {
    let file = "[a-zA-Z0-9/._+-]{1,20}";
    let options = (any::<bool>(), any::<[bool; 2]>(), 0..3_usize, proptest::option::of(file), "[ -~]{0,30}");
    let affinity = proptest::collection::btree_set(0..64_u32, 0..5);
    let cap = proptest::option::of(1..=MAX_CAP);
    let numbers = (1..=MAX_CPUS, 1..=u16::MAX, 256..1_u64 << 40, affinity, cap);
    ("[a-z][a-z0-9._-]{0,30}", file, options, numbers, any_disk()).prop_map(
        |(
            name,
            kernel,
            (autostart, [debug_port, watchdog], devices, ramdisk, bootargs),
            (cpus, weight, pages, affinity, cap),
            any_disk,
        )| {
            let kib = pages * 4;
            let mut tree = guest(&name)
                .cells("memory", &[(kib >> 32) as u32, kib as u32])
                .cells("cpus", &[cpus])
                .cells("weight", &[weight.into()])
                .text("boot", if autostart { "pvh" } else { "linux" })
                .text("kernel", &format!("cbfs:{kernel}"))
                .text("bootargs", &bootargs);
            let affinity: Vec<u32> = affinity.into_iter().collect();
            if !affinity.is_empty() {
                let shuffled: Vec<u32> = affinity.iter().rev().copied().collect();
                tree = tree.cells("cpu-affinity", &shuffled);
            }
            if let Some(cap) = cap {
                tree = tree.cells("cap", &[cap]);
            }
            for (name, set) in [
                ("autostart", autostart),
                ("debug-port", debug_port),
                ("dedicated-cpus", debug_port),
                ("watchdog", watchdog),
                ("entropy", watchdog != autostart),
            ] {
                tree = if set { tree.with(name, []) } else { tree };
            }
            if let Some(ramdisk) = &ramdisk {
                tree = tree.text("ramdisk", &format!("cbfs:{ramdisk}"));
            }
            let (mut disks, mut networks) = (Vec::new(), Vec::new());
            for index in 0..devices {
                let (node, disk) = any_disk.clone();
                let disk = Disk { name: format!("disk{index}"), ..disk };
                tree = tree.child(Tree { name: disk.name.clone(), ..node });
                disks.push(disk);
                let address = [2, 0, 0, 0, 0, index as u8];
                let network =
                    Network { name: format!("net{index}"), switch: "lan".into(), mac_address: Some(address) };
                let node = Tree::new(&network.name).text("compatible", "peerboot,network");
                tree = tree.child(node.text("switch", "lan").with("mac-address", address));
                networks.push(network);
            }
            let method = if autostart { Method::Pvh } else { Method::Linux(None) };
            let mut modules = Vec::new();
            if autostart {
                for index in 0..devices {
                    let name = format!("module{index}");
                    tree = tree.child(module(&name).text("bootargs", &bootargs));
                    modules.push(Module { source: Source::Cbfs(name), bootargs: bootargs.clone() });
                }
            }
            let (kernel, ramdisk) = (Source::Cbfs(kernel), ramdisk.map(Source::Cbfs));
            let config = GuestConfig {
                node: format!("/chosen/{name}"),
                name,
                memory: kib << 10,
                cpus,
                cpu_affinity: affinity,
                weight,
                cap,
                dedicated_cpus: debug_port,
                boot: Boot::Files(Files { method, kernel, ramdisk, modules, bootargs }),
                disks,
                networks,
                console: Console::Uart,
                on_crash: Action::Stop,
                on_reboot: Action::Restart,
                on_poweroff: Action::Stop,
                autostart,
                debug_port,
                watchdog,
                entropy: watchdog != autostart,
            };
            (tree, config)
        },
    )
}

proptest! {
    #[test]
    fn guests_come_out_as_they_were_written((tree, config) in any_guest()) {
        let manifest = parse([tree]);
        prop_assert_eq!(manifest.guests, [Ok(config)]);
        prop_assert_eq!(manifest.warnings, []);
    }

    #[test]
    fn mutated_blobs_never_panic(
        (tree, _) in any_guest(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut blob = manifest([tree, guest("second")]).blob();
        for (at, value) in changes {
            let at = at.index(blob.len());
            blob[at] = value;
        }
        if let Some(cut) = cut {
            blob.truncate(cut.index(blob.len()));
        }
        match Manifest::parse(&blob) {
            Ok(manifest) => for guest in manifest.guests {
                if let Err(error) = guest {
                    prop_assert!(error.to_string().starts_with("manifest: node /"));
                }
            },
            Err(error) => prop_assert!(error.to_string().starts_with("manifest: ")),
        }
    }
}
