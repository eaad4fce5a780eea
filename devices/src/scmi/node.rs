//! The nodes by which a guest's kernel finds the platform.

use boot::fdt::Node;

use super::message::Protocol;
use super::{Resources, SIZE};

/// The labels of what devices' nodes refer to: `clocks`, `resets` and `power-domains`, by number.
pub const CLOCKS: &str = "scmi_clocks";
/// See [`CLOCKS`].
pub const RESETS: &str = "scmi_resets";
/// See [`CLOCKS`].
pub const POWER_DOMAINS: &str = "scmi_power_domains";

const SHARED_MEMORY: &str = "scmi_shared_memory";

/// The shared memory at `base` (GPA), in what the kernel takes for an SRAM (bindings/sram/sram.yaml), and
/// the firmware that is called by `function`, the identifier of the SMC Calling Convention
/// (Documentation/devicetree/bindings/firmware/arm,scmi.yaml).
pub fn nodes(base: u64, function: u32, resources: &Resources) -> [Node; 2] {
    let size = u32::try_from(SIZE).unwrap_or(u32::MAX);
    let sram = Node::at("sram", base)
        .string("compatible", "mmio-sram")
        .reg([(base, SIZE)])
        .u32("#address-cells", 1)
        .u32("#size-cells", 1)
        .cells("ranges", [0].into_iter().chain(halves(base)).chain([size]))
        .child(
            Node::at("scmi-sram-section", 0)
                .label(SHARED_MEMORY)
                .string("compatible", "arm,scmi-shmem")
                .cells("reg", [0, size]),
        );
    let protocols = resources.protocols().map(|protocol| {
        let id = u64::from(protocol.id());
        let node = Node::at("protocol", id).cells("reg", [u32::from(protocol.id())]);
        match protocol {
            Protocol::Power => node.label(POWER_DOMAINS).u32("#power-domain-cells", 1),
            Protocol::Reset => node.label(RESETS).u32("#reset-cells", 1),
            Protocol::Clock | Protocol::Base => node.label(CLOCKS).u32("#clock-cells", 1),
        }
    });
    let scmi = Node::new("scmi")
        .string("compatible", "arm,scmi-smc")
        .u32("arm,smc-id", function)
        .refs("shmem", [SHARED_MEMORY])
        .u32("#address-cells", 1)
        .u32("#size-cells", 0)
        .with_children(protocols);
    [sram, Node::new("firmware").child(scmi)]
}

/// An address as two cells, the high one first.
fn halves(address: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    [(address >> 32) as u32, address as u32]
}
