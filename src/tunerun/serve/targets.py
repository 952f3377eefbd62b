"""Finds out what is to be served: a run directory, a model folder, an adapter, a GGUF file, or BASE+ADAPTER."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunerun import artifacts
from tunerun.base_model import read_base
from tunerun.chat.template import ChatTemplate, load_template, without_generation_blocks
from tunerun.chat.tokenizer import load_tokenizer, named_tokens
from tunerun.errors import Problem, StageError, UserError
from tunerun.formats import checkpoints, verdicts
from tunerun.formats.gguf_fields import is_gguf_adapter
from tunerun.formats.handoff import Handoff
from tunerun.formats.trained_base import read_quantisation
from tunerun.plan.placement import Placement
from tunerun.plan.steps import Quantisation
from tunerun.serve import recorded
from tunerun.serve.protocol import EngineName, EngineSpec, Ready, ServerSettings
from tunerun.serve.recorded import SERVE_FACTS
from tunerun.servers import GGUF_ENGINES

if TYPE_CHECKING:
    from tunerun.config.schema import EngineChoice

_MODEL_CONFIG = "config.json"
_BASE_KEY = "base_model_name_or_path"
# Served when a run has kept nothing else.
_PACKED = (artifacts.FP8, artifacts.AWQ, artifacts.GPTQ, artifacts.BNB4)

# LMDeploy takes token ids, which it is asked by, for no adapter; Ollama would need a model of its own for each.
_NO_ADAPTERS = {"lmdeploy": "Take vllm", "ollama": "Take llamacpp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A model that can be served."""

    name: str
    """What clients call it."""
    engine: EngineName
    weights: Path
    """A GGUF file, or a model folder."""
    adapter: Path | None = None
    quantisation: Quantisation | None = None
    """How the linear layers of a model folder are held: as they were when the adapter on top was trained."""
    tokenizer: Path | None = None
    """Folder of the tokenizer; None takes the one inside the GGUF file."""
    template: ChatTemplate | None = None
    """Chat template; for a GGUF file None: the one inside is used."""
    template_sha256: str | None = None
    """What the template inside the GGUF file must hash to, as the export recorded it."""
    stops: tuple[str, ...] = ()
    """Texts that end an answer, besides the model's own end tokens."""
    context_tokens: int | None = None
    """To serve with when nothing else is asked for; None takes the model's own."""
    tool_parser: str | None = None
    """How the template writes tool calls, as vLLM names it."""
    unverified: str = ""
    """Why the model should not be trusted; empty when nothing speaks against it."""
    unchecked: str = ""
    """That nothing was ever compared; empty when it was, and for models that no run made."""

    @property
    def other_base(self) -> str:
        """That the engine puts an adapter on another base than it was trained on; empty when it does not."""
        if self.adapter is None or self.quantisation is None or self.engine == "transformers":
            return ""
        bits = self.quantisation.bits
        return f"{self.name} was trained on a base in {bits} bits, and {self.engine} puts it on the whole one; merge it"

    @property
    def adapter_name(self) -> str | None:
        """What requests call the adapter by; None for a model without one."""
        return None if self.adapter is None else self.name

    def spec(
        self, placement: Placement, context_tokens: int | None, server: ServerSettings | None = None
    ) -> EngineSpec:
        """Returns what an engine process loads.

        Args:
            placement: Device, precision and threads.
            context_tokens: Overrides the target's own.
            server: For engines that are servers of their own: where they are, and arguments; None takes the defaults.
        """
        template = None if self.template is None else self.template.text
        return EngineSpec(
            engine=self.engine,
            weights=str(self.weights),
            adapters={} if self.adapter is None else {self.name: str(self.adapter)},
            tokenizer=None if self.tokenizer is None else str(self.tokenizer),
            context_tokens=context_tokens or self.context_tokens,
            stop=self.stops,
            threads=placement.threads,
            device=placement.device,
            precision=placement.precision,
            quantisation=self.quantisation,
            server=replace(server or ServerSettings(), chat_template=template, tool_parser=self.tool_parser),
        )

    def chat_template(self, ready: Ready) -> ChatTemplate | None:
        """Returns the template to chat with, once the engine is ready; None for a model without one.

        Raises:
            StageError: The GGUF file holds another template than the export wrote.
        """
        if self.template is not None or ready.chat_template is None:
            return self.template
        found = hashlib.sha256(ready.chat_template.encode()).hexdigest()
        if self.template_sha256 not in (None, found):
            raise StageError(
                f"{self.weights}: its chat template is not the one that {SERVE_FACTS} names. Export again."
            )
        variables: Mapping[str, str] = {"bos_token": ready.bos_token, "eos_token": ready.eos_token}
        if self.tokenizer is not None:
            variables = named_tokens(self.tokenizer)
        return ChatTemplate(text=ready.chat_template, tool_text=None, variables=variables, source=str(self.weights))


def resolve_target(
    path: Path,
    *,
    engine: EngineChoice = "auto",
    folders: EngineName = "transformers",
    checkpoint: int | None = None,
    base: bool = False,
) -> Target:
    """Finds out what is to be served.

    Args:
        path: Run directory, model folder, adapter folder, GGUF file, or a base and an adapter with a plus between.
        engine: What is to compute the answers.
        folders: What `auto` takes for model folders; a run's folders go before its GGUF files when it is another engine
            than `transformers`.
        checkpoint: Step of a checkpoint of the run, instead of its final model.
        base: The run's base model, instead of what was trained.

    Raises:
        UserError: There is no such model, or the engine cannot serve it.
    """
    path, adapter = split_adapter(path)
    for weights in filter(None, (path, adapter)):
        checkpoints.renew(weights.absolute().parent)
    if (path / artifacts.MODEL).is_file():
        preferred = folders if engine == "auto" and folders != "transformers" else engine
        target = _of_run(path, preferred, checkpoint, base)
    elif checkpoint is not None or base:
        what = "is not a run directory, so that it has neither checkpoints nor a base model."
        raise UserError(Problem(where=str(path), what=what))
    elif artifacts.is_adapter(path):
        target = _judged(_adapter(path.resolve().name, _base_of(path), path, recorded.template_behind(path)), path)
    elif (path / _MODEL_CONFIG).is_file():
        target = _judged(_as_exported(_folder(path.resolve().name, path, recorded.template_behind(path))), path)
    elif path.is_file():
        _check_whole(path)
        target = _judged(_as_exported(Target(name=path.stem, engine="llamacpp", weights=path)), path)
    else:
        what = "is no run directory, model folder, adapter folder or GGUF file."
        fix = f"Name a trial of this sweep: {path}/N" if artifacts.is_sweep(path) else "`tunerun runs` lists the runs."
        raise UserError(Problem(where=str(path), what=what, fix=fix))
    target = target if adapter is None else _judged(_with_adapter(target, adapter), adapter)
    recorded.require_text(target.weights, target.adapter)
    return _computed_by(target, folders if engine == "auto" and target.engine == "transformers" else engine)


def split_adapter(path: Path) -> tuple[Path, Path | None]:
    """Takes an adapter off its base, in `base.gguf+adapter.gguf`; a path that exists is one as it is."""
    base, plus, adapter = str(path).rpartition("+")
    return (Path(base), Path(adapter)) if plus and base and adapter and not path.exists() else (path, None)


def by_weights(targets: Sequence[Target]) -> list[list[Target]]:
    """Groups targets that one engine process can answer for: the same weights, whichever adapters are on top."""
    groups: dict[tuple[object, ...], list[Target]] = {}
    for target in targets:
        folder = None if target.tokenizer is None else target.tokenizer.resolve()
        held = (target.weights.resolve(), target.quantisation)
        weights = (target.engine, *held, folder, target.stops, target.context_tokens)
        groups.setdefault(weights, []).append(target)
    return list(groups.values())


def group_spec(
    group: Sequence[Target], placement: Placement, context_tokens: int | None, server: ServerSettings | None = None
) -> EngineSpec:
    """Returns what the engine process of a group loads; arguments as for `Target.spec`."""
    adapters = {target.name: str(target.adapter) for target in group if target.adapter is not None}
    return replace(group[0].spec(placement, context_tokens, server), adapters=adapters)


def _check_whole(file: Path) -> None:
    if is_gguf_adapter(file):
        what = "is an adapter, and no model by itself."
        raise UserError(Problem(where=str(file), what=what, fix=f"Name its base before it: BASE.gguf+{file}"))


def _with_adapter(base: Target, adapter: Path) -> Target:
    """Puts an adapter on a base.

    Raises:
        UserError: It is none, or one for the other kind of base.
    """
    is_file = adapter.is_file() and is_gguf_adapter(adapter)
    if not is_file and not artifacts.is_adapter(adapter):
        what = "is neither an adapter folder nor a GGUF file with an adapter."
        raise UserError(Problem(where=str(adapter), what=what))
    if base.adapter is not None:
        raise UserError(Problem(where=str(adapter), what=f"{base.name} is an adapter, and takes no other on top."))
    if is_file != (base.engine in GGUF_ENGINES):
        what = f"goes on a {'GGUF file' if is_file else 'model folder'}, and {base.weights} is none."
        fix = "" if is_file else "A run with export.gguf.adapter=true writes its adapter as a GGUF file, too."
        raise UserError(Problem(where=str(adapter), what=what, fix=fix))
    if is_file:
        return replace(base, name=adapter.stem, adapter=adapter)
    return replace(base, name=adapter.resolve().name, adapter=adapter, quantisation=read_quantisation(adapter))


def _computed_by(target: Target, engine: EngineChoice) -> Target:
    """Gives a target the engine that was asked for.

    Raises:
        UserError: The engine cannot serve it.
    """
    if engine in ("auto", target.engine):
        return target
    if (engine in GGUF_ENGINES) != (target.engine in GGUF_ENGINES):
        needs = "GGUF files" if engine in GGUF_ENGINES else "model folders"
        what = f"{engine} serves {needs}, and {target.weights} is none."
        raise UserError(Problem(where="serve.engine", what=what, fix=f"Take {target.engine}."))
    if engine in _NO_ADAPTERS and target.adapter is not None:
        what = f"{engine} serves no adapters here, and {target.adapter} is one."
        fix = f"{_NO_ADAPTERS[engine]}, or serve a merged model."
        raise UserError(Problem(where="serve.engine", what=what, fix=fix))
    assert engine != "auto"
    return replace(target, engine=engine)


def resolve_checkpoints(run: Path, name: str, engine: EngineName = "transformers") -> list[Target]:
    """Finds the base model of a run and the adapter of each of its checkpoints, which one engine process can serve.

    Args:
        run: The run directory.
        name: What the run is called: the base becomes `NAME-base`, a checkpoint `NAME-step-N`.
        engine: What is to compute the answers; one for model folders.

    Raises:
        UserError: It is no run directory, or has no checkpoint with an adapter.
    """
    base = replace(resolve_target(run, base=True, engine=engine), name=f"{name}-base")
    steps = recorded.checkpoint_steps(run)
    found = [replace(resolve_target(run, checkpoint=step, engine=engine), name=f"{name}-step-{step}") for step in steps]
    if not found:
        raise UserError(Problem(where="--checkpoints", what=f"the run {run} has no checkpoints."))
    if any(target.adapter is None for target in found):
        what = f"the checkpoints of {run} are whole models, and not adapters of one."
        fix = f"Name those to serve: {found[-1].weights}"
        raise UserError(Problem(where="--checkpoints", what=what, fix=fix))
    # On the same weights as its adapters, which it is compared with.
    return [replace(base, quantisation=found[-1].quantisation), *found]


def _of_run(run: Path, engine: EngineChoice, checkpoint: int | None, base: bool) -> Target:
    name, template = artifacts.read_json(run / artifacts.PLAN)["name"], recorded.template(run)
    if base:
        return _folder(f"{name}-base", read_base(run).folder, template)
    if checkpoint is not None:
        return _checkpoint(run, checkpoint, f"{name}-step-{checkpoint}", template)
    made = _made(run, engine, name, template)
    return replace(made, unverified=verdicts.unverified(run), unchecked=verdicts.unchecked(run))


def _judged(target: Target, path: Path) -> Target:
    """Adds what a run's gates say of a model that is named by its own path."""
    run = verdicts.verified_run(path)
    if run is None:
        return target
    failed = dict.fromkeys((target.unverified, verdicts.unverified(run)))
    unchecked = dict.fromkeys((target.unchecked, verdicts.unchecked(run)))
    return replace(target, unverified="; ".join(filter(None, failed)), unchecked="; ".join(filter(None, unchecked)))


def _as_exported(target: Target) -> Target:
    """Gives a model that is named by its own path what its run's export recorded of it."""
    found = recorded.handoff_behind(target.weights)
    if found is None:
        return target
    if target.engine != "llamacpp":
        return _handed_off(target, found)
    if target.weights.resolve().name not in found.files.values():
        return target
    return replace(target, template_sha256=found.template_sha256, stops=found.stops, context_tokens=found.context)


def _made(run: Path, engine: EngineChoice, name: str, template: str | None) -> Target:
    """Finds what a run made last."""
    base_folder = read_base(run).folder
    merged, adapter = run / artifacts.MERGED, run / artifacts.ADAPTER
    handoff = recorded.handoff(run)
    if (engine == "auto" or engine in GGUF_ENGINES) and handoff is not None and handoff.default is not None:
        return _exported(
            run / artifacts.EXPORT / handoff.default, name, handoff, merged if merged.is_dir() else base_folder
        )
    if merged.is_dir():
        target = _folder(name, merged, None)
        return target if handoff is None else _handed_off(target, handoff)
    if adapter.is_dir():
        return _adapter(name, base_folder, recorded.inside(run, adapter), template)
    packed = next((run / part for part in _PACKED if (run / part / _MODEL_CONFIG).is_file()), None)
    if packed is not None:
        target = _folder(name, packed, None)
        return target if handoff is None else _handed_off(target, handoff)
    what = "the run has made no model yet: there is neither export/, merged/ nor adapter/."
    raise UserError(Problem(where=str(run), what=what, fix=f"Finish it: tunerun resume {run}"))


def _exported(file: Path, name: str, handoff: Handoff, tokenizer: Path) -> Target:
    return Target(
        name=name,
        engine="llamacpp",
        weights=file,
        tokenizer=tokenizer,
        template_sha256=handoff.template_sha256,
        stops=handoff.stops,
        context_tokens=handoff.context,
    )


def _handed_off(target: Target, handoff: Handoff) -> Target:
    """Serves a merged model as the export recorded it.

    Raises:
        UserError: Its chat template is another one by now.
    """
    text = None if target.template is None else without_generation_blocks(target.template.text)
    found = None if text is None else hashlib.sha256(text.encode()).hexdigest()
    if handoff.template_sha256 not in (None, found):
        what = f"its chat template is not the one that {SERVE_FACTS} names."
        raise UserError(Problem(where=str(target.weights), what=what, fix="Export again."))
    return replace(target, stops=handoff.stops, context_tokens=handoff.context, tool_parser=handoff.tool_parser)


def _checkpoint(run: Path, step: int, name: str, template: str | None) -> Target:
    folder = run / artifacts.CHECKPOINTS / f"{artifacts.CHECKPOINT_PREFIX}{step}"
    checkpoints.renew(folder)
    if (folder / artifacts.ADAPTER).is_dir():
        return _adapter(name, read_base(run).folder, recorded.inside(run, folder / artifacts.ADAPTER), template)
    if (folder / artifacts.CHECKPOINT_MODEL).is_dir():
        return _folder(name, folder / artifacts.CHECKPOINT_MODEL, template)
    steps = recorded.checkpoint_steps(run)
    what = f"the run has no checkpoint of step {step}."
    fix = f"It has: {', '.join(map(str, steps))}." if steps else "It has none."
    raise UserError(Problem(where="--checkpoint", what=what, fix=fix))


def _folder(name: str, folder: Path, template: str | None) -> Target:
    tokenizer = load_tokenizer(folder)
    return Target(
        name=name,
        engine="transformers",
        weights=folder,
        tokenizer=folder,
        template=load_template(folder, tokenizer.named, template),
    )


def _adapter(name: str, base: Path, adapter: Path, template: str | None) -> Target:
    return Target(
        name=name,
        engine="transformers",
        weights=base,
        adapter=adapter,
        quantisation=read_quantisation(adapter),
        tokenizer=base,
        template=load_template(base, load_tokenizer(base).named, template),
    )


def _base_of(adapter: Path) -> Path:
    place = artifacts.locate(adapter)
    if place is not None:
        return read_base(place[0]).folder
    named = artifacts.read_json(adapter / artifacts.ADAPTER_CONFIG).get(_BASE_KEY)
    if isinstance(named, str) and (Path(named) / _MODEL_CONFIG).is_file():
        return Path(named)
    what = f"the base model {named!r} is not a folder here."
    raise UserError(
        Problem(where=str(adapter / artifacts.ADAPTER_CONFIG), what=what, fix=f"Set {_BASE_KEY} to its folder.")
    )
