"""``elastic-kernels run``: one notebook, from the command line or a scheduler, by papermill and its engine of this library.

Exit codes: 0, all cells ran; 1, a cell failed, or the kernel was refused; 2, there was nothing to begin with; 75 (``EX_TEMPFAIL`` of
sysexits.h), no kernel could be had, and later one may; 138, the kernel was lost in the middle of the run (papermill's own code for
it); 130 and 143, ended by Ctrl-C or SIGTERM. Whatever happens, the kernel is shut down.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from elastic_kernels.errors import ConfigurationError, one_line

OK: Final = 0
FAILED: Final = 1
LATER: Final = 75
LOST: Final = 138
INTERRUPTED: Final = 130
ENGINE: Final = "elastic-kernels"

_WORDS: Final[dict[str, Any]] = {"True": True, "False": False, "None": None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments: those that papermill has, too, are named and mean the same."""
    parser.add_argument("notebook", metavar="NOTEBOOK", help="the notebook: a file, or an address that papermill reads from")
    parser.add_argument("-o", "--output", metavar="PATH", help="the executed notebook (default: NOTEBOOK.executed.ipynb beside it)")
    parser.add_argument("--profile", metavar="NAME", help="the kernel to run it in (default: the notebook's own)")
    value = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    parser.add_argument("-p", "--parameters", **value, help="a parameter; numbers, True, False and None are what they look like")  # type: ignore[arg-type]
    parser.add_argument("-r", "--parameters-raw", **value, help="a parameter that is text, whatever it looks like")  # type: ignore[arg-type]
    parser.add_argument("-f", "--parameters-file", action="append", default=[], metavar="FILE", help="parameters in a YAML file")
    parser.add_argument("-y", "--parameters-yaml", action="append", default=[], metavar="TEXT", help="parameters as YAML")
    parser.add_argument("--gateway", metavar="URL", help="the gateway (default: JUPYTER_GATEWAY_URL)")
    parser.add_argument("--user", metavar="NAME", help="for whom to run it, where the token is a service's (default: KERNEL_USERNAME)")
    parser.add_argument("--image", help="another image, where the profile admits it (default: KERNEL_IMAGE)")
    parser.add_argument("--folder", metavar="DIR", help="where the kernel starts, as the pod sees it (default: the notebook's folder)")
    parser.add_argument("--start-timeout", type=_seconds, metavar="SECONDS", help="until the kernel is ready (default: the profile's)")
    parser.add_argument("--execution-timeout", type=_count, metavar="SECONDS", help="for each cell (default: for ever)")
    parser.add_argument(
        "--wait", type=_seconds, default=600.0, metavar="SECONDS", help="for a kernel to end, at the user's limit (default: 600)"
    )
    parser.add_argument("--away", type=_seconds, default=120.0, metavar="SECONDS", help="for a gateway that is away (default: 120)")
    parser.add_argument("--retries", type=_count, default=2, metavar="N", help="of a start that failed in passing (default: 2)")
    parser.add_argument("--log-output", action="store_true", help="show what the cells print")


def run(arguments: argparse.Namespace) -> int:
    """Run the notebook and return the exit code. Raises ConfigurationError."""
    try:
        import nbclient.exceptions
        import papermill
        from papermill.exceptions import PapermillException, PapermillExecutionError

        from elastic_kernels.papermill import ElasticKernelsEngine
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("elastic_kernels"):
            raise
        raise ConfigurationError(
            f"There is no {error.name} in this Python environment ({sys.prefix}): pip install 'elastic-kernels[papermill]'."
        ) from None
    from elastic_kernels.remote.gateway import GatewayError, address

    where = address(os.environ, url=arguments.gateway)
    papermill.engines.papermill_engines.register(ENGINE, ElasticKernelsEngine)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    output = arguments.output or _beside(arguments.notebook)
    asked = parameters(arguments, papermill.iorw.read_yaml_file)
    profile, language = _kernel(arguments, papermill.iorw.load_notebook_node, bool(asked), where)
    try:
        papermill.execute_notebook(
            arguments.notebook,
            output,
            parameters=asked,
            engine_name=ENGINE,
            kernel_name=profile,
            language=language,
            progress_bar=sys.stderr.isatty(),
            log_output=arguments.log_output,
            execution_timeout=arguments.execution_timeout,
            **({"start_timeout": arguments.start_timeout} if arguments.start_timeout else {}),
            **{name: getattr(arguments, name) for name in ("gateway", "user", "image", "folder", "wait", "away", "retries")},
        )
    except PapermillExecutionError as error:
        return _said(f"{error}\nThe cell {error.cell_index + 1} of {arguments.notebook} failed; the output is in {output}.", FAILED)
    except GatewayError as error:
        return _said(str(error), LATER if error.may_succeed_later else FAILED)
    except nbclient.exceptions.DeadKernelError as error:
        return _said(f"{error} The output so far is in {output}.", LOST)
    except nbclient.exceptions.CellTimeoutError as error:
        return _said(f"{one_line(str(error))} The output so far is in {output}.", FAILED)
    except (PapermillException, OSError) as error:
        return _said(one_line(str(error)), FAILED)
    except KeyboardInterrupt:
        return _said("Stopped, and the kernel was shut down.", INTERRUPTED)
    print(output)
    return OK


def parameters(arguments: argparse.Namespace, read_file: Callable[[str], Any]) -> dict[str, Any]:
    """Return the notebook's parameters; where one is given twice, the last way of papermill's order counts: files, YAML, -p, -r.

    Raises ConfigurationError.
    """
    import yaml

    found: dict[str, Any] = {}
    for file in arguments.parameters_file:
        try:
            found |= _mapping(read_file(file), file)
        except (OSError, yaml.YAMLError) as error:
            raise ConfigurationError(f"The parameters in {file} cannot be read: {one_line(str(error))}.") from error
    for text in arguments.parameters_yaml:
        try:
            found |= _mapping(yaml.safe_load(text), "--parameters-yaml")
        except yaml.YAMLError as error:
            raise ConfigurationError(f"--parameters-yaml is not YAML: {one_line(str(error))}.") from error
    return found | {name: typed(value) for name, value in arguments.parameters} | dict(arguments.parameters_raw)


def typed(text: str) -> Any:
    """Return what a parameter on the command line stands for, as papermill sees it."""
    if text in _WORDS:
        return _WORDS[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _kernel(arguments: argparse.Namespace, load: Callable[[str], Any], needs_language: bool, where: Any) -> tuple[str, str | None]:
    """Return the name of the kernel, and its language if the notebook does not say it. Raises ConfigurationError."""
    try:
        metadata = load(arguments.notebook).metadata
    except Exception as error:
        # whatever a file can be that is no notebook
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(str(error), limit=200)
        raise ConfigurationError(f"The notebook {arguments.notebook} cannot be read: {reason}.") from error
    spec = metadata.get("kernelspec", {})
    profile = arguments.profile or spec.get("name")
    if not profile:
        raise ConfigurationError(f"The notebook {arguments.notebook} names no kernel: name a profile with --profile.")
    if not needs_language or metadata.get("language_info", {}).get("name") or spec.get("language"):
        return profile, None
    listed = asyncio.run(_listed(where))
    return profile, listed.get(profile, {}).get("spec", {}).get("language") or "python"


async def _listed(where: Any) -> Mapping[str, Any]:
    from elastic_kernels.remote import start
    from elastic_kernels.remote.gateway import Gateway

    gateway = Gateway(where)
    try:
        return await start.profiles(gateway)
    finally:
        gateway.close()


def _beside(notebook: str) -> str:
    path = Path(notebook)
    if "://" in notebook:
        raise ConfigurationError(f"Say with --output where the executed notebook goes; {notebook} is not a file.")
    return str(path.with_name(f"{path.stem}.executed.ipynb"))


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ConfigurationError(f"{where} holds no mapping of names to values.")
    return value or {}


def _said(sentence: str, code: int) -> int:
    print(sentence if sentence.startswith("\n") else f"elastic-kernels: {sentence}", file=sys.stderr)
    return code


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)
