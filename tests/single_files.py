"""Writes the transformer of a checkpoint directory as one file, as others publish it: names, number formats, GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
WEIGHTS = "diffusion_pytorch_model.safetensors"
FLOAT8_MAX = 448.0


def read_transformer(folder: Path) -> Tensors:
    """All tensors by diffusers' names."""
    from safetensors.torch import load_file

    files = sorted((folder / "transformer").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def as_black_forest_labs(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The same by the names, and in the pieces, of Black Forest Labs' files."""
    left = dict(tensors)
    made: Tensors = {}

    def take(name: str, *layers: str) -> None:
        for ending in ("weight", "bias"):
            made[f"{name}.{ending}"] = torch.cat([left.pop(f"{layer}.{ending}") for layer in layers])

    def take_norm(name: str, layer: str) -> None:
        made[f"{name}.scale"] = left.pop(f"{layer}.weight")

    take("img_in", "x_embedder")
    take("txt_in", "context_embedder")
    for ours, theirs in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance")):
        if f"time_text_embed.{theirs}_embedder.linear_1.weight" in left:
            take(f"{ours}_in.in_layer", f"time_text_embed.{theirs}_embedder.linear_1")
            take(f"{ours}_in.out_layer", f"time_text_embed.{theirs}_embedder.linear_2")
    for index in _indices(left, "transformer_blocks."):
        old, new = f"transformer_blocks.{index}", f"double_blocks.{index}"
        take(f"{new}.img_mod.lin", f"{old}.norm1.linear")
        take(f"{new}.txt_mod.lin", f"{old}.norm1_context.linear")
        take(f"{new}.img_attn.qkv", *(f"{old}.attn.to_{letter}" for letter in "qkv"))
        take(f"{new}.txt_attn.qkv", *(f"{old}.attn.add_{letter}_proj" for letter in "qkv"))
        take_norm(f"{new}.img_attn.norm.query_norm", f"{old}.attn.norm_q")
        take_norm(f"{new}.img_attn.norm.key_norm", f"{old}.attn.norm_k")
        take_norm(f"{new}.txt_attn.norm.query_norm", f"{old}.attn.norm_added_q")
        take_norm(f"{new}.txt_attn.norm.key_norm", f"{old}.attn.norm_added_k")
        take(f"{new}.img_attn.proj", f"{old}.attn.to_out.0")
        take(f"{new}.txt_attn.proj", f"{old}.attn.to_add_out")
        take(f"{new}.img_mlp.0", f"{old}.ff.net.0.proj")
        take(f"{new}.img_mlp.2", f"{old}.ff.net.2")
        take(f"{new}.txt_mlp.0", f"{old}.ff_context.net.0.proj")
        take(f"{new}.txt_mlp.2", f"{old}.ff_context.net.2")
    for index in _indices(left, "single_transformer_blocks."):
        old, new = f"single_transformer_blocks.{index}", f"single_blocks.{index}"
        take(f"{new}.modulation.lin", f"{old}.norm.linear")
        take(f"{new}.linear1", *(f"{old}.attn.to_{letter}" for letter in "qkv"), f"{old}.proj_mlp")
        take_norm(f"{new}.norm.query_norm", f"{old}.attn.norm_q")
        take_norm(f"{new}.norm.key_norm", f"{old}.attn.norm_k")
        take(f"{new}.linear2", f"{old}.proj_out")
    take("final_layer.linear", "proj_out")
    for ending in ("weight", "bias"):
        scale, shift = left.pop(f"norm_out.linear.{ending}").chunk(2)
        made[f"final_layer.adaLN_modulation.1.{ending}"] = torch.cat([shift, scale])
    assert not left
    return made


def _indices(names: Iterable[str], blocks: str) -> list[int]:
    return sorted({int(name.split(".")[1]) for name in names if name.startswith(blocks)})


def as_comfyui(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """An all-in-one file, with some tensors of the parts that are not the transformer."""
    return {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()} | {
        "vae.decoder.conv_in.weight": torch.zeros(4, 4, 3, 3),
        "text_encoders.clip_l.transformer.text_model.final_layer_norm.weight": torch.ones(4),
        "text_encoders.t5xxl.transformer.shared.weight": torch.ones(4, 4),
        "text_encoders.t5xxl.logit_scale": torch.ones(1),
    }


def save(path: Path, tensors: Mapping[str, torch.Tensor], **metadata: str) -> Path:
    """As safetensors."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata or None)
    return path


def scaled_float8(tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, Tensors]:
    """ComfyUI's scaled fp8: what its file holds, and what that means, by the same names."""
    held: Tensors = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    meant: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.ndim == 2:
            layer = name.removesuffix(".weight")
            scale = tensor.abs().max() / FLOAT8_MAX
            held[name] = (tensor / scale).to(torch.float8_e4m3fn)
            held[f"{layer}.scale_weight"] = scale.reshape(1)
            held[f"{layer}.scale_input"] = torch.ones(1)
            meant[name] = held[name].float() * scale
        else:
            held[name] = meant[name] = tensor
    return held, meant


def newer_scaled_float8(tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, Tensors]:
    """The same in the words that ComfyUI has for it since the end of 2025."""
    held, meant = scaled_float8(tensors)
    marker = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    renamed: Tensors = {}
    for name, tensor in held.items():
        if name.endswith(".scale_weight"):
            layer = name.removesuffix(".scale_weight")
            renamed |= {f"{layer}.weight_scale": tensor.reshape(()), f"{layer}.comfy_quant": marker.clone()}
        elif name.endswith(".scale_input"):
            renamed[name.replace(".scale_input", ".input_scale")] = tensor.reshape(())
        elif name != "scaled_fp8":
            renamed[name] = tensor
    return renamed, meant


def cast(dtype: torch.dtype) -> Callable[[Mapping[str, torch.Tensor]], tuple[Tensors, Tensors]]:
    """All tensors in another number format."""

    def change(tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, Tensors]:
        held = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        return held, {name: tensor.float() for name, tensor in held.items()}

    return change


def save_gguf(path: Path, tensors: Mapping[str, torch.Tensor], kind: str, **metadata: str) -> Tensors:
    """As GGUF, in blocks of this kind where the rows are whole blocks; what that means, by the same names."""
    import gguf

    meant: Tensors = {}
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in metadata.items():
        writer.add_string(key, value)
    wanted = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        fits = tensor.ndim == 2 and tensor.shape[1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0
        used = wanted if fits else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(tensor.float().numpy(), used)
        writer.add_tensor(name, data, raw_dtype=used)
        meant[name] = torch.from_numpy(np.array(gguf.quants.dequantize(data, used), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def with_transformer(folder: Path, source: Path, tensors: Tensors) -> Path:
    """A copy of a checkpoint directory with these tensors, by diffusers' names, as its transformer."""
    shutil.copytree(source, folder)
    for file in (folder / "transformer").glob("*.safetensors*"):
        file.unlink()
    save(folder / "transformer" / WEIGHTS, tensors)
    return folder


def inverse(convert: Callable[[Tensors], Tensors], tensors: Tensors) -> Callable[[Tensors], Tensors]:
    """What brings tensors in the pieces of ``convert`` back to those of ``tensors``, found by numbering the rows."""
    total = 0
    numbered: Tensors = {}
    for name, tensor in tensors.items():
        numbered[name] = torch.arange(total, total + len(tensor))
        total += len(tensor)
    where = {
        int(number): (name, row) for name, rows in convert(numbered).items() for row, number in enumerate(rows.tolist())
    }

    def back(converted: Tensors) -> Tensors:
        return {
            name: torch.stack([converted[where[int(number)][0]][where[int(number)][1]] for number in numbers])
            for name, numbers in numbered.items()
        }

    return back


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites the header of a safetensors file, right or wrong; the bytes of its tensors stay."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])
