"""What every server of a benchmark is asked to do: the same model, prompt, size and steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.checkpoint import open_checkpoint
from safelight.setting_values import parse_size

_PROMPT = "a red circle on a blue background"


@dataclass(frozen=True, slots=True)
class Workload:
    """One request. Sizes in pixels; ``guidance_scale`` is ``None`` for a model without one."""

    model: str
    path: Path
    prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float | None
    max_sequence_length: int

    @classmethod
    def of(cls, model: str, size: str | None = None, steps: int | None = None) -> Workload:
        """The model's own defaults where nothing is asked. Raises ``LoadError`` or ``ValueError``."""
        checkpoint = open_checkpoint(model)
        card = checkpoint.card
        width, height = parse_size(size) if size else (card.default_width, card.default_height)
        return cls(
            model,
            checkpoint.path,
            card.examples[0] if card.examples else _PROMPT,
            width,
            height,
            steps or card.default_num_inference_steps,
            card.default_guidance_scale,
            card.max_sequence_length,
        )

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    def pipeline_arguments(self, seed: int) -> dict[str, Any]:
        """As ``FluxPipeline.__call__`` takes them, and ``seed``."""
        return {
            "prompt": self.prompt,
            "width": self.width,
            "height": self.height,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale or 0.0,
            "max_sequence_length": self.max_sequence_length,
            "seed": seed,
        }

    def images_request(self, seed: int) -> dict[str, Any]:
        """The same as a body of Safelight's ``POST /v1/images/generations``."""
        body = self.pipeline_arguments(seed)
        return body if self.guidance_scale is not None else body | {"guidance_scale": None}
