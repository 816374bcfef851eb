r"""The file format: a header, chunks and an end record, all checked before use.

All numbers are little-endian. A digest is BLAKE2b, 16 bytes; *keyed* means keyed with the digest of the
header, so that a frame of another file is not mistaken for one of this file.

    file    = magic (8)  version (2)  length (4)  header (length)  digest of all that (16)
              chunk ...  end
    chunk   = mark (8)  index (8)  first image (8)  images (4)  bytes of names (4)  words (4)
              digest of the images (16)  digest of names and words (16)  keyed digest of all that (16)
              names  words (4 each)
    end     = mark (8)  chunks (8)  images (8)  words (8)  keyed digest of the digests of all frames (16)
              keyed digest of all that (16)

The header is canonical JSON: keys sorted, no spaces, ASCII. The codec decides its contents. The names of a
chunk, if any, are a JSON list with one string per image.

A chunk can be read without those before it, and its frame says which images it holds. To skip damage, the
reader looks for the next mark that begins a frame with a valid digest. A file without its end record is
truncated. Lengths are checked against limits and the rest of the file before any allocation. The digests
detect damage, not forgery: anyone can compute them.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any, Final

import numpy as np
from jaxtyping import UInt32

from diffkit_bitsback.errors import CodecError, DamagedFile, NotACodecFile, WrongVersion

MAGIC: Final = b"\x8bdkbb\r\n\x1a"
VERSION: Final = 2

# Limits of readers and writers. A chunk holds at most 1 GiB of words.
MAX_HEADER: Final = 2**16
MAX_NAMES: Final = 2**22
MAX_WORDS: Final = 2**28
MAX_IMAGES: Final = 2**48

_CHUNK_MARK: Final = b"\xc5chunk\r\n"
_END_MARK: Final = b"\xc5final\r\n"
_DIGEST: Final = 16
_START: Final = struct.Struct("<8sHI")
_FRAME: Final = struct.Struct("<8sQQIII16s16s")
_END: Final = struct.Struct("<8sQQQ16s")
_ANY_MARK: Final = re.compile(b"|".join(map(re.escape, (_CHUNK_MARK, _END_MARK))))

Damaged = Callable[[range, CodecError], None]
"""Called for skipped damage: the missing images, and the reason."""


def digest(*parts: bytes | memoryview, key: bytes = b"") -> bytes:
    """BLAKE2b of the concatenated parts, 16 bytes; keyed if `key` has any of up to 64 bytes."""
    hasher = hashlib.blake2b(digest_size=_DIGEST, key=key)
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def canonical(value: Any) -> bytes:
    """JSON, one text for one value.

    **Raises:** `ValueError` for values JSON cannot hold, including NaN and infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def packed_names(names: Sequence[str]) -> bytes:
    """The names of a chunk's images, as stored.

    **Raises:** `ValueError` if they are too long.
    """
    packed = canonical(names) if names else b""
    if len(packed) > MAX_NAMES:
        raise ValueError(f"names must have {MAX_NAMES} bytes in a chunk at most, got {len(packed)}.")
    return packed


@dataclass(frozen=True)
class Chunk:
    """Some consecutive images, coded.

    **Attributes:** `first`: the index of the first one in the file; `count`: their number; `words`: their
    code; `images_digest`: 16 bytes, to check decoded images; `names`: one for each image, or none.
    """

    first: int
    count: int
    words: UInt32[np.ndarray, " words"]
    images_digest: bytes
    names: tuple[str, ...] = ()


class Writer:
    """Writes a file chunk by chunk, keeping nothing in memory.

    **Arguments:** `file`: open for writing in binary; `header`: values JSON can hold.

    **Raises:** `ValueError` for a header that is too large or that JSON cannot hold.
    """

    def __init__(self, file: BufferedIOBase, header: Mapping[str, Any]):
        text = canonical(dict(header))
        if len(text) > MAX_HEADER:
            raise ValueError(f"header must have {MAX_HEADER} bytes at most, got {len(text)}.")
        start = _START.pack(MAGIC, VERSION, len(text)) + text
        self._file = file
        self._key = digest(start)
        self._seals = hashlib.blake2b(digest_size=_DIGEST, key=self._key)
        self._chunks = self._words = 0
        self.images = 0
        self.bytes_written = self._put(start, self._key)

    def write(self, chunk: Chunk) -> None:
        """Write the next chunk.

        **Raises:** `ValueError` for a chunk out of order, without images, with a wrong number of names, or
        too large.
        """
        if chunk.first != self.images or not 1 <= chunk.count < 2**32:
            got = f"first={chunk.first}, count={chunk.count}"
            raise ValueError(
                f"chunk must begin with image {self.images} and hold one image or more, got {got}."
            )
        if chunk.names and len(chunk.names) != chunk.count:
            raise ValueError(f"names must be none or {chunk.count}, got {len(chunk.names)}.")
        names = packed_names(chunk.names)
        if chunk.words.size > MAX_WORDS:
            raise ValueError(f"chunk must have {MAX_WORDS} words at most, got {chunk.words.size}.")
        words = chunk.words.astype("<u4").tobytes()
        numbers = self._chunks, chunk.first, chunk.count, len(names), chunk.words.size
        frame = _FRAME.pack(_CHUNK_MARK, *numbers, chunk.images_digest, digest(names, words))
        seal = digest(frame, key=self._key)
        self._seals.update(seal)
        self.bytes_written += self._put(frame, seal, names, words)
        self._chunks += 1
        self._words += chunk.words.size
        self.images += chunk.count

    def close(self) -> None:
        """Write the end record; the file itself stays open."""
        end = _END.pack(_END_MARK, self._chunks, self.images, self._words, self._seals.digest())
        self.bytes_written += self._put(end, digest(end, key=self._key))

    def _put(self, *parts: bytes) -> int:
        for part in parts:
            self._file.write(part)
        return sum(map(len, parts))


class Reader:
    """Reads a file from `Writer`, or reports what is wrong with it.

    **Arguments:** `file`: open for reading in binary, seekable, at the start of the data, which end it.

    **Attributes:** `header`: as given to `Writer`.

    **Raises:** `NotACodecFile` for any other file; `WrongVersion`; `DamagedFile` for a damaged header.
    """

    def __init__(self, file: BufferedIOBase):
        begin = file.tell()
        self._file = file
        self._size = file.seek(0, 2)
        file.seek(begin)
        magic = file.read(len(MAGIC))
        if magic != MAGIC:
            if magic and MAGIC.startswith(magic):
                raise DamagedFile(f"the file is cut short: it ends after {len(magic)} bytes.")
            raise NotACodecFile(
                "this is not a file that 'diffkit compress' or diffkit_bitsback.Codec wrote: it "
                f"{f'begins with {magic!r}' if magic else 'is empty'}."
            )
        rest = self._take(_START.size - len(MAGIC), "the header")
        _, version, length = _START.unpack(magic + rest)
        if version != VERSION:
            raise WrongVersion(
                f"the file's format has version {version}, this code reads version {VERSION}: "
                "read it with the release of diffkit-bitsback that wrote it."
            )
        if length > MAX_HEADER:
            raise DamagedFile(f"the header must have {MAX_HEADER} bytes at most, got {length}.")
        text = self._take(length, "the header")
        self._key = self._take(_DIGEST, "the header")
        if digest(magic, rest, text) != self._key:
            raise DamagedFile("the header is damaged: its checksum does not fit.")
        self.header: dict[str, Any] = _json(text, "the header")
        if not isinstance(self.header, dict):
            raise DamagedFile(f"the header must be a mapping, got {type(self.header).__name__}.")
        self._body = file.tell()

    def chunks(
        self, *, most: int, total: int | None = None, damaged: Damaged | None = None
    ) -> Iterator[Chunk]:
        """The chunks in order, each checked as a whole; can be repeated.

        **Arguments:** `most`: the most images of a chunk; `total`: the number of images in all, if known;
        `damaged`: if given, damage is skipped and reported to it, otherwise it is an error.

        **Raises:** `DamagedFile`. With `damaged` only if there is so much damage that continuing would take
        more than a few times the time of reading the file.
        """
        seals = hashlib.blake2b(digest_size=_DIGEST, key=self._key)
        here, index, expected, words, read = self._body, 0, 0, 0, 0
        whole = True  # nothing skipped so far
        gap: DamagedFile | None = None  # what is wrong with the bytes since the last good chunk
        while True:
            self._file.seek(here)
            try:
                found = self._next(most)
                if isinstance(found, _End):
                    break
                if (found.index, found.first) != (index, expected):
                    error = DamagedFile(
                        f"chunk {found.index}, with images from {found.first}, stands where chunk "
                        f"{index}, with images from {expected}, should."
                    )
                    # Those between are lost. A chunk from an earlier place is skipped.
                    if damaged is None or found.index < index or found.first < expected:
                        raise error
                    gap = gap or error
                read += found.payload
                names, payload = self._payload(found)
            except DamagedFile as error:
                if damaged is None:
                    raise
                gap, whole = gap or error, False
                # Malicious frames may overlap, each with the rest of the file as its payload.
                if read > 4 * self._size:
                    raise DamagedFile("the file is damaged in too many places.") from error
                here = self._next_mark(here + 1)
                if here is None:
                    damaged(range(expected, max(expected, total or 0)), gap)
                    return
                continue
            here = self._file.tell()
            if gap is not None and damaged is not None:
                damaged(range(expected, found.first), gap)
                gap, whole = None, False
            seals.update(found.seal)
            index, expected, words = found.index + 1, found.first + found.count, words + found.words
            yield Chunk(found.first, found.count, payload, found.images_digest, names)
        trailing = self._size - (here + _END.size + _DIGEST)
        told = (found.chunks, found.images, found.words, found.seals)
        if whole and told != (index, expected, words, seals.digest()):
            gap = DamagedFile(
                f"the end record says {found.chunks} chunks, {found.images} images and "
                f"{found.words} words; read were {index}, {expected} and {words}."
            )
        elif total is not None and found.images != total:
            gap = gap or DamagedFile(f"the file must hold {total} images, got {found.images}.")
        elif trailing:
            gap = gap or DamagedFile(f"{trailing} bytes follow the end record.")
        if gap is not None:
            if damaged is None:
                raise gap
            damaged(range(expected, max(expected, found.images if total is None else total)), gap)

    def _next(self, most: int) -> "_Frame | _End":
        """The frame or end record that begins here."""
        begin = self._file.tell()
        mark = self._take(len(_CHUNK_MARK), "the next chunk, or the end record,")
        if mark not in (_CHUNK_MARK, _END_MARK):
            raise DamagedFile(f"neither a chunk nor the end record begins at byte {begin}.")
        is_end = mark == _END_MARK
        what, layout = ("the end record", _END) if is_end else ("a chunk's frame", _FRAME)
        raw = mark + self._take(layout.size - len(mark), what)
        seal = self._take(_DIGEST, what)
        if digest(raw, key=self._key) != seal:
            raise DamagedFile(f"{what} is damaged: its checksum does not fit.")
        if is_end:
            end = _End(raw)
            if end.images > MAX_IMAGES:
                raise DamagedFile(f"a file has {MAX_IMAGES} images at most, got {end.images}.")
            return end
        frame = _Frame(raw, seal)
        if not 1 <= frame.count <= most or frame.first + frame.count > MAX_IMAGES:
            got = f"{frame.count} from {frame.first} on"
            raise DamagedFile(f"a chunk must have 1 to {most} images of {MAX_IMAGES}, got {got}.")
        if frame.words > MAX_WORDS or frame.names > MAX_NAMES:
            raise DamagedFile(
                f"a chunk must have {MAX_WORDS} words and {MAX_NAMES} bytes of names at most, got "
                f"{frame.words} and {frame.names}."
            )
        return frame

    def _payload(self, frame: "_Frame") -> tuple[tuple[str, ...], UInt32[np.ndarray, " words"]]:
        what = f"chunk {frame.index}"
        payload = self._take(frame.payload, what)
        if digest(payload) != frame.payload_digest:
            raise DamagedFile(f"{what} is damaged: its checksum does not fit.")
        words = np.frombuffer(payload, "<u4", offset=frame.names, count=frame.words)
        return _names(payload[: frame.names], frame.count), words.astype(np.uint32)

    def _next_mark(self, start: int) -> int | None:
        """Where the next frame or end record with a valid digest begins."""
        length = 2**12  # then more: a near mark needs little reading
        overlap = len(_CHUNK_MARK) - 1
        while start < self._size:
            self._file.seek(start)
            piece = self._file.read(length + overlap)
            for match in _ANY_MARK.finditer(piece):
                if self._is_true(start + match.start(), match.group()):
                    return start + match.start()
            start, length = start + length, min(2 * length, 2**20)
        return None

    def _is_true(self, place: int, mark: bytes) -> bool:
        self._file.seek(place)
        raw = self._file.read(_END.size if mark == _END_MARK else _FRAME.size)
        return digest(raw, key=self._key) == self._file.read(_DIGEST)

    def _take(self, length: int, what: str) -> bytes:
        left = self._size - self._file.tell()
        if length > left:
            short = "the file is cut short, or a length in it is wrong"
            raise DamagedFile(f"{short}: {what} needs {length} bytes, {left} are left.")
        taken = self._file.read(length)
        if len(taken) != length:
            raise DamagedFile(f"the file shrank while it was read: {what} is missing.")
        return taken


class _Frame:
    def __init__(self, raw: bytes, seal: bytes):
        _, self.index, self.first, self.count, self.names, self.words, *digests = _FRAME.unpack(raw)
        self.images_digest, self.payload_digest = digests
        self.seal, self.payload = seal, self.names + 4 * self.words


class _End:
    def __init__(self, raw: bytes):
        _, self.chunks, self.images, self.words, self.seals = _END.unpack(raw)


def _json(text: bytes, what: str) -> Any:
    try:
        value = json.loads(text.decode("ascii"))
        same = canonical(value) == text  # which refuses NaN and infinity
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{what} cannot be read: {error}") from error
    if not same:
        raise DamagedFile(f"{what} must be canonical JSON, got {text[:60]!r}.")
    return value


def _names(text: bytes, count: int) -> tuple[str, ...]:
    if not text:
        return ()
    names = _json(text, "the names of a chunk")
    if not (isinstance(names, list) and list(map(type, names)) == count * [str]):
        raise DamagedFile(f"the names of a chunk of {count} images must be {count} strings.")
    return tuple(names)
