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
    max_guidance_scale: float = 30.0
    has_true_cfg: bool = True
    max_sequence_length: int = 512
    reference_sizes: tuple[tuple[int, int], ...] = ()
    """Widths and heights that a picture to edit is brought into: that of the nearest shape. None: FLUX.1-Kontext's."""
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
    def has_strength(self) -> bool:
        """Whether drawing can begin with a picture, and so be told how much of it may change."""
        return Task.IMAGE_TO_IMAGE in self.tasks or Task.INPAINTING in self.tasks

    @property
    def probe_size(self) -> tuple[int, int]:
        """Width and height at which a device is asked how much it does at once: small."""
        side = self.fitting(min(256, self.default_width, self.default_height))
        return side, side

    def fitting(self, side: float) -> int:
        """The nearest side that this model draws, in pixels."""
        return min(max(round(side / self.size_multiple) * self.size_multiple, self.min_size), self.max_size)

    def reference_size(self, width: int, height: int) -> tuple[int, int]:
        """The size of the nearest shape in which this model was shown pictures to edit, in pixels."""
        sizes = self.reference_sizes or _KONTEXT_SIZES
        return min(sizes, key=lambda size: (abs(width / height - size[0] / size[1]), size))

    def picture_tokens(self, size: tuple[int, int] | None) -> int:
        """Tokens of a picture of (width, height) pixels in a transformer call; 0 where there is none."""
        return (size[0] // self.size_multiple) * (size[1] // self.size_multiple) if size else 0

    def tokens(self, params: GenerationParams) -> int:
        """Tokens of one row of a transformer call: those of the picture, of the reference beside it and of the text."""
        drawn = self.picture_tokens((params.width, params.height))
        return drawn + self.picture_tokens(params.reference_size) + params.max_sequence_length

    def check(self, params: GenerationParams) -> None:
        """Raises a leaf of ``InvalidRequest`` if this model cannot do what the params ask."""
        self.check_task(_task_of(params))
        for name, side in (("width", params.width), ("height", params.height)):
            if not self.min_size <= side <= self.max_size or side % self.size_multiple:
                raise InvalidSize(
                    f"{name} is {side}: {self.id} draws {self.min_size} to {self.max_size} pixels "
                    f"in multiples of {self.size_multiple}",
                    param=name,
                )
        _check_limit("num_inference_steps", params.num_inference_steps, self.max_num_inference_steps, self.id)
        _check_limit("max_sequence_length", params.max_sequence_length, self.max_sequence_length, self.id)
        if params.guidance_scale is not None:
            if not self.has_guidance:
                raise UnsupportedValue(f"{self.id} has no guidance_scale", param="guidance_scale")
            _check_limit("guidance_scale", params.guidance_scale, self.max_guidance_scale, self.id)
        if not self.has_true_cfg and (params.negative_prompt or params.true_cfg_scale > 1):
            name = "negative_prompt" if params.negative_prompt else "true_cfg_scale"
            raise UnsupportedValue(f"{self.id} has no {name}: its guidance is guidance_scale", param=name)

    def check_picture(self, *, has_mask: bool, strength_name: str | None) -> None:
        """As ``check``, before a picture that was sent is even decoded; ``strength_name`` is what gave one."""
        if has_mask:
            self.check_task(Task.INPAINTING)
        elif set(self.tasks) <= {Task.TEXT_TO_IMAGE}:
            self.check_task(Task.IMAGE_TO_IMAGE)
        if strength_name is not None and not self.has_strength:
            raise UnsupportedValue(f"{self.id} takes no {strength_name}: {self._offer}", param=strength_name)

    def check_task(self, task: Task) -> None:
        """Raises ``UnsupportedValue`` that says what this model does instead."""
        if task not in self.tasks:
            lacks_mask = task is Task.IMAGE_TO_IMAGE and Task.INPAINTING in self.tasks
            param = "mask" if lacks_mask or task is Task.INPAINTING else "image"
            raise UnsupportedValue(f"{self.id} cannot {_ABILITIES[task]}: {self._offer}", param=param)

    @property
    def _offer(self) -> str:
        return f"it can {', or '.join(_ABILITIES[task] for task in self.tasks)}"


def _task_of(params: GenerationParams) -> Task:
    if params.source is None:
        return Task.TEXT_TO_IMAGE
    if params.reference_size is not None:
        return Task.EDITING
    return Task.IMAGE_TO_IMAGE if params.source.mask_file is None else Task.INPAINTING


def _check_limit(name: str, value: float, limit: float, model_id: str) -> None:
    if value > limit:
        raise InvalidValue(f"{name} is {value:g}: {model_id} takes {limit:g} at most", param=name)


_ABILITIES = {
    Task.TEXT_TO_IMAGE: "draw from a prompt alone",
    Task.IMAGE_TO_IMAGE: "change a whole picture by a strength",
    Task.INPAINTING: "draw anew what a mask marks in a picture",
    Task.EDITING: "edit a picture as the prompt says, without mask and strength",
}


_KONTEXT_PORTRAITS = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
)
_KONTEXT_SIZES = (*_KONTEXT_PORTRAITS, (1024, 1024), *((height, width) for width, height in _KONTEXT_PORTRAITS[::-1]))
"""About a megapixel each: what FLUX.1-Kontext was trained with."""

_FAMILIES: dict[Family, dict[str, Any]] = {
    Family.DEV: {"title": "FLUX.1-dev"},
    # Distilled to four steps and trained with 256 text tokens.
    Family.SCHNELL: {
        "title": "FLUX.1-schnell",
        "default_num_inference_steps": 4,
        "max_num_inference_steps": 12,
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
        "max_guidance_scale": 100.0,
        "has_true_cfg": False,
    },
}
