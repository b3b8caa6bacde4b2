"""Every error that a user can cause, as one sentence each: what is wrong, the value, what to do.

    PixedgeError            anything below; the command line prints it and exits with 1
    ├── UsageError          a wrong argument or option value; exits with 2
    ├── CheckpointError     a checkpoint that cannot be read, or is not what it claims to be
    ├── ConfigError         an architecture that pixedge does not support
    ├── ExportError         an export that cannot start, go on or be accepted
    ├── ArtifactError       an exported folder that is missing, incomplete or altered
    ├── CalibrationError    calibration data that cannot be used
    ├── ImageError          a picture that cannot be used
    ├── MessageError        a conversation that the model's template does not allow
    ├── CapacityError       a request that does not fit: context, memory, disk
    └── OutputError         an output stream that cannot be written

Programming mistakes are asserts or built-in exceptions and keep their traceback.
"""


class PixedgeError(Exception):
    """Base of all errors whose text is meant for a person."""

    exit_code = 1


class UsageError(PixedgeError):
    """A wrong argument or option value."""

    exit_code = 2


class CheckpointError(PixedgeError):
    """A checkpoint that cannot be read, or is not what it claims to be."""


class ConfigError(PixedgeError):
    """An architecture that pixedge does not support."""


class ExportError(PixedgeError):
    """An export that cannot start, go on or be accepted."""


class ArtifactError(PixedgeError):
    """An exported folder that is missing, incomplete or altered."""


class CalibrationError(PixedgeError):
    """Calibration data that cannot be used."""


class ImageError(PixedgeError):
    """A picture that cannot be used."""


class MessageError(PixedgeError):
    """A conversation that the model's template does not allow."""


class CapacityError(PixedgeError):
    """A request that does not fit: context, memory, disk."""


class OutputError(PixedgeError):
    """An output stream that cannot be written."""


class MemoryFullError(CapacityError):
    """An allocation that failed under way: other programs, or other requests, have the memory."""
