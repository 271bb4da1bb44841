"""A single file with the names and shapes of FLUX.1's transformer, and a base model for it: no torch, sparse bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safelight.checkpoint.flux_names import BLACK_FOREST_LABS
from safelight.tensor_header import BLOCKS
from tests.unit.fake_checkpoint import safetensors_bytes, write_checkpoint, write_json

HEAD_DIM, WIDTH, OUT, TEXT, POOLED = 128, 256, 64, 512, 96
Shapes = dict[str, tuple[int, ...]]


def shapes_of(
    doubles: int = 2, singles: int = 3, *, guidance: bool = True, in_channels: int = OUT, prefix: str = ""
) -> Shapes:
    """Of a small transformer in the names of Black Forest Labs."""
    rows = {
        "mod.lin": 6 * WIDTH,
        "modulation.lin": 3 * WIDTH,
        "qkv": 3 * WIDTH,
        "mlp.0": 4 * WIDTH,
        "linear1": 7 * WIDTH,
        "linear2": WIDTH,
        "linear": OUT,
        "adaLN_modulation.1": 2 * WIDTH,
    }
    columns = {
        "img_in": in_channels,
        "txt_in": TEXT,
        "vector_in.in_layer": POOLED,
        "time_in.in_layer": 256,
        "guidance_in.in_layer": 256,
        "mlp.2": 4 * WIDTH,
        "linear2": 5 * WIDTH,
    }

    def of(table: dict[str, int], layer: str) -> int:
        return next((size for ending, size in table.items() if layer.endswith(ending)), WIDTH)

    made: Shapes = {}
    for name in BLACK_FOREST_LABS.names(doubles, singles, guidance=guidance):
        layer, _, parameter = name.rpartition(".")
        shape = {"weight": (of(rows, layer), of(columns, layer)), "bias": (of(rows, layer),), "scale": (HEAD_DIM,)}
        made[prefix + name] = shape[parameter]
    return made


def count_of(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def write_transformer(
    path: Path,
    shapes: Shapes,
    dtype: str | Callable[[str], str] = "F8_E4M3",
    metadata: dict[str, str] | None = None,
    contents: dict[str, bytes] | None = None,
) -> Path:
    """Sparse: all bytes but ``contents`` are holes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    places: dict[str, int] = {}
    for name, shape in shapes.items():
        kind = dtype if isinstance(dtype, str) else dtype(name)
        end = position + count_of(shape) * BLOCKS[kind].size_bytes
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [position, end]}
        places[name], position = position, end
    data = safetensors_bytes(header)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + position)
        for name, content in (contents or {}).items():
            file.seek(len(data) + places[name])
            file.write(content)
    return path


def write_base(folder: Path) -> Path:
    """A checkpoint directory whose other parts fit such a transformer."""
    write_checkpoint(folder, card=None)
    write_json(folder / "transformer" / "config.json", {"guidance_embeds": True, "axes_dims_rope": [16, 56, 56]})
    write_json(folder / "text_encoder" / "config.json", {"hidden_size": POOLED})
    write_json(folder / "text_encoder_2" / "config.json", {"d_model": TEXT})
    write_json(folder / "vae" / "config.json", {"latent_channels": OUT // 4})
    write_json(folder / "scheduler" / "scheduler_config.json", {"shift": 3.0, "use_dynamic_shifting": True})
    return folder
