# SPDX-License-Identifier: Apache-2.0
"""Exceptions: one class for each status code of the library, all of them `Error`."""


class Error(Exception):
    """What mixgemm raises: the library's sentence, which names the rule and the value.

    `code` is the status code's name, e.g. "invalid_argument".
    """

    code = "internal"


class InvalidArgumentError(Error, ValueError):
    """A value breaks a documented rule."""

    code = "invalid_argument"


class UnsupportedError(Error, NotImplementedError):
    """Legal, but not in this build or on this machine."""

    code = "unsupported"


class NotFoundError(Error, LookupError):
    """No such file, tensor, layer or kernel."""

    code = "not_found"


class IoError(Error, OSError):
    """The operating system refused to read or write."""

    code = "io_error"


class CorruptDataError(Error, ValueError):
    """A file contradicts itself: checksum, offsets, shapes."""

    code = "corrupt_data"


class VersionMismatchError(Error):
    """Written by a format version that this library does not read."""

    code = "version_mismatch"


class OutOfMemoryError(Error, MemoryError):
    """Memory, of the machine or of the device, is used up."""

    code = "out_of_memory"


class DeviceError(Error):
    """CUDA reported an error."""

    code = "device_error"


class InternalError(Error):
    """A bug in mixgemm; please report it."""


_CLASSES = {c.code: c for c in (InvalidArgumentError, UnsupportedError, NotFoundError, IoError,
                                CorruptDataError, VersionMismatchError, OutOfMemoryError,
                                DeviceError, InternalError)}


def error_for(code: str, message: str) -> Error:
    """The exception for a status code's name; the extension calls it."""
    return _CLASSES.get(code, InternalError)(message)
