from __future__ import annotations

from pathlib import Path

import pytest

from tunerun.config import resolve, typed
from tunerun.errors import UserError

BASE = ["model=qwen2.5-7b", "data.path=rows.jsonl"]


def write_recipe(folder: Path, name: str, content: str) -> None:
    (folder / "recipes").mkdir(exist_ok=True)
    (folder / "recipes" / f"{name}.yaml").write_text(content)


def faults(*arguments: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        resolve.resolve(arguments)
    return [str(problem) for problem in caught.value.problems] or [str(caught.value)]


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_an_unknown_key_is_refused_however_it_is_given(sign):
    assert faults(*BASE, f"{sign}method.rnak=3") == [
        "method.rnak (command line): there is no key `rnak` in `method`. Did you mean rank?"
    ]


def test_an_unknown_key_in_a_recipe_is_refused_with_file_and_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipes" / "mine.yaml"
    recipe.parent.mkdir()
    recipe.write_text("# @package _global_\ndefaults:\n  - override /model: qwen2.5-7b\n  - _self_\n"
                      "data:\n  path: [x.json]\n  pakcing: true\n")  # fmt: skip
    assert faults("+recipe=mine") == [
        "data.pakcing (recipes/mine.yaml:7): there is no key `pakcing` in `data`. Did you mean packing?"
    ]


def test_types_and_rules_are_reported_together():
    found = faults(*BASE, "method.rank=ten", "train.epochs=0", "objective=dpo", "data.packing=true")
    assert [line.split(" ")[0] for line in found] == ["method.rank", "train.epochs:"[:-1], "data.packing"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("+recipe=qwen", "recipe=qwen: there is no recipe named `qwen`. Did you mean qwen2.5-"),
        ("model=qwn2.5-7b", "model=qwn2.5-7b: there is no model named `qwn2.5-7b`. Did you mean qwen2.5-7b"),
        ("modle=sprout", "modle (command line): there is no key `modle`. Did you mean model?"),
        ("method.rank=[8", "method.rank=[8: is not a valid override:"),
        ("method.rank", "method.rank: is not a valid override: a value is missing. Write key=value."),
        ("+recipe=3.5", "+recipe=3.5: the name of a recipe starts with a letter."),
        ("+recipe=../up", "recipe=../up: there is no recipe named `../up`."),
        ("+recipe=[quickstart,nope]", "recipe=nope: there is no recipe named `nope`."),
        ("method.rank=null", "method.rank (command line): null is not a whole number."),
        ("data.vars.a.b=c", "data.vars.a (command line): {'b': 'c'} is not a text."),
        ("~data.path", "data.path (command line): no data is chosen."),
        ("data.vars=[a]", "Error merging override data.vars=[a]: a list cannot take the place of a section of keys."),
        ("data.system=${nope}", "data.system: Interpolation key 'nope' not found."),
        ("data.system=???", "data.system: has no value yet (???). Set data.system=..."),
        ("method=lora,full", "method=lora,full: has several values."),
        ("hydra.run.dir=x", "hydra.run.dir=x: tunerun reads only hydra.searchpath. The folder of a run is run_dir."),
        ("hydra.searchpath=[file:///nope]", "provider=hydra.searchpath in command-line, path=/nope is not available."),
        ("hardware.processes=0", "hardware.processes (command line): 0 is out of range: it must be >= 1."),
        (
            "export.gguf.types=[Q4_K_M]",
            ("export.gguf.types[0] (command line): 'Q4_K_M' is not one of its values. Did you mean q4_k_m"),
        ),
        ("export.gguf.types=[q4_km]", "export.gguf.types[0] (command line): 'q4_km' is not one of its values."),
    ],
)
def test_each_mistake_is_one_clear_line(argument, message):
    found = faults(*BASE, argument)
    assert found[0].startswith(message)
    assert len(found) == 1
    assert "\n" not in found[0]


def test_two_recipes_are_combined_in_a_list_only():
    assert faults("+recipe=quickstart", "+recipe=qwen2.5-full") == [
        "recipe: is given more than once. Combine recipes with +recipe=[a,b]; the last goes first."
    ]
    assert resolve.resolve(["+recipe=[quickstart,qwen2.5-full]"]).config.method.kind == "full"


def test_a_further_folder_of_configs_adds_options_and_replaces_none(tmp_path):
    folder = tmp_path / "more (1), mine"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text("path: there\n")
    (folder / "model" / "sprout.yaml").write_text("path: elsewhere\n")
    assert resolve.resolve(["model=mine", "data.path=x.json"], folder).config.model.path == "there"
    assert resolve.resolve(["model=sprout", "data.path=x.json"], folder).config.model.path == "tunerun://sprout"


def test_the_command_line_goes_before_recipes_and_recipes_before_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: qwen2.5-7b\n  - override /export: gguf\n  - _self_\n"
        "data: {path: [x.json]}\nmethod: {rank: 5}\nexport: {gguf: {types: [q8_0]}}\ntrain: {epochs: 7}\n"
    )
    found = resolve.resolve(["+recipe=mine", "train.epochs=9"])
    assert (found.config.method.rank, found.config.export.gguf.types, found.config.train.epochs) == (5, ("q8_0",), 9.0)
    assert found.recipe == "mine"


def test_a_recipe_can_be_named_without_the_plus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve.resolve(["recipe=quickstart"]) == resolve.resolve(["+recipe=quickstart"])


def test_the_users_options_are_found_before_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    option = tmp_path / "conf" / "model" / "sprout.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("path: mine\n")
    assert resolve.resolve(["model=sprout", "data.path=x.json"]).config.model.path == "mine"


def test_a_project_with_its_own_hydra_config_is_not_mistaken_for_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("something: else\n")
    assert resolve.resolve(BASE).config.data.path == ("rows.jsonl",)


def test_open_mappings_take_new_keys_without_a_plus():
    config = resolve.resolve([*BASE, "data.vars.name=Ada", "data.vars.author=某人"]).config
    assert config.data.vars == {"name": "Ada", "author": "某人"}


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("eval.prompts=[你好, who are you?]", ("你好", "who are you?")),
        ("eval.prompts=['a, b', c]", ("a, b", "c")),
        ("eval.prompts=what is 2 (two)?", ("what is 2 (two)?",)),
    ],
)
def test_values_that_hydras_grammar_cannot_read_are_quoted_for_the_user(argument, expected):
    assert resolve.resolve([*BASE, argument]).config.eval.prompts == expected


def test_a_typed_key_that_the_method_does_not_use_is_refused():
    (found,) = faults(*BASE, "method=full", "method.rank=8")
    assert found.startswith("method.rank (command line): is not used by method.kind=full. Remove it, or choose one of")
    assert found.endswith("lora, dora, rslora, pissa, lora_plus, qlora.")


def test_a_typed_key_that_the_optimizer_or_schedule_does_not_use_is_refused():
    found = faults(
        *BASE, "train.optimizer=lion", "train.adam_beta2=0.9", "train.schedule=constant", "train.decay_fraction=0.1"
    )
    assert [text.partition(" (")[0] for text in found] == ["train.decay_fraction", "train.adam_beta2"]
    assert "is not used by train.optimizer=lion" in found[1]


def test_the_same_key_from_a_recipe_is_only_a_note(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: qwen2.5-7b\n  - _self_\n"
        "data: {path: [x.json]}\nmethod: {rank: 5}\n"
    )
    found = resolve.resolve(["+recipe=mine", "method=full"])
    assert found.notes == ("method.rank (recipes/mine.yaml:6) is not used by method.kind=full.",)


def test_what_is_not_used_is_not_read_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recipe(
        tmp_path,
        "mine",
        "# @package _global_\ndefaults:\n  - override /model: qwen2.5-7b\n  - override /cluster: slurm\n"
        "  - override /hardware: zero2\n  - override /objective: distill\n  - _self_\n"
        "data: {path: [x.json]}\ncluster: {nodes: 2, partition: gpu}\nhardware: {offload: true, deepspeed: z.json}\n"
        "objective: {teacher: gone}\nmethod: {rank_pattern: {q_proj: 4}}\n",
    )
    found = resolve.resolve(["+recipe=mine", "cluster=local", "hardware=ddp", "objective=sft", "method=full"])
    config = found.config
    assert (config.cluster.nodes, config.cluster.partition, config.method.rank_pattern) == (1, None, {})
    assert (config.hardware.offload, config.hardware.deepspeed, config.objective.teacher) == (False, None, None)
    assert len(found.notes) == 6
    assert resolve.resolve(["+recipe=mine", "hardware=zero1"]).config.hardware.offload is False
    kept = resolve.resolve(["+recipe=mine"]).config
    assert (kept.cluster.nodes, kept.hardware.offload, kept.objective.teacher) == (2, True, "gone")
    again = resolve.rebuild(typed.plain(kept), ["cluster.kind=local"])
    assert again.cluster.nodes == 1


def test_a_recipe_needs_no_package_header(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, "mine", "model: {path: tunerun://sprout}\ndata: {path: [x.json]}\nseed: 7\n")
    assert resolve.resolve(["+recipe=mine"]).config.seed == 7


def test_a_recipe_builds_on_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, "mine", "defaults:\n  - quickstart\n  - _self_\nmethod: {rank: 3}\n")
    found = resolve.resolve(["+recipe=mine"])
    assert (found.config.method.rank, found.config.model.path) == (3, "tunerun://sprout")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("defaults:\n  - mine\n", "a config file builds on itself"),
        ("defaults:\n  - model: sprout\n", ("recipe=model/sprout: there is no recipe named `model/sprout`. "
         "In the defaults of a recipe, write `- override /model: sprout`.")),
        ("defaults:\n  - /model: sprout\n", ("model is chosen more than once. "
         "In the defaults of a recipe, write `- override /model: NAME`.")),
        ("defaults:\n  - override /modle: sprout\n", ("In 'recipe/mine': Could not override 'modle'. "
         "No match in the defaults list. Did you mean model?")),
        ("defaults: 3\n", "Invalid defaults list in 'recipe/mine', defaults must be a list (got int)"),
        ("model: 3\ndata: {path: [x]}\n", "model (recipes/mine.yaml:1): 3 is not a section of keys."),
        ("_target_: os.system\n", "_target_ (recipes/mine.yaml:1): there is no key `_target_`."),
        ("- a\n", "recipe mine is a list: write `key: value` lines."),
        ("hello\n", "hello: there is no key `hello`."),
    ],
)  # fmt: skip
def test_each_mistake_in_a_recipe_is_explained(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, "mine", content)
    assert faults("+recipe=mine")[0].startswith(message)


def test_a_recipe_in_another_encoding_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, "mine", "")
    (tmp_path / "recipes" / "mine.yaml").write_bytes("name: 中\n".encode("gbk"))
    assert faults("+recipe=mine") == ["recipes/mine.yaml is not UTF-8 text. Save it as UTF-8."]


def test_a_folder_or_a_dead_link_is_no_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "mine.yaml").mkdir(parents=True)
    (tmp_path / "recipes" / "dead.yaml").symlink_to("nowhere")
    assert "mine" not in resolve.option_names("recipe")
    assert "dead" not in resolve.option_names("recipe")
    assert faults("+recipe=mine")[0].startswith("recipe=mine: there is no recipe named `mine`.")


def test_a_file_that_is_not_yaml_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipes" / "broken.yaml"
    recipe.parent.mkdir()
    recipe.write_text("data: [\n")
    message = faults("+recipe=broken")[0]
    assert "not valid YAML" in message
    assert '"recipes/broken.yaml"' in message


def test_a_run_can_be_rebuilt_with_changes(tmp_path: Path):
    config = resolve.resolve(BASE).config
    again = resolve.rebuild(typed.plain(config), ["train.epochs=3", "data.vars.name=x"])
    assert (again.train.epochs, again.data.vars) == (3.0, {"name": "x"})
    with pytest.raises(UserError, match=r"train\.epoch "):
        resolve.rebuild(typed.plain(config), ["train.epoch=3"])
