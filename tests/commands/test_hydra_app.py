"""Hydra's own flags, and verbs that only check their arguments."""

from __future__ import annotations

import logging
import sys

import pytest

from tunerun import cli
from tunerun.errors import UserError


@pytest.fixture(autouse=True)
def _own_folder_and_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Hydra reads the arguments there, and the verb puts them there for it.
    monkeypatch.setattr(sys, "argv", ["tunerun"])


@pytest.fixture(autouse=True)
def _own_logging():
    """Takes Hydra's handlers away again, which write to a stream that the test closes."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["+recipe=quickstart", "--cfg", "job"], "path: tunerun://sprout"),
        (["+recipe=quickstart", "method.rank=3", "--cfg", "job", "-p", "method"], "rank: 3"),
        (["--cfg", "hydra"], "output_subdir: null"),
        (["--info", "searchpath"], "recipes://"),
        (["--info", "defaults", "+recipe=quickstart"], "recipe/quickstart"),
        (["-sc", "install=bash"], "tunerun"),
    ],
)
def test_hydras_flags_print_what_they_print_elsewhere(arguments, part, capsys):
    assert cli.dispatch(arguments) == 0
    assert part in capsys.readouterr().out


def test_completion_offers_recipes(monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", "tunerun +recipe=quick")
    assert cli.dispatch(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.strip() == "+recipe=quickstart"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+recipe=nope", "--cfg", "job"], "there is no recipe named `nope`"),
        (["+recipe=quickstart", "=", "--cfg", "job"], "names no key"),
        (["+recipe=quickstart", "data.system=${nope}", "--cfg", "job", "--resolve"], "^data.system: Interpolation"),
        (["+recipe=quickstart", "--cfg"], "--cfg needs a value"),
        (["-m", "+recipe=quickstart", "--cfg", "job"], "use one"),
        (["--shell-completion"], "install=bash"),
        (["pull", "nothing"], "is no hub id"),
        (["pull", ""], "is no hub id"),
        (["pull", "a/b", "--hub", "other"], "Known: hf, modelscope"),
        (["serve", "x", "seed=3"], "only serve"),
        (["serve", "x", "serve.prot=3"], "Did you mean port"),
        (["serve", ""], "name a run"),
        (["chat", ""], "name a run"),
        ([""], "names no key"),
        (["plan", "--json=1"], "--json takes no value"),
    ],
)
def test_a_mistake_is_a_message_and_never_a_trace(arguments, message):
    with pytest.raises(UserError, match=message):
        cli.dispatch(arguments)
