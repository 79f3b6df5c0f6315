"""TensorBoard's event files of scalars, written as bytes: importing a library for them may cost seconds, and imports torch.

A file is a series of records, each the length, its checksum, the content and its checksum (TFRecord). The content is the
protocol buffer ``Event``: wall_time = 1, step = 2, and of file_version = 3, summary = 5 and session_log = 7 one. A summary
lists ``Value``: tag = 1, simple_value = 2.
"""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping

_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # how protocol buffers encode a field
_CASTAGNOLI = 0x82F63B78  # CRC-32C's polynomial, bits reversed


def _make_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (_CASTAGNOLI if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE = _make_table()


def crc32c(content: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of bytes; that of b"123456789" is 0xE3069283."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _varint(value: int) -> bytes:
    """Return 7 bits a byte, the lowest first, each but the last with its highest bit set: 300 is AC 02."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _field(number: int, value: int | float | bytes, kind: int) -> bytes:
    key = _varint(number << 3 | kind)
    if kind == _BYTES:
        assert isinstance(value, bytes)
        return key + _varint(len(value)) + value
    if kind == _VARINT:
        return key + _varint(int(value))
    return key + struct.pack("<d" if kind == _DOUBLE else "<f", value)


class EventWriter:
    """Appends to a file of its own in a folder; what an earlier one wrote from ``purge_step`` on is no longer shown."""

    def __init__(self, folder: pathlib.Path, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}"
        taken = sum(1 for _ in folder.glob(f"{stem}*"))  # names taken by a run of the same second and process
        self._file = (folder / f"{stem}.{taken}").open("wb")
        self._append(0, _field(3, b"brain.Event:2", _BYTES))
        started = _field(1, 1, _VARINT)  # SessionLog.status = START
        self._append(purge_step, _field(7, started, _BYTES))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step by their tags."""
        summary = b""
        for tag, value in values.items():
            pair = _field(1, tag.encode(), _BYTES) + _field(2, value, _FLOAT)
            summary += _field(1, pair, _BYTES)
        self._append(step, _field(5, summary, _BYTES))
        self._file.flush()

    def _append(self, step: int, content: bytes) -> None:
        event = _field(1, time.time(), _DOUBLE) + _field(2, step, _VARINT) + content
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked(length) + event + _masked(event))

    def close(self) -> None:
        self._file.close()


def _masked(content: bytes) -> bytes:
    """Return the checksum as TFRecord stores it: rotated by 15 bits, plus a constant."""
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
