"""What can go wrong when images are coded and decoded: one class for each thing to do about it.

All are `ValueError`s and all derive from `CodecError`, so `except CodecError` catches them together.
"""


class CodecError(ValueError):
    """Images that cannot be coded, or a file that cannot be decoded: the base of the errors here."""


class CannotEncode(CodecError):
    """Images or a model that the codec does not take: of another shape, levels or process."""


class NotACodecFile(CodecError):
    """The file does not begin as a file of this codec: it is something else."""


class WrongVersion(CodecError):
    """The file's format is of a version that this code does not read."""


class WrongModel(CodecError):
    """The file was written with another model: only the model that wrote it can read it."""


class CannotReproduce(CodecError):
    """This machine's network does not give the floats that the file was written with.

    Another version of jax or another kind of device rounds differently, and one different bit in a
    mean is enough: everything decoded after it would be noise.
    """


class DamagedFile(CodecError):
    """The file's frame is damaged: cut short, changed, or with lengths that cannot be true."""


class DamagedData(DamagedFile):
    """The coded words of a chunk do not decode: what they hold is not what was written."""
