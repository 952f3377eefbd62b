"""25 kinds of secrets, planted wherever they can be, are in no file and on no screen; ordinary keys lose nothing."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path

import pytest

from tests.run import scenario
from tests.secret_kinds import KINDS, PEM, found_in, pieces, written
from tunerun import cli, redact
from tunerun.config import typed
from tunerun.config.schema import RunConfig
from tunerun.errors import ExitCode, UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder whose environment is full of secrets, and whose training says them all."""
    scenario.use_stand_ins(monkeypatch.setattr)
    scenario.fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    for variable, value, _ in KINDS.values():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("DATABASE_URL", "postgres://me:Un1queDbPassw0rd@host/db")
    return tmp_path


BASE = ("model.path=model", "data.path=rows.txt", "method=lora", "stages=[data,train]")
SEARCH = (
    "-m",
    "hydra/sweeper=tunerun_optuna",
    "sweep.metric=train_loss",
    "sweep.trials=1",
    "train.learning_rate=interval(1e-5,1e-3)",
)


def test_there_are_25_kinds():
    assert len(KINDS) == 25


def test_what_a_stage_says_and_dies_of_holds_no_secret(folder, monkeypatch, capfd):
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:leak-all")
    monkeypatch.setenv("TUNERUN_TEST_NAMES", ",".join(variable for variable, _, _ in KINDS.values()))
    assert cli.dispatch([*BASE, "run_dir=run"]) == ExitCode.STAGE_FAILED
    out, err = capfd.readouterr()
    files = written(folder / "run")
    assert {"config.yaml", "plan.json", "run.json", "report.html", "README.md", "logs/train.log"} <= files.keys()
    assert files["logs/train.log"].count(redact.MARK) > 100
    assert "Traceback" in files["logs/train.log"]
    assert "Un1queDbPassw0rd" not in files["logs/train.log"] + out + err
    assert found_in({**files, "stdout": out, "stderr": err}) == []


def test_a_sweep_writes_no_secret_either(folder, monkeypatch, capfd):
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:leak-all")
    monkeypatch.setenv("TUNERUN_TEST_NAMES", ",".join(variable for variable, _, _ in KINDS.values()))
    assert cli.dispatch([*SEARCH, *BASE]) == ExitCode.STAGE_FAILED
    out, err = capfd.readouterr()
    files = written(folder / "outputs")
    assert {Path(name).name for name in files} >= {"sweep.json", "results.json", "results.html", "search.journal"}
    assert found_in({**files, "stdout": out, "stderr": err}) == []


@pytest.mark.parametrize("sweep", [False, True])
def test_the_value_of_a_variable_that_the_config_names_is_refused_too(sweep, folder, monkeypatch):
    monkeypatch.setenv("TEACHER", "plain-looking-value")
    typed = [*BASE, "answer.api_key_env=TEACHER", "data.vars.note=plain-looking-value"]
    with pytest.raises(UserError, match=r"data\.vars\.note: holds a secret"):
        cli.dispatch([*(["-m", "seed=1,2"] if sweep else []), *typed])
    assert not list(folder.rglob("sweep.json"))


PLANTED = {
    "the value": lambda line: line,
    "an address": lambda line: f"https://me:{urllib.parse.quote(line, safe='')}@example.org/rows",
    "a query": lambda line: f"https://example.org/rows?api_key={line}",
}


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize("where", PLANTED)
def test_secrets_in_the_config_are_all_refused_and_not_repeated(where, sweep, folder):
    planted = [
        f"data.vars.kind{number}={json.dumps(PLANTED[where](pieces(value)[0]))}"
        for number, (_, value, _) in enumerate(KINDS.values())
    ]
    with pytest.raises(UserError) as caught:
        cli.dispatch([*(["-m", "seed=1,2"] if sweep else []), *BASE, *planted])
    told = {problem.where for problem in caught.value.problems}
    assert told >= {f"data.vars.kind{number}" for number in range(len(KINDS))}
    assert found_in({where: cli.render_error(caught.value)}) == []
    assert not (folder / "outputs").exists()


def test_an_address_with_a_password_may_come_from_a_variable_only(folder, monkeypatch, capfd):
    with pytest.raises(UserError, match=r"hydra\.sweeper\.storage: holds a secret") as caught:
        cli.dispatch([*SEARCH, *BASE, "hydra.sweeper.storage=postgresql://me:Un1queDbPassw0rd@host/db"])
    assert "Un1queDbPassw0rd" not in str(caught.value)
    assert not (folder / "outputs").exists()
    monkeypatch.setenv("SEARCH_STORAGE", f"sqlite:///{folder}/search.db")
    monkeypatch.setenv("TUNERUN_TEST_BEHAVIOUR", "train:stage-error")
    assert cli.dispatch([*SEARCH, *BASE, "hydra.sweeper.storage=${oc.env:SEARCH_STORAGE}"]) == ExitCode.STAGE_FAILED
    assert (folder / "search.db").is_file()


@pytest.mark.parametrize("kind", [kind for kind, (_, _, looks) in KINDS.items() if looks])
def test_what_looks_like_a_secret_goes_without_its_variable(kind):
    _, value, _ = KINDS[kind]
    for text in (f"loading {value} now", f"RuntimeError: bad key '{value}'", f"https://h/x?k={value}&y=1"):
        assert not any(piece in redact.text(text, ()) for piece in pieces(value)), text


def test_a_private_key_in_a_log_goes_line_by_line():
    clean = redact.Lines(())
    lines = ["before", *PEM.format("MIIEvQIBADANplanted0", "G9w0BAQEFAASCplanted1").splitlines(), "after"]
    assert [clean(line) for line in lines] == ["before", *[redact.MARK] * 4, "after"]


@pytest.mark.parametrize("query", ["api_key=unknown-1", "a=b&access_token=qwerty", "x=1&X-Amz-Signature=0f1e2d"])
def test_the_address_of_a_config_may_hold_no_key(query):
    (found,) = redact.problems({"data.path": (f"https://example.org/rows.jsonl?{query}",)}, ())
    assert found.where == "data.path"
    assert redact.problems({"data.path": ("https://example.org/rows?page=2&pad_token=x&key=3",)}, ()) == []


ORDINARY = """
pad_token eos_token bos_token unk_token mask_token sep_token cls_token image_token pad_token_id eos_token_id
additional_special_tokens added_tokens max_tokens max_new_tokens min_new_tokens num_tokens tokens_per_second
trained_tokens token_ids token_type_ids tokenizer tokenizer_class tokenizer_file tokens token_count prompt_tokens
completion_tokens total_tokens stop_token start_token end_token first_token last_token next_token think_token
tool_token fim_prefix_token suffix_token middle_token sort_key key keys key_name primary key_value_heads key_proj
num_key_value_heads k_proj query_key_value keyboard monkey author authors authority auto_auth passes passed pass_rate
compass password_env api_key_env api_key_file token_path token_file secret_name secretary credential_path
private public access accessible access_log account account_name session session_id signature_columns sig signal
hidden_size intermediate_size vocab_size rope_theta rms_norm_eps attention_bias tie_word_embeddings torch_dtype
model_type architectures head_dim num_hidden_layers sliding_window use_cache initializer_range chat_template
learning_rate weight_decay warmup_steps lr_scheduler_type gradient_accumulation_steps bf16 fp16 seed logging_steps
lora_alpha lora_dropout target_modules modules_to_save task_type bias inference_mode revision peft_type
"""


def test_200_ordinary_keys_lose_nothing():
    values = ("<|endoftext|>", 151643, "a plain text of 12345678 words", [1, 2], None, True, "2e-05")
    ordinary = {key: values[index % len(values)] for index, key in enumerate(ORDINARY.split())}
    schema = typed.flatten(typed.plain(RunConfig()))
    everything = {**schema, **ordinary, **{key.upper(): value for key, value in schema.items()}}
    assert len({**schema, **ordinary}) >= 200
    assert redact.data(everything, ()) == everything
    assert redact.problems(everything, ()) == []
    numbers = {key: index for index, key in enumerate(ordinary)}
    assert redact.data(numbers, ()) == numbers
    for key, value in everything.items():
        line = f"{key}={value}"
        assert redact.text(line, ()) == line
