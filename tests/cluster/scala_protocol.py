"""Jupyter's own tests of a kernel, for Scala: run by the environment of JupyterLab, against a kernel that runs already.

    python scala_protocol.py CONNECTION_FILE

What Toree has not: a history, a pager.
"""

from __future__ import annotations

import sys
import unittest
from typing import Any, ClassVar

import jupyter_kernel_test
from jupyter_client.blocking.client import BlockingKernelClient


class ScalaTests(jupyter_kernel_test.KernelTests):  # type: ignore[misc]
    """What is asked of the kernel, and what it should say."""

    connection_file: str

    language_name = "scala"
    file_extension = ".scala"
    code_hello_world = 'println("hello, world")'
    code_stderr = 'Console.err.println("oops")'
    code_generate_error = 'sys.error("boom")'
    code_inspect_sample = "List"
    code_clear_output = "kernel.display.clear()"
    code_execute_result: ClassVar[list[Any]] = [{"code": "1 + 2", "result": "3"}, {"code": "List(1)", "result": "List(1)"}]
    code_display_data: ClassVar[list[Any]] = [{"code": 'kernel.display.html("<b>x</b>")', "mime": "text/html"}]
    completion_samples: ClassVar[list[Any]] = [{"text": "scala.math.sq", "matches": {"sqrt"}}]
    complete_code_samples: ClassVar[list[Any]] = ["1", "val x = 3", "def f(x: Int) = {\n x }\n"]
    incomplete_code_samples: ClassVar[list[Any]] = ["def f(x: Int) = {", "val x = ("]
    invalid_code_samples: ClassVar[list[Any]] = ["val 1 = )"]

    @classmethod
    def setUpClass(cls) -> None:
        client: Any = BlockingKernelClient()
        client.load_connection_file(cls.connection_file)
        client.start_channels()
        client.wait_for_ready(timeout=60)
        cls.kc = client

    @classmethod
    def tearDownClass(cls) -> None:
        cls.kc.stop_channels()


if __name__ == "__main__":
    ScalaTests.connection_file = sys.argv.pop(1)
    unittest.main(verbosity=2)
