"""The `tunerun` command: sends verbs to their modules and everything else to a run.

Imports nothing heavy, Hydra included, so that `tunerun --help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import cast

from tunerun import __version__, columns
from tunerun.errors import ExitCode, TunerunError, UserError, system_fault

# Verb: where its function is, its arguments, and what it does.
VERBS: dict[str, tuple[str, str, str]] = {
    "plan": ("plan", "[+recipe=NAME] [key=value] [--json]", "print what a run would do, and stop"),
    "data": ("data", "[+recipe=NAME] [key=value] | convert | split", "prepare the data only, and print the report"),
    "runs": ("runs", "[FOLDER] [--state S] [--like W] [--sort loss]", "list runs, newest first"),
    "show": ("show", "RUN", "what a run did and made"),
    "diff": ("diff", "RUN RUN", "what differs between two runs"),
    "replay": ("replay", "RUN", "run a run again from its record, and compare"),
    "sweep": ("sweeps", "show|best DIR | wandb ...", "a sweep's table; its winner as a recipe"),
    "lock": ("lock", "RUN [NAME]", "pin a run as a recipe to commit"),
    "resume": ("resume", "RUN [key=value] [--allow KEY]", "go on with a stopped run"),
    "chat": ("chat", "TARGET [--base] [--system TEXT] ...", "talk to a run, a model folder or a GGUF file"),
    "compare": ("compare", "TARGET [TARGET ...] [--prompts FILE]", "the same questions to up to three models"),
    "serve": ("serve", "TARGET ... [serve.port=N] [--names A,B] [--checkpoints]", "serve models to OpenAI clients"),
    "recipes": ("recipes", "", "list recipes"),
    "copy": ("copy", "RECIPE [NAME] [--flat]", "copy a recipe into ./recipes to change it"),
    "pull": ("pull", "MODEL [--hub hf|modelscope] [--revision REV]", "download a model"),
    "doctor": ("doctor", "", "check this machine: cores, GPUs, extras"),
}

# Verbs with so much to say that they print their help themselves.
_OWN_HELP = ("chat", "compare", "data")

# What other tools call their verbs, and here is what a run does.
_STAGE_VERBS = ("run", "train", "finetune", "fine-tune", "sft", "eval", "merge", "export", "verify", "publish")

_SWEEP_FLAGS = ("-m", "--multirun")
_HYDRA_FLAGS = ("-c", "--cfg", "-i", "--info", "--hydra-help", "-sc", "--shell-completion")

_HELP = """\
tunerun {version}: one composed recipe from data to a checked, servable model

  tunerun +recipe=NAME [group=option] [key=value]     run a recipe
  tunerun -m +recipe=NAME key=a,b,c                   run it for each value
  tunerun +recipe=NAME --cfg job --resolve            print the composed config

Groups: model data objective method hardware cluster eval export serve track.
Start with: tunerun +recipe=quickstart

Verbs:
{verbs}

Exit codes: 0 done, 1 a stage failed, 2 the config or the data is wrong,
3 a verify gate failed, 75 stopped by a signal and resumable; in a trial's
run.json, 4 ended early by its sweep.
"""


def main() -> None:
    """Runs the command line and exits with its code."""
    # A child of ours may print Chinese to a pipe in the C locale.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    try:
        code = dispatch(sys.argv[1:])
        sys.stdout.flush()
    except TunerunError as error:
        print(render_error(error), file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = ExitCode.PREEMPTED
    except BrokenPipeError:
        # The reader closed early (`| head`): that is no fault, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.DONE
    except OSError as error:
        # A missing right or a full disk: the message is all a user can use.
        print(f"tunerun: {system_fault(error)}", file=sys.stderr)
        code = ExitCode.STAGE_FAILED
    sys.exit(code)


def dispatch(argv: Sequence[str]) -> int:
    """Finds what the arguments ask for and does it.

    Args:
        argv: Without the program's name.

    Returns:
        The exit code.
    """
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(help_text())
        return ExitCode.DONE
    if argv[0] in ("--version", "-V"):
        print(f"tunerun {__version__}")
        return ExitCode.DONE
    first = argv[0]
    if first and "=" not in first and first[0] not in "+-~":
        command = _verb(first, argv[1:])
        if first not in _OWN_HELP and {"--help", "-h"} & set(argv[1:]):
            print(_verb_help(first))
            return ExitCode.DONE
        return _command(command)(argv[1:])
    if {"--help", "-h"} & set(argv):
        print(help_text())
        return ExitCode.DONE
    names = {item.split("=")[0] for item in argv}
    if names & set(_HYDRA_FLAGS):
        return _command("hydra_app")(argv)
    if names & set(_SWEEP_FLAGS):
        return _command("sweep")(argv)
    return _command("run")(argv)


def help_text() -> str:
    """Returns what `tunerun --help` prints."""
    rows = []
    for verb, (_, arguments, text) in VERBS.items():
        head = f"  {verb} {arguments}".rstrip()
        rows.append(f"{head:<52} {text}" if len(head) < 52 else f"{head}\n{'':<52} {text}")
    return _HELP.format(version=__version__, verbs="\n".join(rows)).rstrip()


def render_error(error: TunerunError) -> str:
    """Lays an error out for a terminal: one problem a paragraph, at most 100 columns."""
    width = min(columns.MAX_COLUMNS, shutil.get_terminal_size().columns)
    problems = error.problems if isinstance(error, UserError) and error.problems else (str(error),)
    texts = [line for problem in problems for line in str(problem).splitlines()]
    if len(problems) == 1:
        texts[:1] = [f"tunerun: {text}" for text in texts[:1]]
        return "\n".join(_paragraph(text, width, "") for text in texts)
    return "\n".join([f"tunerun: {len(problems)} problems", *(_paragraph(text, width, "  ") for text in texts)])


def _paragraph(text: str, width: int, indent: str) -> str:
    return "\n".join(columns.fill(text, width, first=indent, rest=indent + "    "))


def _verb_help(verb: str) -> str:
    # Imported here: every command would load it.
    from tunerun.commands.usage import USAGE

    _, arguments, text = VERBS[verb]
    head = f"tunerun {verb} {arguments}".rstrip()
    return f"{head}\n\n{USAGE[verb]}" if verb in USAGE else f"{head}\n  {text}"


def _verb(word: str, rest: Sequence[str]) -> str:
    if word in VERBS:
        return VERBS[word][0]
    # Imported here: only a mistake needs them.
    from difflib import get_close_matches

    from tunerun.config.sources import recipe_file

    near = get_close_matches(word.lower(), VERBS, n=1)
    recipe = next((item for item in rest if item.lstrip("+").startswith("recipe=")), "+recipe=NAME")
    if recipe_file(word):
        hint = f"To run the recipe: tunerun +recipe={word}"
    elif word in _STAGE_VERBS:
        hint = f"A run needs none: tunerun {recipe}; stages=[...] chooses its stages."
    else:
        hint = f"Did you mean `tunerun {near[0]}`?" if near else f"Verbs: {', '.join(VERBS)}."
    raise UserError(f"there is no verb `{word}`. {hint}")


def _command(module: str) -> Callable[[Sequence[str]], int]:
    loaded = importlib.import_module(f"tunerun.commands.{module}")
    return cast(Callable[[Sequence[str]], int], vars(loaded)["main"])
