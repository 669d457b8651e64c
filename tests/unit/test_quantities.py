from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_kernels.quantities import parse


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", "0"),
        ("2", "2"),
        ("+2", "2"),
        ("-1", "-1"),
        ("0.5", "0.5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("100m", "0.1"),
        ("1500m", "1.5"),
        ("3u", "0.000003"),
        ("3n", "0.000000003"),
        ("1k", "1000"),
        ("1M", "1000000"),
        ("1G", "1000000000"),
        ("1T", "1000000000000"),
        ("1P", "1000000000000000"),
        ("1E", "1000000000000000000"),
        ("1Ki", "1024"),
        ("2Gi", "2147483648"),
        ("1.5Gi", "1610612736"),
        ("1Ei", "1152921504606846976"),
        ("1e3", "1000"),
        ("1E3", "1000"),
        ("12e-1", "1.2"),
    ],
)
def test_a_quantity_is_a_number(text: str, number: str) -> None:
    assert parse(text) == Decimal(number)


@pytest.mark.parametrize(
    "text", ["", "16GG", "2 Gi", " 2", "2\n", "Gi", "1K", "1ki", "1mi", "--1", "1.2.3", "1e", "1e+", "١", "NaN", "inf", "0x10", "1e9999"]
)
def test_what_is_none_says_so(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse(text)


@given(st.integers(min_value=0, max_value=10**12))
def test_milli_is_a_thousandth(number: int) -> None:
    assert parse(f"{number}m") * 1000 == parse(str(number))
