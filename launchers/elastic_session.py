"""The names ``spark`` and ``sc`` of a Python kernel: they stand for a session from the start, and start it when they are used.

A use is any attribute, in a cell or in a thread that one began; completing ``spark.`` between cells is none. The session is made in
a thread of its own, so that an interrupt ends the waiting and leaves no half-made Java process behind. What Spark's driver says goes
to the pod's log, not into a cell.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import elastic_driver
import elastic_executors


def begin(shell: Any, session: str, settings: Mapping[str, str], log: int) -> None:
    """Prepare IPython's shell for Spark; ``session`` says when there is a session: lazy, eager or none.

    ``settings`` are Spark's, and ``log`` is the file descriptor that Spark's driver writes to.
    """
    starting = Starting(settings, log)
    elastic_executors.watch(shell, log)
    if session == "none":
        return

    def used() -> Any:
        made = starting.session()
        # the names are what they stood for from now on, unless they are the user's by now
        real = {"spark": made, "sc": made.sparkContext}
        shell.user_ns.update({name: value for name, value in real.items() if type(shell.user_ns.get(name)) is Lazy})
        return made

    executing = threading.Event()
    shell.events.register("pre_execute", executing.set)
    shell.events.register("post_execute", executing.clear)

    def is_use() -> bool:
        return executing.is_set() or threading.current_thread() is not threading.main_thread()

    lazy = {"spark": Lazy(used, _session_class, is_use), "sc": Lazy(lambda: used().sparkContext, _context_class, is_use)}
    shell.push(lazy, interactive=False)
    if session == "eager":
        starting.begin()


def ui_port() -> int | None:
    """Return the port of the web pages of the Spark that there is, if there are any. Called on any thread."""
    context = elastic_executors.context()
    if context is None:
        return None
    # asked once: each thread that asks Java has one of Java's threads for itself
    if not hasattr(context, "_elastic_ui_port"):
        address = context.uiWebUrl
        context._elastic_ui_port = int(address.rpartition(":")[2]) if address else None
    found: int | None = context._elastic_ui_port
    return found


class Starting:
    """The start of one session: begun by whoever comes first, awaited by all, and begun again after it failed."""

    def __init__(self, settings: Mapping[str, str], log: int) -> None:
        self._settings = settings
        self._log = log
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._session: Any = None
        self._error: BaseException | None = None

    def begin(self) -> threading.Thread:
        """Have it begun; return the thread that does it."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="start Spark", daemon=True)
                self._thread.start()
            return self._thread

    def session(self) -> Any:
        """Return the session, once it is there. Raises what its start raised; an interrupt ends the waiting and not the start."""
        self.begin().join()
        if self._error is not None:
            error, self._error, self._thread = self._error, None, None
            raise error
        # Java keeps the active session of each of Python's threads
        self._session._jvm.SparkSession.setActiveSession(self._session._jsparkSession)
        return self._session

    def _run(self) -> None:
        try:
            self._session = _make(self._settings, self._log)
        except BaseException as error:
            self._error = error


class Lazy:
    """Stands for an object that is made when it is used; to who merely looks it is as its class is."""

    def __init__(self, make: Callable[[], Any], kind: Callable[[], Any], is_use: Callable[[], bool]) -> None:
        """``make`` returns the object, ``kind`` its class; ``is_use`` tells whether looking at it now is a use."""
        object.__setattr__(self, "_elastic_make", make)
        object.__setattr__(self, "_elastic_kind", kind)
        object.__setattr__(self, "_elastic_is_use", is_use)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """What isinstance goes by."""
        return object.__getattribute__(self, "_elastic_kind")()

    def __dir__(self) -> list[str]:
        return dir(object.__getattribute__(self, "_elastic_kind")())

    def __getattr__(self, name: str) -> Any:
        is_use = object.__getattribute__(self, "_elastic_is_use")()
        return getattr(object.__getattribute__(self, "_elastic_make" if is_use else "_elastic_kind")(), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(object.__getattribute__(self, "_elastic_make")(), name, value)

    def __repr__(self) -> str:
        if not object.__getattribute__(self, "_elastic_is_use")():
            return object.__repr__(self)
        return repr(object.__getattribute__(self, "_elastic_make")())


def _session_class() -> Any:
    from pyspark.sql import SparkSession

    return SparkSession


def _context_class() -> Any:
    from pyspark import SparkContext

    return SparkContext


def _make(settings: Mapping[str, str], log: int) -> Any:
    """Return the session, the one that the user's code has made if there is one."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    if SparkContext._gateway is None:
        SparkContext._ensure_initialized(gateway=elastic_driver.start(settings, log))
    return SparkSession.builder.getOrCreate()
