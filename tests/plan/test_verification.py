"""What verification takes is counted as it is done."""

from __future__ import annotations

from tests.plan.test_build import SHAPE, TWO_GPUS, planned, step
from tunerun.config.schema import ExportConfig, ShapeConfig
from tunerun.plan import shape
from tunerun.plan.estimate import folder_bytes, gguf_bytes
from tunerun.plan.verification import Verification

SIZE = shape.sizes(ShapeConfig(**SHAPE))
WHOLE = 2 * SIZE.parameters


def counted(**changes) -> Verification:
    found = planned(**changes).verification
    assert found is not None
    return found


def test_a_run_without_training_shows_it_too():
    found = counted(stages=["merge", "export", "verify"], model__adapter="/else/adapter")
    assert found.passes == 6
    assert found.seconds_low < found.seconds_high


def test_a_merge_reads_base_and_merged_and_is_served_from_it():
    found = counted(stages=["data", "train", "merge", "verify"])
    assert (found.passes, found.continued, found.servers) == (4, (), 1)
    assert found.read_bytes == 3 * WHOLE


def test_each_file_is_read_for_its_logits_and_one_more_to_be_served():
    merge_and_reference = 3 * WHOLE
    q4, f16 = gguf_bytes(SIZE.parameters, "q4_k_m"), gguf_bytes(SIZE.parameters, "f16")
    found = counted(export={"gguf": {"types": ["q4_k_m", "f16"]}})
    assert found.read_bytes == merge_and_reference + q4 + f16 + q4
    # llama-server renders conversations, too.
    assert found.servers == 2


def test_full_verification_adds_answers_values_and_hashes():
    types = {"gguf": {"types": ["f16"]}}
    quick, full = counted(export=types), counted(export=types, verify__level="full")
    f16 = gguf_bytes(SIZE.parameters, "f16")
    assert full.continued == ("f16",)
    # Answers; the values of merged/ and the file, and their hashes; the second engine.
    assert full.read_bytes - quick.read_bytes == f16 + 2 * (WHOLE + f16) + WHOLE
    assert full.seconds_high > quick.seconds_high


def test_rows_of_the_data_are_counted_by_level():
    quick, full = (step(planned(verify__level=level), "verify") for level in ("quick", "full"))
    assert (quick.rows, full.rows) == (16 + 4, 16 + 32)


def test_a_packed_folder_is_unpacked_over_what_it_was_made_from():
    base, packed = counted(stages=["data", "train", "merge", "verify"]), counted(export={"fp8": {"write": True}})
    fp8 = folder_bytes(SIZE, ExportConfig(), "fp8")
    assert packed.passes == base.passes + 2
    assert packed.read_bytes == base.read_bytes + 2 * WHOLE + fp8


def test_a_gpu_has_no_times_and_an_unknown_shape_no_counts():
    gpu, unknown = planned(TWO_GPUS).verification, counted(model={"path": "org/model"})
    assert gpu is not None
    assert gpu.flops is not None and gpu.seconds_low is None
    assert unknown.passes == 6 and unknown.flops is None and unknown.read_bytes is None
