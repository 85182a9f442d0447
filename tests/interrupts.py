"""Ctrl-C at a chosen place: raises KeyboardInterrupt where the interpreter would run a signal's handler, once."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

#: After these instructions the interpreter looks for signals (`CHECK_EVAL_BREAKER` in its bytecodes).
_PLACES = ("RESUME", "CALL", "JUMP_BACKWARD", "INSTRUMENTED")


class Interrupter:
    """Counts the places that traced code passes, and raises at one of them."""

    def __init__(self, place: int, files: tuple[str, ...]) -> None:
        self.left = place
        self.has_struck = False
        self._files = files
        self._before: dict[FrameType, int] = {}
        self._names: dict[CodeType, dict[int, str]] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.endswith(self._files):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "exception":  # the call has raised: there the interpreter does not look
            self._before.pop(frame, None)
        if event == "opcode":
            before = self._before.get(frame)
            self._before[frame] = frame.f_lasti
            if before is not None and self._is_place(frame.f_code, before):
                self._pass()
        return self

    def _is_place(self, code: CodeType, offset: int) -> bool:
        if code not in self._names:
            self._names[code] = {each.offset: each.opname for each in dis.get_instructions(code)}
        return self._names[code].get(offset, "").startswith(_PLACES)

    def _pass(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.has_struck = True
            raise KeyboardInterrupt


@contextmanager
def interrupted_at(place: int, *files: str) -> Iterator[Interrupter]:
    """Raise KeyboardInterrupt at the `place`-th place (from 1) that this thread passes in files with these endings.

    Begin with place 0, where nothing happens: Python 3.13 sees a function's places from its second call on.
    """
    interrupter = Interrupter(place, files)
    # From Python 3.12 on instructions are only traced if some frame wants that by now.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(interrupter)
    try:
        yield interrupter
    finally:
        sys.settrace(None)
