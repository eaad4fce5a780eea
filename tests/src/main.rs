//! `cargo model`: the system model as a tool.

fn main() {}
