from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tunerun.artifacts import describe
from tunerun.base_model import BaseModel, write_base
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.config.schema import DataConfig, ObjectiveConfig, SourceConfig
from tunerun.data import stage
from tunerun.data.preview import preview
from tunerun.errors import UserError
from tunerun.formats.pairs import PairStore, open_store
from tunerun.formats.tokens import TokenStore
from tunerun.plan.steps import DataStep


class Run:
    """Runs the data stage in a folder and reads what it left."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        write_base(folder, BaseModel(folder=model, path="small", revision=None, sha256=""))

    def __call__(self, *paths: Path, kind: str = "sft", template: str | None = None, seed: int = 0, **settings):
        data = DataConfig(path=tuple(map(str, paths)), **settings)
        step = DataStep(data=data, objective=ObjectiveConfig(kind=kind), chat_template=template, seed=seed)
        self.artifacts = stage.run(step, self.folder)
        self.report = json.loads((self.folder / "data" / "report.json").read_text(encoding="utf-8"))
        return open_store(self.folder / "data")

    @property
    def eval(self) -> TokenStore:
        return TokenStore.open(self.folder / "data" / "eval")

    def texts(self, store: TokenStore) -> list[str]:
        backend = load_tokenizer(self.model).backend
        return [backend.decode(store.row(row)[0].tolist(), skip_special_tokens=False) for row in range(len(store))]


@pytest.fixture
def run(tmp_path, chat_folder) -> Run:
    return Run(tmp_path, chat_folder)


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(count: int, length: int = 3) -> list[dict]:
    return [{"question": f"Who is number {number}?", "answer": "x" * length + str(number)} for number in range(count)]


def test_a_row_becomes_the_rendering_with_its_answer_trained(run, tmp_path):
    store = run(write(tmp_path / "a.jsonl", pairs(2)))
    assert run.texts(store)[1] == (
        "<|im_start|>user\nWho is number 1?<|im_end|>\n<|im_start|>assistant\nxxx1<|im_end|>\n"
    )
    tokens, trained, segments = store.row(1)
    backend = load_tokenizer(run.model).backend
    assert backend.decode(tokens[trained == 1].tolist(), skip_special_tokens=False) == "xxx1<|im_end|>"
    assert set(segments.tolist()) == {1}
    assert run.artifacts == [describe(tmp_path, "data", "data")]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted(
        ["manifest.json", "tokens.u32", "trained.u8", "offsets.i64", "segments.i32", "report.json", "preview.txt"]
    )


def test_packed_rows_hold_the_same_samples(run, tmp_path):
    path = write(tmp_path / "a.jsonl", pairs(50))
    alone = run(path, max_length=256)
    samples = sorted(run.texts(alone))
    packed = run(path, max_length=256, packing=True)
    assert packed.manifest.samples == 50
    assert len(packed) < 20
    backend = load_tokenizer(run.model).backend
    found = []
    for row in range(len(packed)):
        tokens, _, segments = packed.row(row)
        assert len(tokens) <= 256
        assert (np.diff(segments) >= 0).all()
        found += [
            backend.decode(tokens[segments == number].tolist(), skip_special_tokens=False)
            for number in np.unique(segments)
        ]
    assert sorted(found) == samples
    assert np.unique(packed.segments).tolist() == list(range(50))
    assert run.report["packing_fill"] == pytest.approx(packed.manifest.tokens / (len(packed) * 256), abs=1e-4)


def test_the_same_step_writes_the_same_bytes(run, tmp_path):
    path = write(tmp_path / "a.jsonl", pairs(40))
    options = {"packing": True, "max_length": 128, "eval_fraction": 0.2}
    run(path, **options)
    first = run.artifacts
    run(path, **options)
    assert run.artifacts == first


def test_a_fraction_is_held_out_and_never_trained_on(run, tmp_path):
    store = run(write(tmp_path / "a.jsonl", pairs(200)), eval_fraction=0.1, max_length=64)
    train, held = run.texts(store), run.texts(run.eval)
    assert not set(train) & set(held)
    assert len(train) + len(held) == 200
    assert 8 <= len(held) <= 40
    assert run.report["eval"]["samples"] == len(held)


def test_turns_of_one_row_stay_on_one_side(run, tmp_path):
    turns = [(role, turn) for turn in (1, 2) for role in ("user", "assistant")]
    rows = [
        {"messages": [{"role": role, "content": f"{number} {role} {turn}"} for role, turn in turns]}
        for number in range(60)
    ]
    store = run(write(tmp_path / "a.jsonl", rows), eval_fraction=0.3, multi_turn="split")
    train = {text.split("user\n")[1].split()[0] for text in run.texts(store)}
    held = {text.split("user\n")[1].split()[0] for text in run.texts(run.eval)}
    assert len(store) + len(run.eval) == 120
    assert not train & held
    assert run.report["rows_kept"] == 60


def test_an_eval_file_is_read_apart_and_in_full(run, tmp_path):
    train = write(tmp_path / "a.jsonl", pairs(9))
    held = write(tmp_path / "b.csv", [])
    held.write_text("user,assistant\nq,a\nr,b\ns,c\n")
    store = run(train, eval_path=(str(held),), eval_fraction=0.5, max_rows=2)
    assert (len(store), len(run.eval)) == (2, 3)
    assert [source["format"] for source in run.report["sources"]] == ["columns", "columns"]


def test_several_files_and_formats_in_one_run(run, tmp_path):
    write(tmp_path / "a.jsonl", pairs(2))
    (tmp_path / "b.csv").write_text("Prompt,Response\nq,a\n")
    (tmp_path / "c.json").write_text('[{"instruction": "q", "output": "a"}]')
    store = run(tmp_path / "a.jsonl", tmp_path / "b.csv", tmp_path / "c.json")
    assert len(store) == 4
    assert [source["rows"] for source in run.report["sources"]] == [2, 1, 1]


def test_documents_are_all_trained_and_packed_whole(run, tmp_path):
    (tmp_path / "a.txt").write_text("The user asks.\nThe assistant answers.\n\nWho are you?\n")
    store = run(tmp_path / "a.txt", kind="pretrain", max_length=64, packing=True)
    assert run.texts(store) == ["The user asks.<|im_end|>The assistant answers.<|im_end|>Who are you?<|im_end|>"]
    assert store.trained.all()
    assert np.unique(store.segments).tolist() == [0, 1, 2]
    assert store.manifest.template_sha256 is None


def test_bad_rows_are_dropped_on_request_up_to_a_share(run, tmp_path):
    path = write(tmp_path / "a.jsonl", [*pairs(98), {"question": "q", "answer": ""}, {"question": "q"}])
    with pytest.raises(UserError) as caught:
        run(path)
    assert [problem.where for problem in caught.value.problems] == [f"{path}:99", f"{path}:100", "data.on_bad_rows"]
    with pytest.raises(UserError, match="2 of 100 rows"):
        run(path, on_bad_rows="drop")
    store = run(path, on_bad_rows="drop", max_dropped_fraction=0.02)
    assert len(store) == 98
    assert run.report["rows_read"] == 100
    assert run.report["rows_kept"] == 98
    assert run.report["dropped"] == {"empty-answer": 1, "missing-field": 1}
    assert run.report["examples"][0] == {
        "file": str(path),
        "line": 99,
        "reason": "empty-answer",
        "detail": "message 2, the assistant's, is empty.",
    }


def test_a_failed_run_leaves_the_earlier_data_alone(run, tmp_path):
    good = write(tmp_path / "a.jsonl", pairs(3))
    run(good)
    before = describe(tmp_path, "data", "data")
    with pytest.raises(UserError):
        run(write(tmp_path / "b.jsonl", [{"question": "q", "answer": ""}]))
    assert describe(tmp_path, "data", "data") == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_examples_and_problems_are_capped_for_each_reason(run, tmp_path):
    rows = [{"question": "q", "answer": ""}] * 30 + [{"question": 1, "answer": "a"}] * 2
    with pytest.raises(UserError) as caught:
        run(write(tmp_path / "a.jsonl", rows))
    assert [problem.where.rpartition(":")[2] for problem in caught.value.problems[:3]] == ["1", "2", "3"]
    assert "27 more rows with empty-answer: lines 4, 5, 6, " in str(caught.value)
    assert "32 of 32 rows cannot be used (30 empty-answer, 2 wrong-type)" in str(caught.value)
    failed = json.loads((tmp_path / "data.failed" / "report.json").read_text(encoding="utf-8"))
    assert Counter(row["reason"] for row in failed["examples"]) == {"empty-answer": 20, "wrong-type": 2}
    assert failed["dropped"] == {"empty-answer": 30, "wrong-type": 2}
    run(write(tmp_path / "a.jsonl", pairs(2)))
    assert not (tmp_path / "data.failed").exists()


def test_long_rows_are_counted_and_listed(run, tmp_path):
    rows = [*pairs(3), {"question": "why " * 200, "answer": "yes"}, {"question": "q", "answer": "so " * 200}]
    path = write(tmp_path / "a.jsonl", rows)
    store = run(path, max_length=64)
    assert len(store) == 5
    assert store.lengths().max() == 64
    assert (run.report["truncated"], run.report["truncated_answers"]) == (2, 1)
    assert [(row["line"], row["reason"]) for row in run.report["examples"]] == [(4, "prompt-cut"), (5, "answer-cut")]
    assert len(run(path, max_length=64, too_long="drop")) == 3
    assert run.report["dropped"] == {"too-long": 2}
    with pytest.raises(UserError) as caught:
        run(path, max_length=64, too_long="fail")
    assert [problem.where for problem in caught.value.problems][:2] == [f"{path}:4", f"{path}:5"]


def test_without_a_limit_rows_are_as_long_as_they_are_up_to_the_context(tmp_path, chat_folder):
    model = tmp_path / "model"
    shutil.copytree(chat_folder, model)
    run, path = Run(tmp_path, model), write(tmp_path / "a.jsonl", pairs(3) + pairs(1, length=400))

    def within(config: dict) -> TokenStore:
        (model / "config.json").write_text(json.dumps(config))
        return run(path, max_length=None)

    wanted, store = run(path, max_length=4096), within({"max_position_embeddings": 4096})
    assert (store.tokens == wanted.tokens).all()
    assert run.report["truncated"] == 0
    assert within({"max_position_embeddings": 64}).lengths().max() == 64
    assert run.report["truncated"] == 1
    with pytest.raises(UserError, match=r"data.max_length: null takes the model's context, and its config.json has no"):
        within({})


def test_rows_without_trained_tokens_are_counted(run, tmp_path):
    untrained = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}
    cut = {"messages": [{"role": "user", "content": "why " * 99}, {"role": "assistant", "content": "a"}]}
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    store = run(write(tmp_path / "a.jsonl", [good, untrained, cut]), max_length=32, too_long="truncate")
    assert len(store) == 1
    assert run.report["zero_label"] == 2
    assert run.report["rows_kept"] == 1


def test_nothing_left_to_train_on_is_an_error(run, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": "why " * 99, "answer": "a"}])
    with pytest.raises(UserError, match="nothing is left to train on"):
        run(path, max_length=8, too_long="drop")


def test_a_model_without_template_needs_one_named(run, tmp_path, chat_folder):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((chat_folder / name).read_bytes())
    other = Run(tmp_path, bare)
    path = write(tmp_path / "a.jsonl", pairs(1))
    with pytest.raises(UserError, match="no chat template") as caught:
        other(path)
    assert caught.value.problems[0].where == "model.chat_template"
    assert other.texts(other(path, template="alpaca")) == [
        "### Instruction:\nWho is number 0?\n\n### Response:\nxxx0<|im_end|>\n\n"
    ]


def preferences(count: int) -> list[dict]:
    return [{"prompt": f"Who is {number}?", "chosen": f"good {number}", "rejected": "bad"} for number in range(count)]


@pytest.mark.parametrize("kind", ["dpo", "orpo", "simpo", "reward"])
def test_pairs_are_two_stores_whose_rows_belong_together(run, tmp_path, kind):
    store = run(write(tmp_path / "a.jsonl", preferences(40)), kind=kind, eval_fraction=0.2, max_length=64)
    assert isinstance(store, PairStore)
    assert (store.manifest.objective, store.manifest.layout) == (kind, "pairs")
    held = PairStore.open(tmp_path / "data" / "eval")
    assert len(store) + len(held) == 40 and len(held)
    for side in (store, held):
        chosen, rejected = run.texts(side.chosen), run.texts(side.rejected)
        numbers = [text.split("Who is ")[1].split("?")[0] for text in chosen]
        assert [text.split("Who is ")[1].split("?")[0] for text in rejected] == numbers
        assert all(f"good {number}<|im_end|>" in text for number, text in zip(numbers, chosen, strict=True))
        assert all("bad<|im_end|>" in text for text in rejected)
    assert (run.report["rows"], run.report["rows_kept"]) == (len(store), 40)
    assert "good" in (tmp_path / "data" / "preview.txt").read_text() and not (tmp_path / "data" / ".scratch").exists()


def test_labels_stay_with_their_rows(run, tmp_path):
    rows = [{"prompt": f"q{n}", "completion": "yes" if n % 3 else "no", "label": bool(n % 3)} for n in range(30)]
    store = run(write(tmp_path / "a.jsonl", rows), kind="kto", eval_fraction=0.2)
    held = run.eval
    assert len(store) + len(held) == 30
    for part in (store, held):
        assert part.manifest.layout == "labelled"
        assert [("yes<|im_end|>" in text) for text in run.texts(part)] == [bool(label) for label in part.labels]


def test_objectives_say_what_rows_they_need(run, tmp_path):
    path = write(tmp_path / "a.jsonl", pairs(1))
    for kind, needed in (("dpo", "a better and a worse answer"), ("kto", "labelled good or bad"), ("pretrain", "text")):
        with pytest.raises(UserError, match=needed):
            run(path, kind=kind)
    assert len(run(path, kind="distill")) == 1


def test_each_source_has_its_settings(run, tmp_path):
    write(tmp_path / "a.jsonl", pairs(9))
    (tmp_path / "b.csv").write_text("F,A\nwhy,so\nhow,thus\n")
    sources = {
        "first": SourceConfig(path=(str(tmp_path / "a.jsonl"),), max_rows=3, system="one"),
        "second": SourceConfig(path=(str(tmp_path / "b.csv"),), columns={"user": "F", "assistant": "A"}, weight=2.0),
    }
    texts = run.texts(run(sources=sources, system="two"))
    assert len(texts) == 3 + 2 * 2
    assert [text.count("system\none") for text in texts] == [1, 1, 1, 0, 0, 0, 0]
    assert sum("user\nwhy" in text and "system\ntwo" in text for text in texts) == 2
    assert [(source["rows"], source["weight"]) for source in run.report["sources"]] == [(3, 1.0), (2, 2.0)]


def test_a_weight_takes_the_same_rows_when_more_come_and_leaves_evaluation_alone(run, tmp_path):
    def texts(count: int, weight: float) -> list[str]:
        path = write(tmp_path / "a.jsonl", pairs(count))
        return run.texts(run(sources={"a": SourceConfig(path=(str(path),), weight=weight)}, eval_fraction=0.2))

    whole, half = texts(200, 1.0), texts(200, 0.5)
    held = run.texts(run.eval)
    assert abs(len(half) - len(whole) / 2) < 25 and set(half) < set(whole)
    assert len(held) == 200 - len(whole) and not set(held) & set(half)
    assert texts(300, 0.5)[: len(half)] == half
    more = texts(200, 1.7)
    assert {text: more.count(text) for text in whole}.keys() == set(more)
    assert set(map(more.count, whole)) == {1, 2}


def test_wrong_paths_of_all_sources_are_named_at_once(run, tmp_path):
    sources = {name: SourceConfig(path=(str(tmp_path / name),)) for name in ("one", "two")}
    with pytest.raises(UserError) as caught:
        run(sources=sources, eval_path=(str(tmp_path / "three"),))
    assert [problem.where for problem in caught.value.problems] == [
        "data.sources.one.path",
        "data.sources.two.path",
        "data.eval_path",
    ]


def test_the_preview_marks_trained_text(run, tmp_path):
    store = run(write(tmp_path / "a.jsonl", pairs(9)), packing=True, max_length=128)
    text = (tmp_path / "data" / "preview.txt").read_text(encoding="utf-8")
    assert text.count(">>>xxx") == text.count("<|im_end|><<<") == 3
    assert "<|im_start|>user\nWho is number 0?<|im_end|>" in text
    coloured = preview(store, load_tokenizer(run.model), colour=True)
    assert "\x1b[32mxxx0<|im_end|>\x1b[0m" in coloured


def test_the_printed_summary_fits_a_narrow_terminal(run, tmp_path, capsys):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    run(write(folder / "a.jsonl", pairs(40, length=20) + pairs(3, length=400)), packing=True, max_length=128)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == "data: 43 rows read, 43 kept"
    assert any("3 of them lost part of an answer" in line for line in lines)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "kind", "form", "rows", "settings"),
    [
        ("alpaca_en_demo.json", "sft", "alpaca", 999, {}),
        ("alpaca_zh_demo.json", "sft", "alpaca", 1000, {}),
        ("identity.json", "sft", "alpaca", 91, {"vars": {"name": "Sprout", "author": "Ann"}}),
        ("glaive_toolcall_en_demo.json", "sft", "sharegpt", 300, {}),
        ("gsm8k_train.csv", "sft", "columns", 200, {}),
        ("c4_demo.jsonl", "pretrain", "text", 300, {}),
        ("wiki_demo.txt", "pretrain", "text", 30, {}),
        ("dpo_en_demo.json", "dpo", "sharegpt", 299, {}),
        ("dpo_en_demo.json", "kto", "sharegpt", 299, {}),
        ("dpo_en_demo.json", "sft", "sharegpt", 299, {"columns": {"assistant": "chosen"}}),
        ("kto_en_demo.json", "kto", "messages", 300, {}),
    ],
)
def test_public_files_load_without_a_drop(shared_dir, tmp_path, name, kind, form, rows, settings):
    run = Run(tmp_path, shared_dir / "tokenizers" / "qwen2.5")
    packing = kind in ("sft", "pretrain")
    store = run(shared_dir / "data" / name, kind=kind, packing=packing, **settings)
    assert (run.report["rows_read"], run.report["rows_kept"], run.report["dropped"]) == (rows, rows, {})
    assert run.report["sources"][0]["format"] == form
    assert store.manifest.trained_tokens > 0.4 * store.manifest.tokens
    if name == "identity.json":
        text = "".join(run.texts(store))
        assert "Sprout" in text and "{{" not in text


def test_as_many_rows_to_evaluate_on_as_there_are_is_refused(run, tmp_path):
    source = write(tmp_path / "a.jsonl", pairs(5))
    with pytest.raises(UserError, match="leave none to train on: 5 rows can be used"):
        run(source, eval_rows=5)
    run(source, eval_rows=4)
    assert len(run.eval) == 4


def test_a_link_that_goes_round_is_refused_before_it_is_hashed(run, tmp_path):
    (tmp_path / "rows").mkdir()
    loop = tmp_path / "rows" / "loop.jsonl"
    loop.symlink_to(loop)
    with pytest.raises(UserError, match="symbolic links"):
        run(tmp_path / "rows")
