//! A kernel's symbols as debuggers read them.

/// The size of an ELF header, of a section's header, and of a symbol, in bytes (ELF-64 object file format, 2.4).
const HEADER: usize = 64;
const SYMBOL: usize = 24;

/// The names of the sections, each behind the zero of the one before it.
const NAMES: &[u8] = b"\0.text\0.symtab\0.strtab\0";

/// An ELF file with the functions that `/proc/kallsyms` lists, and nothing else of their kernel.
pub fn symbol_file(kallsyms: &str) -> Vec<u8> {
    let functions: Vec<(u64, &str)> = kallsyms.lines().filter_map(function).collect();
    let first = functions.iter().map(|(address, _)| *address).min().unwrap_or_default();
    let last = functions.iter().map(|(address, _)| *address).max().unwrap_or_default();
    let mut names = NAMES.to_vec();
    let mut symbols = vec![0; SYMBOL];
    for (address, name) in &functions {
        symbols.extend(u32::try_from(names.len()).unwrap_or_default().to_le_bytes());
        // A global function of section 1, of unknown size.
        symbols.extend([0x12, 0, 1, 0]);
        symbols.extend([*address, 0].map(u64::to_le_bytes).concat());
        names.extend(name.bytes().chain([0]));
    }
    let at_symbols = HEADER as u64;
    let at_names = at_symbols + symbols.len() as u64;
    let at_sections = (at_names + names.len() as u64).next_multiple_of(8);
    // ELF-64, little-endian; an executable file for EM_AARCH64; four sections, the last with their names.
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 183].map(u16::to_le_bytes).concat());
    file.extend(1_u32.to_le_bytes());
    file.extend([0, 0, at_sections].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    file.extend([64, 56, 0, 64, 4, 3].map(u16::to_le_bytes).concat());
    file.extend(&symbols);
    file.extend(&names);
    file.resize(usize::try_from(at_sections).unwrap_or_default(), 0);
    let text = last - first + 4;
    // Name and type; flags, address, place and size; link and info; alignment and the size of an entry.
    for (name, [flags, address, offset, size], [link, info], [align, entry]) in [
        ([0, 0], [0, 0, 0, 0], [0_u32, 0_u32], [0, 0]),
        // SHT_NOBITS, allocated, of code.
        ([1, 8], [6, first, at_symbols, text], [0, 0], [4, 0]),
        ([7, 2], [0, 0, at_symbols, symbols.len() as u64], [3, 1], [8, SYMBOL as u64]),
        ([15, 3], [0, 0, at_names, names.len() as u64], [0, 0], [1, 0]),
    ] {
        file.extend(name.map(u32::to_le_bytes).concat());
        file.extend([flags, address, offset, size].map(u64::to_le_bytes).concat());
        file.extend([link, info].map(u32::to_le_bytes).concat());
        file.extend([align, entry].map(u64::to_le_bytes).concat());
    }
    file
}

/// The address and the name of a function of the kernel's own, if the line is of one.
fn function(line: &str) -> Option<(u64, &str)> {
    let mut words = line.split_whitespace();
    let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
    let is_function = matches!(kind, "t" | "T" | "W") && words.next().is_none();
    let address = u64::from_str_radix(address, 16).ok().filter(|_| is_function)?;
    Some((address, name))
}

#[cfg(test)]
mod tests {
    use elf::ElfBytes;
    use elf::endian::LittleEndian;

    use super::*;

    #[test]
    fn functions_are_found_by_a_reader_of_elf() {
        let kallsyms = "ffff800080000000 T _text\nffff800080012340 t probe\n\
                        ffff800081000000 d data\nffff80007a000000 t late [module]\n";
        let file = symbol_file(kallsyms);
        let file = ElfBytes::<LittleEndian>::minimal_parse(&file).unwrap();
        let (symbols, names) = file.symbol_table().unwrap().unwrap();
        let found: Vec<_> = symbols
            .iter()
            .skip(1)
            .map(|symbol| (symbol.st_value, names.get(symbol.st_name as usize).unwrap()))
            .collect();
        assert_eq!(found, [(0xffff_8000_8000_0000, "_text"), (0xffff_8000_8001_2340, "probe")]);
        let text = file.section_header_by_name(".text").unwrap().unwrap();
        assert_eq!((text.sh_addr, text.sh_size), (0xffff_8000_8000_0000, 0x1_2344));
    }
}
