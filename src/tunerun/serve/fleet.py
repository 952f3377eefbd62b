"""The served models by name, and the engine processes behind them: models on the same weights share one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tunerun.config.schema import ServeConfig
from tunerun.config.schema.kinds import Batching
from tunerun.errors import Problem, UserError
from tunerun.plan.placement import Placement
from tunerun.serve.protocol import ServerSettings
from tunerun.serve.supervisor import Supervisor
from tunerun.serve.targets import Target, by_weights, group_spec

NAME_PATTERN = "[A-Za-z0-9._-]{1,64}"
_FAILED_FIX = "Mend what the report names, or serve it all the same: tunerun serve RUN --force"
_NAMES_FIX = "Name the targets with --names NAME,NAME."


@dataclass(frozen=True, slots=True)
class Model:
    """A served model."""

    target: Target
    engine: Supervisor
    """May answer for other models too."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """All that is served."""

    models: Mapping[str, Model]
    """By name, in the order that the targets were named in."""
    engines: tuple[Supervisor, ...]

    @property
    def first(self) -> Model:
        """Answers requests that name no model."""
        return next(iter(self.models.values()))

    @property
    def state(self) -> str:
        """`ready` when every engine is, else what one of the others does."""
        return next((engine.state for engine in self.engines if engine.state != "ready"), "ready")


def build_fleet(
    targets: Sequence[Target], serve: ServeConfig, placement: Placement, server: ServerSettings | None = None
) -> Fleet:
    """Gives every target an engine process, and those on the same weights the same one.

    Args:
        targets: At least one; their names are unique.
        serve: Context, batching and limits.
        placement: Device, precision and threads of each engine.
        server: For engines that are servers of their own.
    """
    engines: dict[str, Supervisor] = {}
    for group in by_weights(targets):
        spec = replace(group_spec(group, placement, serve.context, server), batching=serve.batching)
        engine = Supervisor(spec, serve.max_concurrent)
        engines |= {target.name: engine for target in group}
    return Fleet(
        models={target.name: Model(target, engines[target.name]) for target in targets},
        engines=tuple(dict.fromkeys(engines.values())),
    )


def named(targets: Sequence[Target], names: Sequence[str]) -> list[Target]:
    """Gives targets other names.

    Args:
        targets: As found.
        names: One for each of them, or none to keep what they are called.

    Raises:
        UserError: There are more or fewer names than targets.
    """
    if not names:
        return list(targets)
    if len(names) != len(targets):
        what = f"{len(names)} names for {len(targets)} targets."
        raise UserError(Problem(where="--names", what=what, fix="Write one for each, separated by commas."))
    return [replace(target, name=name) for target, name in zip(targets, names, strict=True)]


def check_targets(targets: Sequence[Target], batching: Batching = "single") -> None:
    """Checks what can be known of targets before anything is loaded.

    Args:
        targets: What is served.
        batching: How several answers are computed.

    Raises:
        UserError: A name is taken twice or cannot be one, a model failed its gates, or cannot be batched so.
    """
    failed = [target for target in targets if target.unverified]
    problems = [Problem(where=target.name, what=f"{target.unverified}.", fix=_FAILED_FIX) for target in failed]
    for name, count in Counter(target.name for target in targets).items():
        if not re.fullmatch(NAME_PATTERN, name):
            what = f"{name!r} cannot name a model: it needs 1 to 64 letters, digits, dots, dashes and underscores."
            problems.append(Problem(where="serve", what=what, fix=_NAMES_FIX))
        if count > 1:
            what = f"{count} targets are called {name!r}, and clients could ask for one of them only."
            problems.append(Problem(where="serve", what=what, fix=_NAMES_FIX))
    if batching == "continuous":
        problems += _unbatched(targets)
    if problems:
        raise UserError(problems)


def _unbatched(targets: Sequence[Target]) -> list[Problem]:
    """Returns which answers cannot be computed by continuous batching."""
    problems = []
    for group in by_weights(targets):
        names = ", ".join(target.name for target in group)
        if group[0].engine != "transformers":
            what = f"continuous is of transformers, and {group[0].engine} answers for {names}."
            fix = "Leave it out: other engines batch as they do, or take serve.engine=transformers for a folder."
            problems.append(Problem(where="serve.batching", what=what, fix=fix))
        elif len({target.adapter for target in group}) > 1:
            what = f"continuous answers with one adapter for each base, and {names} are on the same one."
            fix = "Serve one of them, or take serve.batching=single."
            problems.append(Problem(where="serve.batching", what=what, fix=fix))
    return problems
