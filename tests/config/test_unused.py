"""Keys that the chosen kinds do not read, in a config that a run was made with."""

from __future__ import annotations

from tunerun.config import typed
from tunerun.config.resolve import rebuild
from tunerun.config.schema import ClusterConfig, RunConfig, TrainConfig


def test_a_run_keeps_what_it_was_recorded_with_until_another_kind_is_typed():
    made = RunConfig(
        train=TrainConfig(optimizer="lion", adam_beta2=0.95), cluster=ClusterConfig(kind="skypilot", nodes=2)
    )
    data = typed.plain(made)
    again = rebuild(data, ["train.epochs=2"], section="train.")
    assert (again.train.adam_beta2, again.cluster.nodes) == (0.95, 2)
    here = rebuild(data, ["cluster.kind=local"], section="cluster.")
    assert (here.train.adam_beta2, here.cluster.nodes) == (0.95, 1)
