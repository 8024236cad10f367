#!/usr/bin/env python3
"""Looks into the file of a saved guest. Written from docs/save-format.md alone.

usage: read_save.py [--verify] [--json] [--extract BLOCK] FILE

  --verify         also check every sum of RAM (slow without the module xxhash)
  --json           one JSON document instead of lines
  --extract BLOCK  write the RAM block to standard output, holes as zeros

Exit status: 0 the file is right, 1 it is not (one line tells what and where), 2 wrong usage.
"""
import argparse
import json
import os
import struct
import sys

PAGE, CHUNK = 4096, 1 << 20
MAGIC = b"\x89LUSAVE\n"
HEADER = struct.Struct("<8sIIQQQQII")
BLOCK = struct.Struct("<32sQIIQQQQQQ")


class Wrong(Exception):
    """The file is not what the format says."""


def xxh64_plain(data):
    """XXH64 with seed 0, from its specification."""
    mask = (1 << 64) - 1
    p1, p2, p3, p4, p5 = (11400714785074694791, 14029467366897019727, 1609587929392839161,
                          9650029242287828579, 2870177450012600261)

    def rotl(x, r):
        return (x << r | x >> (64 - r)) & mask

    def step(acc, lane):
        return rotl((acc + lane * p2) & mask, 31) * p1 & mask

    at, size = 0, len(data)
    if size >= 32:
        a, b, c, d = (p1 + p2) & mask, p2, 0, -p1 & mask
        for w, x, y, z in struct.iter_unpack("<4Q", memoryview(data)[: size // 32 * 32]):
            a, b, c, d = step(a, w), step(b, x), step(c, y), step(d, z)
        at = size // 32 * 32
        h = (rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18)) & mask
        for acc in (a, b, c, d):
            h = ((h ^ step(0, acc)) * p1 + p4) & mask
    else:
        h = p5
    h = (h + size) & mask
    while at + 8 <= size:
        h = (rotl(h ^ step(0, int.from_bytes(data[at:at + 8], "little")), 27) * p1 + p4) & mask
        at += 8
    if at + 4 <= size:
        h = (rotl(h ^ int.from_bytes(data[at:at + 4], "little") * p1 & mask, 23) * p2 + p3) & mask
        at += 4
    for byte in data[at:]:
        h = rotl(h ^ byte * p5 & mask, 11) * p1 & mask
    h = (h ^ h >> 33) * p2 & mask
    h = (h ^ h >> 29) * p3 & mask
    return h ^ h >> 32


try:
    import xxhash

    def xxh64(data):
        return xxhash.xxh64_intdigest(data)
except ImportError:
    xxh64 = xxh64_plain


def up(n, to):
    return (n + to - 1) // to * to


def expect(condition, words):
    if not condition:
        raise Wrong(words)


class Block:
    def __init__(self, raw):
        (name, self.size, self.place, zero, self.bitmap_at, self.sums_at, self.tables_sum, self.pages_at,
         self.written, zero2) = BLOCK.unpack(raw)
        self.name = name.rstrip(b"\0").decode("ascii", "replace")
        expect(name == self.name.encode("ascii", "replace").ljust(32, b"\0") and self.name, "a block's name")
        expect(all(c in "abcdefghijklmnopqrstuvwxyz0123456789-" for c in self.name), "a block's name")
        expect(0 < self.size <= 1 << 46 and self.size % PAGE == 0, f"size of block {self.name}")
        expect(self.place in (1, 2) and zero == 0 and zero2 == 0, f"entry of block {self.name}")
        if self.place == 2:
            expect(raw[48:] == bytes(48), f"entry of block {self.name}, which lies beside")
        self.pages = self.size // PAGE
        self.chunks = up(self.size, CHUNK) // CHUNK
        self.bitmap_size = up(self.pages, 8) // 8
        self.bitmap, self.sums = b"", ()

    def is_written(self, page):
        return self.bitmap[page // 8] >> page % 8 & 1


class SavedGuest:
    def __init__(self, file):
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        page = self.read(0, PAGE)
        (magic, self.version, count, size, self.state_at, self.state_size, self.state_sum, page_size,
         chunk_size) = HEADER.unpack_from(page)
        expect(magic == MAGIC, "this is no saved guest: the magic at 0 is wrong")
        expect(self.version == 1, f"version {self.version} of the format is not known here")
        expect(struct.unpack_from("<Q", page, 4088)[0] == xxh64(page[:4088]), "checksum of the header")
        expect((page_size, chunk_size) == (PAGE, CHUNK), "page or chunk size")
        expect(1 <= count <= 32, "number of blocks")
        expect(page[56:128] == bytes(72) and page[3200:4088] == bytes(888), "what is zero in the header")
        self.blocks = [Block(page[128 + 96 * i:224 + 96 * i]) for i in range(count)]
        expect(page[128 + 96 * count:3200] == bytes(96 * (32 - count)), "unused entries of blocks")
        expect(len({b.name for b in self.blocks}) == count, "two blocks of one name")
        expect(size == self.size, f"the header tells of {size} bytes, the file has {self.size}")
        self.check_layout()
        self.state = self.read(self.state_at, self.state_size)
        expect(xxh64(self.state) == self.state_sum, "checksum of the state")
        for block in self.here():
            self.load_tables(block)

    def here(self):
        return [b for b in self.blocks if b.place == 1]

    def read(self, at, size):
        self.file.seek(at)
        data = self.file.read(size)
        expect(len(data) == size, f"the file ends before {at + size}")
        return data

    def check_layout(self):
        at = PAGE
        for b in self.here():
            expect(b.bitmap_at == at, f"offset of the bitmap of {b.name}")
            at += up(b.bitmap_size, PAGE)
            expect(b.sums_at == at, f"offset of the sums of {b.name}")
            at += up(8 * b.chunks, PAGE)
        at = up(at, CHUNK)
        for b in self.here():
            expect(b.pages_at == at, f"offset of the pages of {b.name}")
            at += up(b.size, CHUNK)
        expect(self.state_at == at and 1 <= self.state_size <= 64 << 20, "offset or size of the state")
        expect(self.size == at + up(self.state_size, PAGE), "size of the file")

    def load_tables(self, b):
        b.bitmap = self.read(b.bitmap_at, b.bitmap_size)
        sums = self.read(b.sums_at, 8 * b.chunks)
        expect(xxh64(b.bitmap + sums) == b.tables_sum, f"checksum of bitmap and sums of {b.name}")
        b.sums = struct.unpack(f"<{b.chunks}Q", sums)
        expect(b.pages % 8 == 0 or b.bitmap[-1] >> b.pages % 8 == 0, f"bits behind the last page of {b.name}")
        expect(sum(byte.bit_count() for byte in b.bitmap) == b.written, f"number of pages of {b.name}")

    def chunk(self, b, number):
        """The chunk's written pages as (page, bytes)."""
        first = number * CHUNK // PAGE
        for page in range(first, min(first + CHUNK // PAGE, b.pages)):
            if b.is_written(page):
                yield page, self.read(b.pages_at + page * PAGE, PAGE)

    def verify(self):
        for b in self.here():
            for number in range(b.chunks):
                data = b"".join(content for _, content in self.chunk(b, number))
                expect((xxh64(data) if data else 0) == b.sums[number],
                       f"checksum of chunk {number} of {b.name}, at {b.pages_at + number * CHUNK}")

    def extract(self, name, out):
        for b in self.here():
            if b.name != name:
                continue
            for number in range(b.chunks):
                content = bytearray(min(CHUNK, b.size - number * CHUNK))
                for page, data in self.chunk(b, number):
                    at = page * PAGE - number * CHUNK
                    content[at:at + PAGE] = data
                out.write(content)
            return
        raise Wrong(f"there is no block {name} in this file")


def varint(data, at):
    value = shift = 0
    while True:
        expect(at < len(data) and shift < 70, "a number in the state")
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def fields(data):
    """A protobuf message's fields as (number, value)."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            expect(at + size <= len(data), "a number in the state")
            value, at = int.from_bytes(data[at:at + size], "little"), at + size
        else:
            expect(kind == 2, "a field of the state")
            size, at = varint(data, at)
            expect(at + size <= len(data), "a field of the state")
            value, at = data[at:at + size], at + size
        yield tag >> 3, value


def describe_state(data):
    told = {"vm": "", "saved_unix_ms": 0, "source": "", "sections": []}
    for number, value in fields(data):
        if number == 1:
            told["vm"] = value.decode("utf-8", "replace")
        elif number == 3:
            told["saved_unix_ms"] = value
        elif number == 4:
            offer = dict(fields(value))
            told["source"] = b" ".join(offer.get(n, b"") for n in (3, 4)).decode("utf-8", "replace")
        elif number == 7:
            saved = dict(fields(value))
            section = dict(fields(saved.get(1, b"")))
            told["sections"].append({"kind": section.get(1, b"").decode("utf-8", "replace"),
                                     "instance": section.get(2, 0), "version": section.get(3, 0),
                                     "bytes": len(saved.get(2, b""))})
    return told


def report(guest, as_json):
    state = describe_state(guest.state)
    blocks = [{"name": b.name, "bytes": b.size, "beside": b.place == 2, "written_pages": b.written,
               "pages_at": b.pages_at} for b in guest.blocks]
    if as_json:
        print(json.dumps({"version": guest.version, "bytes": guest.size, "blocks": blocks, **state}))
        return
    print(f"format version {guest.version}, {guest.size} bytes")
    print(f"VM {state['vm']}, saved by {state['source']}")
    for b in blocks:
        where = "in the file of that name beside" if b["beside"] else f"{b['written_pages']} pages from {b['pages_at']}"
        print(f"RAM block {b['name']}: {b['bytes']} bytes, {where}")
    for s in state["sections"]:
        print(f"section {s['kind']}/{s['instance']}: version {s['version']}, {s['bytes']} bytes")


def main():
    parser = argparse.ArgumentParser(description="Looks into the file of a saved guest.")
    parser.add_argument("--verify", action="store_true", help="also check every sum of RAM")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    parser.add_argument("--extract", metavar="BLOCK", help="write the RAM block to standard output")
    parser.add_argument("file", metavar="FILE")
    arguments = parser.parse_args()
    try:
        with open(arguments.file, "rb") as file:
            guest = SavedGuest(file)
            if arguments.verify:
                guest.verify()
            if arguments.extract:
                guest.extract(arguments.extract, sys.stdout.buffer)
            else:
                report(guest, arguments.json)
    except (OSError, Wrong) as problem:
        print(f"read_save.py: {arguments.file}: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
