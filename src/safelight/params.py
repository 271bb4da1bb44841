"""What one job is asked with: frozen and checked on construction, whichever API it came through."""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from safelight.errors import InvalidSize, InvalidValue

MAX_SEED = 2**63 - 1
MAX_IMAGES = 10
MAX_PARTIAL_IMAGES = 10
MAX_PROMPT_CHARS = 32_000
SIZE_MULTIPLE = 16
"""FLUX packs 2x2 latents of an 8x VAE into one token, so sides are multiples of 16 pixels."""

LORA_NAME = r"\w[\w .()+-]{0,127}"
"""Of an adapter: it becomes a file name, and stands in a prompt as ``<lora:NAME:0.8>``."""

MAX_LORAS = 8
MAX_LORA_SCALE = 10.0

_MAX_SCALE = 30.0
_MAX_GUIDANCE = 100.0
_MAX_STEPS = 200
_MAX_SIDE = 8192


class ImageFormat(StrEnum):
    """Encodings of an answer's images."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        return f"image/{self.value}"


class MetadataLevel(StrEnum):
    """How much a picture says of how it was made; that a model made it, it always says."""

    FULL = "full"
    MINIMAL = "minimal"
    NONE = "none"


class SourceImage(msgspec.Struct, frozen=True):
    """The picture that a job changes, as files that the server keeps; the mask is white where it is drawn anew.

    Drawing begins with it, so it has the answer's size, and ``strength`` from 0 to 1 is how much of it may change. Or
    drawing looks at it all the time, as FLUX.1-Kontext does: then ``reference_size`` is its own width and height.
    """

    file: str
    strength: float = 1.0
    mask_file: str | None = None
    reference_size: tuple[int, int] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,) if self.mask_file is None else (self.file, self.mask_file)


class LoraUse(msgspec.Struct, frozen=True):
    """A LoRA adapter by its name, and how strongly it acts: 1 is as it was trained, 0 not at all."""

    name: str
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.name}:{self.scale:g}"


class GenerationParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of one job of ``num_images`` images; image ``i`` is made with ``seed + i``.

    Sizes are in pixels. ``guidance_scale`` is FLUX's distilled guidance, ``None`` for models without it.
    ``true_cfg_scale`` above 1 costs a second transformer call per step, with ``negative_prompt``.
    ``partial_images`` is how often each image is shown while it is unfinished. ``loras`` act together.
    Raises a leaf of ``InvalidRequest`` with ``param`` set. Limits of one model are checked by ``ModelCard``.
    """

    prompt: str
    negative_prompt: str | None = None
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float | None = None
    true_cfg_scale: float = 1.0
    max_sequence_length: int
    seed: int
    num_images: int = 1
    output_format: ImageFormat = ImageFormat.PNG
    output_compression: int | None = None
    partial_images: int = 0
    metadata: MetadataLevel = MetadataLevel.FULL
    source: SourceImage | None = None
    loras: tuple[LoraUse, ...] = ()

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt, required=self.source is None or self.reference_size is not None)
        _check_text("negative_prompt", self.negative_prompt or "", required=False)
        check_size(self.width, self.height)
        _check_range("num_inference_steps", self.num_inference_steps, 1, _MAX_STEPS)
        _check_range("guidance_scale", self.guidance_scale or 0.0, 0.0, _MAX_GUIDANCE)
        _check_range("true_cfg_scale", self.true_cfg_scale, 1.0, _MAX_SCALE)
        _check_range("max_sequence_length", self.max_sequence_length, 1, 512)
        _check_range("n", self.num_images, 1, MAX_IMAGES)
        _check_range("seed", self.seed, 0, MAX_SEED - self.num_images + 1)
        _check_range("output_compression", self.output_compression or 0, 0, 100)
        if self.source is not None and not 0.0 < self.source.strength <= 1.0:
            raise InvalidValue(
                f"strength is {self.source.strength}: it must be above 0, and 1 at most", param="strength"
            )
        _check_range("partial_images", self.partial_images, 0, MAX_PARTIAL_IMAGES)
        _check_loras(self.loras)

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed per image."""
        return tuple(range(self.seed, self.seed + self.num_images))

    @property
    def strength(self) -> float:
        """How much of the source may change; at least so much that a step is made, and all where there is none."""
        return 1.0 if self.source is None else max(self.source.strength, 1 / self.num_inference_steps)

    @property
    def steps_per_image(self) -> int:
        """Denoising steps that are really made: of a weak change only the last ones, as diffusers counts them."""
        steps = self.num_inference_steps
        return steps - int(max(steps - steps * self.strength, 0))

    @property
    def total_steps(self) -> int:
        """Denoising steps of the whole job."""
        return self.steps_per_image * self.num_images

    @property
    def reference_size(self) -> tuple[int, int] | None:
        """Width and height of the picture that is looked at while drawing, if there is one."""
        return None if self.source is None else self.source.reference_size

    @property
    def shape(self) -> tuple[int, ...]:
        """Width, height, text length, reference: jobs of one shape with the same ``loras`` can share a step."""
        return self.width, self.height, self.max_sequence_length, *(self.reference_size or ())

    @property
    def rows(self) -> int:
        """Rows of a transformer call that makes one step of every image."""
        return self.num_images * (2 if self.true_cfg_scale > 1 else 1)

    @property
    def megapixels(self) -> float:
        """As ``row_pixels``, in millions."""
        return self.row_pixels / 1e6

    @property
    def row_pixels(self) -> int:
        """Pixels that one row of a transformer call looks at: the image's, and the reference's beside it."""
        across, down = self.reference_size or (0, 0)
        return self.width * self.height + across * down

    @property
    def step_pixels(self) -> int:
        """Of all rows that one picture has in a step: what must fit into a device's memory at once."""
        return self.row_pixels * self.rows // self.num_images

    @property
    def work(self) -> float:
        """What the job costs, in megapixels x transformer calls."""
        return self.megapixels * self.steps_per_image * self.rows


def parse_lora(text: str) -> LoraUse:
    """``NAME`` or ``NAME:SCALE``. Raises ``InvalidValue`` for a scale that is no number."""
    name, _, scale = text.partition(":")
    try:
        return LoraUse(name.strip(), float(scale) if scale else 1.0)
    except ValueError:
        raise InvalidValue(
            f"{scale!r} is no scale for the LoRA adapter {name!r}: it is a number", param="loras"
        ) from None


def check_size(width: int, height: int) -> None:
    """Raises ``InvalidSize`` for sides that no FLUX model can draw."""
    for name, side in (("width", width), ("height", height)):
        if not SIZE_MULTIPLE <= side <= _MAX_SIDE or side % SIZE_MULTIPLE:
            raise InvalidSize(
                f"{name} is {side}: it must be a multiple of {SIZE_MULTIPLE} from {SIZE_MULTIPLE} to {_MAX_SIDE}",
                param=name,
            )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN compares false; a whole number too large for a float compares exactly
        raise InvalidValue(f"{name} is {value}: it must be from {low} to {high}", param=name)


def _check_loras(loras: tuple[LoraUse, ...]) -> None:
    if len(loras) > MAX_LORAS:
        raise InvalidValue(f"{len(loras)} LoRA adapters were asked for: {MAX_LORAS} at most", param="loras")
    for lora in loras:
        if not re.fullmatch(LORA_NAME, lora.name):
            raise InvalidValue(f"{lora.name!r} is no name of a LoRA adapter: GET /v1/loras lists them", param="loras")
        if not -MAX_LORA_SCALE <= lora.scale <= MAX_LORA_SCALE:
            raise InvalidValue(
                f"the scale of the LoRA adapter {lora.name!r} is {lora.scale}: it must be from {-MAX_LORA_SCALE:g} to "
                f"{MAX_LORA_SCALE:g}",
                param="loras",
            )
    names = [lora.name for lora in loras]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidValue(f"the LoRA adapter {twice!r} was asked for twice: give it one scale", param="loras")


def _check_text(name: str, text: str, *, required: bool) -> None:
    if required and not text.strip():
        raise InvalidValue(f"{name} is empty", param=name)
    if len(text) > MAX_PROMPT_CHARS:
        raise InvalidValue(f"{name} has {len(text)} characters: {MAX_PROMPT_CHARS} at most", param=name)
    if "\0" in text:
        raise InvalidValue(f"{name} has a NUL character", param=name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidValue(f"{name} has a lone surrogate: it is not valid Unicode", param=name) from None
