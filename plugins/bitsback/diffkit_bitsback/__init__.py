"""Lossless compression with diffkit models: bits-back coding with asymmetric numeral systems."""

import importlib
from typing import TYPE_CHECKING

from diffkit.typing import check_types

check_types("diffkit_bitsback")

from diffkit_bitsback.errors import CannotEncode as CannotEncode
from diffkit_bitsback.errors import CannotReproduce as CannotReproduce
from diffkit_bitsback.errors import CodecError as CodecError
from diffkit_bitsback.errors import DamagedData as DamagedData
from diffkit_bitsback.errors import DamagedFile as DamagedFile
from diffkit_bitsback.errors import NotACodecFile as NotACodecFile
from diffkit_bitsback.errors import WrongModel as WrongModel
from diffkit_bitsback.errors import WrongVersion as WrongVersion

if TYPE_CHECKING:
    from diffkit_bitsback.chain import Chain as Chain
    from diffkit_bitsback.chain import ChainStatistics as ChainStatistics
    from diffkit_bitsback.codec import Codec as Codec
    from diffkit_bitsback.codec import Decoded as Decoded
    from diffkit_bitsback.codec import Decoding as Decoding
    from diffkit_bitsback.codec import Header as Header
    from diffkit_bitsback.fingerprints import Fingerprint as Fingerprint
    from diffkit_bitsback.fingerprints import fingerprint as fingerprint

# Imported on first use: diffkit imports every plugin to find its parts, and this one has none.
_LAZY = {
    "Chain": "chain",
    "ChainStatistics": "chain",
    "Codec": "codec",
    "Decoded": "codec",
    "Decoding": "codec",
    "Header": "codec",
    "Fingerprint": "fingerprints",
    "fingerprint": "fingerprints",
}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f"diffkit_bitsback.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'diffkit_bitsback' has no attribute {name!r}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY} - {"TYPE_CHECKING", "importlib"})
