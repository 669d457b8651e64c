"""The command line: ``elastic-kernels up | run | gateway | services | profiles | kernelspecs``. Errors are one plain sentence on stderr."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from elastic_kernels import run
from elastic_kernels.errors import ConfigurationError, ElasticKernelsError, ProfileError

OK: Final = 0
FAILED: Final = 1
# as argparse itself has it: what was asked for cannot be begun
MISUSED: Final = 2


# Each command imports what it needs: where notebooks are run, there may be no Kubernetes client, and no pydantic.
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for what is wrong or went wrong, 2 for what cannot be begun."""
    parser = _parser()
    parsed, others = parser.parse_known_args(arguments)
    if parsed.run is _gateway:
        parsed.options = others
    elif others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        code = int(parsed.run(parsed))
        sys.stdout.flush()
        return code
    except ProfileError as error:
        print("\n".join(error.mistakes), file=sys.stderr)
        return FAILED
    except ConfigurationError as error:
        print(f"elastic-kernels: {error}", file=sys.stderr)
        return MISUSED
    except ElasticKernelsError as error:
        print(f"elastic-kernels: {error}", file=sys.stderr)
        if error.detail:
            print(f"The end of its log:\n{error.detail}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # whoever read the output has seen enough; the interpreter's last flush must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="elastic-kernels", description="Jupyter kernels in Kubernetes pods, for Enterprise Gateway.")
    parser.add_argument("--version", action="version", version=f"elastic-kernels {metadata.version('elastic-kernels')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="start a gateway and a JupyterLab on this machine, until Ctrl-C")
    up.add_argument(
        "--cluster",
        choices=("embedded", "current"),
        default="embedded",
        help="where kernels run: as processes of this machine behind an API server of our own, or in the kubeconfig's current context "
        "(default: %(default)s)",
    )
    up.add_argument(
        "--port", type=_port, default=8888, help="of JupyterLab, or with --no-lab of the gateway; 0 is a free one (default: %(default)s)"
    )
    up.add_argument("--profiles", type=Path, metavar="FILE", help="the profiles to offer (default: those that ship with the library)")
    up.add_argument("--no-lab", action="store_true", help="start no JupyterLab")
    up.add_argument(
        "--lab",
        type=Path,
        metavar="PATH",
        help="the jupyter-lab to run (default: ELASTIC_KERNELS_LAB, else .venv-lab/bin/jupyter-lab beside this environment, else PATH)",
    )
    up.add_argument("--notebooks", type=Path, default=Path(), metavar="DIR", help="JupyterLab's folder (default: the current one)")
    up.set_defaults(run=_up)

    notebook = commands.add_parser(
        "run",
        help="run a notebook by papermill, in a kernel of a gateway's",
        epilog="Exit codes: 0 all cells ran; 1 a cell failed, or the kernel was refused; 2 nothing could be begun; 75 no kernel could be "
        "had, try later; 138 the kernel was lost. The token is taken from JUPYTER_GATEWAY_AUTH_TOKEN, else JUPYTERHUB_API_TOKEN.",
    )
    run.add_arguments(notebook)
    notebook.set_defaults(run=run.run)

    # what follows is Enterprise Gateway's own, --help among it
    gateway = commands.add_parser("gateway", help="run Enterprise Gateway with verified users, and its own options", add_help=False)
    gateway.set_defaults(run=_gateway)

    shutdown = commands.add_parser("shutdown", help="shut kernels down, of one user or all; their settings come from the environment")
    whose = shutdown.add_mutually_exclusive_group(required=True)
    whose.add_argument("--all", action="store_true", help="everybody's kernels of this deployment")
    whose.add_argument("--user", metavar="NAME", help="this user's")
    shutdown.set_defaults(run=_shutdown)

    services = commands.add_parser("services", help="tokens of programs that act for users").add_subparsers(
        required=True, metavar="COMMAND"
    )
    services.add_parser("token", help="print a new token, and what to write into the file of services").set_defaults(run=_token)

    profiles = commands.add_parser("profiles", help="check a file of profiles").add_subparsers(required=True, metavar="COMMAND")
    check = profiles.add_parser("check", help="print a line for each profile, or every mistake with its path and value")
    check.add_argument("file", type=Path, metavar="FILE")
    check.set_defaults(run=_check)
    profiles.add_parser("schema", help="print the JSON schema of such a file, for editors").set_defaults(run=_schema)

    specs = commands.add_parser("kernelspecs", help="turn profiles into kernelspecs").add_subparsers(required=True, metavar="COMMAND")
    install = specs.add_parser("install", help="write a kernelspec for each profile, and remove those installed before that are gone")
    install.add_argument("--profiles", type=Path, metavar="FILE", help="the profiles (default: those that ship with the library)")
    place = install.add_mutually_exclusive_group(required=True)
    place.add_argument("--sys-prefix", action="store_true", help="into this Python environment")
    place.add_argument("--user", action="store_true", help="into the user's Jupyter directory")
    place.add_argument("--path", type=Path, metavar="DIR", help="into this folder, in which each kernelspec is a folder")
    install.set_defaults(run=_install)
    specs.add_parser("list", help="list the kernelspecs of this library that Jupyter finds").set_defaults(run=_list)
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number from 0 to 65535")
    return int(text)


def _up(arguments: argparse.Namespace) -> int:
    # it brings in an HTTP server and a Kubernetes client, which the other commands need not wait for
    from elastic_kernels.up import up
    from elastic_kernels.up_plan import Options

    options = Options(
        cluster=arguments.cluster,
        port=arguments.port,
        profiles=arguments.profiles,
        with_lab=not arguments.no_lab,
        lab=arguments.lab,
        notebooks=arguments.notebooks,
    )
    asyncio.run(up(options, lambda line: print(line, flush=True)))
    return OK


def _gateway(arguments: argparse.Namespace) -> int:
    try:
        from elastic_kernels.gateway import main as run
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("enterprise_gateway"):
            raise
        raise ConfigurationError(
            "There is no Jupyter Enterprise Gateway beside this library: pip install 'elastic-kernels[gateway]'."
        ) from None
    run(arguments.options)
    return OK


def _shutdown(arguments: argparse.Namespace) -> int:
    from elastic_kernels.settings import ElasticKernels
    from elastic_kernels.shutdown import shut_down

    asyncio.run(shut_down(ElasticKernels(), arguments.user, lambda line: print(line, flush=True)))
    return OK


def _token(_arguments: argparse.Namespace) -> int:
    from elastic_kernels.identity.service import new_token

    token, digest = new_token()
    print(f"the token, for the service alone:  {token}\nin the file of services:           {digest}")
    return OK


def _check(arguments: argparse.Namespace) -> int:
    from elastic_kernels import profilefile

    profiles = profilefile.load(arguments.file)
    names = max(map(len, profiles))
    titles = max(len(profile.display_name or name) for name, profile in profiles.items())
    for name, profile in profiles.items():
        print(f"{name:{names}}  {profile.display_name or name:{titles}}  {profile.image}")
    return OK


def _schema(_arguments: argparse.Namespace) -> int:
    from elastic_kernels import profilefile

    print(json.dumps(profilefile.json_schema(), indent=2))
    return OK


def _install(arguments: argparse.Namespace) -> int:
    from elastic_kernels import kernelspecs, profilefile

    profiles = profilefile.load(arguments.profiles or kernelspecs.shipped_profiles())
    directory = _directory(arguments)
    removed = kernelspecs.install(profiles.values(), directory)
    for name in profiles:
        print(f"installed {directory / name}")
    for name in removed:
        print(f"removed   {directory / name}")
    return OK


def _directory(arguments: argparse.Namespace) -> Path:
    if arguments.path:
        return Path(arguments.path)
    if arguments.sys_prefix:
        return Path(sys.prefix) / "share" / "jupyter" / "kernels"
    from jupyter_core.paths import jupyter_data_dir

    return Path(jupyter_data_dir()) / "kernels"


def _list(_arguments: argparse.Namespace) -> int:
    from jupyter_core.paths import jupyter_path

    from elastic_kernels import kernelspecs

    found = kernelspecs.installed(map(Path, jupyter_path("kernels")))
    if not found:
        print("elastic-kernels: no kernelspec of this library is installed; see: elastic-kernels kernelspecs install", file=sys.stderr)
    names = max((len(spec.name) for spec in found), default=0)
    titles = max((len(spec.display_name) for spec in found), default=0)
    for spec in found:
        print(f"{spec.name:{names}}  {spec.display_name:{titles}}  {spec.folder}")
    for spec in found:
        if spec.mistake:
            print(spec.mistake, file=sys.stderr)
    return FAILED if any(spec.mistake for spec in found) else OK


if __name__ == "__main__":
    sys.exit(main())
