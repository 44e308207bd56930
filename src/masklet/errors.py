"""Every exception that masklet raises on purpose.

    MaskletError
    ├── InputError (ValueError)        a picture, prompt or argument that cannot be used
    ├── CheckpointError                a model file that cannot be used
    │   ├── CorruptFileError           truncated, bit-flipped, or offsets that leave the file
    │   ├── UnsafeFileError            a pickle that asks for something outside the closed list
    │   ├── UnknownFormatError         not a model file that masklet reads, or a family it does not know
    │   └── TensorMismatchError        missing, extra or wrongly shaped tensors
    ├── ModelNotFoundError (LookupError)  no file and no published model of that name
    ├── DownloadError                  the network, the hub or the disk said no
    ├── DeviceError                    an execution provider that is not installed or does not start
    ├── MissingDependencyError (ImportError)  an optional package; the message carries the install line
    ├── EngineError                    ONNX Runtime failed; the message names stage and shapes
    ├── OutputError (OSError)          a result could not be written
    └── Cancelled                      the caller's cancel callback said stop

A message says what was got, what is allowed and what to do. Knows nothing about the rest of the package.
"""

from __future__ import annotations


class MaskletError(Exception):
    """Base of all errors that masklet raises on purpose."""


class InputError(MaskletError, ValueError):
    """A picture, prompt or argument that cannot be used."""


class CheckpointError(MaskletError):
    """A model file that cannot be used."""


class CorruptFileError(CheckpointError):
    """The file is truncated or damaged, or its offsets lead outside it."""


class UnsafeFileError(CheckpointError):
    """The pickle in the file asks for a global outside the closed list. Nothing was executed."""


class UnknownFormatError(CheckpointError):
    """Not a model file that masklet reads, or tensors of a family that it does not know."""


class TensorMismatchError(CheckpointError):
    """Tensors are missing, left over, or of another shape than the recognised model needs."""


class ModelNotFoundError(MaskletError, LookupError):
    """Neither a file nor the name of a published model."""


class DownloadError(MaskletError):
    """A download could not be finished; what is already there stays and is resumed."""


class DeviceError(MaskletError):
    """An execution provider is not installed, not known, or does not start."""


class MissingDependencyError(MaskletError, ImportError):
    """An optional package is needed; the message carries the exact install line."""


class EngineError(MaskletError):
    """ONNX Runtime failed while building or running a stage."""


class OutputError(MaskletError, OSError):
    """A result could not be written; nothing half-written was left behind."""


class Cancelled(MaskletError):
    """The caller's cancel callback asked to stop."""
