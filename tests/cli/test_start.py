"""How fast the command line answers, and what it says to mistakes."""

from __future__ import annotations

import ast
import inspect
import statistics
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tunerun import cli
from tunerun.errors import Problem, UserError


def seconds(*argv: str) -> float:
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    start = time.perf_counter()
    subprocess.run([sys.executable, *argv], env=environment, capture_output=True, check=True, cwd="/")
    return time.perf_counter() - start


def ratio(argv: list[str], reference: list[str], rounds: int = 7) -> float:
    """Median of interleaved runs of one command over that of another, so that a busy machine slows both."""
    pairs = [(seconds(*argv), seconds(*reference)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)


def test_help_answers_before_hydra_could_be_imported():
    assert ratio(["-m", "tunerun", "--help"], ["-c", "import hydra"]) < 0.8


def test_a_plan_takes_a_small_multiple_of_importing_hydra():
    assert ratio(["-m", "tunerun", "plan", "+recipe=qwen2.5-lora"], ["-c", "import hydra"]) < 3.5


def test_help_fits_a_hundred_columns_and_names_every_verb():
    text = cli.help_text()
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"\n  {verb}" in text for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_its_module(verb):
    assert callable(cli._command(cli.VERBS[verb][0]))


def test_a_mistyped_verb_is_answered_with_the_nearest_one():
    with pytest.raises(UserError, match="Did you mean `tunerun plan`"):
        cli.dispatch(["plna"])


@pytest.mark.parametrize("word", ["train", "run", "export"])
def test_what_other_tools_call_their_verbs_is_answered_with_the_command_of_a_run(word):
    with pytest.raises(UserError, match=rf"no verb `{word}`. A run needs none: tunerun \+recipe=quickstart;"):
        cli.dispatch([word, "method.rank=4", "+recipe=quickstart"])


@pytest.mark.parametrize(
    ("option", "keys"),
    [
        ("--learning_rate", "train.learning_rate"),
        ("--num-train-epochs", "train.epochs"),
        ("--max_length=3", "data.max_length"),
        ("--lerning_rate", "train.learning_rate"),
    ],
)
@pytest.mark.parametrize("command", [[], ["plan"], ["-m"]])
def test_a_key_written_as_an_option_is_answered_with_the_key(option, keys, command):
    with pytest.raises(UserError, match=f"Keys are written without dashes: {keys}=VALUE.$"):
        cli.dispatch([*command, "+recipe=quickstart", option, "3"])


def test_a_recipe_given_as_a_verb_is_answered_with_the_command_that_runs_it():
    with pytest.raises(UserError, match=r"To run the recipe: tunerun \+recipe=quickstart$"):
        cli.dispatch(["quickstart"])


@pytest.mark.parametrize("arguments", [["plan", "--help"], ["resume", "some/run", "-h"]])
def test_every_verb_explains_itself(arguments, capsys):
    assert cli.dispatch(arguments) == 0
    assert capsys.readouterr().out.startswith(f"tunerun {arguments[0]} ")


@pytest.mark.parametrize("verb", ["chat", "compare"])
def test_help_that_argparse_writes_fits_a_hundred_columns(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        cli.dispatch([verb, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--temperature", "hot", "'hot' is not a number"),
        ("--seed", "1.5", "'1.5' is not a whole number"),
        ("--max-new-tokens", "0", "must be from 1 to 1048576"),
        ("--top-p", "2", "must be from 1e-06 to 1"),
    ],
)
def test_a_wrong_number_is_told_in_words(option, value, message):
    with pytest.raises(UserError, match=f"^{option}: {message}. All options: "):
        cli.dispatch(["compare", "model", option, value])


# The other two have argparse's.
@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb not in ("chat", "compare")])
def test_the_help_of_a_verb_names_all_its_options_in_a_hundred_columns(verb, capsys):
    assert cli.dispatch([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    source = inspect.getsource(cli._command(cli.VERBS[verb][0]))
    splits = [node for node in ast.walk(ast.parse(source)) if ast.unparse(node).startswith("arguments.split(")]
    options = {item.value for node in splits for item in ast.walk(node) if isinstance(item, ast.Constant)}
    assert [item for item in options if str(item).startswith("--") and item not in text] == []


@pytest.mark.parametrize("columns", [100, 60])
def test_an_error_fits_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    problem = Problem(where="data.path", what="there is no such file. " * 9)
    for problems in ([problem], [problem, problem]):
        assert max(map(len, cli.render_error(UserError(problems)).splitlines())) <= columns


def test_what_the_system_refuses_is_a_line_and_not_a_traceback(tunerun, tmp_path):
    (tmp_path / "recipes").write_text("a file where a folder belongs")
    done = tunerun("copy", "quickstart")
    assert done.returncode == 1
    assert done.stderr.startswith("tunerun: ")
    assert len(done.stderr.splitlines()) == 1


def test_problems_are_laid_out_one_a_paragraph():
    error = UserError([Problem(where="a", what="is wrong."), Problem(where="b", what="is wrong too.", fix="Mend it.")])
    assert cli.render_error(error) == "tunerun: 2 problems\n  a: is wrong.\n  b: is wrong too. Mend it."


def test_a_config_mistake_ends_in_exit_code_2_without_a_traceback_or_a_folder(tunerun, tmp_path):
    done = tunerun("+recipe=quickstart", "method.rnak=3", "train.epochs=many")
    assert done.returncode == 2
    assert "method.rnak" in done.stderr
    assert "train.epochs" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_hydras_own_flags_work(tunerun):
    done = tunerun("+recipe=qwen2.5-lora", "--cfg", "job")
    assert done.returncode == 0
    assert "Qwen/Qwen2.5" in done.stdout
