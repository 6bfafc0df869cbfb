"""Damaged inputs: bytes, JSON, tables and command lines with a few random changes each."""

import copy
import csv
import io
import json
import random
import struct
import zlib
from typing import Any

NUMBERS = (0, 1, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**6,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    {},
)
VALUES += ("\udcff", "é" * 300, [[]] * 1000, {"": None}, "../../etc/passwd", "0x10", -0.0, 2**63)
WORDS: tuple[str, ...] = (
    "",
    "-",
    "--",
    "-1",
    "0",
    "nan",
    "inf",
    "1e999",
    "1e-999",
    "9" * 400,
    "x" * 3000,
    "é",
    "\udcff",
    "None",
)
WORDS += ("/etc/passwd", "/proc/self/mem", ".", "a b", "True", "--no_", "--set", "\n", "%s", "{}", "|", "-h1")


def damage(content: bytes, random: random.Random) -> bytes:
    """The bytes with one to four changes, half of them in the first 64 bytes, where headers are."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        end = min(64, len(data)) if random.random() < 0.5 else len(data)
        place, length = random.randrange(max(1, end)), random.choice((1, 2, 4, 8, 64))
        what = random.randrange(6)
        if what == 0 and place < len(data):
            data[place] ^= 1 << random.randrange(8)
        elif what == 1:
            data[place : place + length] = random.randbytes(length)
        elif what == 2:
            data[place : place + 4] = struct.pack(random.choice("<>") + "I", random.choice(NUMBERS))
        elif what == 3:
            del data[place : place + length]
        elif what == 4:
            data[place:place] = data[place : place + length] * random.choice((1, 2, 100))
        else:
            del data[random.randrange(len(data) + 1) :]
    return bytes(data)


def damage_png(content: bytes, random: random.Random) -> bytes:
    """As `damage`, mostly with the checksums put right, as a decoder would else stop at the first."""
    data = bytearray(damage(content, random))
    place = 8
    while random.random() < 0.999 and place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        if place + 12 + length > len(data):
            break
        body = data[place + 4 : place + 8 + length]
        struct.pack_into(">I", data, place + 8 + length, zlib.crc32(body))
        place += 12 + length
    return bytes(data)


def damage_json(content: bytes, random: random.Random) -> bytes:
    """JSON with a value, a key or an entry changed at any depth, or with damaged bytes."""
    if random.random() < 0.3:
        return damage(content, random)
    value = json.loads(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        holder = value
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = random.choice(keys)
            if not isinstance(holder[key], dict | list) or not holder[key] or random.random() < 0.2:
                break
            holder = holder[key]
        if keys and random.random() < 0.3:
            del holder[key]
        elif keys:
            holder[key] = copy.deepcopy(random.choice((*VALUES, value)))
    text = json.dumps(value)
    if random.random() < 0.05:
        text = "[" * 100_000 + text
    return text.encode(errors="surrogateescape")


def damage_csv(content: bytes, random: random.Random) -> bytes:
    """A table with cells, rows or columns changed, or with damaged bytes."""
    if random.random() < 0.3:
        return damage(content, random)
    rows = list(csv.reader(io.StringIO(content.decode())))
    for _ in range(random.choice((1, 1, 2, 4))):
        row = random.choice(rows) if rows else []
        what = random.randrange(5)
        if what == 0 and rows:
            rows.remove(row)
        elif what == 1:
            rows.insert(random.randrange(len(rows) + 1), row[:])
        elif what == 2:
            rows = [[cell for place, cell in enumerate(row) if place != len(rows) % 7] for row in rows]
        elif row:
            row[random.randrange(len(row))] = str(random.choice((*WORDS, *VALUES)))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")


def damage_flags(words: list[str], random: random.Random) -> list[str]:
    """A command line with words changed, doubled, swapped, misspelt or left out."""
    words = words[:]
    for _ in range(random.choice((1, 1, 2, 3))):
        place = random.randrange(len(words)) if words else 0
        what = random.randrange(6)
        if what < 2 or not words:
            words[place : place + 1] = [random.choice(WORDS)]
        elif what == 2:
            del words[place]
        elif what == 3:
            words.insert(place, random.choice((*words, *WORDS)))
        elif what == 4:
            other = random.randrange(len(words))
            words[place], words[other] = words[other], words[place]
        elif words[place]:
            letters = list(words[place])
            letters[random.randrange(len(letters))] = chr(random.randrange(33, 127))
            words[place] = "".join(letters)
    return [word.replace("\0", "") for word in words]  # which no command line can hold
