"""Verbs that ask models refuse what is wrong with their arguments as all verbs do."""

from __future__ import annotations

import pytest

from tunerun.commands import compare
from tunerun.errors import ExitCode, UserError
from tunerun.serve import chat


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["run", "--sytem", "Be short."], "there is no option --sytem here. Did you mean --system"),
        ([], "the following arguments are required: TARGET"),
        (["run", "--temperature", "9"], "--temperature: must be 0, or from 0.001 to 2"),
        (["run", "--bits", "5"], "--bits: invalid choice: 5"),
    ],
)
@pytest.mark.parametrize("main", [chat.main, compare.main])
def test_a_wrong_argument_is_told_and_the_right_one_is_near(main, argv, what, capsys):
    with pytest.raises(UserError) as told:
        main(argv)
    assert what in str(told.value)
    assert told.value.exit_code == ExitCode.USER_ERROR
    assert "".join(capsys.readouterr()) == ""


def test_chat_takes_one_model():
    with pytest.raises(UserError, match="one: one argument is taken"):
        chat.main(["run", "one"])
