"""Bytes of a file as lines of text; what is no text, or not what its suffix says, is named."""

import codecs
import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from cai.errors import UsageError

# how files begin that bear the suffix of another kind, or none
BEGINNINGS = {
    b"\x1f\x8b": "packed with gzip; end its name in .gz",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"BZh91AY&SY": "packed with bzip2; unpack it",
    b"\xfd7zXZ\0": "packed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "packed with Zstandard; unpack it",
    b"PAR1": "Parquet; end its name in .parquet",
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` brings the data",
}

# Encodings that begin with a mark. UTF-32's begins with that of UTF-16, so it stands first.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# a byte that is no UTF-8, as Python's "surrogateescape" puts it into a text
NO_UTF8 = re.compile("[\udc80-\udcff]")

REMEDY = "convert the file, e.g. with `iconv -f CP1252 -t UTF-8`"


def refuse_misnamed(origin: str, suffix: str, file: BinaryIO) -> None:
    """Raises UsageError on a file whose content is of another kind than its suffix."""
    start = _start(file)
    for beginning, kind in BEGINNINGS.items():
        if start.startswith(beginning):
            raise UsageError(f"{origin}: it ends in '{suffix}', and its content is {kind}")


def read_lines(origin: str, file: BinaryIO) -> Iterator[str]:
    """The lines with their ends, one in memory at a time. Only \\n ends a line.

    UTF-8, or UTF-16 and UTF-32 where the file begins with their mark. Raises UsageError.
    """
    for number, line in enumerate(_decode(origin, file), 1):
        if reason := undecoded(line):
            raise UsageError(f"{origin}:{number}: {reason}")
        yield line


def read_odd_lines(origin: str, file: BinaryIO) -> Iterator[str]:
    """As read_lines, with lines that are not UTF-8 among them: `undecoded` tells them.

    Each holds rows of its own, so a file that is one line, with carriage returns in it, is refused.
    """
    for number, line in enumerate(_decode(origin, file), 1):
        if number == 1 and not line.endswith("\n") and "\r" in line.strip():
            raise UsageError(
                f"{origin}: its lines end in a carriage return alone; convert it, e.g. with "
                "`tr '\\r' '\\n'`"
            )
        yield line


def _decode(origin: str, file: BinaryIO) -> Iterator[str]:
    start = _start(file)
    encoding = next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in start[:4]:
        raise UsageError(
            f"{origin}: neither UTF-8 nor any text with a mark of its encoding; if it is UTF-16, "
            "convert it, e.g. with `iconv -f UTF-16LE -t UTF-8`"
        )
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    lines = io.TextIOWrapper(file, encoding, errors, newline="\n")
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise UsageError(f"{origin}: not readable as {encoding}: {error.reason}") from None


def undecoded(text: str) -> str:
    """Why a line of read_odd_lines, or a part of one, is no text; empty where it is."""
    match = NO_UTF8.search(text)
    if match is None:
        return ""
    before = text[: match.start()].encode("utf-8", "surrogateescape")
    byte = ord(match[0]) - 0xDC00
    place = f"byte {len(before) + 1} (0x{byte:02X}, behind '{text[: match.start()][-20:]}')"
    return f"not UTF-8 at {place}; {REMEDY}"


def _start(file: BinaryIO) -> bytes:
    start = file.read(32)
    file.seek(0)
    return start
