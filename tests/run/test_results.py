"""The summary, the report and the model card of the same runs."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import reports
import scenario

from tunerun import artifacts, columns
from tunerun.config.schema import PublishConfig, TrainConfig
from tunerun.plan.steps import PublishStep
from tunerun.run import card, compare, inspect, report, results, summary
from tunerun.train.batches import total_steps

_VOID = {"meta", "br"}


def test_a_gate_is_named_in_words_and_its_file_as_it_is():
    assert report._gate("template_tokens:a-q4_k_m.gguf") == "template tokens:a-q4_k_m.gguf"
    assert report._gate("merge_logits") == "merge logits"


def test_a_path_is_shown_as_it_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert summary.short(tmp_path / "outputs" / "项目") == "outputs/项目"
    assert summary.short(tmp_path / "my outputs") == "'my outputs'"
    assert summary.short(tmp_path.parent) == str(tmp_path.parent)


class Page(HTMLParser):
    """Checks that elements close in order, and collects the text and what would be loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.loaded = [], [], []

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_data(self, data):
        self.text.append(data)


def page(run_dir):
    parsed = Page()
    parsed.feed((run_dir / "report.html").read_text(encoding="utf-8"))
    assert parsed.open == []
    assert parsed.loaded == []
    return " ".join(parsed.text)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """One executed run with the reports that stages write; to be copied."""
    folder = tmp_path_factory.mktemp("executed")
    scenario.fill(folder)
    run_dir = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        scenario.use_stand_ins(patch.setattr)
        scenario.execute(run_dir, folder / "rows.txt", folder / "model", stages=scenario.FULL)
    reports.put(run_dir, eval=reports.evaluation(), data=reports.data(), verify=reports.verification())
    lines = [json.dumps(row) + "\n" for row in reports.metrics()]
    (run_dir / "metrics.jsonl").write_text("".join(lines) + '{"step": 6, "lo')
    report.write(run_dir, ())
    card.write(run_dir, ())
    return run_dir


@pytest.fixture
def finished(executed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(executed, tmp_path / "run"))


def test_the_summary_compares_names_files_and_says_what_next(finished):
    text = summary.render(finished, "small")
    assert "loss on 48 held-out rows: 2.931 before, 0.4471 after (perplexity 18.75 -> 1.564)" in text
    assert "I am <b>Sprout</b> | a model.                    | I am Ada" in text
    assert "verified: 1 pass" in text
    assert "export/small-f16.gguf" in text
    assert "tunerun chat run" in text
    assert "tunerun serve run" in text
    assert max(columns.width(line) for line in text.splitlines()) <= 100


def test_the_summary_of_an_untrained_model_shows_its_answers_alone(finished):
    reports.put(finished, eval=reports.evaluation(tuned=False))
    text = summary.render(finished, "small")
    assert "loss on 48 held-out rows: 2.931 (perplexity 18.75)" in text
    assert "TUNED" not in text


def test_tasks_are_in_summary_report_card_and_comparison(finished):
    measured = reports.evaluation()
    for name, value in (("base", 0.25), ("tuned", 0.5)):
        measured["models"][name]["tasks"] = reports.tasks(value)
    reports.put(finished, eval=measured)
    text = summary.render(finished, "small")
    assert "hellaswag acc                   0.25 ± 0.012 -> 0.5 ± 0.012" in text
    assert "hellaswag exact_match (strict)  0.125 -> 0.25" in text
    report.write(finished, ())
    card.write(finished, ())
    assert "exact_match (strict)" in page(finished)
    assert "| hellaswag | acc | 0.25 ± 0.012 | 0.5 ± 0.012 |" in (finished / "README.md").read_text(encoding="utf-8")
    found = results.read(finished)
    differing = compare.differences(found, dataclasses.replace(found, evaluation=reports.evaluation()))
    assert [item.key for item in differing] == ["hellaswag acc", "hellaswag exact_match (strict)"]
    del measured["models"]["tuned"]
    reports.put(finished, eval=measured)
    assert "hellaswag acc                   0.25 ± 0.012\n" in summary.render(finished, "small")
    report.write(finished, ())
    card.write(finished, ())


def test_a_teachers_answers_are_in_report_and_card(finished):
    reports.put(finished, answer=reports.teacher())
    report.write(finished, ())
    card.write(finished, ())
    text = page(finished)
    assert "9 from 11 prompts, 2 lost" in " ".join(text.split())
    assert "big <b>teacher</b>" in text and "cut-off" in text
    assert "- 9 answers of `big <b>teacher</b>`" in (finished / "README.md").read_text(encoding="utf-8")


def test_a_loss_that_is_not_finite_is_said_to_be_so(finished):
    broken = reports.evaluation()
    broken["models"]["tuned"].update(loss=None, perplexity=None)
    reports.put(finished, eval=broken)
    assert "2.931 before, not finite after" in summary.render(finished, "small")
    report.write(finished, ())
    card.write(finished, ())
    assert "not finite" in page(finished)


def test_the_report_is_self_contained_and_shows_every_part(finished):
    text = page(finished)
    for part in (
        "2.93 → 0.447",
        "held-out loss",
        "Learning rate",
        "Gradient norm",
        "Answers to held-out rows",
        "step 5: ROUGE-L 31.25",
        reports.CHINESE,
        "480",
        "empty-answer",
    ):
        assert part in text
    for part in ("merge logits", "mean kl nats 2e-05", "export/small-f16.gguf", "config.yaml", "processor"):
        assert part in text
    markup = (finished / "report.html").read_text()
    assert "<b>Sprout" not in markup
    assert "prefers-color-scheme: dark" in markup
    assert "<script" not in markup
    assert len(re.findall(r"<title>step \d: loss ", markup)) == 5


def test_known_secrets_are_not_in_report_and_card(finished):
    reports.put(finished, eval=json.loads(json.dumps(reports.evaluation()).replace("Ada", "correct-horse")))
    report.write(finished, ("correct-horse",))
    card.write(finished, ("correct-horse",))
    assert "correct-horse" not in page(finished) + (finished / "README.md").read_text()
    assert "I am [redacted], an assistant" in page(finished)


def test_parts_that_are_absent_are_left_out(small, run_dir):
    small(stages=("data",))
    text = page(run_dir)
    assert "Answers" not in text
    assert "Verification" not in text
    assert "<svg" not in (run_dir / "report.html").read_text()


def test_a_failed_run_has_a_report_with_the_error(small, run_dir, monkeypatch):
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:stage-error")
    small()
    assert "train: what went wrong the disk is full" in re.sub(r"\s+", " ", page(run_dir))
    assert "**This run is failed" in (run_dir / "README.md").read_text()


def test_the_card_has_a_header_measures_and_limits(finished):
    text = (finished / "README.md").read_text(encoding="utf-8")
    assert text.startswith('---\nbase_model: "')
    assert "library_name: peft\n" in text
    assert "| tuned | 0.4471 | 1.564 |" in text
    assert "I am &lt;b>Sprout&lt;/b> \\| a model." in text
    assert "| `export/small-f16.gguf` | gguf |" in text
    assert "licence" in text


def test_the_card_of_a_run_that_failed_a_gate_says_so(finished):
    reports.put(finished, verify=reports.verification(verdict="fail"))
    card.write(finished, ())
    assert "**Unverified: a gate failed" in (finished / "README.md").read_text()


def test_the_card_names_what_no_gate_proved(finished):
    reports.put(finished, verify=reports.verification(verdict="not_proved"))
    card.write(finished, ())
    text = (finished / "README.md").read_text()
    assert "Not everything could be verified: 1 gate not proved: merge_logits." in text
    assert "**Unverified" not in text


def test_the_card_for_a_hub_says_how_the_files_are_used_there_and_nothing_of_this_machine(finished):
    publish = PublishConfig(repo="someone/small", folder="deep")
    card.write_published(finished, PublishStep(publish=publish, name="small", artifacts=("adapter", "gguf")), ())
    text = (finished / "publish" / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: peft\n")
    assert "AutoPeftModelForCausalLM.from_pretrained('someone/small', subfolder='deep')" in text
    assert "ollama run hf.co/someone/small" in text
    assert "| tuned | 0.4471 | 1.564 |" in text
    for private in (str(finished), results.read(finished).base_model, "base_model", "tunerun serve", "This run is"):
        assert private not in text


def test_the_card_says_when_nothing_was_held_out(finished):
    reports.put(finished, eval=reports.evaluation(split="train"))
    card.write(finished, ())
    assert "No rows were held out" in (finished / "README.md").read_text()


def test_runs_are_listed_newest_first(tmp_path, finished):
    later = tmp_path / "later"
    later.mkdir()
    data = artifacts.read_json(finished / "run.json")
    artifacts.write_json(later / "run.json", {**data, "created": "2999-01-01T00:00:00+00:00", "status": "running"})
    lines = inspect.list_runs(tmp_path).splitlines()
    assert [line.split()[-1] for line in lines] == ["run", "later", "run"]
    assert "killed" in lines[1]
    assert "2.93 -> 0.447" in lines[2]
    assert max(map(columns.width, lines)) <= 100


def test_one_run_is_shown_with_stages_and_files(finished):
    text = inspect.show(finished)
    assert text.startswith("small: done\n")
    assert "export/small-f16.gguf" in text
    assert "0.4471 after" in text and "-> 1.564)" in text
    assert "> Who are you?" in text
    assert "\nverified: " in text
    assert max(map(columns.width, text.splitlines())) <= 100


def test_the_report_shows_where_rows_came_from_and_which_are_copies(finished):
    text = page(finished)
    for part in ("/data/rows.jsonl:9", "/data/rows.jsonl:3", "about 91%", "alpaca", "/data/rows.jsonl:17", "empty"):
        assert part in text
    assert "20 optimiser steps, 1 epoch of 310 packed rows, 16 in a step" in text


def test_rows_that_could_not_be_used_are_shown_instead_of_those_that_could(finished):
    failed = finished / "data.failed"
    failed.mkdir()
    found = {**reports.data(), "dropped": {"bad-json": 77}, "tokens": 0, "rows": 0, "length_tokens": None}
    found["unreadable"] = [{"where": "b.csv", "what": "is empty."}]
    (failed / "report.json").write_text(json.dumps({**found, "duplicates": None, "packing_fill": None}))
    report.write(finished, ())
    text = page(finished)
    assert "bad-json" in text and "77" in text and "b.csv" in text
    assert "18,210" not in text


@pytest.mark.parametrize(
    ("rows", "size", "epochs", "max_steps"), [(1000, 16, 3.0, None), (7, 16, 0.5, None), (9, 4, 1.0, 5)]
)
def test_the_steps_of_training_are_counted_as_training_counts_them(rows, size, epochs, max_steps):
    train = TrainConfig(global_batch_size=size, epochs=epochs, max_steps=max_steps)
    steps = total_steps(rows, global_batch_size=size, epochs=epochs, max_steps=max_steps)
    text = results.training_volume({"rows": rows, "packing_fill": None}, train)
    assert text.startswith(f"{steps} optimiser steps, ")
