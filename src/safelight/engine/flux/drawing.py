"""One picture under way: its latents, its own noise scheduler, and what guides it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from safelight.engine.flux.adapters import Adapters
from safelight.engine.flux.operations import Rope
from safelight.engine.team import Share
from safelight.params import GenerationParams


@dataclass(frozen=True, slots=True)
class Guide:
    """A prompt as the transformer takes it: ``text`` (tokens, width), ``modulations`` (steps, numbers)."""

    text: torch.Tensor
    modulations: torch.Tensor


@dataclass(frozen=True, slots=True)
class Kept:
    """What inpainting keeps: ``latents`` of the source and the ``noise`` over them, where ``mask`` is 0."""

    latents: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor


@dataclass(slots=True, eq=False)
class Drawing:
    """``latents`` are packed, (1, picture tokens, channels). ``guides`` are the prompt, and with
    true CFG the negative one. ``step`` counts the steps that were launched; ``previews`` are those after which the
    picture is shown.

    The transformer of FLUX.1-Fill sees further channels of the same tokens, ``filling``; that of FLUX.1-Kontext
    further tokens, ``reference``. With a ``share`` other workers make its steps too.
    """

    params: GenerationParams
    latents: torch.Tensor
    scheduler: Any
    guides: list[Guide]
    rope: Rope
    previews: frozenset[int]
    kept: Kept | None = None
    filling: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    adapters: Adapters | None = None
    share: Share | None = None
    step: int = 0
    velocities: list[tuple[float, torch.Tensor]] = field(default_factory=list)
    """The last ones that were computed, with their sigmas; for the step cache."""

    @property
    def rows(self) -> int:
        """Of a transformer call that makes one step of it."""
        return len(self.guides)

    @property
    def seen(self) -> torch.Tensor:
        """What the transformer is given: (1, tokens of the picture and of the reference, channels)."""
        seen = self.latents if self.filling is None else torch.cat([self.latents, self.filling], 2)
        return seen if self.reference is None else torch.cat([seen, self.reference], 1)

    @property
    def is_complete(self) -> bool:
        return self.step == self.params.steps_per_image

    @property
    def sigma(self) -> float:
        """How much of the latents is noise before the next step, 1 to 0."""
        return float(self.scheduler.sigmas[self._place])

    @property
    def next_sigma(self) -> float:
        return float(self.scheduler.sigmas[self._place + 1])

    @property
    def _place(self) -> int:
        return int(self.scheduler.begin_index) + self.step

    def guided(self, velocities: torch.Tensor) -> torch.Tensor:
        """One velocity of those of its rows: that of the prompt, or true CFG; a reference does not move."""
        velocities = velocities[:, : self.latents.shape[1]]
        if len(velocities) == 1:
            return velocities
        prompt, negative = velocities[:1], velocities[1:]
        return negative + self.params.true_cfg_scale * (prompt - negative)

    def advanced(self, velocity: torch.Tensor) -> torch.Tensor:
        """The latents after one more step along ``velocity``; changes nothing of the drawing but its scheduler."""
        time = self.scheduler.timesteps[self._place]
        latents: torch.Tensor = self.scheduler.step(velocity, time, self.latents, return_dict=False)[0]
        if self.kept is None:
            return latents
        kept = self.kept.latents
        if self.step + 1 < self.params.steps_per_image:
            sigma = self.scheduler.sigmas[self._place + 1].to(kept.dtype)
            kept = sigma * self.kept.noise + (1.0 - sigma) * kept
        return (1 - self.kept.mask) * kept + self.kept.mask * latents
