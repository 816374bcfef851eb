"""Lossless compression with diffkit models: bits-back coding with asymmetric numeral systems."""

from diffkit.typing import check_types

check_types("diffkit_bitsback")

from diffkit_bitsback.chain import Chain as Chain
from diffkit_bitsback.chain import ChainStatistics as ChainStatistics
from diffkit_bitsback.codec import Codec as Codec
from diffkit_bitsback.codec import Decoded as Decoded
from diffkit_bitsback.codec import Decoding as Decoding
from diffkit_bitsback.codec import Header as Header
from diffkit_bitsback.errors import CannotEncode as CannotEncode
from diffkit_bitsback.errors import CannotReproduce as CannotReproduce
from diffkit_bitsback.errors import CodecError as CodecError
from diffkit_bitsback.errors import DamagedData as DamagedData
from diffkit_bitsback.errors import DamagedFile as DamagedFile
from diffkit_bitsback.errors import NotACodecFile as NotACodecFile
from diffkit_bitsback.errors import WrongModel as WrongModel
from diffkit_bitsback.errors import WrongVersion as WrongVersion
from diffkit_bitsback.fingerprint import Fingerprint as Fingerprint
from diffkit_bitsback.fingerprint import fingerprint as fingerprint
