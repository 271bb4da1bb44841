"""Log lines of both processes: plain text, or one JSON object per line, with the ids of what they are about."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

IDS = ("request_id", "job_id", "worker_id", "trace_id")
"""Members that a line has where they are known: from ``extra``, from ``about``, or for the whole process."""

RAW = "raw_json"
"""An ``extra`` for a line that is one already, of a worker's log."""

_about: ContextVar[dict[str, Any]] = ContextVar("about", default={})  # noqa: B039 (never changed, only replaced)

log = logging.getLogger(__name__)


@contextmanager
def about(**ids: object) -> Iterator[None]:
    """Whatever is logged inside, and in tasks that begin there, is about these; an empty id is none."""
    token = _about.set(_about.get() | {name: value for name, value in ids.items() if value not in ("", None)})
    try:
        yield
    finally:
        _about.reset(token)


class JSONFormatter(logging.Formatter):
    """One line per record, whatever stands in it; ``ids`` hold for the whole process."""

    def __init__(self, **ids: object) -> None:
        super().__init__()
        self._ids = ids

    def format(self, record: logging.LogRecord) -> str:
        if raw := getattr(record, RAW, None):
            return str(raw)
        line: dict[str, Any] = {
            "ts": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        known = self._ids | _about.get() | record.__dict__
        line |= {name: known[name] for name in IDS if known.get(name) not in ("", None)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str)  # all but ASCII is escaped: nothing can break the line


def rfc3339(time_s: float) -> str:
    """A Unix time as people and programs read it, to the millisecond."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def configure(level: str, log_format: str, text_format: str, handler: logging.Handler, **ids: object) -> None:
    """Sets this process's log up; ``text_format`` is used unless ``log_format`` is ``json``."""
    is_json = log_format == "json"
    handler.setFormatter(JSONFormatter(**ids) if is_json else logging.Formatter(text_format))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if is_json:
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = lambda found: _uncaught(found.exc_type, found.exc_value, found.exc_traceback)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """What Python would print by itself, in several lines."""
    if not issubclass(kind, KeyboardInterrupt):
        log.critical("an exception was not caught", exc_info=(kind, error or kind(), trace))
