"""Templates of bash calls: which fields they have, and what text they become; pure text, nothing is run here."""

from __future__ import annotations

import functools
import os
import re
import shlex
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, NoReturn

#: How much of a command an error's message shows.
MESSAGE_COMMAND_CHARS = 1000

#: Names that a template cannot use, since `ex.bash` takes them itself.
_OPTIONS = frozenset({"stdout", "stderr", "cwd", "env", "timeout", "check", "inputs", "outputs"})

_FORMATTER = string.Formatter()


def check_fields(template: str, fields: Mapping[str, object]) -> None:
    """Raise `ValueError` if the template is malformed, `TypeError` if a field is missing or not used."""
    used = {name for piece in _parse(template) for name in piece.names}
    missing, extra = sorted(used - fields.keys()), sorted(fields.keys() - used)
    parts = []
    if missing:
        parts.append(f"no value for {quoted_names(missing)} (double the braces that bash should see)")
    if taken := sorted(_OPTIONS.intersection(missing)):
        parts.append(f"{quoted_names(taken)} cannot be a field, since bash() has an option of that name")
    if extra:
        parts.append(f"the template does not use {quoted_names(extra)}")
    if parts:
        raise TypeError(f"bash(): {'; '.join(parts)}: {shortened(template, MESSAGE_COMMAND_CHARS)!r}")


def render(template: str, fields: Mapping[str, object]) -> str:
    """The text for bash: each value as shell words, or as it is where the template says `raw`."""
    return "".join(_rendered(piece, fields) for piece in _parse(template))


def text_of(value: object) -> str:
    """A value as the shell sees it before quoting: a path as its name, anything else as `str` has it."""
    return os.fsdecode(value) if isinstance(value, bytes | os.PathLike) else str(value)


def flat(value: object) -> Iterator[object]:
    """The items of a list or tuple, and of lists in it (futures of lists); anything else is its only item."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    else:
        yield value


def shortened(text: str, limit: int) -> str:
    """At most about `limit` characters of a text, its middle left out."""
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"


def quoted_names(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(repr(name) for name in names)


class _Piece(NamedTuple):
    """Literal text of a template, and the field that follows it, if any."""

    literal: str
    #: As written, with look-ups ("files[0].name"); "" for no field.
    lookup: str
    conversion: str
    spec: str
    #: Whether bash reads a word where the field stands, so that quotes work there.
    is_word: bool
    #: The fields that the piece needs, those inside its format spec too.
    names: frozenset[str]


@functools.lru_cache(maxsize=64)
def _parse(template: str) -> tuple[_Piece, ...]:
    """Split a template, once for all calls that use it."""
    try:
        parts = list(_FORMATTER.parse(template))
    except ValueError as error:
        _raise_malformed(str(error), template)
    skeleton = "".join(literal + ("" if lookup is None else "\0") for literal, lookup, _, _ in parts)
    if skeleton.count("\0") != sum(lookup is not None for _, lookup, _, _ in parts):
        raise ValueError("bash(): the template contains a NUL character, which no command can have")
    are_words = iter(_Scan(skeleton).answers_of_all() if "\0" in skeleton else ())
    return tuple(
        _Piece(literal, "", "", "", True, frozenset())
        if lookup is None
        else _piece(template, literal, lookup, conversion or "", spec or "", next(are_words))
        for literal, lookup, spec, conversion in parts
    )


def _piece(template: str, literal: str, lookup: str, conversion: str, spec: str, is_word: bool) -> _Piece:
    if conversion not in ("", "r", "s", "a"):
        _raise_malformed(f"unknown conversion '!{conversion}' in the field {{{lookup}}}", template)
    return _Piece(literal, lookup, conversion, spec, is_word, _names(lookup, spec, template))


def _names(lookup: str, spec: str, template: str) -> frozenset[str]:
    name = re.split(r"[.\[]", lookup, maxsplit=1)[0]
    if not name or name.isdecimal():
        _raise_malformed(f"a field needs a name, as in {{name}}, but there is {{{lookup}}}", template)
    if not name.isidentifier():
        _raise_malformed(f"{{{lookup}}} is not the name of a field", template)
    names = {name}
    for _, inner, inner_spec, _ in _FORMATTER.parse(spec):
        if inner is not None:
            names |= _names(inner, inner_spec or "", template)
    return frozenset(names)


def _raise_malformed(why: str, template: str) -> NoReturn:
    raise ValueError(
        f"bash(): {why}; braces that bash should see are doubled, as in awk '{{{{print $1}}}}' or ${{{{HOME}}}}: "
        f"{shortened(template, MESSAGE_COMMAND_CHARS)!r}"
    ) from None


def _rendered(piece: _Piece, fields: Mapping[str, object]) -> str:
    if not piece.lookup:
        return piece.literal
    texts = _texts(piece, fields)
    if piece.spec == "raw":
        return piece.literal + " ".join(texts)
    words = [shlex.quote(text) for text in texts]
    if not piece.is_word and words != texts:
        raise ValueError(
            f"bash(): the field {{{piece.lookup}}} stands inside quotes, a here document, a comment or $((...)), where "
            f"its value {shortened(' '.join(texts), 100)!r} cannot be quoted; fields are quoted already, so take the "
            f"quotes around it away, or write {{{piece.lookup}:raw}} to put it in as it is"
        )
    return piece.literal + " ".join(words)


def _texts(piece: _Piece, fields: Mapping[str, object]) -> list[str]:
    try:
        value, _ = _FORMATTER.get_field(piece.lookup, (), fields)
        spec = "" if piece.spec == "raw" else _FORMATTER.vformat(piece.spec, (), fields)
        return [_formatted(item, piece.conversion, spec) for item in flat(value)]
    except Exception as error:  # attributes and formats of any class: user code
        error.add_note(f"in the field {{{piece.lookup}}} of a bash template")
        raise


def _formatted(value: object, conversion: str, spec: str) -> str:
    if conversion:
        value = _FORMATTER.convert_field(value, conversion)
    elif isinstance(value, bytes | os.PathLike):
        value = os.fsdecode(value)
    return format(value, spec)


#: Characters that mean nothing in any of the states of a scan.
_PLAIN = re.compile(r"""[^\0\\'"$()`#\n<]+""")
_DOCUMENT = re.compile(r"<<-?[ \t]*([^\s;&|()<>]*)")

_OPENS = {"'": "'", "$'": "$'", '"': '"', "`": "`", "$((": "((", "((": "((", "$(": "(", "(": "("}
_OPENS_IN_CODE = ("$'", "'", '"', "`", "$((", "((", "$(", "(")
_OPENS_IN_QUOTES = ("$((", "$(", "`")


class _Scan:
    """Walks a script and keeps what it is inside of: enough of bash's grammar to tell words from quotes.

    It errs to the safe side: what bash nests in odd ways (a `case` inside `"$(...)"`, `<<` in `let`) is taken for
    quotes, and there a value that needs quotes is refused, not misread.
    """

    def __init__(self, script: str) -> None:
        self._script = script
        self._at = 0
        #: For each field (a NUL) passed so far: whether bash reads a word there.
        self._answers: list[bool] = []
        #: Innermost last: "", "(" and "`" are code; "'", "$'" and '"' quotes; "((" and "a(" arithmetic.
        self._inside = [""]
        #: Delimiters of here documents whose text begins after the next newline.
        self._documents: list[str] = []

    def answers_of_all(self) -> list[bool]:
        while self._at < len(self._script):
            self._step()
        return self._answers

    def _step(self) -> None:
        inside, here = self._inside[-1], self._script[self._at]
        if plain := _PLAIN.match(self._script, self._at):
            self._at = plain.end()
        elif here == "\0":
            is_bare = self._at == 0 or self._script[self._at - 1] not in "$\\"
            self._answers.append(is_bare and inside in ("", "(", "`"))
            self._at += 1
        elif here == "\\" and inside != "'":
            self._at += 1 if self._script.startswith("\0", self._at + 1) else 2
        elif inside in ("'", "$'"):
            self._close_or_go_on("'")
        elif inside == '"':
            if not self._has_opened(_OPENS_IN_QUOTES):
                self._close_or_go_on('"')
        elif inside in ("((", "a("):
            self._step_in_arithmetic(inside, here)
        else:
            self._step_in_code(inside, here)

    def _step_in_arithmetic(self, inside: str, here: str) -> None:
        if here == "(":
            self._inside.append("a(")
            self._at += 1
        else:
            self._close_or_go_on("))" if inside == "((" else ")")

    def _step_in_code(self, inside: str, here: str) -> None:
        if here == "\n":
            self._at += 1
            self._pass_documents()
        elif here == "#" and (self._at == 0 or self._script[self._at - 1] in " \t\n;&|()`"):
            end = self._script.find("\n", self._at)
            self._pass(end if end >= 0 else len(self._script))
        elif self._script.startswith("<<<", self._at):
            self._at += 3
        elif document := _DOCUMENT.match(self._script, self._at):
            self._documents.append(re.sub(r"['\"\\]", "", document[1]))
            self._pass(document.end())
        elif inside == "`" and here == "`":
            self._close_or_go_on("`")
        elif not self._has_opened(_OPENS_IN_CODE):
            if inside == "(":
                self._close_or_go_on(")")
            else:
                self._at += 1

    def _close_or_go_on(self, end: str) -> None:
        is_end = self._script.startswith(end, self._at)
        if is_end:
            self._inside.pop()
        self._at += len(end) if is_end else 1

    def _has_opened(self, tokens: tuple[str, ...]) -> bool:
        for token in tokens:
            if self._script.startswith(token, self._at):
                self._inside.append(_OPENS[token])
                self._at += len(token)
                return True
        return False

    def _pass_documents(self) -> None:
        for delimiter in self._documents:
            line = re.compile(rf"^\t*{re.escape(delimiter)}$", re.MULTILINE).search(self._script, self._at)
            self._pass(line.end() if line else len(self._script))
        self._documents.clear()

    def _pass(self, end: int) -> None:
        """Go to `end` over text in which no field is a word."""
        self._answers.extend([False] * self._script.count("\0", self._at, end))
        self._at = end
