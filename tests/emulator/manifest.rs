//! Manifests of the tests' own, as device-tree source.

/// A guest node. What a test does not say is as in the example.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The node's name.
    pub node: &'static str,
    /// The guest's name, where it is not the node's.
    pub label: Option<&'static str>,
    /// The `memory` property's value in source.
    pub memory: &'static str,
    /// The `kernel` property.
    pub kernel: &'static str,
    /// The `ramdisk` property, if there is one.
    pub ramdisk: Option<&'static str>,
    /// The `bootargs` property.
    pub bootargs: &'static str,
    /// The `boot` property.
    pub boot: &'static str,
    /// Whether the debug port's output is logged.
    pub debug_port: bool,
    /// Further properties and nodes, in source.
    pub properties: &'static str,
}

impl Guest {
    /// The example kernel without an initramfs, in 64 MiB.
    pub const fn new(node: &'static str) -> Self {
        Self {
            node,
            label: None,
            memory: "<0x0 0x10000>",
            kernel: "cbfs:guests/debian/vmlinuz",
            ramdisk: None,
            bootargs: "console=ttyS0",
            boot: "linux",
            debug_port: false,
            properties: "",
        }
    }

    /// A tiny guest, which prints to the debug port.
    pub const fn tiny(kernel: &'static str) -> Self {
        Self { kernel, bootargs: "", boot: "pvh", debug_port: true, ..Self::new("tiny") }
    }
}

/// The example guest, by the name `good`.
pub const fn good() -> Guest {
    Guest { memory: "<0x0 0x40000>", ramdisk: Some("cbfs:guests/debian/initramfs"), ..Guest::new("good") }
}

/// A manifest of these guests, all of them started with the machine.
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
         {}{}{}{}{}{}\t\t\tautostart;\n\t\t\t{}\n\t\t}};\n",
        guest.node,
        guest.memory,
        string("boot", Some(guest.boot)),
        string("label", guest.label),
        string("kernel", Some(guest.kernel)),
        string("ramdisk", guest.ramdisk),
        string("bootargs", Some(guest.bootargs)),
        if guest.debug_port { "\t\t\tdebug-port;\n" } else { "" },
        guest.properties,
    )
}
