"""What a model can do and what it does unless told otherwise; requests are checked against it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from safelight.errors import InvalidSize, InvalidValue, UnsupportedValue
from safelight.params import SIZE_MULTIPLE, GenerationParams

DEFAULT_TRUE_CFG_SCALE = 4.0
"""Used when a negative prompt comes without a scale: at 1.0 the pipeline would ignore it."""


class Task(StrEnum):
    """What a request asks of a model."""

    TEXT_TO_IMAGE = "text-to-image"
    IMAGE_TO_IMAGE = "image-to-image"
    INPAINTING = "inpainting"
    EDITING = "image-editing"
    """Changes a picture as the prompt tells, without a strength: what FLUX.1-Kontext was trained for."""


class Family(StrEnum):
    """Which FLUX.1 a checkpoint is, as far as it matters to how it is driven."""

    DEV = "dev"
    SCHNELL = "schnell"
    KREA = "krea"
    KONTEXT = "kontext"
    FILL = "fill"


class Vocabulary(msgspec.Struct, frozen=True):
    """The words of a model that was trained on a closed vocabulary."""

    colours: list[str] = []
    shapes: list[str] = []
    sizes: list[str] = []
    positions: list[str] = []
    relations: list[str] = []


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults and limits of one checkpoint. Sizes in pixels; ``max_sequence_length`` in tokens of the T5 encoder."""

    id: str
    family: Family = Family.DEV
    tasks: tuple[Task, ...] = (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE, Task.INPAINTING)
    title: str = "FLUX.1"
    description: str = ""
    default_width: int = 1024
    default_height: int = 1024
    size_multiple: int = SIZE_MULTIPLE
    min_size: int = 256
    max_size: int = 2048
    default_num_inference_steps: int = 28
    max_num_inference_steps: int = 100
    default_guidance_scale: float | None = 3.5
    max_sequence_length: int = 512
    vocabulary: Vocabulary | None = None
    examples: list[str] = []

    @classmethod
    def of_family(cls, family: Family, model_id: str) -> ModelCard:
        """What Black Forest Labs' own model cards recommend."""
        return cls(id=model_id, family=family, **_FAMILIES[family])

    @property
    def has_guidance(self) -> bool:
        """Whether the transformer was distilled with a guidance embedding, as FLUX.1-dev, unlike schnell."""
        return self.default_guidance_scale is not None

    @property
    def probe_size(self) -> tuple[int, int]:
        """Width and height at which a device is asked how much it does at once: small."""
        side = self.fitting(min(256, self.default_width, self.default_height))
        return side, side

    def fitting(self, side: float) -> int:
        """The nearest side that this model draws, in pixels."""
        return min(max(round(side / self.size_multiple) * self.size_multiple, self.min_size), self.max_size)

    def tokens(self, width: int, height: int, max_sequence_length: int) -> int:
        """Tokens of one row of a transformer call: those of the picture and those of the text."""
        return (width // self.size_multiple) * (height // self.size_multiple) + max_sequence_length

    def check(self, params: GenerationParams) -> None:
        """Raises a leaf of ``InvalidRequest`` if this model cannot do what the params ask."""
        for name, side in (("width", params.width), ("height", params.height)):
            if not self.min_size <= side <= self.max_size or side % self.size_multiple:
                raise InvalidSize(
                    f"{name} is {side}: {self.id} draws {self.min_size} to {self.max_size} pixels "
                    f"in multiples of {self.size_multiple}",
                    param=name,
                )
        _check_limit("num_inference_steps", params.num_inference_steps, self.max_num_inference_steps, self.id)
        _check_limit("max_sequence_length", params.max_sequence_length, self.max_sequence_length, self.id)
        if params.guidance_scale is not None and not self.has_guidance:
            raise UnsupportedValue(f"{self.id} has no guidance_scale", param="guidance_scale")


def _check_limit(name: str, value: int, limit: int, model_id: str) -> None:
    if value > limit:
        raise InvalidValue(f"{name} is {value}: {model_id} takes {limit} at most", param=name)


_FAMILIES: dict[Family, dict[str, Any]] = {
    Family.DEV: {"title": "FLUX.1-dev"},
    # Distilled to four steps and trained with 256 text tokens.
    Family.SCHNELL: {
        "title": "FLUX.1-schnell",
        "default_num_inference_steps": 4,
        "default_guidance_scale": None,
        "max_sequence_length": 256,
    },
    Family.KREA: {"title": "FLUX.1-Krea-dev", "default_guidance_scale": 4.5},
    Family.KONTEXT: {
        "title": "FLUX.1-Kontext-dev",
        "tasks": (Task.TEXT_TO_IMAGE, Task.EDITING),
        "default_guidance_scale": 2.5,
    },
    Family.FILL: {
        "title": "FLUX.1-Fill-dev",
        "tasks": (Task.INPAINTING,),
        "default_num_inference_steps": 50,
        "default_guidance_scale": 30.0,
    },
}
