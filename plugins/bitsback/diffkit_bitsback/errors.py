"""The errors of coding and decoding: one class for each remedy. `except CodecError` catches them all."""


class CodecError(ValueError):
    """The base class: images that cannot be coded, or a file that cannot be decoded."""


class CannotEncode(CodecError):
    """The codec does not support these images or this model: wrong shape, levels or process."""


class NotACodecFile(CodecError):
    """The file does not begin like a file of this codec."""


class WrongVersion(CodecError):
    """The file has a version of the format that this code does not read."""


class WrongModel(CodecError):
    """The file was written with another model; only that model can read it."""


class CannotReproduce(CodecError):
    """The network rounds differently on this machine: a different bit in a mean turns the rest to noise."""


class DamagedFile(CodecError):
    """The file's frame is damaged: truncated, changed, or with impossible lengths."""


class DamagedData(DamagedFile):
    """The coded words of a chunk do not decode: they are not those that were written."""
