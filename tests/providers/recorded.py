"""The recorded outputs of batch systems in tests/data, as results of commands. No test is here."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies

from hpcpool.providers.commands import CommandResult

DATA = Path(__file__).resolve().parent.parent / "data"


def recorded(name: str, *, stderr: bool = False, code: int = 0) -> CommandResult:
    """What a command printed: `name` is "system/file.txt"; it went to stdout, or to stderr."""
    text = (DATA / name).read_text(encoding="utf-8")
    return CommandResult((name,), code, "" if stderr else text, text if stderr else "")


def refused(name: str, code: int = 1) -> CommandResult:
    """A recorded failure."""
    return recorded(name, stderr=True, code=code)


def golden(name: str, text: str) -> str:
    """The job script in tests/data/scripts that `text` must equal."""
    path = DATA / "scripts" / name
    assert path.exists(), f"{path} is not there; it would be:\n{text}"
    return path.read_text(encoding="utf-8")


#: Anything that a command could print: lines of the systems' own words and numbers, and any text at all.
WORDS = strategies.sampled_from(
    "1 2 17 0 3:0 768 -1 N/A None RUNNING PENDING COMPLETED FAILED CANCELLED by | || ; : = , <a> </a> <job_list> "
    '{ } [ ] null "id" 1.5 99999999999999999999 \N{SUPERSCRIPT TWO} \N{ARABIC-INDIC DIGIT ONE}'.split(" ")
)
TEXTS = strategies.one_of(
    strategies.text(max_size=200),
    strategies.lists(
        strategies.lists(WORDS, max_size=8).flatmap(
            lambda words: strategies.sampled_from(" |\t").map(lambda separator: separator.join(words))
        ),
        max_size=6,
    ).map("\n".join),
)
RESULTS = strategies.builds(
    CommandResult,
    strategies.just(("command",)),
    strategies.one_of(strategies.none(), strategies.integers(-15, 255)),
    TEXTS,
    TEXTS,
)
