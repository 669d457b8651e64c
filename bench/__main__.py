"""All that is measured, in one command: ``python -m bench``, or ``make bench``. See the modules for what each part measures.

The parts: ``launch`` and ``phases`` (on the cluster of KUBECONFIG), ``scale`` and ``messages`` (on this machine). Each prints a table
and writes bench/results/<part>.json; the picture docs/speed.svg is drawn from these files.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final

from bench import launch, messages, phases, plot, scale

PARTS: Final[dict[str, Callable[[list[str]], None]]] = {
    "launch": launch.main,
    "phases": phases.main,
    "scale": scale.main,
    "messages": messages.main,
}
ON_A_CLUSTER: Final = ("launch", "phases")
# enough to see that all of it works, and no more
QUICK: Final = {
    "launch": ["--counts", "1", "--rounds", "1"],
    "phases": ["--rounds", "1"],
    "scale": ["--counts", "20", "--burst", "10", "--seconds", "2", "--stock", "4"],
    "messages": ["--kernels", "2", "--rounds", "1", "--sizes", "1", "--prints", "200"],
}


def main(arguments: list[str]) -> int:
    """Measure; return how many parts failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure this project, stock Enterprise Gateway and the floor.")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="with the smallest numbers: to see that it works")
    given = parser.parse_args(arguments)
    failed = []
    for part in given.parts:
        if part in ON_A_CLUSTER and not os.environ.get("KUBECONFIG"):
            print(f"{part}: left out, because KUBECONFIG names no cluster", flush=True)
            continue
        print(f"{part}:", flush=True)
        begin = time.monotonic()
        try:
            PARTS[part](QUICK[part] if given.quick else [])
        except Exception:
            # the other parts have something to say all the same
            traceback.print_exc()
            failed.append(part)
        print(f"{part}: {time.monotonic() - begin:.0f} s\n", flush=True)
    if not given.quick and plot.draw():
        print(f"drawn: {plot.PICTURE}")
    for part in failed:
        print(f"{part} failed", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
