"""Number formats and their sizes, by the short names that the command line uses."""

from __future__ import annotations

from enum import Enum

_NUM_BYTES = {"fp64": 8, "complex64": 8, "int64": 8, "fp32": 4, "int32": 4, "fp16": 2, "bf16": 2, "int8": 1, "uint8": 1, "bool": 1}
_LONG_NAMES = {"float32": "fp32", "float": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16", "float64": "fp64"}


class DType(str, Enum):
    """
    A tensor's element type.

    >>> DType.parse("bfloat16").num_bytes
    2
    """

    num_bytes: int
    is_half: bool

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP64 = "fp64"
    COMPLEX64 = "complex64"
    INT64 = "int64"
    INT32 = "int32"
    INT8 = "int8"
    UINT8 = "uint8"
    BOOL = "bool"

    def __new__(cls, value: str) -> DType:  # noqa: PYI034, D102 - an enum makes its members here
        member = str.__new__(cls, value)
        member._value_ = value
        member.num_bytes = _NUM_BYTES[value]
        member.is_half = value in ("fp16", "bf16")
        return member

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def parse(cls, name: str) -> DType:
        """
        The type that a config.json or a user names: `bf16`, `bfloat16`, `torch.bfloat16`.

        Raises:
            ValueError: No type has that name.
        """
        return cls(_LONG_NAMES.get(name.removeprefix("torch."), name.removeprefix("torch.")))


def promote(a: DType, b: DType) -> DType:
    """
    The type of `a + b` for two floating-point tensors, as PyTorch promotes them.

    Source:
        torch.promote_types: two different half types meet in fp32.
    """
    if a is b:
        return a
    return DType.FP64 if DType.FP64 in (a, b) else DType.FP32
