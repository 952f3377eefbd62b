"""Prepares chat data with tunerun, with the bare tokenizer and with TRL's SFTTrainer, side by side.

Run: `python tests/benchmarks/bench_data.py [--rows 9000] [--repeats 5] [--peers bare trl]`. Writes rows of chat (public
data sets where the shared material is there, else made-up words), then lets each side prepare them in a fresh process,
turn about:

    tunerun   the whole data stage: read, detect, normalise, render, mask, tokenise, fit, pack, write, report
    bare      `encode_batch` of the texts that tunerun renders, in batches of 1,000, and nothing else
    trl       `SFTTrainer._prepare_dataset` with `assistant_only_loss` and `packing`; reading the file is not counted

Printed are medians of wall time, of CPU time, of tokens per second, and peak resident memory of the process, which for
TRL includes torch. All sides have to make the same number of tokens; TRL trains two more in each turn, the newline that
ends the prompt and the one after the end of turn. `--packing` compares plans of rows alone;
`--memory 100000 1000000` shows the peak memory of the data stage for so many rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("TUNERUN_SHARED", ROOT.parent / "shared"))
MAX_LENGTH = 2048
BARE_BATCH_ROWS = 1000
ROWS, TEXTS, MODEL = "rows.jsonl", "texts.json", "model"


@dataclass(frozen=True)
class Measured:
    """What one side did in one run."""

    wall_seconds: float
    cpu_seconds: float
    peak_mib: float
    tokens: int
    trained_tokens: int
    rows: int
    fill: float


def public_chats() -> list[list[str]]:
    """Returns texts of user and assistant, in turn, of the shared data sets."""
    chats: list[list[str]] = []
    for name in ("alpaca_en_demo.json", "alpaca_zh_demo.json"):
        for row in json.loads((SHARED / "data" / name).read_text(encoding="utf-8")):
            chats.append(["\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]])
    with (SHARED / "data" / "gsm8k_train.csv").open(encoding="utf-8", newline="") as file:
        chats += [[row["question"], row["answer"]] for row in csv.DictReader(file)]
    return chats


def made_up_chats(count: int, typical_words: int) -> list[list[str]]:
    """Returns texts of user and assistant, in turn, of random words with a long tail of lengths."""
    source = random.Random(0)
    words = ["".join(source.choices("etaoinshrdlu", k=source.randint(1, 9))) for _ in range(5000)]

    def text() -> str:
        return " ".join(source.choices(words, k=2 + int(source.lognormvariate(math.log(typical_words), 0.8))))

    return [[text(), text()] for _ in range(count)]


def chats(count: int, texts: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Yields conversations of one to three turns; each names its number, so that no two are alike."""
    source = random.Random(1)
    for number in range(count):
        pairs = source.sample(texts, source.choice((1, 1, 1, 2, 3)))
        turns = [text for pair in pairs for text in pair]
        turns[0] = f"{number}: {turns[0]}"
        roles = ("user", "assistant") * len(pairs)
        yield {"messages": [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]}


def build(folder: Path, count: int, *, small_tokenizer: bool) -> None:
    """Writes the rows and the model folder, which holds a tokenizer and a template but no weights."""
    shared = SHARED / "tokenizers" / "qwen2.5"
    model = folder / MODEL
    if small_tokenizer or not shared.is_dir():
        sys.path.insert(0, str(ROOT))
        from tests.tiny import tiny_tokenizer

        tiny_tokenizer(model)
    else:
        model.symlink_to(shared)
    texts = (
        public_chats()
        if (SHARED / "data").is_dir() and not small_tokenizer
        else made_up_chats(2000, 5 if small_tokenizer else 60)
    )
    with (folder / ROWS).open("w", encoding="utf-8") as file:
        for row in chats(count, texts):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def render_all(folder: Path) -> None:
    """Writes what tunerun renders of the rows, for the bare tokenizer."""
    from tunerun.chat.template import load_template
    from tunerun.chat.tokenizer import load_tokenizer

    template = load_template(folder / MODEL, load_tokenizer(folder / MODEL).named)
    assert template is not None
    with (folder / ROWS).open(encoding="utf-8") as file:
        texts = [template.render(json.loads(line)["messages"]) for line in file]
    (folder / TEXTS).write_text(json.dumps(texts), encoding="utf-8")


def run_tunerun(folder: Path) -> Measured:
    """Runs the data stage, less its start."""
    from tunerun import artifacts
    from tunerun.chat.tokenizer import load_tokenizer
    from tunerun.config.schema import DataConfig, ObjectiveConfig
    from tunerun.data import stage
    from tunerun.data.inputs import find_inputs
    from tunerun.plan.steps import DataStep

    tokenizer = load_tokenizer(folder / MODEL)
    data = DataConfig(path=(str(folder / ROWS),), packing=True, max_length=MAX_LENGTH)
    step = DataStep(data=data, objective=ObjectiveConfig(kind="sft"), chat_template=None, seed=0)
    encoder = stage.build_encoder(step, folder / MODEL, tokenizer)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        target = Path(out) / "data"
        _, wall, cpu = timed(lambda: stage.prepare(step, find_inputs(step), encoder, tokenizer, target, Path(out)))
        report = json.loads((target / artifacts.STAGE_REPORT).read_text(encoding="utf-8"))
    return measured(wall, cpu, report["tokens"], report["trained_tokens"], report["rows"])


def run_bare(folder: Path) -> Measured:
    """Tokenises what is rendered already."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / MODEL / "tokenizer.json"))
    texts = json.loads((folder / TEXTS).read_text(encoding="utf-8"))
    batches = [texts[start : start + BARE_BATCH_ROWS] for start in range(0, len(texts), BARE_BATCH_ROWS)]

    def tokenise() -> int:
        return sum(len(made) for batch in batches for made in backend.encode_batch(batch, add_special_tokens=False))

    tokens, wall, cpu = timed(tokenise)
    return measured(wall, cpu, tokens, 0, 0)


def run_trl(folder: Path) -> Measured:
    """Lets SFTTrainer prepare the rows for a model of random weights."""
    import datasets
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / MODEL)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, **sizes))
    taken: list[float] = []
    prepare = SFTTrainer._prepare_dataset

    def timed_prepare(*arguments: Any, **options: Any) -> Any:
        made, *seconds = timed(lambda: prepare(*arguments, **options))
        taken.extend(seconds)
        return made

    SFTTrainer._prepare_dataset = timed_prepare
    with tempfile.TemporaryDirectory(dir=folder) as out:
        rows = datasets.load_dataset("json", data_files=str(folder / ROWS), split="train", cache_dir=out)
        config = SFTConfig(
            output_dir=out,
            assistant_only_loss=True,
            packing=True,
            max_length=MAX_LENGTH,
            use_cpu=True,
            report_to=[],
        )
        trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
        made = trainer.train_dataset.with_format("numpy")
        wall, cpu = taken
        tokens = sum(len(row) for row in made["input_ids"])
        trained = sum(int((row != -100).sum()) for row in made["labels"])
        return measured(wall, cpu, tokens, trained, len(made))


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Returns what work returns, and its wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def measured(wall: float, cpu: float, tokens: int, trained: int, rows: int) -> Measured:
    """Adds the peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Measured(wall, cpu, peak, tokens, trained, rows, tokens / (rows * MAX_LENGTH) if rows else 0.0)


SIDES: dict[str, Callable[[Path], Measured]] = {"tunerun": run_tunerun, "bare": run_bare, "trl": run_trl}


def in_child(side: str, folder: Path) -> Measured:
    """Runs a side in a fresh process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "true"}
    arguments = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--folder", str(folder)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side}: {done.stderr}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def compare(rows: int, repeats: int, peers: Sequence[str]) -> None:
    """Prints what each side takes for the same rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, rows, small_tokenizer=False)
        render_all(folder)
        runs: dict[str, list[Measured]] = {side: [] for side in ("tunerun", *peers)}
        for _ in range(repeats):
            for side, results in runs.items():
                results.append(in_child(side, folder))
    ours = runs["tunerun"]
    print(f"{rows:,} rows, {ours[0].tokens:,} tokens, {ours[0].trained_tokens:,} trained; medians of {repeats} runs")
    print("side     wall s   cpu s  tokens/s  per cpu s  peak MiB   rows   fill")
    for side, results in runs.items():
        wall, cpu, peak = (median(results, field) for field in ("wall_seconds", "cpu_seconds", "peak_mib"))
        one = results[0]
        rates = f"{one.tokens / wall:9,.0f}  {one.tokens / cpu:9,.0f}"
        print(f"{side:8} {wall:6.2f}  {cpu:6.2f} {rates}  {peak:8,.0f}  {one.rows:5,}  {one.fill:5.1%}")
    for peer in peers:
        print(f"tunerun / {peer}: {ratios(ours, runs[peer])}")
        assert runs[peer][0].tokens == ours[0].tokens, "the same tokens"


def ratios(ours: Sequence[Measured], theirs: Sequence[Measured]) -> str:
    """Formats how many times as fast ours is, pair by pair of neighbouring runs."""
    wall = sorted(other.wall_seconds / one.wall_seconds for one, other in zip(ours, theirs, strict=True))
    cpu = sorted(other.cpu_seconds / one.cpu_seconds for one, other in zip(ours, theirs, strict=True))
    found = [f"{statistics.median(part):.2f} ({part[0]:.2f} to {part[-1]:.2f})" for part in (wall, cpu)]
    return f"{found[0]} times the rate by wall time, {found[1]} by CPU time"


def median(results: Sequence[Measured], field: str) -> float:
    """Returns the median of one figure."""
    return statistics.median(getattr(result, field) for result in results)


def compare_packing(samples: int, repeats: int) -> None:
    """Prints how much CPU time planning takes and how full the rows are, for several distributions of lengths."""
    import datasets
    import numpy as np
    from trl import pack_dataset

    from tunerun.data.pack import pack

    datasets.disable_progress_bars()
    source = np.random.default_rng(0)
    drawn = {
        "gamma": source.gamma(2, 180, samples),
        "lognormal": source.lognormal(5.5, 0.8, samples),
        "uniform 500-1500": source.uniform(500, 1500, samples),
        "short": source.lognormal(4, 0.6, samples),
    }
    print(f"\n{samples:,} samples into rows of {MAX_LENGTH:,}; medians of {repeats} runs")
    print("lengths        tunerun cpu ms   fill  trl bfd cpu ms fill")
    for name, values in drawn.items():
        lengths = np.clip(values.astype(np.int64), 1, MAX_LENGTH)
        rows = datasets.Dataset.from_dict({"input_ids": [np.zeros(length, np.int32) for length in lengths]})
        ours, theirs = [], []
        for _ in range(repeats):
            made, _, seconds = timed(lambda given=lengths: pack(given, MAX_LENGTH))
            ours.append(seconds)
            packed, _, seconds = timed(lambda given=rows: pack_dataset(given, MAX_LENGTH, "bfd"))
            theirs.append(seconds)
        fills = [lengths.sum() / (len(part) * MAX_LENGTH) for part in (made, packed)]
        spent = [statistics.median(part) * 1000 for part in (ours, theirs)]
        print(f"{name:18} {spent[0]:10,.0f} {fills[0]:6.2%} {spent[1]:12,.0f} {fills[1]:6.2%}")


def show_memory(counts: Sequence[int]) -> None:
    """Prints the peak memory of the data stage for so many rows of made-up chat, with a small tokenizer."""
    print("\nrows       tokens        wall s   peak MiB")
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            build(Path(name), count, small_tokenizer=True)
            one = in_child("tunerun", Path(name))
        print(f"{count:<9,}  {one.tokens:<12,}  {one.wall_seconds:6.0f}   {one.peak_mib:8,.0f}", flush=True)


def main() -> None:
    """Measures what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=9000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=["bare", "trl"], choices=["bare", "trl"])
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--memory", type=int, nargs="+", metavar="ROWS")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(asdict(SIDES[options.side](options.folder))))
    elif options.packing:
        compare_packing(100_000, options.repeats)
    elif options.memory:
        show_memory(options.memory)
    else:
        compare(options.rows, options.repeats, options.peers)


if __name__ == "__main__":
    main()
