"""Enterprise Gateway's own unit tests, which its package brings, with our plug-in installed and identity off."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from enterprise_gateway import tests

# needs files of Enterprise Gateway's repository that its package does not have, and is of its own templates
_NOT_PACKAGED = "test_yaml_injection.py"
# wants to read a traceback in the body of an answer; with the plug-in it is a sentence
_TRACEBACK = "TestCustomDefaultKernel and test_default_kernel_name"


@pytest.mark.embedded
def test_its_own_tests_pass(tmp_path: Path) -> None:
    modules = [str(path) for path in sorted(Path(tests.__file__).parent.glob("test_*.py")) if path.name != _NOT_PACKAGED]
    command = [sys.executable, "-m", "pytest", "-p", "tests.contract.jeg_plugin", *modules]
    command += ["-q", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider", "-k", f"not ({_TRACEBACK})"]
    environment = {**os.environ, "LOGNAME": "tester", "PYTHONPATH": str(Path(__file__).parents[2]), "JUPYTER_CONFIG_DIR": str(tmp_path)}
    # its kernels start on this machine, each within a test that may take five seconds otherwise
    environment["ASYNC_TEST_TIMEOUT"] = "60"
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    counts = re.search(r"(\d+) passed, (\d+) deselected", run.stdout)
    # neither fewer tests than there are, nor more left out than the one
    assert counts is not None
    assert (int(counts[1]) >= 88, int(counts[2])) == (True, 1), run.stdout[-500:]
