"""Whose the kernels of this process are: of thousands, one user's are found without a look at anybody else's."""

from __future__ import annotations

from typing import Any, Final

_NOBODY: Final = ""


class KernelsByUser(dict[str, Any]):
    """The kernel managers that Enterprise Gateway keeps, by their kernels' ids. Whose a kernel is, is known when it is put in.

    Belongs to one event loop. Changed by the methods below alone, as Enterprise Gateway and Jupyter Server do.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[str, str] = {}
        # each user's, in the order in which they came
        self._ids: dict[str, dict[str, None]] = {}

    def of(self, name: str) -> list[str]:
        """Return the ids of a user's kernels, and of those that do not say whose they are."""
        return [*self._ids.get(name, ()), *self._ids.get(_NOBODY, ())]

    def __setitem__(self, kernel_id: str, kernel: Any) -> None:
        """Put a kernel in, in place of another manager of the same kernel if there is one."""
        self._forget(kernel_id)
        super().__setitem__(kernel_id, kernel)
        user = getattr(kernel, "user", None)
        name = self._names[kernel_id] = user.name if user is not None else _NOBODY
        self._ids.setdefault(name, {})[kernel_id] = None

    def __delitem__(self, kernel_id: str) -> None:
        """Take a kernel out. Raises KeyError if it is not there."""
        self._forget(kernel_id)
        super().__delitem__(kernel_id)

    def pop(self, kernel_id: str, *default: Any) -> Any:
        """Take a kernel out, and return it."""
        self._forget(kernel_id)
        return super().pop(kernel_id, *default)

    def _forget(self, kernel_id: str) -> None:
        name = self._names.pop(kernel_id, None)
        if name is not None:
            del self._ids[name][kernel_id]
            if not self._ids[name]:
                del self._ids[name]
