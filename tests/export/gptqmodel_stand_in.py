"""Stands for gptqmodel: rounds to the nearest code in the real format, without calibration."""

import importlib.util
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


class QuantizeConfig:
    def __init__(self, bits, group_size, desc_act):
        assert desc_act is False
        self.bits, self.group_size = bits, group_size


class GPTQModel:
    @classmethod
    def load(cls, folder, config):
        self = cls()
        self.folder, self.config = Path(folder), config
        return self

    def quantize(self, rows, batch_size):
        assert batch_size == 1
        # Modules of tunerun that lie beside the script that is run are none of this environment.
        assert importlib.util.find_spec("companions") is None
        assert rows
        assert all(len(row["input_ids"]) == len(row["attention_mask"]) > 0 for row in rows)

    def save(self, out):
        shutil.copytree(self.folder, out)
        (Path(out) / "quant_log.csv").write_text("layer\n")
        (Path(out) / "tokenizer_config.json").write_text("{}")
        tensors = {}
        for name, value in load_file(Path(out) / "model.safetensors").items():
            if ".layers." in name and name.endswith("proj.weight"):
                for part, words in self.pack(value.float()).items():
                    tensors[name.replace("weight", part)] = words
            else:
                tensors[name] = value
        save_file(tensors, Path(out) / "model.safetensors")
        config = json.loads((Path(out) / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": self.config.bits}
        (Path(out) / "config.json").write_text(json.dumps(config))

    def pack(self, weight):
        bits, size = self.config.bits, self.config.group_size
        half = 2 ** (bits - 1)
        groups = weight.reshape(weight.shape[0], -1, size)
        scales = (groups.abs().amax(-1) / (half - 1)).half()
        codes = (groups / scales.float()[..., None]).round().clamp(-half, half - 1).long() + half
        zeros = torch.full((groups.shape[1], weight.shape[0]), half - 1)
        return {
            "qweight": self.words(codes.reshape(weight.shape)).t().contiguous(),
            "qzeros": self.words(zeros),
            "scales": scales.t().contiguous(),
            "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // size,
        }

    def words(self, codes):
        bits = self.config.bits
        parts = codes.reshape(codes.shape[0], -1, 32 // bits)
        packed = sum(parts[..., place] << (bits * place) for place in range(32 // bits))
        return torch.where(packed >= 2**31, packed - 2**32, packed).int()
