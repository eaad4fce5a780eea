//! `cargo model link-order`: which functions of strait a run takes, for the linker to put them next to
//! each other.
//!
//! Guests that power off or reset at once are run in the model while QEMU prints every block of
//! instructions that it translates (`-d in_asm`). Blocks whose address and bytes are strait's tell the
//! functions, by the symbols of a binary that isn't stripped.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

use elf::ElfBytes;
use elf::abi::{PT_LOAD, STT_FUNC};
use elf::endian::LittleEndian;

use crate::harness::{Board, payload};
use crate::setup::{Model, TARGET, workspace};

/// What a pattern may catch beside what it is for, in bytes: more costs more than it saves, which is 64 KiB
/// of the program where nothing else is needed.
const MAX_CAUGHT: u64 = 12_000;
/// Where the functions of Rust crates begin in the linker script, and where those of others do.
const RUST_LINE: &str = "    *(.text*._";
const OTHER_LINE: &str = "    *(.text.OUTLINED_FUNCTION_*)";

/// Traces a run and writes `vmm/run.ld` anew, but for the members of the C library in it.
///
/// # Errors
///
/// strait can't be built or run, or a file can't be read or written.
pub fn write(model: &Model) -> Result<PathBuf, Box<dyn Error>> {
    let program = fs::read(build(model)?)?;
    let functions = Functions::of(&program)?;
    let trace = workspace::target_dir().join("link-order.trace");
    let option = trace.to_str().ok_or("the target directory's path isn't UTF-8")?;
    let board = Board::with(&model.artifacts)
        // With one CPU, whose time is its own, every run takes the same functions.
        .icount()
        .option("-d", "in_asm")
        .option("-D", option)
        .file("k/off", payload::power_off())
        .file("k/reset", payload::reset())
        .file("k/wait", payload::wait())
        .file("k/traced", program.as_slice());
    let host = board.boot()?;
    host.sh("chmod +x /k/traced")?;
    // A host of which this is the only guest is hardly one: threads wait for each other less there.
    let _other = host.strait("run --kernel /k/wait")?;
    for (guest, status) in [("off", 0), ("reset", 3)] {
        let ended = host.run(&format!("/k/traced run --kernel /k/{guest} </dev/null"))?;
        if ended.status != status {
            return Err(format!("strait ended with {}: {}", ended.status, ended.errors).into());
        }
    }
    drop(host);
    let taken = functions.taken(&fs::read_to_string(&trace)?);
    fs::remove_file(&trace)?;
    let script = workspace::root().join("vmm/run.ld");
    let text = with_functions(&fs::read_to_string(&script)?, &functions.patterns(&taken))?;
    fs::write(&script, text)?;
    Ok(script)
}

/// Builds a strait that has its symbols, beside the one that is used; returns where it lies.
fn build(model: &Model) -> Result<PathBuf, Box<dyn Error>> {
    let directory = workspace::target_dir().join("link-order");
    let mut cargo = model.toolchain.release_build();
    cargo.args(["--package", "vmm", "--target-dir"]).arg(&directory);
    // The package's own, which comes before the profile's.
    cargo.args(["--config", "profile.release.package.vmm.strip=false"]);
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("building strait with symbols: {status}").into());
    }
    Ok(directory.join(TARGET).join("release/strait"))
}

/// A program's functions, and its bytes.
struct Functions<'a> {
    /// Address, size in bytes, name; in the order of addresses.
    functions: Vec<(u64, u64, &'a str)>,
    /// Where the program's segments lie, and what is in them.
    segments: Vec<(u64, &'a [u8])>,
}

impl<'a> Functions<'a> {
    /// Those of an ELF file.
    fn of(program: &'a [u8]) -> Result<Self, Box<dyn Error>> {
        let file = ElfBytes::<LittleEndian>::minimal_parse(program)?;
        let (symbols, names) = file.symbol_table()?.ok_or("strait was built without symbols")?;
        let mut functions = Vec::new();
        for symbol in symbols.iter().filter(|symbol| symbol.st_symtype() == STT_FUNC) {
            let name = names.get(usize::try_from(symbol.st_name)?)?;
            functions.push((symbol.st_value, symbol.st_size, name));
        }
        functions.sort_unstable();
        let mut segments = Vec::new();
        for header in file.segments().ok_or("strait was built without segments")? {
            if header.p_type == PT_LOAD {
                segments.push((header.p_vaddr, file.segment_data(&header)?));
            }
        }
        Ok(Self { functions, segments })
    }

    /// The names of the functions of Rust crates that a trace has blocks of.
    fn taken(&self, trace: &str) -> BTreeSet<&'a str> {
        blocks(trace)
            .filter(|(address, bytes)| self.holds(*address, bytes))
            .filter_map(|(address, _)| {
                let after = self.functions.partition_point(|function| function.0 <= address);
                let (start, size, name) = self.functions[..after].last()?;
                (address - start < *size && is_rusts(name)).then_some(*name)
            })
            .collect()
    }

    /// Whether these bytes are the program's at this address: other programs in the model have the
    /// same addresses.
    fn holds(&self, address: u64, bytes: &[u8]) -> bool {
        self.segments.iter().any(|(start, data)| {
            let from = address.checked_sub(*start).and_then(|from| usize::try_from(from).ok());
            !bytes.is_empty()
                && from.and_then(|from| data.get(from..)).is_some_and(|at| at.starts_with(bytes))
        })
    }

    /// Patterns for these functions' names without hashes, but those that catch much else.
    fn patterns(&self, taken: &BTreeSet<&str>) -> BTreeSet<String> {
        let patterns: BTreeSet<_> = taken.iter().map(|name| without_hashes(name)).collect();
        let catches_much = |pattern: &String| {
            let others = self.functions.iter().filter(|(_, _, name)| {
                is_rusts(name) && !taken.contains(name) && matches(pattern, name)
            });
            others.map(|(_, size, _)| size).sum::<u64>() > MAX_CAUGHT
        };
        patterns.into_iter().filter(|pattern| !catches_much(pattern)).collect()
    }
}

/// Whether it is the symbol of a function of Rust's, by either mangling (the rustc book, "Symbol
/// Mangling").
fn is_rusts(name: &str) -> bool {
    name.starts_with("_R") || name.starts_with("_ZN")
}

/// The blocks in a trace: address and instructions.
///
/// A block is a line with its address, then lines with its bytes.
fn blocks(trace: &str) -> impl Iterator<Item = (u64, Vec<u8>)> {
    let mut lines = trace.lines().peekable();
    std::iter::from_fn(move || {
        loop {
            let line = lines.next()?;
            let Some((address, _)) = line.strip_prefix("0x").and_then(|rest| rest.split_once(':'))
            else {
                continue;
            };
            let Ok(address) = u64::from_str_radix(address, 16) else { continue };
            let mut bytes = Vec::new();
            while let Some(line) = lines.next_if(|line| line.starts_with("OBJD-T: ")) {
                bytes.extend(hex(line.trim_start_matches("OBJD-T: ")));
            }
            return Some((address, bytes));
        }
    })
}

fn hex(digits: &str) -> impl Iterator<Item = u8> {
    let pairs = digits.as_bytes().chunks_exact(2);
    pairs.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
}

/// A mangled name with `*` for what changes with the compiler: each crate's hash, which is `Cs` or `s`,
/// eight to thirteen digits of base 62, `_`; the hash `17h…E` that ends a name of the legacy mangling;
/// and the number that tells copies of a function apart.
fn without_hashes(name: &str) -> String {
    if let Some((path, _)) = name.strip_prefix("_ZN").and_then(|_| name.rsplit_once("17h")) {
        return format!("{path}17h*");
    }
    let mut pattern = String::new();
    let (mut rest, copy) = name.split_once('.').map_or((name, ""), |(name, _)| (name, ".*"));
    while let Some(at) = rest.find('s') {
        let after = &rest[at + 1..];
        let digits = after.bytes().take_while(u8::is_ascii_alphanumeric).count();
        if (8..=13).contains(&digits) && after[digits..].starts_with('_') {
            let before = &rest[..at];
            pattern.push_str(before.strip_suffix('C').unwrap_or(before));
            pattern.push_str("*_");
            rest = &after[digits + 1..];
        } else {
            pattern.push_str(&rest[..=at]);
            rest = after;
        }
    }
    pattern + rest + copy
}

/// Whether a name is as a pattern with `*` says.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, others)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(first) else { return false };
    rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| matches(others, &rest[at..]))
}

/// The linker script with these functions instead of those that it has.
fn with_functions(script: &str, patterns: &BTreeSet<String>) -> Result<String, String> {
    let is_other = |line: &&str| !line.starts_with(RUST_LINE);
    let (before, after) = script
        .split_once(OTHER_LINE)
        .ok_or_else(|| format!("vmm/run.ld has no line `{}`", OTHER_LINE.trim()))?;
    let mut text: String =
        before.lines().filter(is_other).map(|line| format!("{line}\n")).collect();
    text.extend(patterns.iter().map(|pattern| format!("    *(.text*.{pattern})\n")));
    Ok(text + OTHER_LINE + after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_crates_are_left_out_of_names() {
        for (name, pattern) in [
            ("_RNvMs_NtCsKpR3eqnwPw_4core3fmt", "_RNvMs_Nt*_4core3fmt"),
            ("_RNvNtCs1A2B3C4D5E6_5alloc4syncC6strait", "_RNvNt*_5alloc4syncC6strait"),
            ("_RNvs_4main", "_RNvs_4main"),
            ("_RNvCs1A2B3C4D5E6_4main.1076", "_RNv*_4main.*"),
            ("_ZN4arch2vm4Vm3new17h0123456789abcdefE", "_ZN4arch2vm4Vm3new17h*"),
        ] {
            assert_eq!(without_hashes(name), pattern);
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        assert!(!matches("_RNv*_4main", "_RNvCs1A2B3C4D5E6_4mainx"));
    }

    #[test]
    fn blocks_of_other_programs_at_the_same_addresses_are_told_apart() {
        let code = [1u8, 2, 3, 4, 5, 6, 7, 8];
        let functions = Functions {
            functions: vec![(0x400000, 4, "_RNvC1a1f"), (0x400004, 4, "_RNvC1a1g")],
            segments: vec![(0x400000, &code)],
        };
        let trace = "IN: \n0x00400000:  \nOBJD-T: 01020304\n\n0x00400004:  \nOBJD-T: 05060709\n\
                     0xffff800080000000:  \nOBJD-T: 01020304\n";
        assert_eq!(functions.taken(trace), BTreeSet::from(["_RNvC1a1f"]));
    }

    #[test]
    fn only_functions_of_rust_crates_are_replaced() {
        let script = "/* c */\n{\n    *(.text*._RNvC1a1f)\n    *(.text.OUTLINED_FUNCTION_*)\n    *libc.a:x\n}\n";
        let patterns = BTreeSet::from(["_RNvC1b1g".to_owned()]);
        let expected = script.replace("_RNvC1a1f", "_RNvC1b1g");
        assert_eq!(with_functions(script, &patterns).as_deref(), Ok(expected.as_str()));
    }
}
