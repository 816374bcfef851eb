"""The file format, against bytes packed here by its description, and against damage of every kind."""

import contextlib
import hashlib
import io
import itertools
import json
import random
import struct
import time
import tracemalloc

import numpy as np
import pytest

from diffkit_bitsback.container import MAX_WORDS, VERSION, Chunk, Reader, Writer
from diffkit_bitsback.errors import CodecError, DamagedFile, NotACodecFile, WrongVersion

HEADER = {"shape": [1, 2, 2], "what": "a header", "steps": 7}
MOST = 5


def chunks():
    """Three chunks of 5, 5 and 2 images, with names and words of their own."""
    found, first = [], 0
    for number, (count, words) in enumerate(((5, 11), (5, 0), (2, 17))):
        names = tuple(f"{number}/bild-{'ü' * i}.png" for i in range(count)) if number != 1 else ()
        made = np.random.default_rng(number).integers(0, 2**32, words, dtype=np.uint32)
        found.append(Chunk(first, count, made, bytes([number]) * 16, names))
        first += count
    return found


CHUNKS = chunks()


def written(header=HEADER, parts=CHUNKS):
    file = io.BytesIO()
    writer = Writer(file, header)
    for chunk in parts:
        writer.write(chunk)
    writer.close()
    assert writer.bytes_written == len(file.getvalue())
    return file.getvalue()


def same(a, b):
    return (a.first, a.count, a.images_digest, a.names) == (
        b.first,
        b.count,
        b.images_digest,
        b.names,
    ) and np.array_equal(a.words, b.words)


def read(data, **options):
    reader = Reader(io.BytesIO(data))
    return reader.header, list(reader.chunks(most=MOST, **options))


def blake(data, key=b""):
    return hashlib.blake2b(data, digest_size=16, key=key).digest()


# --- An own writer, from the description of the format, whose lengths may lie


def packed(header=HEADER, parts=None, *, version=VERSION, header_length=None, end=None, **lies):
    """The file of the description, with checksums that are true of what is packed, lies included.

    `lies`: of the second chunk, `index`, `first`, `count`, `names`, `words`.
    """
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    start = b"\x8bdkbb\r\n\x1a" + struct.pack(
        "<HI", version, len(text) if header_length is None else header_length
    )
    out = start + text
    key = blake(out)
    out += key
    seals, totals = b"", [0, 0, 0]
    for number, chunk in enumerate(CHUNKS if parts is None else parts):
        names = json.dumps(list(chunk.names), separators=(",", ":")).encode() * bool(chunk.names)
        words = chunk.words.astype("<u4").tobytes()
        given = {
            "index": number,
            "first": chunk.first,
            "count": chunk.count,
            "names": len(names),
            "words": chunk.words.size,
        }
        if number == 1:
            given |= lies
        frame = b"\xc5chunk\r\n" + struct.pack("<QQIII", *given.values())
        frame += chunk.images_digest + blake(names + words)
        seals += blake(frame, key)
        out += frame + blake(frame, key) + names + words
        totals = [totals[0] + 1, totals[1] + chunk.count, totals[2] + chunk.words.size]
    last = b"\xc5final\r\n" + struct.pack("<QQQ", *(end or totals)) + blake(seals, key)
    return out + last + blake(last, key)


def test_the_file_is_the_one_described():
    assert written() == packed()
    assert VERSION == 2


def test_reads_what_was_written():
    header, found = read(written())
    assert header == HEADER
    assert len(found) == len(CHUNKS)
    assert all(map(same, found, CHUNKS))
    assert read(written(parts=[]))[1] == []
    # Behind something else in the same file, up to its end.
    file = io.BytesIO(b"before" + written())
    file.seek(6)
    reader = Reader(file)
    assert [c.first for c in reader.chunks(most=MOST)] == [0, 5, 10]
    assert [c.first for c in reader.chunks(most=MOST)] == [0, 5, 10]


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (Chunk(3, 1, np.zeros(1, np.uint32), bytes(16)), "begin with image 0.*first=3"),
        (Chunk(0, 0, np.zeros(1, np.uint32), bytes(16)), "one image or more.*count=0"),
        (Chunk(0, 2, np.zeros(1, np.uint32), bytes(16), ("a",)), "none or 2.*got 1"),
        (
            Chunk(0, 1, np.zeros(1, np.uint32), bytes(16), ("a" * 2**22,)),
            "4194304 bytes in a chunk at most",
        ),
    ],
)
def test_writer_refuses(chunk, message):
    with pytest.raises(ValueError, match=message):
        Writer(io.BytesIO(), HEADER).write(chunk)


def test_writer_refuses_a_header_that_is_too_large_or_no_json():
    with pytest.raises(ValueError, match="65536 bytes at most"):
        Writer(io.BytesIO(), {"x": "y" * 2**16})
    with pytest.raises(ValueError, match="JSON"):
        Writer(io.BytesIO(), {"x": float("nan")})


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", NotACodecFile, "it is empty"),
        (b"\x89PNG\r\n\x1a\n and more", NotACodecFile, "begins with .*PNG"),
        (packed()[:5], DamagedFile, "ends after 5 bytes"),
        (packed()[:10], DamagedFile, "cut short"),
        (packed(version=1), WrongVersion, "version 1, this code reads version 2"),
        (packed(header_length=2**32 - 1), DamagedFile, "65536 bytes at most, got 4294967295"),
        (packed(header_length=65536), DamagedFile, "needs 65536 bytes, 655 are left"),
        (packed(header=[1, 2]), DamagedFile, "must be a mapping, got list"),
        (packed(count=MOST + 1), DamagedFile, "1 to 5 images .* got 6"),
        (packed(count=0), DamagedFile, "1 to 5 images .* got 0"),
        (packed(count=4), DamagedFile, "images from 10, stands where .* from 9, should"),
        (packed(first=2**64 - 1), DamagedFile, "got 5 from 18446744073709551615 on"),
        (packed(words=2**32 - 1), DamagedFile, f"{MAX_WORDS} words .* got 4294967295"),
        (packed(words=MAX_WORDS), DamagedFile, "needs 1073741824 bytes, 2"),
        (packed(names=2**32 - 1), DamagedFile, "bytes of names at most, got 0 and 4294967295"),
        (packed(names=4), DamagedFile, "chunk 1 is damaged: its checksum"),
        (packed(index=2), DamagedFile, "chunk 2, .* stands where chunk 1"),
        (packed(end=(4, 12, 28)), DamagedFile, "says 4 chunks.*read were 3, 12 and 28"),
        (packed(end=(3, 2**40, 28)), DamagedFile, "1099511627776 images"),
        (packed(end=(3, 2**63, 28)), DamagedFile, "images at most"),
        (packed(parts=CHUNKS[1:]), DamagedFile, "stands where chunk 0"),
        (packed() + b"x", DamagedFile, "1 bytes follow the end"),
        (packed()[:-1], DamagedFile, "the end record needs"),
    ],
)
def test_refuses(data, error, message):
    with pytest.raises(error, match=message):
        read(data)


def test_names_are_as_many_strings_as_images():
    for names, message in (
        (("a",) * 4, "5 strings"),
        ((1, 2, 3, 4, 5), "5 strings"),
        ({"a": 1}, "5 strings"),
    ):
        text = json.dumps(names, separators=(",", ":")).encode()

        chunk = Chunk(0, 5, np.zeros(0, np.uint32), bytes(16))
        data = packed(parts=[chunk])
        # The names in place of nothing, sealed again.
        key = data[14 + len(json.dumps(HEADER, sort_keys=True, separators=(",", ":"))) :][:16]
        at = data.index(b"\xc5chunk")
        frame = data[at : at + 8 + 20] + struct.pack("<II", len(text), 0) + bytes(16) + blake(text)
        with pytest.raises(DamagedFile, match=message):
            read(data[:at] + frame + blake(frame, key) + text)


def test_a_frame_of_another_file_is_not_taken():
    other = packed(header=HEADER | {"steps": 8})
    begin, end = other.index(b"\xc5chunk"), other.index(b"\xc5chunk", other.index(b"\xc5chunk") + 1)
    mine = packed()
    at = mine.index(b"\xc5chunk")
    assert other[begin + 100 : end] == mine[at + 100 : at + end - begin]
    with pytest.raises(DamagedFile, match="checksum"):
        read(mine[:at] + other[begin:end] + mine[at + end - begin :])


# --- Damage is confined


def told():
    missing = []
    return missing, lambda images, error: missing.append((images, error))


def places():
    """Where the chunks and the end record begin."""
    data = packed()
    found = [i for i in range(len(data)) if data[i : i + 8] == b"\xc5chunk\r\n"]
    return data, [*found, data.index(b"\xc5final\r\n")]


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        (bad, where)
        for bad in (0, 1, 2)
        for where in ("mark", "length", "payload", "lost", "longer")
        if (bad, where) != (1, "payload")  # that chunk has none
    ],
)
def test_damage_is_confined_to_a_chunk(bad, where):
    data, at = places()
    begin, end = at[bad], at[bad + 1]
    damaged = bytearray(data)
    if where == "mark":
        damaged[begin] ^= 1
    elif where == "length":
        damaged[begin + 30] ^= 64
    elif where == "payload":
        damaged[end - 1] ^= 1
    elif where == "lost":
        del damaged[begin:end]
    else:
        damaged[begin + 20 : begin + 20] = b"\xc5chunk\r\n more"
    with pytest.raises(DamagedFile):
        read(bytes(damaged))
    missing, tell = told()
    found = read(bytes(damaged), damaged=tell)[1]
    expected = [chunk for number, chunk in enumerate(CHUNKS) if number != bad]
    assert len(found) == 2
    assert all(map(same, found, expected))
    lost = CHUNKS[bad]
    assert [images for images, _ in missing] == [range(lost.first, lost.first + lost.count)]
    assert all(isinstance(error, DamagedFile) for _, error in missing)


def test_a_file_that_was_cut_short_gives_what_is_there():
    data, at = places()
    for cut, whole in ((at[1] + 30, 1), (at[2], 2), (len(data) - 1, 3)):
        for total in (None, 12):
            missing, tell = told()
            found = read(data[:cut], damaged=tell, total=total)[1]
            assert len(found) == whole
            begin = sum(chunk.count for chunk in CHUNKS[:whole])
            assert [images for images, _ in missing] == [range(begin, total or begin)]


def test_a_chunk_that_comes_twice_counts_once():
    data, at = places()
    twice = data[: at[1]] + data[at[0] : at[1]] + data[at[1] :]
    with pytest.raises(DamagedFile, match="stands where chunk 1"):
        read(twice)
    missing, tell = told()
    assert [chunk.first for chunk in read(twice, damaged=tell)[1]] == [0, 5, 10]
    assert [images for images, _ in missing] == [range(5, 5)]


def test_hostile_frames_that_overlap_take_bounded_time():
    # Each frame is true, and claims all the rest of the file as its words: reading every one of them
    # to its end would be quadratic in the number of frames.
    count = 4000
    empty = Chunk(0, 1, np.zeros(0, np.uint32), bytes(16))
    data = packed(parts=[empty])
    at = data.index(b"\xc5chunk")
    key = data[at - 16 : at]
    frames = []
    for left in range(count, 0, -1):
        frame = b"\xc5chunk\r\n" + struct.pack("<QQIII", 0, 0, 1, 0, 25 * (left - 1)) + bytes(32)
        frames.append(frame + blake(frame, key))
    hostile = data[:at] + b"".join(frames)
    began = time.process_time()
    with pytest.raises(DamagedFile, match="too many places"):
        read(hostile, damaged=lambda images, error: None)
    assert time.process_time() - began < 2


# --- Fuzz


def mutations(data, rng):
    """Ways to damage a file, each named, without end."""
    size = len(data)
    extremes = [b"\xff" * 4, b"\xff" * 8, bytes(4), bytes(8), struct.pack("<I", 2**31)]
    while True:
        a, b = sorted((rng.randrange(size + 1), rng.randrange(size + 1)))
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            flipped[rng.randrange(size)] ^= 1 << rng.randrange(8)
        yield "flip", bytes(flipped)
        yield "cut", data[: rng.randrange(size)]
        yield "insert", data[:a] + rng.randbytes(rng.choice((1, 4, 100))) + data[a:]
        yield "delete", data[:a] + data[b:]
        yield "repeat", data[:b] + data[a:b] + data[b:]
        value = rng.choice(extremes)
        yield "extreme", data[:a] + value + data[a + len(value) :]
        yield "swap", data[b:] + data[:b]
        lie = rng.choice((rng.getrandbits(64), rng.getrandbits(32), rng.getrandbits(4)))
        field = rng.choice(("index", "first", "count", "names", "words"))
        wide = field in ("index", "first")
        yield "lie", packed(**{field: lie % (2**64 if wide else 2**32)})
        totals = [3, 12, 28]
        totals[rng.randrange(3)] = lie
        yield "end", packed(end=totals)
        yield (
            "header",
            packed(header_length=lie % 2**32, version=rng.choice((VERSION, VERSION, 0, 65535))),
        )


def test_fuzz():
    """10,400 damaged files: a named error each, and never anything that was not written."""
    data, rng = packed(), random.Random(0)
    known = {chunk.first: chunk for chunk in CHUNKS}
    count, errors, confined = 0, 0, 0
    for kind, damaged in itertools.islice(mutations(data, rng), 10_400):
        if damaged == data:
            continue
        count += 1
        try:
            read(damaged)
        except CodecError:
            errors += 1
        # With damage passed over: true chunks only, and every image is either there or missing. A
        # third of the files, of every kind.
        if count % 3:
            continue
        missing, tell = told()
        try:
            header, found = read(damaged, damaged=tell, total=12)
        except CodecError:
            continue
        confined += 1
        # A lie with a true checksum can call a chunk's images by other numbers, but not change it.
        if kind not in ("lie", "header"):
            assert header == HEADER
            assert all(same(chunk, known[chunk.first]) for chunk in found)
            assert missing
            there = {i for chunk in found for i in range(chunk.first, chunk.first + chunk.count)}
            gone = {i for images, _ in missing for i in images}
            assert there | gone == set(range(12))
            assert not there & gone
    assert count > 10_000
    assert errors == count
    assert confined > 2_000


def test_lengths_that_lie_allocate_nothing():
    lies = [packed(**{field: 2**32 - 1 - k}) for field in ("count", "names", "words") for k in (0, 2**31)]
    lies += [packed(words=MAX_WORDS), packed(names=2**22), packed(header_length=65536)]
    tracemalloc.start()
    for lie in lies:
        with pytest.raises(DamagedFile):
            read(lie)
        with contextlib.suppress(DamagedFile):
            read(lie, damaged=told()[1], total=12)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20, peak
