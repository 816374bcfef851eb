"""Lossless compression with diffkit models: bits-back coding with asymmetric numeral systems."""

from typing import TYPE_CHECKING

from diffkit.lazy import lazy_imports
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

# Imported when first asked for: diffkit imports every plugin to see its parts, and this one has none.
if TYPE_CHECKING:
    from diffkit_bitsback.chain import Chain as Chain
    from diffkit_bitsback.chain import ChainStatistics as ChainStatistics
    from diffkit_bitsback.codec import Codec as Codec
    from diffkit_bitsback.codec import Decoded as Decoded
    from diffkit_bitsback.codec import Decoding as Decoding
    from diffkit_bitsback.codec import Header as Header
    from diffkit_bitsback.fingerprints import Fingerprint as Fingerprint
    from diffkit_bitsback.fingerprints import fingerprint as fingerprint

__getattr__, __dir__ = lazy_imports(__name__)
