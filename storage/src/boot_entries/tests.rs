//! Disks with partitions that sfdisk makes, file systems that hold what boot loaders are told, and what is found.

use super::*;
use crate::testing::{RamDisk, Scratch, mke2fs, mkfs_vfat, pattern, wait};
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

const MIB: usize = 1 << 20;
/// What a separate /boot is on Debian, and a root file system.
const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
const ESP: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
const XBOOTLDR: &str = "BC13C2FF-59E6-4262-A352-B275FD6F7172";
const ROOT_ID: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// A disk whose partitions of these types hold these images.
fn disk(scratch: &Scratch, partitions: &[(&str, Vec<u8>)]) -> BootDisk {
    let mut script = "label: gpt\n".to_owned();
    let mut image = vec![0; MIB];
    for (number, (kind, content)) in (1..).zip(partitions) {
        let (start, len) = (image.len() / 512, content.len() / 512);
        script += &format!(
            "start={start}, size={len}, type={kind}, uuid=00000000-0000-4000-8000-00000000000{number}\n"
        );
        image.extend(content);
    }
    image.resize(image.len() + MIB, 0);
    // The table is made on an empty disk, or sfdisk would remark on what it finds.
    let file = scratch.path("disk");
    fs::File::create(&file).unwrap().set_len(image.len() as u64).unwrap();
    let mut child = Command::new("/sbin/sfdisk").arg("-q").arg(&file).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let table = fs::read(file).unwrap();
    for end in [0..MIB, image.len() - MIB..image.len()] {
        image[end.clone()].copy_from_slice(&table[end]);
    }
    wait(BootDisk::open(Arc::new(RamDisk::new(512, image)))).unwrap()
}

/// A directory with these files.
fn tree(scratch: &Scratch, name: &str, files: &[(&str, &[u8])]) -> std::path::PathBuf {
    let root = scratch.path(name);
    fs::create_dir_all(&root).unwrap();
    for (path, bytes) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    root
}

fn fat(scratch: &Scratch, files: &[(&str, &[u8])]) -> Vec<u8> {
    let root = tree(scratch, "fat root", files);
    let image = mkfs_vfat(scratch, &root, 8, &["-F", "12", "-s", "8"]);
    fs::remove_dir_all(root).unwrap();
    image
}

fn ext4(scratch: &Scratch, files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
    let root = tree(scratch, "ext4 root", files);
    for (link, target) in links {
        std::os::unix::fs::symlink(target, root.join(link)).unwrap();
    }
    let image = mke2fs(scratch, &root, 4, &["-t", "ext4"]);
    fs::remove_dir_all(root).unwrap();
    image
}

fn menu(disk: &BootDisk) -> Menu {
    wait(disk.menu()).unwrap_or_else(|error| panic!("{error}"))
}

fn titles(menu: &Menu) -> Vec<&str> {
    menu.entries.iter().map(|entry| entry.title.as_str()).collect()
}

fn load(disk: &BootDisk, entry: &Entry) -> Loaded {
    wait(disk.load(entry, 1 << 20)).unwrap_or_else(|error| panic!("{error}"))
}

/// A unified kernel image with these sections, laid out as a linker does.
fn unified(sections: &[(&str, &[u8])]) -> Vec<u8> {
    const HEADER: usize = 0x80;
    let aligned = |len: usize| len.next_multiple_of(512);
    let mut image = vec![0; aligned(HEADER + 24 + 240 + 40 * sections.len())];
    image[..2].copy_from_slice(b"MZ");
    image[0x3c] = HEADER as u8;
    image[HEADER..HEADER + 4].copy_from_slice(b"PE\0\0");
    image[HEADER + 4..HEADER + 6].copy_from_slice(&[0x64, 0x86]);
    image[HEADER + 6] = sections.len() as u8;
    image[HEADER + 20] = 240;
    for (number, (name, bytes)) in sections.iter().enumerate() {
        let own = HEADER + 24 + 240 + 40 * number;
        image[own..own + name.len()].copy_from_slice(name.as_bytes());
        let fields = [bytes.len(), (number + 1) << 20, aligned(bytes.len()), image.len()];
        for (number, field) in fields.into_iter().enumerate() {
            image[own + 8 + 4 * number..][..4].copy_from_slice(&(field as u32).to_le_bytes());
        }
        image.extend(*bytes);
        image.resize(aligned(image.len()), 0xcc);
    }
    image
}

const RELEASE: &[u8] =
    b"# comment\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID='12'\n";

#[test]
fn unified_kernels_and_loader_entries_are_one_menu() {
    let scratch = Scratch::new("loader");
    let kernel = pattern(5000, 1);
    let image = unified(&[
        (".osrel", RELEASE),
        (".cmdline", b"root=/dev/vda2 quiet \n\0"),
        (".ucode", &pattern(511, 9)),
        (".linux", &kernel),
        (".initrd", &pattern(1024, 2)),
        (".profile", b"ID=other\n"),
        (".uname", b"6.1.0-18-amd64"),
    ]);
    let new = b"title Newer\nversion 6.10\nsort-key debian\nlinux /b/linux\ninitrd /b/one\ninitrd /b/two\noptions root=PARTUUID=1\noptions   quiet\n";
    let old = b"# old\ntitle\tOlder\nversion 6.9\nsort-key debian\nlinux b/linux\noptions old\n";
    let bad = b"title Bad\nversion 7\nsort-key aaa\nlinux /b/linux\n";
    let plain = b"title Without a key\nlinux /b/linux\n";
    let esp = fat(
        &scratch,
        &[
            ("EFI/Linux/Debian-6.1.efi", &image),
            ("EFI/Linux/empty.efi", b""),
            ("EFI/Linux/shell.efi", &unified(&[(".shell", b"hello")])),
            ("loader/loader.conf", b"timeout 3\ndefault zzz*\n"),
        ],
    );
    let extended = ext4(
        &scratch,
        &[
            ("loader/entries/new.conf", new),
            ("loader/entries/old.conf", old),
            ("loader/entries/bad+0-3.conf", bad),
            ("loader/entries/plain.conf", plain),
            ("loader/entries/arm.conf", b"title Arm\narchitecture aa64\nlinux /b/linux\n"),
            ("loader/entries/broken.conf", b"title Broken\nlinux /missing\n"),
            ("loader/entries/efi.conf", b"title Shell\nefi /shell.efi\n"),
            ("b/linux", &kernel),
            ("b/one", b"first"),
            ("b/two", b"second"),
        ],
        &[],
    );
    let disk = disk(&scratch, &[(ESP, esp), (XBOOTLDR, extended)]);
    let menu = menu(&disk);
    let unified = "Debian GNU/Linux 12 (bookworm)";
    assert_eq!(titles(&menu), [unified, "Newer", "Older", "Without a key", "Bad"]);
    assert_eq!((menu.default, menu.entries[4].id.as_str()), (0, "bad.conf"), "the pattern fits nothing");
    for remark in ["/missing", "names no kernel", "another architecture", "no unified kernel image"] {
        assert!(menu.remarks.iter().any(|said| said.contains(remark)), "{remark}: {:?}", menu.remarks);
    }
    let loaded = load(&disk, &menu.entries[0]);
    assert!(loaded.kernel == kernel, "{} bytes", loaded.kernel.len());
    assert_eq!(loaded.arguments, "root=/dev/vda2 quiet");
    assert!(loaded.ramdisk == [pattern(511, 9), vec![0], pattern(1024, 2)].concat());
    let loaded = load(&disk, &menu.entries[1]);
    assert_eq!(
        (loaded.ramdisk.as_slice(), loaded.arguments.as_str()),
        (&b"first\0\0\0second"[..], "root=PARTUUID=1 quiet")
    );
    assert!(matches!(
        wait(disk.load(&menu.entries[1], 5010)),
        Err(BootError::File { partition: 2, error: FileError::TooLarge { .. }, .. })
    ));
}

#[test]
fn loader_conf_says_what_boots() {
    let scratch = Scratch::new("default");
    let entry = |name: &str| format!("title {name}\nlinux /linux\n").into_bytes();
    let [one, two, three] = ["one", "two", "three"].map(entry);
    for (wanted, expected) in [("two", "two"), ("thr*.conf", "three"), ("o?e", "one"), ("@saved", "two")] {
        let conf = format!("#default one\ndefault {wanted}\n");
        let esp = fat(
            &scratch,
            &[
                ("loader/entries/one.conf", &one),
                ("loader/entries/two.conf", &two),
                ("loader/entries/three.conf", &three),
                ("loader/loader.conf", conf.as_bytes()),
                ("linux", b"kernel"),
            ],
        );
        let menu = menu(&disk(&scratch, &[(ESP, esp)]));
        assert_eq!(menu.entries[menu.default].title, expected, "{wanted}: {:?}", titles(&menu));
    }
}

#[test]
fn extlinux_is_read_with_what_it_includes() {
    let scratch = Scratch::new("extlinux");
    let conf = b"UI menu.c32\nPROMPT 0\nTIMEOUT 50\nAPPEND root=LABEL=all ro\nDEFAULT l1\n\nlabel l0\n\tmenu label First ^one\n\tlinux ../vmlinuz\n\tinitrd /initrd, /more\nINCLUDE more.cfg\nlabel memtest\n  kernel memdisk.bin\n";
    let more = b"LABEL l1\n  MENU DEFAULT\n  KERNEL /boot/vmlinuz\n  APPEND initrd=/initrd console=ttyS0  quiet\n  FDTDIR /dtbs\nLABEL gone\n  LINUX /nowhere\n  APPEND -\n";
    let root = ext4(
        &scratch,
        &[
            ("boot/extlinux/extlinux.conf", conf),
            ("boot/extlinux/more.cfg", more),
            ("boot/vmlinuz", b"kernel"),
            ("initrd", b"rd"),
            ("more", b"more"),
        ],
        &[],
    );
    let disk = disk(&scratch, &[(LINUX, root)]);
    let menu = menu(&disk);
    assert_eq!((titles(&menu), menu.default), (vec!["First one", "l1"], 1));
    assert_eq!(menu.entries[0].arguments, "root=LABEL=all ro");
    assert_eq!(load(&disk, &menu.entries[0]).ramdisk, b"rd\0\0more");
    let default = load(&disk, &menu.entries[1]);
    assert_eq!((default.kernel, default.ramdisk), (b"kernel".to_vec(), b"rd".to_vec()));
    assert_eq!(default.arguments, "console=ttyS0 quiet");
    assert!(menu.remarks.iter().any(|said| said.contains("/nowhere")), "{:?}", menu.remarks);
}

/// What Debian's grub-mkconfig makes of a system with two kernels, in the same statements.
const GRUB: &str = include_str!("grub/debian.cfg");

fn environment(lines: &str) -> Vec<u8> {
    let mut block = format!("# GRUB Environment Block\n# WARNING: not by hand\n{lines}").into_bytes();
    block.resize(1024, b'#');
    block
}

#[test]
fn debians_grub_is_understood() {
    let scratch = Scratch::new("grub");
    let files = |environment: &'static [u8]| {
        [
            ("boot/grub/grub.cfg", GRUB.as_bytes()),
            ("boot/grub/grubenv", environment),
            ("boot/vmlinuz-6.1.0-18-amd64", b"new"),
            ("boot/initrd.img-6.1.0-18-amd64", b"new initrd"),
            ("boot/vmlinuz-6.1.0-9-amd64", b"old"),
            ("boot/initrd.img-6.1.0-9-amd64", b"old initrd"),
        ]
    };
    let other = fat(&scratch, &[("nothing", b"here")]);
    for (saved, expected) in [
        ("", 0),
        (
            "saved_entry=gnulinux-advanced-01234567-89ab-cdef-0123-456789abcdef>gnulinux-6.1.0-9-amd64-advanced-01234567-89ab-cdef-0123-456789abcdef\n",
            3,
        ),
        ("saved_entry=Advanced options for Debian GNU/Linux\n", 1),
        ("saved_entry=1>3\n", 4),
        ("saved_entry=7\nnext_entry=1>2\n", 0),
    ] {
        let block = environment(saved).leak();
        let root = ext4(&scratch, &files(block), &[]);
        let disk = disk(&scratch, &[(ESP, other.clone()), (LINUX, root)]);
        let menu = menu(&disk);
        let new = "Debian GNU/Linux, with Linux 6.1.0-18-amd64";
        let old = "Debian GNU/Linux, with Linux 6.1.0-9-amd64";
        let recovery = [new, old].map(|title| format!("{title} (recovery mode)"));
        assert_eq!(titles(&menu), ["Debian GNU/Linux", new, &recovery[0], old, &recovery[1]]);
        assert_eq!(menu.default, expected, "{saved}");
        assert_eq!(menu.entries[0].id, format!("gnulinux-simple-{ROOT_ID}"));
        let loaded = load(&disk, &menu.entries[0]);
        assert_eq!((loaded.kernel, loaded.ramdisk), (b"new".to_vec(), b"new initrd".to_vec()));
        assert_eq!(loaded.arguments, format!("root=UUID={ROOT_ID} ro quiet"));
        assert_eq!(menu.entries[4].arguments, format!("root=UUID={ROOT_ID} ro single"));
        assert_eq!(menu.entries[0].partition, 2);
    }
}

#[test]
fn grub_finds_a_separate_boot_partition() {
    let scratch = Scratch::new("grub-boot");
    // There the paths are the file system's own.
    let text = GRUB
        .replace("/boot/vmlinuz", "/vmlinuz")
        .replace("/boot/initrd", "/initrd")
        .replace("hd0,gpt2", "hd0,gpt1");
    let boot = ext4(
        &scratch,
        &[
            ("grub/grub.cfg", text.as_bytes()),
            ("vmlinuz-6.1.0-18-amd64", b"new"),
            ("initrd.img-6.1.0-18-amd64", b"new initrd"),
        ],
        &[],
    );
    let root = fat(&scratch, &[("vmlinuz", b"other"), ("initrd.img", b"other")]);
    let disk = disk(&scratch, &[(LINUX, boot), (LINUX, root)]);
    let menu = menu(&disk);
    // The older kernel is gone.
    assert_eq!((menu.entries.len(), menu.default, menu.remarks.len()), (3, 0, 2));
    assert_eq!(load(&disk, &menu.entries[0]).kernel, b"new");
}

#[test]
fn what_grub_is_told_by_hand_is_understood() {
    let scratch = Scratch::new("grub-hand");
    let text = r#"
        default=two ; timeout=5
        for x in a b; do if [ $x = a ]; then echo $x; fi; done
        function f { if true; then linux /never; fi }
        set dir="/kernels" ; set "args=a b"
        if [ "$dir" = /kernels -a ! -z "$args" ] && true
        then set yes=1; elif false; then set yes=2; else set yes=3; fi
        search --label --set part "das label"
        search -l --set=part 'DAS LABEL'
        menuentry "one \"quoted\" \$x" { linux ($part)$dir/linux "$args" ${yes} c\
d $nothing "" ; f; }
        menuentry 'two' --hotkey=t { set root=(hd0,gpt1)
            set root='hd0,1'; linux16 /kernels/linux one; linux /kernels/linux two # remark
            initrd /kernels/a \
                   (hd1,msdos1)/kernels/b; }
        menuentry firmware { fwsetup; }
    "#;
    let boot = fat(&scratch, &[("kernels/linux", b"kernel"), ("kernels/a", b"a"), ("kernels/b", b"b")]);
    let config = ext4(&scratch, &[("grub/grub.cfg", text.as_bytes())], &[]);
    let disk = disk(&scratch, &[(LINUX, boot), (LINUX, config)]);
    let menu = menu(&disk);
    assert_eq!((titles(&menu), menu.default), (vec!["one \"quoted\" $x", "two"], 1), "{:?}", menu.remarks);
    assert_eq!(menu.entries[0].arguments, "a b 1 cd ");
    let two = load(&disk, &menu.entries[1]);
    assert_eq!((two.arguments.as_str(), two.ramdisk.as_slice()), ("two", &b"a\0\0\0b"[..]));
    for wrong in ["if true; then", "menuentry a {", "}", "fi", &"submenu a { ".repeat(50)] {
        assert!(grub::is_wrong(wrong), "{wrong}");
    }
}

#[test]
fn kernels_boot_without_a_boot_loader() {
    let scratch = Scratch::new("plain");
    let root = ext4(
        &scratch,
        &[
            ("etc/fstab", b""),
            ("boot/vmlinuz-6.1.0-18-amd64", b"new"),
            ("boot/vmlinuz-6.1.0-9-amd64", b"old"),
            ("boot/initrd.img-6.1.0-18-amd64", b"rd"),
        ],
        &[("vmlinuz", "boot/vmlinuz-6.1.0-18-amd64"), ("initrd.img", "/boot/initrd.img-6.1.0-18-amd64")],
    );
    let disk1 = disk(&scratch, &[(ESP, vec![0; MIB]), (LINUX, root)]);
    let found = menu(&disk1);
    assert_eq!(titles(&found), ["/vmlinuz", "/boot/vmlinuz-6.1.0-18-amd64", "/boot/vmlinuz-6.1.0-9-amd64"]);
    let loaded = load(&disk1, &found.entries[found.default]);
    assert_eq!((loaded.kernel, loaded.ramdisk), (b"new".to_vec(), b"rd".to_vec()));
    assert_eq!(loaded.arguments, "root=PARTUUID=00000000-0000-4000-8000-000000000002 ro");
    assert!(found.entries[2].ramdisks.is_empty() && found.entries[0].source == Source::Plain);
    // With a /boot of its own, the root is the one that looks like it.
    let boot = ext4(&scratch, &[("vmlinuz-6.1.0-9-amd64", b"old"), ("vmlinuz-6.1.0-18-amd64", b"new")], &[]);
    let root = ext4(&scratch, &[("etc/os-release", RELEASE)], &[]);
    let disk2 = disk(&scratch, &[(LINUX, boot), (LINUX, root)]);
    let entry = &menu(&disk2).entries[0];
    assert_eq!(entry.path, "/vmlinuz-6.1.0-18-amd64");
    assert_eq!(entry.arguments, "root=PARTUUID=00000000-0000-4000-8000-000000000002 ro");
}

#[test]
fn a_file_system_may_have_the_disk_to_itself() {
    let scratch = Scratch::new("whole");
    for image in [fat(&scratch, &[("vmlinuz", b"kernel")]), ext4(&scratch, &[("vmlinuz", b"kernel")], &[])] {
        let disk = wait(BootDisk::open(Arc::new(RamDisk::new(512, image)))).unwrap();
        let menu = menu(&disk);
        assert_eq!((menu.entries[0].partition, menu.entries[0].arguments.as_str()), (0, "ro"));
        assert_eq!(load(&disk, &menu.entries[0]).kernel, b"kernel");
    }
}

#[test]
fn where_nothing_boots_is_said_what_was_there() {
    let scratch = Scratch::new("nothing");
    let esp = fat(&scratch, &[("EFI/Linux/a.efi", b"no image")]);
    let disk = disk(&scratch, &[(ESP, esp), (LINUX, vec![7; MIB])]);
    let error = wait(disk.menu()).unwrap_err().to_string();
    for words in [
        "grub/grub.cfg",
        "partition 1: vfat file system",
        "partition 2: there is no file system of a known kind",
        "partition 1: /EFI/Linux/a.efi: no unified kernel image for x86-64",
    ] {
        assert!(error.contains(words), "{error}");
    }
    let empty = wait(BootDisk::open(Arc::new(RamDisk::new(512, vec![0; MIB])))).err();
    assert_eq!(empty, Some(BootError::Table(TableError::NoTable)));
}
