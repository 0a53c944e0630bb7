"""
The errors that a user can meet.

QplanError                     something about the request; exit code 2
├── InvalidConfigError         a config.json field is missing, of the wrong type or out of range
├── InvalidRecipeError         a knob has a value that it cannot have
│   └── UnsupportedRecipeError the real stack would refuse this combination
├── UnsupportedModelError      a family that this engine does not know
├── UnknownModelError          no bundled checkpoint, folder or file of that name
├── UnknownDeviceError         no such card in the catalogue
├── UnknownStackError          a --stack that names no package or version we can read
├── InvalidGridError           a grid's file that no sweep can be made from
├── InvalidOutputError         a file that cannot be written as asked
├── InvalidRecordError         a record of a verification that cannot be read
├── MeasurementError           a measurement died, hung, or trained nothing
├── InvalidArrayError          numbers that cannot be quantised as asked
└── UnavailableError           something that is needed is missing or unreachable; exit code 3
    ├── HubError               the Hugging Face Hub could not be reached, or it refused
    └── MissingExtraError      an optional dependency is not installed
"""

from __future__ import annotations


class QplanError(Exception):
    """
    Base of every error that is the request's, not the program's.

    Args:
        message: What was given and what it must be, in one sentence.
        hint: What to do about it; a command where there is one.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidConfigError(QplanError):
    """A config.json that no model can be built from."""


class InvalidRecipeError(QplanError):
    """A recipe with a value that it cannot have."""


class UnsupportedRecipeError(InvalidRecipeError):
    """A recipe that the real stack would refuse, with the library's reason."""


class UnsupportedModelError(QplanError):
    """A model family that the chosen engine does not know."""


class UnknownModelError(QplanError):
    """A model that is neither bundled, nor a folder, nor a file."""


class UnknownDeviceError(QplanError):
    """A card that the catalogue does not have."""


class UnknownStackError(QplanError):
    """A stack that cannot be read."""


class InvalidGridError(QplanError):
    """A grid's file that cannot be read, with the file and the key."""


class InvalidOutputError(QplanError):
    """A file that cannot be written as asked: its name's end, its folder, its rights."""


class InvalidRecordError(QplanError):
    """A record of a verification, or a file of them, that is not what it must be."""


class InvalidArrayError(QplanError):
    """Numbers that cannot be quantised as asked: not finite, of another type, or a grid that does not exist."""


class MeasurementError(QplanError):
    """A measurement that gave no number: its process died or hung, or its training step trained nothing."""


class UnavailableError(QplanError):
    """Something that is needed is missing or cannot be reached."""

    exit_code = 3


class HubError(UnavailableError):
    """The Hugging Face Hub could not be reached, or it refused."""


class MissingExtraError(UnavailableError):
    """An optional dependency is not installed."""
