"""The papermill engine: ``papermill --engine elastic-kernels IN OUT`` runs a notebook in a kernel of the gateway's.

The kernel is the one that the notebook had in JupyterLab, for the same user, in the notebook's own folder, and counts against the
user's limit for scheduled kernels where that is opened. Everything else (parameters, output, errors, exit codes) is papermill's.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import nbformat
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbclient.util import run_sync
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager
from papermill.iorw import papermill_io

from elastic_kernels.errors import ConfigurationError
from elastic_kernels.remote import start
from elastic_kernels.remote.gateway import address
from elastic_kernels.remote.kernel import running_kernel
from elastic_kernels.remote.start import Patience

# papermill's own default for start_timeout, with which nobody has asked for anything
_NOT_ASKED: Final = 60
# for a client that waits for a connection to come back, nbclient's four seconds are none
_LAST_OUTPUT_SECONDS: Final = 60.0


class KernelLostError(DeadKernelError):  # type: ignore[misc]
    """The kernel ended, or what it said was lost, in the middle of the run. papermill's exit code for it is 138."""


@dataclass(frozen=True)
class Options:
    """The engine's own options: keyword arguments of ``papermill.execute_notebook``. What is None comes from the environment."""

    gateway: str | None = None
    """The gateway's address; ``JUPYTER_GATEWAY_URL``."""
    token: str | None = field(default=None, repr=False)
    """Who asks; ``JUPYTER_GATEWAY_AUTH_TOKEN``, else ``JUPYTERHUB_API_TOKEN``."""
    user: str | None = None
    """For whom a service asks; ``KERNEL_USERNAME``."""
    image: str | None = None
    """The image, where the profile admits another; ``KERNEL_IMAGE``."""
    folder: str | None = None
    """Where the kernel starts, as the pod sees it; ``KERNEL_WORKING_DIR``, else papermill's ``cwd``, else the notebook's folder."""
    limit_class: str | None = start.SCHEDULED
    """Which of the user's limits the kernel is to count against."""
    patience: Patience = field(default_factory=Patience)


class ElasticKernelsEngine(Engine):  # type: ignore[misc]
    """Registered with papermill as ``elastic-kernels``."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        log_output: bool = False,
        stdout_file: Any = None,
        stderr_file: Any = None,
        start_timeout: float = _NOT_ASKED,
        execution_timeout: float | None = None,
        **more: Any,
    ) -> None:
        """Called by papermill. ``start_timeout`` other than papermill's default of 60 limits the start; else the profile does.

        Raises GatewayError where no kernel can be had, KernelLostError where it was lost, and ConfigurationError.
        """
        source = more.pop("input_path", None)
        options, other = _options(more, start_timeout)
        where = address(os.environ, url=options.gateway, token=options.token)
        notebook = source if isinstance(source, str) else None
        environment = start.kernel_environment(
            os.environ,
            user=options.user,
            image=options.image,
            folder=options.folder or os.environ.get("KERNEL_WORKING_DIR") or _folder(notebook),
            notebook=notebook,
            limit_class=options.limit_class,
        )
        with running_kernel(where, kernel_name, environment, options.patience) as (client, kernel):
            runner = _Runner(
                nb_man,
                km=kernel,
                kernel_name=kernel_name,
                timeout=execution_timeout or other.pop("timeout", None),
                iopub_timeout=int(options.patience.away + _LAST_OUTPUT_SECONDS),
                log=logging.getLogger("papermill"),
                log_output=log_output,
                stdout_file=stdout_file,
                stderr_file=stderr_file,
                **other,
            )
            runner.kc = client
            runner.run()

    @classmethod
    def nb_kernel_name(cls, nb: nbformat.NotebookNode, name: str | None = None) -> str:
        """Called by papermill for the kernel's name. Raises ConfigurationError where there is none."""
        found = name or nb.metadata.get("kernelspec", {}).get("name")
        if not found:
            raise ConfigurationError("The notebook names no kernel: name a profile with --profile (or papermill's --kernel).")
        return str(found)


class _Runner(PapermillNotebookClient):  # type: ignore[misc]
    """papermill's own client, which says why a kernel is lost, and has each error among the outputs."""

    def run(self) -> None:
        """Run all cells. Raises KernelLostError."""
        run_sync(_hush_interrupts)()
        try:
            self.execute()
        except KernelLostError:
            raise
        except DeadKernelError as error:
            raise KernelLostError(f"All cells ran, but the end of the last one is missing: {self._why()}.") from error
        finally:
            run_sync(_ended)()

    def execute_cell(self, cell: nbformat.NotebookNode, cell_index: int, **more: Any) -> Any:
        """Called by papermill for each cell."""
        try:
            return super().execute_cell(cell, cell_index, **more)
        except CellExecutionError as error:
            # a kernel may answer with an error that it did not publish; papermill reads the outputs
            if not any(output.output_type == "error" for output in cell.outputs):
                cell.outputs.append(_error(error.ename, error.evalue, error.traceback))
            raise
        except DeadKernelError as error:
            lost = KernelLostError(f"Cell {cell_index + 1} has no result: {self._why()}.")
            cell.outputs.append(_error(type(lost).__name__, str(lost), str(lost)))
            self.nb_man.cell_exception(cell, cell_index=cell_index, exception=lost)
            raise lost from error

    def _why(self) -> str:
        return getattr(self.kc, "lost", None) or "the kernel has ended"


async def _hush_interrupts() -> None:
    """Have an interrupt that comes while a task of nbclient's runs end the run, and not be said to be that task's failure as well."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), (KeyboardInterrupt, SystemExit)):
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(handle)


async def _ended() -> None:
    """End what nbclient leaves behind on its event loop when a run is cut short: Python complains about it at the end otherwise."""
    tasks = [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "").startswith("NotebookClient.")]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _error(name: str, value: str, traceback: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("error", ename=name, evalue=value, traceback=traceback.splitlines())


def _options(given: Mapping[str, Any], start_timeout: float) -> tuple[Options, dict[str, Any]]:
    """Return the engine's options, and what is left for nbclient."""
    names = {"gateway", "token", "user", "image", "folder", "limit_class"}
    patience = {"wait": "limit", "away": "away", "retries": "retries"}
    asked: dict[str, Any] = {"start": float(start_timeout)} if start_timeout != _NOT_ASKED else {}
    asked |= {patience[name]: value for name, value in given.items() if name in patience and value is not None}
    own = {name: value for name, value in given.items() if name in names}
    other = {name: value for name, value in given.items() if name not in names and name not in patience}
    return Options(**own, patience=Patience(**asked)), other


def _folder(notebook: str | None) -> str | None:
    """Return papermill's ``cwd`` if one was given, else the folder of the notebook, None for one that is not a file here."""
    here = Path.cwd()
    # where papermill was when it was called, while it is in its cwd
    began = Path(getattr(papermill_io.get_handler("a.ipynb"), "_cwd", None) or here)
    if here != began or notebook is None:
        return str(here)
    path = began / notebook
    return str(path.resolve().parent) if path.is_file() else None
