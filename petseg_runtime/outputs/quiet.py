"""Keeps the warnings of libraries back: those of pydicom and highdicom hold names and identifiers of the patient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging import Logger, NullHandler, getLogger
from threading import Lock
from warnings import catch_warnings, simplefilter


class _Quiet:
    """Holds the warnings of the whole process back as long as any thread is inside.

    Python keeps them in one place for all threads: were each to put back what it found, one that reads the next scan
    would let the warnings of one that still writes the last through.
    """

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0
        self._held = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._held.enter_context(catch_warnings())
                simplefilter("ignore")
                self._held.enter_context(_silent(getLogger("highdicom")))

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._held.close()


@contextmanager
def _silent(logger: Logger) -> Iterator[None]:
    handler, propagate = NullHandler(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


QUIET = _Quiet()
