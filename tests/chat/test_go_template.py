"""Go templates are written from frames; what they render is what Jinja renders, and what Go renders."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.chat.test_frame import PUBLIC, TURNS, VARIABLES, shipped, template
from tunerun.chat.conversations import random_conversations
from tunerun.chat.faults import ChatFault
from tunerun.chat.frame import probe_frame
from tunerun.chat.go_template import from_frame, literal, render
from tunerun.chat.template import ChatTemplate, shipped_names

# Text that means something to Go, to a Modelfile, or to nobody.
AWKWARD = '{{ if }}{%}}{"a": {"b": 1}} """"four" \\n \\ \u3000wide\u200bzero\U000e0041tag 你好🙂 {'


def rendered(jinja: ChatTemplate, messages: list[dict[str, Any]]) -> str | None:
    try:
        return jinja.render(messages, generation_prompt=True)
    except ChatFault:
        return None


def by_ours(source: str, messages: list[dict[str, Any]]) -> str | None:
    try:
        return render(source, messages)
    except ChatFault:
        return None


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_template_renders_the_same_as_go_template(name: str) -> None:
    source = from_frame(probe_frame(shipped(name)))
    for messages in random_conversations(60, seed=3):
        assert by_ours(source, messages) == rendered(shipped(name), messages)


@pytest.mark.shared
@pytest.mark.parametrize("name", [name for name in PUBLIC if "Hermes" not in name])
def test_a_public_template_renders_the_same_as_go_template(shared_dir: Path, name: str) -> None:
    jinja = template((shared_dir / "templates" / f"{name}.jinja").read_text(encoding="utf-8"))
    source = from_frame(probe_frame(jinja))
    for messages in random_conversations(60, seed=3):
        assert by_ours(source, messages) == rendered(jinja, messages)


def test_a_conversation_that_ends_with_an_answer_leaves_it_open() -> None:
    source = from_frame(probe_frame(template(TURNS)))
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert render(source, messages) == "[user]a[/][assistant]b"


def test_a_system_prompt_that_the_template_refuses_fails_with_the_reason() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    source = from_frame(probe_frame(template(refusing + TURNS)))
    with pytest.raises(ChatFault, match="takes no system prompt"):
        render(source, [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])


def test_text_that_means_something_to_readers_is_written_as_strings() -> None:
    source = literal(AWKWARD)
    assert '"""' not in source
    assert "\u3000" not in source
    assert render(source, [{"role": "user", "content": ""}]) == AWKWARD


@pytest.mark.parametrize(
    "source", ["{{- .System }}", "{{ if .System }}x", "x{{ end }}", "{{ .System | json }}", "{{ x"]
)
def test_a_template_of_another_kind_is_not_rendered_by_guess(source: str) -> None:
    with pytest.raises(ChatFault):
        render(source, [{"role": "user", "content": ""}])


@pytest.mark.slow
def test_go_renders_the_same(tmp_path: Path) -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("needs Go (apt install golang-go)")
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    mistral = TURNS.replace("{{ m.content }}", "{{ s if loop.last and m.role == 'user' }}{{ m.content }}")
    mistral = (
        "{% set s = '' %}{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\\n' %}"
        "{% set messages = messages[1:] %}{% endif %}" + mistral
    )
    jinjas = [shipped(name) for name in shipped_names()]
    jinjas += [
        template(text)
        for text in (refusing + TURNS, mistral, json.dumps(AWKWARD, ensure_ascii=False).join(["{{ ", " }}"]) + TURNS)
    ]
    jobs = [
        (from_frame(probe_frame(jinja)), messages) for jinja in jinjas for messages in random_conversations(60, seed=5)
    ]
    program = tmp_path / "ollama"
    source = Path(__file__).with_name("ollama.go")
    subprocess.run([go, "build", "-o", str(program), str(source)], check=True, env=_go_environment(tmp_path))
    lines = "".join(json.dumps({"Template": text, "Messages": messages}) + "\n" for text, messages in jobs)
    done = subprocess.run([str(program)], input=lines, capture_output=True, text=True, check=True, encoding="utf-8")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(jobs)
    refused = 0
    for (text, messages), found in zip(jobs, answers, strict=True):
        ours = by_ours(text, messages)
        assert ours == (None if found["Error"] else found["Text"]), found["Error"]
        refused += ours is None
        if found["Error"]:
            assert "takes no system prompt" in found["Error"]
    assert 0 < refused < len(jobs) / 2


def _go_environment(folder: Path) -> dict[str, str]:
    return {"PATH": "/usr/local/go/bin:/usr/bin:/bin", "HOME": str(folder), "GOCACHE": str(folder / "cache")}


def test_variables_of_templates_are_those_of_the_model() -> None:
    source = from_frame(probe_frame(template("{{ bos_token }}" + TURNS)))
    assert render(source, [{"role": "user", "content": "a"}]).startswith(VARIABLES["bos_token"])
