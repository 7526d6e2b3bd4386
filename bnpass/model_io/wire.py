"""The protobuf wire format of ONNX: take large payloads out of a file, put them into one.

A model is a small message with a few large byte strings in it (`TensorProto.raw_data`). Protobuf
holds all of them in memory, several times over. Here a file is *skimmed*: every payload of at least
`MINIMUM` bytes is left on disk and a token stands in its place, so that protobuf parses only the
skeleton. `expand` is the inverse. Tokens hold 16 random bytes, so no file can contain one on purpose.

Nothing is interpreted: unknown fields, their order and repetition stay exactly as they were.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

MINIMUM = 4096  # a smaller payload costs more to keep apart than to parse
MAX_DEPTH = 100  # protobuf itself refuses deeper messages
_WINDOW = 16384  # bytes of the file looked at in one read
_VARINT_MAX = 10
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_RAW_DATA = 9

# Which fields of which message can contain a tensor (numbers from onnx.proto).
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph"},
    "Tensor": {_RAW_DATA: ""},
}


class MalformedError(ValueError):
    """The bytes are not a protobuf message, or end too early."""


@dataclass(frozen=True)
class Span:
    """Where a payload lies in its file."""

    offset: int
    length: int


class Tokens:
    """Makes tokens and recognizes them: 16 random bytes, then 8 bytes of index."""

    LENGTH = 24

    def __init__(self) -> None:
        self._nonce = os.urandom(16)

    def make(self, index: int) -> bytes:
        """Return the token of payload number ``index``."""
        return self._nonce + index.to_bytes(8, "little")

    def index(self, payload: bytes) -> int | None:
        """Return the number of the payload that ``payload`` stands for, or None if it is no token."""
        if len(payload) != self.LENGTH or not payload.startswith(self._nonce):
            return None
        return int.from_bytes(payload[16:], "little")

    def occur_in(self, message: bytes, start: int, end: int) -> bool:
        """Tell whether any token lies in ``message[start:end]``."""
        return message.find(self._nonce, start, end) >= 0


def varint(value: int) -> bytes:
    """Encode a non-negative integer."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Source:
    """Random access to the bytes of a message, a window at a time."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self.read = read
        self.size = size
        self._base = 0
        self._buffer = b""

    def varint(self, pos: int, end: int) -> tuple[int, int]:
        """Decode the integer at ``pos``; return it and the position behind it."""
        index = pos - self._base
        if index < 0 or index + _VARINT_MAX > len(self._buffer):
            self._base, index = pos, 0
            self._buffer = self.read(_WINDOW, pos)
        buffer = self._buffer
        value = 0
        for count in range(_VARINT_MAX):
            if pos + count >= end or index + count >= len(buffer):
                raise MalformedError(f"it ends in the middle of a field at byte {pos}")
            byte = buffer[index + count]
            value |= (byte & 0x7F) << (7 * count)
            if byte < 0x80:
                return value, pos + count + 1
        raise MalformedError(f"there is no protobuf field at byte {pos}")


def _fields(source: _Source, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number or 0, first byte, first byte of the content, end) of each field.

    The number is 0 for fields that are not length-delimited: they never matter here.
    """
    pos = start
    while pos < end:
        first = pos
        tag, pos = source.varint(pos, end)
        wire, number = tag & 7, tag >> 3
        if number == 0:
            raise MalformedError(f"there is no protobuf field at byte {first}")
        body = pos
        if wire == _LENGTH:
            length, body = source.varint(pos, end)
            pos = body + length
        elif wire == _VARINT:
            _, pos = source.varint(pos, end)
        elif wire in (_FIXED32, _FIXED64):
            pos += 4 if wire == _FIXED32 else 8
        else:
            raise MalformedError(f"there is no protobuf field at byte {first}")
        if pos > end:
            raise MalformedError(f"the field at byte {first} runs {pos - end} bytes past the end")
        yield number if wire == _LENGTH else 0, first, body, pos


def skim(read: Callable[[int, int], bytes], size: int, tokens: Tokens) -> tuple[bytes, list[Span]]:
    """Read a ModelProto without its large payloads.

    Args:
        read: ``read(count, offset)`` returns that many bytes of the file, fewer only at its end.
        size: Length of the file.
        tokens: Makes the tokens that stand for the payloads.

    Returns:
        The serialized skeleton, and where each payload lies, in order of the tokens.

    Raises:
        MalformedError: The file is no protobuf message, or is cut off.
    """
    source = _Source(read, size)
    spans: list[Span] = []

    def copy(start: int, end: int, kind: str, depth: int) -> bytes:
        parts: list[bytes] = []
        copied = start
        for number, first, body, stop in _fields(source, start, end):
            child = _CHILDREN[kind].get(number)
            if child is None or stop - body < MINIMUM or depth >= MAX_DEPTH:
                continue
            if child:
                content = copy(body, stop, child, depth + 1)
            else:
                content = tokens.make(len(spans))
                spans.append(Span(body, stop - body))
            parts += [
                read(first - copied, copied),
                varint(number << 3 | _LENGTH),
                varint(len(content)),
                content,
            ]
            copied = stop
        parts.append(read(end - copied, copied))
        return b"".join(parts)

    return copy(0, size, "Model", 0), spans


def expand(skeleton: bytes, sizes: Sequence[int], tokens: Tokens) -> tuple[list[bytes | int], int]:
    """Lay out a model file from its skeleton.

    Args:
        skeleton: A serialized ModelProto with tokens in it.
        sizes: How many bytes each token stands for.
        tokens: What made the tokens.

    Returns:
        The pieces of the file in order (bytes, or the number of a payload), and its length.
    """
    source = _Source(lambda count, offset: skeleton[offset : offset + count], len(skeleton))

    def copy(start: int, end: int, kind: str) -> tuple[list[bytes | int], int]:
        parts: list[bytes | int] = []
        total, copied = end - start, start
        for number, first, body, stop in _fields(source, start, end):
            child = _CHILDREN[kind].get(number)
            if child is None or not tokens.occur_in(skeleton, body, stop):
                continue
            if child:
                content, length = copy(body, stop, child)
            else:
                index = tokens.index(skeleton[body:stop])
                if index is None:
                    continue
                content, length = [index], sizes[index]
            head = varint(number << 3 | _LENGTH) + varint(length)
            parts += [skeleton[copied:first], head, *content]
            total += len(head) + length - (stop - first)
            copied = stop
        parts.append(skeleton[copied:end])
        return parts, total

    return copy(0, len(skeleton), "Model")
