"""Damage for ``benchmarks/fuzz.py``: bytes of any file, and structure where a file has one."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from pathlib import Path
from typing import Any

NUMBERS = (
    "0", "-1", "1", "2147483648", "9223372036854775808", "-9223372036854775809", "NaN", "Infinity",
    "-Infinity", "1e308", "1e999", "-1e308", "1e-320", "0.5", "9" * 400, "1_000", "0x10", "",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.5, 1e308, float("nan"), float("inf"),
    "", "x", "\0", "\ud800", "../../x", "/etc/passwd", "NaN", "a" * 100_000, "line\nline",
    "\x1b[31m", "=1+1", None, True, False, [], {}, [[]], [[[]]], {"a": 1}, [0, 1], [None],
)  # fmt: skip
YAML_VALUES = (
    "2020-13-45", "!!timestamp foo", "!!int x", "!!bool maybe", "!!float ''", "!!binary '*'",
    "!!set {a, b}", "!!python/object:os.system x", "&a [*a]", "*unknown", "[" * 3000, "{a: b}",
    "[1, 2]", "~", "yes", "'", '"\\ud800"', "1e999", ".nan", ".inf", "0o8", "1:2:3", "|", "? x",
    "<<: 3", "2020-01-01", "\t", "@", "%", "!!omap [a]", "[[[[[]]]]]",
)  # fmt: skip
XML_PIECES = (
    "<!DOCTYPE a [<!ENTITY b 'c'>]>", "&b;", "&#0;", "&#xd800;", "<", "]]>", "<!--", "<?x?>",
    "</Annotation>", "<Group Name='g' PartOfGroup='g'/>", "<a>" * 3000, "\x00", "<![CDATA[",
)  # fmt: skip


def mutated(data: bytes, name: str, rng: random.Random) -> bytes:
    """Return damaged bytes of a file, in one to three ways."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _once(data, name, rng)
    return data


def _once(data: bytes, name: str, rng: random.Random) -> bytes:
    suffix = Path(name).suffix.lower()
    if rng.random() < 0.6:
        try:
            if suffix in (".json", ".geojson"):
                return _json(data, rng)
            if suffix == ".csv":
                return _csv(data, rng)
            if suffix in (".yaml", ".yml"):
                return _yaml(data, rng)
            if suffix == ".xml":
                return _xml(data, rng)
            if suffix in (".tif", ".svs"):
                return _tiff(data, rng)
        except (ValueError, LookupError, OverflowError, RecursionError, struct.error):
            pass  # damaged already
    return _bytes(data, rng)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    if not out:
        return rng.randbytes(rng.randrange(64))
    # Headers are where structure is.
    at = rng.randrange(min(len(out), 2048)) if rng.random() < 0.5 else rng.randrange(len(out))
    way = rng.randrange(10)
    if way < 3:
        out[at] ^= 1 << rng.randrange(8)
    elif way == 3:
        out[at : at + 8] = rng.choice((bytes(8), b"\xff" * 8, rng.randbytes(8)))[: len(out) - at]
    elif way == 4:
        run = rng.choice((16, 64, 512))
        out[at : at + run] = rng.choice((bytes(run), rng.randbytes(run)))[: len(out) - at]
    elif way == 5:
        del out[at:]
    elif way == 6:
        length = rng.randrange(1, 256)
        out[at:at] = out[at : at + length]
    elif way == 7:
        del out[at : at + rng.randrange(1, 64)]
    elif way == 8:
        numbers = list(re.finditer(rb"-?\d+(\.\d+)?", bytes(out[:200_000])))
        if numbers:
            found = rng.choice(numbers)
            out[found.start() : found.end()] = rng.choice(NUMBERS).encode()
    else:
        out[at : at + 1] = rng.choice((b"\xff", b"\x00", b"\n", b"\xc3\x28", b'"', b"\xef\xbb\xbf"))
    return bytes(out)


def _json(data: bytes, rng: random.Random) -> bytes:
    whole = json.loads(data)
    places = list(_places(whole))
    if not places:
        return json.dumps(rng.choice(VALUES)).encode("utf-8", "surrogatepass")
    parent, key = rng.choice(places)
    way = rng.randrange(8)
    if way == 0:
        del parent[key]
    elif way == 1 and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    elif way == 2:
        parent[key] = [copy.deepcopy(parent[key])]
    elif way == 3:
        other, there = rng.choice(places)
        parent[key] = copy.deepcopy(other[there]) if there in _keys(other) else None
    elif way == 4:
        text = json.dumps(whole).replace("null", "[" * 5000, 1)
        return text.encode()
    elif way == 5 and isinstance(parent, list):
        parent[key:key] = [copy.deepcopy(parent[key])] * rng.choice((1, 50))
    else:
        parent[key] = rng.choice(VALUES)
    ascii_only = rng.random() < 0.5
    return json.dumps(whole, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


def _keys(parent: Any) -> Any:
    return parent if isinstance(parent, dict) else range(len(parent))


def _places(value: Any) -> Any:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _csv(data: bytes, rng: random.Random) -> bytes:
    rows = [line.split(",") for line in data.decode().splitlines()]
    row = rng.choice(rows if rng.random() < 0.7 else rows[:1])
    at = rng.randrange(len(row))
    way = rng.randrange(8)
    if way == 0:
        del row[at]
    elif way == 1:
        row.insert(at, rng.choice(NUMBERS))
    elif way == 2:
        rows.append(list(row))
    elif way == 3:
        row[at] = rng.choice(('"', '"a\nb"', "\0", "a" * 200_000, "../x", "=1+1", "\ufeff", "ä"))
    elif way == 4:
        row[at] = rng.choice(row)
    elif way == 5:
        for each in rows:
            if at < len(each):
                del each[at]
    else:
        row[at] = rng.choice(NUMBERS)
    return "\n".join(",".join(each) for each in rows).encode()


def _yaml(data: bytes, rng: random.Random) -> bytes:
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    key, colon, _ = lines[at].partition(":")
    way = rng.randrange(7)
    if way == 0:
        lines[at] = " " * rng.randrange(1, 5) + lines[at]
    elif way == 1:
        lines.insert(at, lines[at])
    elif way == 2:
        lines[at] = f"? [{key}]\n: 1"
    elif way == 3:
        lines[at] = f"{rng.choice(('1', '2020-01-01', 'null', '[a]', '{a: b}', 'x' * 2000))}: 1"
    elif colon:
        chosen = rng.choice((*YAML_VALUES, *NUMBERS))
        lines[at] = f"{key}: {chosen}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _xml(data: bytes, rng: random.Random) -> bytes:
    text = data.decode()
    way = rng.randrange(6)
    values = list(re.finditer(r'"([^"]*)"', text))
    if way < 3 and values:
        found = rng.choice(values)
        new = rng.choice((*NUMBERS, "ä", "Polygon", "Spline", "tumor", "x" * 50_000, "&b;", "<"))
        return (text[: found.start(1)] + new + text[found.end(1) :]).encode()
    if way == 3 and values:
        found = rng.choice(values)
        start = text.rfind(" ", 0, found.start())
        return (text[:start] + text[found.end() :]).encode()
    if way == 4:
        tags = list(re.finditer(r"<[^>]*>", text))
        found, other = rng.choice(tags), rng.choice(tags)
        return (text[: found.start()] + other[0] + text[found.end() :]).encode()
    at = rng.randrange(len(text))
    return (text[:at] + rng.choice(XML_PIECES) + text[at:]).encode()


def _tiff(data: bytes, rng: random.Random) -> bytes:
    """Damage an entry of a directory, or what it points to."""
    out = bytearray(data)
    big = data[2] == 43
    order = "<" if data[:2] == b"II" else ">"
    offset_kind, count_kind, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    (where,) = struct.unpack_from(order + offset_kind, data, 8 if big else 4)
    for _ in range(rng.randrange(4)):
        (count,) = struct.unpack_from(order + count_kind, data, where)
        after = where + struct.calcsize(count_kind) + count * entry
        (following,) = struct.unpack_from(order + offset_kind, data, after)
        if not following:
            break
        where = following
    (count,) = struct.unpack_from(order + count_kind, data, where)
    at = where + struct.calcsize(count_kind) + rng.randrange(count) * entry
    values = (0, 1, 2, 3, 7, 8, 16, 255, 256, 4096, 65535, 2**31 - 1, 2**31, 2**32 - 1)
    way = rng.randrange(6)
    if way == 0:
        struct.pack_into(order + "H", out, at, rng.choice((256, 257, 259, 262, 273, 322, 324, 330)))
    elif way == 1:
        struct.pack_into(order + "H", out, at + 2, rng.randrange(20))
    elif way == 2:
        struct.pack_into(order + ("Q" if big else "I"), out, at + 4, rng.choice(values))
    elif way == 3:
        struct.pack_into(order + "I", out, at + (12 if big else 8), rng.choice(values))
    elif way == 4:
        # A value of an array that lies elsewhere: offsets and lengths of tiles.
        (there,) = struct.unpack_from(order + offset_kind, data, at + (12 if big else 8))
        (length,) = struct.unpack_from(order + ("Q" if big else "I"), data, at + 4)
        at = there + 4 * rng.randrange(max(1, min(length, 4096)))
        struct.pack_into(order + "I", out, at, rng.choice((*values, rng.randrange(len(data)))))
    else:
        at = rng.randrange(len(out) // 4, len(out))
        out[at] ^= 1 << rng.randrange(8)
    return bytes(out)
