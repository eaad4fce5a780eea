#!/usr/bin/env python3
"""Makes of a peripheral in a CMSIS-SVD file a table of registers for `strait run --trace NAME,table=FILE`.

Usage: svd2table.py FILE.svd PERIPHERAL >table.toml
"""

import re
import sys
import xml.etree.ElementTree as ElementTree


def number(text, default=None):
    """A number as SVD has it (scaledNonNegativeInteger)."""
    if text is None:
        return default
    text = text.strip().lower().lstrip("+")
    if text.startswith("#"):
        return int(text[1:].replace("x", "0"), 2)
    scale = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}.get(text[-1], 1)
    digits = text[:-1] if scale > 1 else text
    return int(digits, 16 if digits.startswith("0x") else 10) * scale


def fields(register):
    for field in register.iterfind("fields/field"):
        low, width = number(field.findtext("bitOffset")), number(field.findtext("bitWidth"), 1)
        if field.findtext("lsb") is not None:
            low = number(field.findtext("lsb"))
            width = number(field.findtext("msb")) - low + 1
        elif field.findtext("bitRange") is not None:
            high, low = map(int, re.findall(r"\d+", field.findtext("bitRange")))
            width = high - low + 1
        for index in range(number(field.findtext("dim"), 1)):
            at = low + index * number(field.findtext("dimIncrement"), 0)
            yield name(field, str(index)), at, at + width - 1


def name(element, number=""):
    text = element.findtext("name").replace("[%s]", "%s").replace("%s", number)
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)


def registers(element, prefix="", offset=0, bits=32):
    """The registers below a peripheral or a cluster, each with its place."""
    bits = number(element.findtext("size"), bits)
    for register in element.iterfind("register"):
        at = offset + number(register.findtext("addressOffset"))
        yield register, prefix, at, number(register.findtext("size"), bits)
    for cluster in element.iterfind("cluster"):
        at = offset + number(cluster.findtext("addressOffset"))
        for index in range(number(cluster.findtext("dim"), 1)):
            here = at + index * number(cluster.findtext("dimIncrement"), 0)
            own = prefix + name(cluster, str(index)) + "_"
            yield from registers(cluster, own, here, bits)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    device = ElementTree.parse(sys.argv[1]).getroot()
    all_of_them = {p.findtext("name"): p for p in device.iterfind("peripherals/peripheral")}
    if sys.argv[2] not in all_of_them:
        sys.exit("its peripherals are: " + " ".join(sorted(all_of_them)))
    peripheral = all_of_them[sys.argv[2]]
    if peripheral.find("registers") is None and "derivedFrom" in peripheral.attrib:
        peripheral = all_of_them[peripheral.attrib["derivedFrom"]]
    bits = number(peripheral.findtext("size"), number(device.findtext("size"), 32))
    done = set()
    for register, prefix, offset, bits in registers(peripheral.find("registers"), bits=bits):
        own = prefix + name(register)
        if own in done:
            continue
        done.add(own)
        print(f"[{own}]\noffset = {offset:#x}")
        if bits != 32:
            print(f"bits = {bits}")
        if register.findtext("dim") is not None:
            stride = number(register.findtext("dimIncrement"))
            print(f"count = {number(register.findtext('dim'))}\nstride = {stride:#x}")
        pairs = [f'{field} = "{high}:{low}"' for field, low, high in fields(register)]
        if pairs:
            print(f"fields = {{ {', '.join(pairs)} }}")
        print()


if __name__ == "__main__":
    main()
