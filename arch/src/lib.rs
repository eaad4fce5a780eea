//! KVM and the CPU: the machine's memory map, guest RAM, vCPUs and interrupt controller.
