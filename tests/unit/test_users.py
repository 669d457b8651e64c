"""The kernels of a process, found by their user."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from elastic_kernels.gateway.users import KernelsByUser
from elastic_kernels.identity import User


def kernel(name: str | None) -> SimpleNamespace:
    return SimpleNamespace(user=User(name) if name else None)


def test_each_user_has_their_own_and_nobodys() -> None:
    kernels = KernelsByUser()
    for kernel_id, name in {"1": "ana", "2": "bob", "3": None, "4": "ana"}.items():
        kernels[kernel_id] = kernel(name)
    # as those of a stock kernel manager, which knows no user
    kernels["5"] = SimpleNamespace()
    assert kernels.of("ana") == ["1", "4", "3", "5"]
    assert kernels.of("bob") == ["2", "3", "5"]
    assert kernels.of("carol") == ["3", "5"]
    assert list(kernels) == ["1", "2", "3", "4", "5"]


def test_what_goes_is_nobodys() -> None:
    kernels = KernelsByUser()
    first = kernels["1"] = kernel("ana")
    kernels["2"] = kernel("ana")
    # whatever becomes of whoever it was
    first.user = None
    assert kernels.pop("1") is first
    assert kernels.of("ana") == ["2"]
    del kernels["2"]
    assert kernels.of("ana") == []
    assert kernels.pop("2", None) is None
    with pytest.raises(KeyError):
        kernels.pop("2")
    with pytest.raises(KeyError):
        del kernels["2"]


def test_another_manager_of_a_kernel() -> None:
    kernels = KernelsByUser()
    kernels["1"] = kernel("ana")
    kernels["1"] = kernel("bob")
    assert (kernels.of("ana"), kernels.of("bob"), len(kernels)) == ([], ["1"], 1)
