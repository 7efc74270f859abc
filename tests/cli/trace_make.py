# SPDX-License-Identifier: MIT
"""Write a trace by docs/formats/trace.md, with none of the library's code.

usage: trace_make.py FILE [what]...   what: cut, dropped, damaged, far, lost-names, many, reads,
                                           writes
"""
import struct
import sys


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


FILE_ID = bytes(range(16))
READ, WRITE, READV, WRITEV, FSYNC, OPEN, VIEW = 1, 2, 3, 4, 5, 7, 23
out = bytearray()
blocks = 0


def header():
    text = struct.pack("<8sHHI16sqQIIII32s16s12x", b"\x89WTR\r\n\x1a\n", 1, 0, 128, FILE_ID,
                       1_700_000_000_000_000_000, 77, 0, 0, 0, 64, b"0.1.0", b"threads")
    return text + struct.pack("<I", crc32c(text))


def block(kind, count, payload):
    global blocks
    text = struct.pack("<4sB3xIIQI", b"\xf7WTB", kind, len(payload), count, blocks,
                       crc32c(payload))
    text += struct.pack("<I", crc32c(FILE_ID + struct.pack("<Q", len(out)) + text))
    blocks += 1
    out.extend(text + payload)


def names(*entries):
    block(1, len(entries), b"".join(struct.pack("<III", number, 1, len(path)) + path
                                    for number, path in entries))


def record(at_us, op, file, offset, length, result, io_class=0, flags=0, who=5 << 52,
           wait_us=2, device_us=40):
    return struct.pack("<qQQQQQqIBBBB", at_us * 1000, wait_us * 1000, device_us * 1000, who,
                       offset, length, result, file, op, io_class, flags, 0)


def records(*entries):
    block(2, len(entries), b"".join(entries))
    return len(entries)


what = set(sys.argv[2:])
out.extend(header())
total = 0
if "reads" in what:
    names((1, b"a"), (2, b"dir/b"))
    entries = [record(i * 100, READ, 1 + i % 2, i // 2 * 1000, 1000, 1000) for i in range(20)]
    entries[3], entries[4] = entries[4], entries[3]  # they ended in another order
    total += records(*entries)
    if "writes" in what:
        total += records(record(3000, WRITE, 1, 0, 4096, 4096),
                         record(3010, WRITEV, 1, 1 << 20, 3 << 20, 3 << 20),
                         record(3020, FSYNC, 1, 0, 0, 0),
                         record(3030, READV, 1, 0, 3 << 20, 10000))
    if "far" in what:  # times that no trace has
        most = (1 << 63) // 1000 - 1
        total += records(record(-most, READ, 1, 0, 1000, 1000),
                         record(most, READ, 1, 0, 1000, 1000, wait_us=2 * most),
                         record(4000, READ, 1, 0, 1000, 1000, wait_us=2 * most,
                                device_us=2 * most))
elif "many" in what:
    names(*((i + 1, b"many/%d" % i) for i in range(200)))
    total += records(*(record(i, READ, 1 + i % 200, 0, 10, 10) for i in range(400)))
else:
    names((1, b"data/one"), (2, b"odd\nname\xff"))
    total += records(record(-5, READ, 1, 0, 4096, 4096), record(10, READ, 1, 4096, 4096, 4096),
                     record(30, READ, 2, 1 << 40, 100, -5, io_class=4),
                     record(20, READ, 1, 8192, 4096, 4096, io_class=2),
                     record(40, OPEN, 0, 0, 0, 0, flags=1, who=12, wait_us=0))
    names((3, b"three"))
    total += records(record(50, READ, 3, 0, 65536, 65536, io_class=3, flags=2),
                     record(60, WRITE, 3, 0, 10, -125, flags=4, wait_us=1_500_000, device_us=0),
                     record(70, 77, 9, 0, 0, 0, io_class=9))
if "cut" in what:
    del out[-100:]
else:
    block(3, 1, struct.pack("<QQQQ", total, 1234 if "dropped" in what else 0, 10_000_000, 0))
if "damaged" in what:
    out[128 + 32 + 42 + 32 + 9] ^= 1  # in the first record
if "lost-names" in what:
    out[128 + 32 + 5] ^= 1
with open(sys.argv[1], "wb") as file:
    file.write(out)
