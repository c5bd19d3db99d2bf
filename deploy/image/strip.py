"""Cuts the debug information off the shared libraries below a folder: a fifth of an image, and no process reads it.

    python strip.py /opt/market/lib

What the loader maps ends with the last segment; symbols and debug sections lie behind it. (`strip` would do the
same, and a little more, but binutils is not in the base image.)
"""

import struct
import sys
from pathlib import Path


def strip(path: Path) -> int:
    """Bytes saved. A file that is no 64-bit little-endian ELF is left alone."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        return 0
    headers, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    end = headers + size * count
    for number in range(count):
        offset, _, _, length = struct.unpack_from("<QQQQ", data, headers + size * number + 8)
        end = max(end, offset + length)
    if end >= len(data):
        return 0
    # No section table any more: its offset, entry size, count and the index of its names.
    head = bytearray(data[:end])
    struct.pack_into("<Q", head, 40, 0)
    struct.pack_into("<HHH", head, 58, 0, 0, 0)
    path.write_bytes(head)
    return len(data) - end


if __name__ == "__main__":
    files = [f for f in Path(sys.argv[1]).rglob("*.so*") if f.is_file() and not f.is_symlink()]
    print(f"{sum(map(strip, files)) / 1e6:.1f} MB of debug information cut from {len(files)} libraries")  # noqa: T201
