"""CIFAR-10 in its two published forms (Krizhevsky, 2009).

The *binary version* is six files of records of 3,073 bytes: a label, and an image as three planes of 32 x
32 bytes. The *python version* is six pickles, each a dictionary with the images of one file as an array
`(n, 3072)` under `data`. A pickle is a program, and can run any other. Here it is not run but read: its
opcodes for plain values are followed, the few names in a pickled NumPy array become inert records, every
other name and opcode is refused, and the array is made from the record's bytes.
"""

import os
import pickletools
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import UInt8

from diffkit.data.arrays import ArraySource
from diffkit.data.base import AbstractDataset
from diffkit.data.conditions import LabelledSource
from diffkit.data.reading import check_memory, existing_folder
from diffkit.registry import register

_PIXELS: Final = 3 * 32 * 32
_CLASSES: Final = 10
_TRAIN: Final = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST: Final = ("test_batch",)
_NUMPY: Final = frozenset(("_reconstruct", "_frombuffer", "ndarray", "dtype"))
_MODULES: Final = frozenset(
    ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric",
     "numpy._core.numeric")
)  # fmt: skip


@register("data", "cifar10")
class Cifar10(AbstractDataset):
    """CIFAR-10: 50,000 images `(3, 32, 32)` of 256 levels to train on, 10,000 to test on."""

    def __init__(self, path: str | os.PathLike[str], labels: bool = False):
        """**Arguments:** `path`: the folder `cifar-10-batches-bin` or `cifar-10-batches-py`, or its parent;
        `labels`: whether an image comes with its class, one of 10.

        **Raises:** `FileNotFoundError` if the folder or one of the six files is missing;
        `ValueError` for a damaged file or another format.
        """
        top = existing_folder(path, "Cifar10", "the folder cifar-10-batches-bin or cifar-10-batches-py")
        folder, ending = _find(top)
        names = [name + ending for name in _TRAIN + _TEST]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"Cifar10: {str(folder)!r} must hold {', '.join(names)}; missing: {', '.join(missing)}."
            )
        read = _read_binary if ending else _read_pickle
        images, classes = zip(*(read(folder / name, labels) for name in names), strict=True)
        self.train, self.test = ArraySource(np.concatenate(images[:-1])), ArraySource(images[-1])
        if labels:
            self.train = LabelledSource(self.train, np.concatenate(classes[:-1]), _CLASSES)
            self.test = LabelledSource(self.test, classes[-1], _CLASSES)
        self.levels, self.shape = 256, (3, 32, 32)


def _find(top: Path) -> tuple[Path, str]:
    """The folder with at least one of the files, and the ending of their names."""
    for folder in (top, top / "cifar-10-batches-bin", top / "cifar-10-batches-py"):
        for ending in (".bin", ""):
            if any((folder / (name + ending)).is_file() for name in _TRAIN + _TEST):
                return folder, ending
    raise FileNotFoundError(
        f"Cifar10: path={str(top)!r} must hold data_batch_1.bin ... test_batch.bin (the binary version) or "
        "data_batch_1 ... test_batch (the python version), got neither."
    )


_Labelled = tuple[UInt8[np.ndarray, "n 3 32 32"], UInt8[np.ndarray, " n"]]


def _read_binary(file: Path, labels: bool) -> _Labelled:
    del labels  # which are read and checked anyway
    size = file.stat().st_size
    if size == 0 or size % (1 + _PIXELS):
        raise ValueError(
            f"Cifar10: the size of {str(file)!r} must be a multiple of {1 + _PIXELS} bytes, "
            f"got {size}; the file is truncated or is not of CIFAR-10's binary version."
        )
    check_memory(2 * size, file, "Cifar10")
    content = np.fromfile(file, np.uint8)
    records = content.reshape(-1, 1 + _PIXELS)
    if records[:, 0].max() >= _CLASSES:
        raise ValueError(
            f"Cifar10: the labels in {str(file)!r} must be from 0 to 9, got {records[:, 0].max()}; "
            "the file is damaged or is not of CIFAR-10's binary version."
        )
    images = np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32)
    return images, np.ascontiguousarray(records[:, 0])


class _Name(NamedTuple):
    """A name that a pickle refers to; it stands for nothing."""

    name: str


class _Record:
    """A call requested by a pickle, its arguments, and the state that it sets; nothing is called."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...]):
        self.name, self.args = name, args
        self.state: Any = None


_MARK: Final = object()
_LITERALS: Final = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE",
     "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
     "BYTEARRAY8")
)  # fmt: skip
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def _named(module: str, name: str) -> _Name:
    if (module in _MODULES and name in _NUMPY) or (module, name) == ("_codecs", "encode"):
        return _Name(name)
    raise ValueError(f"it refers to {module}.{name}, which is refused")


def _called(name: Any, args: Any) -> Any:
    """What stands for a call; Python 3 writes bytes into an old form of pickle as text, to be encoded."""
    if not isinstance(name, _Name) or not isinstance(args, tuple):
        raise ValueError("it calls what is not a name")
    if name.name != "encode":
        return _Record(name.name, args)
    text, codec = args
    if codec not in ("latin1", b"latin1") or not isinstance(text, str):
        raise ValueError(f"it asks for the encoding {codec!r}, which is refused")
    return text.encode("latin1")


def _read_values(content: bytes) -> Any:
    """What a pickle describes, of plain values, names and records of calls."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        place = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
        values = stack[place + 1 :]
        del stack[place:]
        return values

    def insert(pairs: list[Any]) -> None:
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | bytes | int) or not isinstance(stack[-1], dict):
                raise ValueError("it has a dictionary with keys of other types than text and integers")
            stack[-1][key] = value

    def extend(values: list[Any]) -> None:
        if not isinstance(stack[-1], list):
            raise ValueError("it appends to what is not a list")
        stack[-1].extend(values)

    for code, argument, _ in pickletools.genops(content):
        match code.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                break
            case "MARK":
                stack.append(_MARK)
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING":
                assert isinstance(argument, str)
                stack.append(argument.encode("latin1"))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "LIST":
                stack.append(since_mark())
            case "DICT":
                pairs = since_mark()
                stack.append({})
                insert(pairs)
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                count = int(name[-1])
                values = tuple(stack[-count:])
                del stack[-count:]
                stack.append(values)
            case "APPEND":
                value = stack.pop()
                extend([value])
            case "APPENDS":
                extend(since_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                insert([key, value])
            case "SETITEMS":
                insert(since_mark())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                assert isinstance(argument, int)
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                assert isinstance(argument, int)
                stack.append(memo[argument])
            case "GLOBAL":
                assert isinstance(argument, str)
                stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_named(module, name))
            case "REDUCE":
                args, called = stack.pop(), stack.pop()
                stack.append(_called(called, args))
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], _Record):
                    raise ValueError("it sets the state of what is not an array")
                stack[-1].state = state
            case other:
                raise ValueError(f"it has the opcode {other}, which is refused")
    return stack.pop()


def _read_pickle(file: Path, labels: bool) -> _Labelled:
    check_memory(3 * file.stat().st_size, file, "Cifar10")
    try:
        batch = _read_values(file.read_bytes())
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(
            f"Cifar10: {str(file)!r} cannot be read as a batch of CIFAR-10's python version: {error}"
        ) from error
    data = batch.get(b"data", batch.get("data")) if isinstance(batch, dict) else None
    images = _array(data)
    if images is None:
        raise ValueError(
            f"Cifar10: {str(file)!r} must be a dictionary with a uint8 array (n, {_PIXELS}) as 'data'."
        )
    given = batch.get(b"labels", batch.get("labels")) if labels else [0] * len(images)
    if (
        not isinstance(given, list)
        or len(given) != len(images)
        or any(type(label) is not int or not 0 <= label < _CLASSES for label in given)
    ):
        raise ValueError(
            f"Cifar10: {str(file)!r} must have a list of {len(images)} integers from 0 to "
            f"{_CLASSES - 1} under 'labels', and has not."
        )
    return images, np.asarray(given, np.uint8)


def _array(data: Any) -> UInt8[np.ndarray, "n 3 32 32"] | None:
    """The images in the record of a pickled array; `None` if it is anything else."""
    if not isinstance(data, _Record):
        return None
    if data.name == "_reconstruct" and isinstance(data.state, tuple) and len(data.state) == 5:
        _, shape, dtype, fortran, content = data.state
    elif data.name == "_frombuffer" and len(data.args) == 4:
        content, dtype, shape, order = data.args
        fortran = order in ("F", b"F")
    else:
        return None
    if not isinstance(dtype, _Record) or dtype.args[:1] not in (("u1",), (b"u1",)):
        return None
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] != _PIXELS:
        return None
    if type(shape[0]) is not int or shape[0] < 1:
        return None
    held = isinstance(content, bytes | bytearray) and len(content)
    if not held or held != shape[0] * _PIXELS:
        return None
    flat = np.frombuffer(bytearray(content), np.uint8)
    return flat.reshape(shape, order="F" if fortran else "C").reshape(-1, 3, 32, 32)
