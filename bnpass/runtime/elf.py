"""Whether a shared library is there in full. The loader ends the process where a part of one is missing."""

import struct
from pathlib import Path

_IDENT = b"\x7fELF\x02\x01"
"""ELF, of 64 bits, little-endian."""
_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_LOADED = 1


def fault_of(library: Path) -> str:
    """Return what is wrong with a shared library of 64-bit Linux, "" if it can be handed to the loader.

    Source: System V ABI, chapter 5, "Program Header".
    """
    try:
        with library.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or not header.startswith(_IDENT):
                return "it is no 64-bit shared library"
            fields = _HEADER.unpack(header)
            start, length, count = fields[4], fields[8], fields[9]
            file.seek(start)
            table = file.read(length * count)
            size = file.seek(0, 2)
    except OSError as error:
        return error.strerror or str(error)
    if length < _SEGMENT.size or len(table) < length * count:
        return "it is cut short"
    segments = (_SEGMENT.unpack_from(table, number * length) for number in range(count))
    ends = [offset + held for kind, _, offset, _, _, held, _, _ in segments if kind == _LOADED]
    return "" if ends and max(ends) <= size else "it is cut short"
