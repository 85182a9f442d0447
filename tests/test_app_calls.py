"""What workers do for apps, here in this process: some commands really run."""

from __future__ import annotations

import pytest

from hpcpool.app_calls import bash_settings, function_of, run_command
from hpcpool.apps import python_app
from hpcpool.errors import BashError


@python_app
def importable():
    return "by name"


class Holder:
    @python_app
    def method(self):
        return "method"


def test_settings_are_given_or_are_defaults():
    def function(a, stdout="out", stderr=None, *, env=None):
        raise AssertionError("it is not called")

    assert bash_settings(function, (1,), {}) == {"stdout": "out", "stderr": None, "env": None}
    assert bash_settings(function, (1, "x", ("e", "a")), {"env": {"A": 1}}) == {
        "stdout": "x",
        "stderr": ("e", "a"),
        "env": {"A": 1},
    }


def test_a_function_without_such_parameters_has_no_settings():
    assert bash_settings(lambda a, *rest: "", (1, "stdout", "env"), {}) == {}


def test_settings_may_be_among_keywords_of_any_name():
    assert bash_settings(lambda **rest: "", (), {"cwd": "/", "other": 1}) == {"cwd": "/"}


def test_inputs_are_no_setting():
    assert bash_settings(lambda inputs=(): "", (["no file"],), {}) == {}


def test_text_is_run_as_it_stands():
    result = run_command(lambda: """echo {no} field "$((1 + 1))" '{{' | tr a-z A-Z""", (), {})
    assert result.stdout == "{NO} FIELD 2 {{\n"


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_is_a_program_and_its_arguments(kind):
    assert run_command(lambda: kind(["echo", "$HOME", 1]), (), {}).stdout == "$HOME 1\n"


@pytest.mark.parametrize("returned", [None, 3, b"echo"])
def test_a_function_that_returns_no_command_is_an_error_that_names_it(returned):
    def forgetful():
        return returned

    with pytest.raises(TypeError, match="the bash app .*forgetful must return its command"):
        run_command(forgetful, (), {})


def test_wrong_arguments_are_the_error_of_the_function():
    def takes_one(one):
        return one

    with pytest.raises(TypeError, match=r"takes_one\(\) takes 1 positional argument but 2 were given"):
        run_command(takes_one, (1, 2), {})


def test_settings_are_used(tmp_path):
    def failing(cwd, stdout, env, check=True):
        return "echo $GREETING in $PWD; exit 3"

    arguments = (tmp_path, "out.txt", {"GREETING": "hello"})
    with pytest.raises(BashError):
        run_command(failing, arguments, {})
    assert run_command(failing, arguments, {"check": False}).returncode == 3
    assert (tmp_path / "out.txt").read_text() == f"hello in {tmp_path}\n"


def test_a_function_is_found_by_name():
    assert function_of(__name__, "importable")() == "by name"
    assert function_of(__name__, "Holder.method")(None) == "method"
