#!/usr/bin/env python3
"""Lists in run.ld the functions that a run of strait takes, as they are called now.

It builds strait for 64-bit Arm without stripping it, has a host of the system model run guests that
power off, reset and crash, and reads what QEMU translated (`-d in_asm`). A function belongs to the
run if code of it was translated, at its address and with the very bytes of the binary: other programs
have the addresses, too. Lines for the C library's objects are kept as they are.

    cargo model setup && vmm/run-order.py
"""
import bisect
import fnmatch
import json
import os
import pathlib
import re
import struct
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = 'aarch64-unknown-linux-gnu'
# A pattern that also matches this many bytes of functions that don't run is left out.
MAX_OTHERS = 6000
OBJECT = re.compile(r'    \*\(\.text\*\.(.*)\)$')


def sections(elf):
    """Type, address, offset, size, link of each section (ELF-64 Object File Format, 4)."""
    offset, size, count = *struct.unpack_from('<Q', elf, 40), *struct.unpack_from('<HH', elf, 58)
    for index in range(count):
        _, kind, _, address, at, length, link = struct.unpack_from('<IIQQQQI', elf, offset + index * size)
        yield kind, address, at, length, link


def functions(elf):
    """Address, size and name of each function, by address."""
    all_sections = list(sections(elf))
    for kind, _, offset, size, link in all_sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        names = all_sections[link][2]
        for at in range(offset, offset + size, 24):
            name, info, _, section, value, length = struct.unpack_from('<IBBHQQ', elf, at)
            if info & 15 == 2 and section and length:  # STT_FUNC
                end = elf.index(b'\0', names + name)
                yield value, length, elf[names + name:end].decode()


def code(elf, text, address, size):
    """The bytes at an address of the program."""
    for _, start, offset, length, _ in text:
        if start <= address < start + length:
            at = offset + address - start
            return elf[at:at + size]
    return b''


def ran(elf, log):
    """Addresses of the program's code that was translated."""
    lines = log.split('\n')
    text = [section for section in sections(elf) if section[0] == 1]  # SHT_PROGBITS
    for line, after in zip(lines, lines[1:]):
        address = re.match(r'0x([0-9a-f]{8}):', line)
        if address and after.startswith('OBJD-T:'):
            address, found = int(address.group(1), 16), bytes.fromhex(after.split()[1])
            if len(found) >= 4 and code(elf, text, address, len(found)) == found:
                yield address


def pattern(name):
    """A name with its hashes left out."""
    if name.startswith('_R'):
        return re.sub(r'C?s[0-9A-Za-z]{8,13}_', '*_', name)
    return re.sub(r'17h[0-9a-f]{16}E.*$', '17h*', name)


def build(folder):
    """The release binary, not stripped."""
    cross = f'CARGO_TARGET_{TARGET.upper().replace("-", "_")}'
    environment = {
        'CARGO_TARGET_DIR': str(folder),
        'CARGO_PROFILE_RELEASE_STRIP': 'none',
        f'{cross}_LINKER': 'aarch64-linux-gnu-gcc',
        f'{cross}_RUSTFLAGS': '-C target-feature=+crt-static',
    }
    command = ['cargo', 'build', '--release', '--package', 'vmm', '--target', TARGET]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True)
    return folder / TARGET / 'release' / 'strait'


def trace(folder, strait):
    """What QEMU translated while a host of the model ran guests with it."""
    model = json.loads((ROOT / 'target/model/model.json').read_text())
    log, qemu = folder / 'log', folder / 'qemu'
    log.unlink(missing_ok=True)
    qemu.write_text(f'#!/bin/sh\nexec {model["qemu"]} "$@" -d in_asm -D {log}\n')
    qemu.chmod(0o755)
    (folder / 'model.json').write_text(json.dumps({**model, 'qemu': str(qemu), 'strait': str(strait)}))
    test = 'run::the_exit_status_tells_power_off_reset_and_panic'
    command = ['cargo', 'test', '--package', 'tests', '--features', 'system', '--test', 'system', test]
    environment = {**os.environ, 'STRAIT_MODEL': str(folder / 'model.json')}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return log.read_text()


def main():
    folder = ROOT / 'target' / 'run-order'
    folder.mkdir(parents=True, exist_ok=True)
    strait = build(folder)
    elf, log = strait.read_bytes(), trace(folder, strait)
    script = ROOT / 'vmm' / 'run.ld'
    symbols = sorted(set(functions(elf)))
    addresses = [address for address, _, _ in symbols]
    hit = {bisect.bisect_right(addresses, address) - 1 for address in ran(elf, log)}
    rust = [symbol for symbol in symbols if symbol[2].startswith(('_ZN', '_R'))]
    used = {symbols[index][2] for index in hit if symbols[index][2].startswith(('_ZN', '_R'))}
    patterns = set()
    for name in used:
        general = pattern(name)
        others = sum(size for _, size, other in rust if other not in used and fnmatch.fnmatchcase(other, general))
        if others < MAX_OTHERS:
            patterns.add(general)
    lines = script.read_text().split('\n')
    old = [index for index, line in enumerate(lines) if (match := OBJECT.match(line)) and match[1].startswith(('_ZN', '_R'))]
    rows = [f'    *(.text*.{name})' for name in sorted(patterns)]
    kept = [line for index, line in enumerate(lines) if index not in set(old)]
    before = set(lines[index] for index in old)
    kept[old[0]:old[0]] = rows
    script.write_text('\n'.join(kept))
    bytes_used = sum(size for _, size, name in rust if name in used)
    print(f'{len(used)} functions, {bytes_used} bytes; {len(rows)} patterns, {len(set(rows) - before)} of them new')


main()
