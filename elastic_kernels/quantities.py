"""Kubernetes quantities ("100m", "2Gi") as exact numbers.

The grammar is that of `resource.Quantity` in the Kubernetes API reference: a signed decimal number, then one binary suffix,
one decimal suffix, or a decimal exponent.
"""

from __future__ import annotations

import re
from decimal import Decimal

_BINARY = {suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)}
_DECIMAL = {suffix: Decimal(10) ** power for suffix, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)}
_FACTORS = {"": Decimal(1), **_BINARY, **_DECIMAL}

_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:[eE](?P<exponent>[+-]?[0-9]{1,3})|(?P<suffix>[A-Za-z]{0,2}))", re.ASCII
)


def parse(text: str) -> Decimal:
    """Return the number that a quantity stands for, in its base unit: cores for CPU, bytes for memory, pieces for devices.

    >>> parse("100m"), parse("2Gi"), parse("1e3")
    (Decimal('0.100'), Decimal('2147483648'), Decimal('1E+3'))

    Raises ValueError, whose text is one plain sentence, when the text is no quantity. A negative quantity is one: whether it
    makes sense is for the caller to say.
    """
    match = _QUANTITY.fullmatch(text)
    suffix = (match["suffix"] or "") if match else None
    if match is None or suffix not in _FACTORS:
        raise ValueError(f"'{text}' is not a quantity: write a number with one suffix at most, like 500m, 2, 512Mi or 2Gi")
    number = Decimal(match["number"])
    return number.scaleb(int(match["exponent"])) if match["exponent"] else number * _FACTORS[suffix]
