//! Manifests as device-tree source, for tests and figures.

/// A guest node. What nobody says is as in the example.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The guest's name, where it is not the node's.
    pub label: Option<&'a str>,
    /// The `memory` property's value in source.
    pub memory: &'a str,
    /// The `kernel` property.
    pub kernel: &'a str,
    /// The `ramdisk` property, if there is one.
    pub ramdisk: Option<&'a str>,
    /// The `bootargs` property.
    pub bootargs: &'a str,
    /// The `boot` property.
    pub boot: &'a str,
    /// Whether the debug port's output is logged.
    pub debug_port: bool,
    /// Whether it starts with the machine.
    pub autostart: bool,
    /// Further properties and nodes, in source.
    pub properties: &'a str,
}

impl<'a> Guest<'a> {
    /// The example kernel without an initramfs, in 64 MiB.
    pub const fn new(node: &'a str) -> Self {
        Self {
            node,
            label: None,
            memory: "<0x0 0x10000>",
            kernel: "cbfs:guests/debian/vmlinuz",
            ramdisk: None,
            bootargs: "console=ttyS0",
            boot: "linux",
            debug_port: false,
            autostart: true,
            properties: "",
        }
    }

    /// A tiny guest in 16 MiB, which prints to the debug port.
    pub const fn tiny(node: &'a str, kernel: &'a str) -> Self {
        Self { kernel, memory: "<0x4000>", bootargs: "", boot: "pvh", debug_port: true, ..Self::new(node) }
    }
}

/// The example guest, by the name `good`.
pub const fn good() -> Guest<'static> {
    Guest { memory: "<0x0 0x40000>", ramdisk: Some("cbfs:guests/debian/initramfs"), ..Guest::new("good") }
}

/// A manifest of these guests.
pub fn manifest(guests: &[Guest]) -> String {
    let nodes: String = guests.iter().map(node).collect();
    format!("/dts-v1/;\n/ {{\n\tcompatible = \"peerboot,manifest-v1\";\n\tchosen {{\n{nodes}\t}};\n}};\n")
}

fn node(guest: &Guest) -> String {
    let string = |name: &str, value: Option<&str>| {
        value.map_or_else(String::new, |value| format!("\t\t\t{name} = \"{value}\";\n"))
    };
    format!(
        "\t\t{} {{\n\t\t\tcompatible = \"peerboot,guest\";\n\t\t\tmemory = {};\n\
         {}{}{}{}{}{}{}\t\t\t{}\n\t\t}};\n",
        guest.node,
        guest.memory,
        string("boot", Some(guest.boot)),
        string("label", guest.label),
        string("kernel", Some(guest.kernel)),
        string("ramdisk", guest.ramdisk),
        string("bootargs", Some(guest.bootargs)),
        if guest.debug_port { "\t\t\tdebug-port;\n" } else { "" },
        if guest.autostart { "\t\t\tautostart;\n" } else { "" },
        guest.properties,
    )
}
