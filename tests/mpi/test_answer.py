from __future__ import annotations

import numpy as np
import pytest

from hpcpool.mpi import answer


def read(line: bytes, mark: str = "m") -> bytes | None:
    """What the line brings, as it stands in the stream."""
    found = [data for part in line.splitlines(keepends=True) if (data := answer.read_line(part, mark)) is not None]
    assert len(found) <= 1
    return found[0] if found else None


def test_results_come_back_in_order_whatever_they_are():
    results = [answer.pickled_result(value) for value in (1, None, "ä\n", lambda: 3)]
    one, two, three, four = answer.opened(read(answer.results_line("m", results)))
    assert (one, two, three, four()) == (1, None, "ä\n", 3)


def test_arrays_come_back_as_arrays_of_their_own():
    (array,) = answer.opened(read(answer.results_line("m", [answer.pickled_result(np.arange(10**5))])))
    assert array.sum() == np.arange(10**5).sum()


def test_a_failure_is_raised_with_the_rank_s_traceback_as_its_cause():
    try:
        raise KeyError("lost")
    except KeyError as error:
        line = answer.failure_line("m", error)
    with pytest.raises(KeyError, match="lost") as caught:
        answer.opened(read(line))
    assert "test_answer.py" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b"m ", b"n "),
        lambda line: line[:-10] + b"\n",
        lambda line: line[: len(line) // 2] + b"printed" + line[len(line) // 2 :],
        lambda line: b"printed" + line.lstrip(),
        lambda line: b"\n",
        lambda line: b"m\n",
    ],
)
def test_a_line_that_is_not_whole_brings_nothing(change):
    assert read(change(answer.results_line("m", [answer.pickled_result([1, 2])]))) is None


def test_what_was_printed_without_a_newline_in_front_does_no_harm():
    assert read(b"printed" + answer.results_line("m", [])) is not None


def test_a_call_travels_with_where_it_finds_its_modules():
    data = answer.pickled_call(divmod, (7, 2), {}, ["/lib"], "/home")
    size, rest = int.from_bytes(data[: answer.LENGTH_BYTES], "big"), data[answer.LENGTH_BYTES :]
    path, cwd, call = answer.surroundings(rest)
    function, args, kwargs = answer.open_call(call)
    assert (size, path, cwd, function(*args, **kwargs)) == (len(rest), ["/lib"], "/home", (3, 1))
