"""`tunerun data ...`: prepares the data only, which needs the model's tokenizer and not its weights; convert, split."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from tunerun import artifacts
from tunerun.base_model import read_base
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.commands import arguments, data_convert, data_split
from tunerun.commands.prepare import execute, prepare, require_ready
from tunerun.config.resolve import resolve
from tunerun.config.schema import RunConfig
from tunerun.data.preview import preview
from tunerun.data.stage import PREVIEW
from tunerun.errors import ExitCode, UserError
from tunerun.formats.pairs import open_store
from tunerun.run import results, summary

_STAGES = "stages=[data]"

_HELP = """\
tunerun data [+recipe=NAME] [key=value] [--config-dir FOLDER]
  Prepares the data only: reads every row, prints the report and three samples as the model will see
  them, and writes RUN/data (report.json, preview.txt) and RUN/report.html. Needs the model's
  tokenizer, not its weights.

    tunerun data +recipe=quickstart data.path=rows.jsonl
    tunerun data model.path=Qwen/Qwen2.5-0.5B-Instruct data.path=rows.csv data.on_bad_rows=drop
    tunerun data +recipe=quickstart data.path=rows.jsonl data.eval_fraction=0.1

  Every key is in conf/README.md; those of the section `data` matter here.

tunerun data convert IN OUT ...   writes any file of rows as OpenAI messages, in JSON lines
tunerun data split FILE ...       writes a file of rows as two, to train and to evaluate on
  More: tunerun data convert --help, tunerun data split --help

Exit codes: 0 done, 2 the config or the data is wrong (what is wrong with which row is listed)."""

_VERBS: dict[str, Callable[[Sequence[str]], int]] = {"convert": data_convert.main, "split": data_split.main}


def main(argv: Sequence[str]) -> int:
    """Runs the data stage and prints the preview, or does what `convert` and `split` do.

    Args:
        argv: Overrides, and `--config-dir FOLDER`; or a verb and its arguments.

    Returns:
        The exit code.
    """
    if argv and argv[0] in _VERBS:
        return _VERBS[argv[0]](argv[1:])
    if not argv or {"--help", "-h"} & set(argv):
        print(_HELP)
        return ExitCode.DONE
    _refuse_words(argv)
    options, overrides = arguments.split(argv, flags=(), values=arguments.CONFIG_DIR)
    prepared = prepare(resolve([*overrides, _STAGES], arguments.config_dir(options)))
    require_ready(prepared)
    config = prepared.config
    return execute(prepared, summarise=lambda run_dir, name: _summary(run_dir, name, config))


def _refuse_words(argv: Sequence[str]) -> None:
    """Refuses what is neither a verb nor an override, before Hydra does in its own words."""
    word = argv[0]
    if word.startswith(("+", "-", "~")) or "=" in word:
        return
    near = get_close_matches(word, _VERBS, n=1)
    if near:
        raise UserError(f"there is no verb `{word}` of `tunerun data`. Did you mean `tunerun data {near[0]}`?")
    if word and Path(word).exists():
        raise UserError(f"to prepare a file: tunerun data +recipe=NAME data.path={word}")
    raise UserError(f"`{word}` is neither key=value nor one of {', '.join(_VERBS)}. See: tunerun data --help")


def _summary(run_dir: Path, name: str, config: RunConfig) -> str:
    """Shows three samples as the model will see them, trained text in green on a terminal, and what training takes."""
    folder = run_dir / artifacts.DATA
    if sys.stdout.isatty():
        text = preview(open_store(folder), load_tokenizer(read_base(run_dir).folder), colour=True)
    else:
        text = (folder / PREVIEW).read_text(encoding="utf-8")
    found = results.read(run_dir)
    lines = [f"{name}: the first samples, trained text marked", "", text.rstrip(), ""]
    if found.data is not None:
        lines.append(f"training: {results.training_volume(found.data, config.train)}")
    report = run_dir / artifacts.REPORT
    return "\n".join([*lines, f"report: {summary.short(report)}"])
