"""What a base model that is held is given to; that copies find it is tested in launch/test_forks.py."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from tests.train.runs import FULL, LORA, make_run, train_step
from tunerun.base_model import read_base
from tunerun.models import held
from tunerun.models.attention import SEGMENTS

OPTIONS = {"dtype": torch.float32, "device": "cpu", "attention": SEGMENTS, "trust_remote_code": False}


@pytest.fixture
def base(tmp_path):
    threads = torch.get_num_threads()
    yield read_base(make_run(tmp_path))
    held._held.clear()
    gc.unfreeze()
    torch.set_num_threads(threads)


def test_what_is_held_is_given_away_once(base):
    held.hold(train_step(LORA), base)
    (kept,) = (entry.model for entry in held._held)
    held.hold(train_step(LORA), base)
    assert held.load_model(base.folder, **OPTIONS, quantisation=None) is kept
    assert held.load_model(base.folder, **OPTIONS) is not kept


def test_another_number_format_is_loaded_anew(base):
    held.hold(train_step(LORA), base)
    assert held.load_model(base.folder, **{**OPTIONS, "dtype": torch.bfloat16}).dtype == torch.bfloat16


@pytest.mark.parametrize("step", [train_step(LORA), train_step(FULL)], ids=["lora", "full"])
def test_files_that_changed_are_read_again(base, step):
    held.hold(train_step(LORA), base)
    (kept,) = (entry.model for entry in held._held)
    held.hold(step, replace(base, sha256="0" * 64))
    assert held.load_model(base.folder, **OPTIONS) is not kept


def test_a_model_that_is_trained_as_a_whole_is_not_held(base):
    held.hold(train_step(FULL), base)
    assert held._held == []
