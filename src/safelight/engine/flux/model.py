"""``FluxModel``: what the batch drives. Begins pictures, moves several by one step, decodes them; never waits.

Everything here is launched on the device and not waited for: ``mark`` gives something to wait with, and what a picture
or preview came to is read from the host's memory after that.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

from safelight.engine.failures import is_out_of_memory
from safelight.engine.flux.adapted_forward import AdaptedForward
from safelight.engine.flux.adapters import AdapterCache
from safelight.engine.flux.beginnings import begin, encode_reference
from safelight.engine.flux.drawing import Drawing, Guide
from safelight.engine.flux.operations import Operations
from safelight.engine.flux.places import Places
from safelight.engine.flux.residency import HostResidency, Residency, settle_text_encoder
from safelight.engine.flux.shared_forward import SharedForward
from safelight.engine.flux.step_cache import StepCache
from safelight.engine.flux.text import TextEncoder
from safelight.engine.flux.tiles import tile_vae
from safelight.engine.flux.transformer import LeanTransformer
from safelight.engine.previews import LatentColours, preview_steps
from safelight.engine.prompts import count_tokens, prompt_warnings
from safelight.engine.sources import Source
from safelight.engine.taken import Taken
from safelight.engine.team import Share
from safelight.lora.directory import AdapterDirectories
from safelight.params import GenerationParams

if TYPE_CHECKING:
    from diffusers import FluxPipeline

log = logging.getLogger(__name__)

_GRAPH_TOKENS = 5000
"""Up to 1024x1024 alone, or eight of 256x256; beyond that launching is a small part of a step."""


class FluxModel:
    """Over the components of ``pipeline``, whose transformer it takes over; ``loras`` are the adapters there are.

    With a ``residency`` T5 and the transformer have been loaded where that takes them from.
    """

    def __init__(
        self,
        pipeline: FluxPipeline,
        residency: Residency | None = None,
        *,
        float8: bool = False,
        step_cache: int = 1,
        loras: AdapterDirectories = AdapterDirectories(()),  # noqa: B008  (empty)
        lora_cache_bytes: int = 0,
    ) -> None:
        self._pipeline = pipeline
        residency = residency or Residency(pipeline.transformer.device)
        self._is_cuda = residency.device.type == "cuda"
        self.lookahead = 1 if self._is_cuda else 0
        """How many launches may be under way while the next one is prepared."""
        settle_text_encoder(pipeline.text_encoder_2, residency)
        self._text = TextEncoder(pipeline)
        operations = _operations(residency.device, pipeline.transformer.dtype, float8=float8)
        self._transformer = LeanTransformer(pipeline.transformer, operations, residency)
        if self._is_cuda:
            _prepare_for_cuda(pipeline)
        if isinstance(residency, HostResidency):
            tile_vae(pipeline.vae)
        elif self._is_cuda:
            _record_text_encoders(pipeline)
        make_forward = _graphed if self._is_cuda and not residency.is_streaming else _as_it_is
        self._forward = AdaptedForward(self._transformer, functools.partial(make_forward, self._transformer))
        self.adapters = AdapterCache(loras, self._forward.sizes, lora_cache_bytes)
        self._step_cache = StepCache(step_cache)
        self._colours = LatentColours.fit(pipeline.vae)
        self._places = Places(self._transformer, pipeline.vae_scale_factor * 2)

    def tokens(self, params: GenerationParams) -> int:
        """Of one row of a transformer call."""
        return self._places.tokens(params)

    def remarks(self, params: GenerationParams) -> tuple[list[str], int]:
        """Warnings about the prompt and the adapters, and the prompt's tokens before anything is cut."""
        warnings = prompt_warnings(self._pipeline, params) + self.adapters.remarks(params.loras)
        return warnings, count_tokens(self._pipeline, params.prompt)

    def prepare(self, params: GenerationParams) -> None:
        """Reads the adapters of a job, so that ``begin`` need not; from any thread. Raises as ``AdapterCache.get``."""
        self.adapters.get(params.loras)

    @torch.inference_mode()
    def begin(self, params: GenerationParams, source: Source | None, share: Share | None = None) -> list[Drawing]:
        """The pictures of a job, in the order of its seeds. With a ``share`` all members of the team begin them."""
        scheduler = self._scheduler(params)
        adapters = self.adapters.get(params.loras)
        with self._forward.at_beginning(adapters):
            guides = [self._guide(params.prompt, params, scheduler)]
            if params.true_cfg_scale > 1:
                guides.append(self._guide(params.negative_prompt or "", params, scheduler))
        rope = self._places.rope(params)
        is_shown = share is None or share.is_leader
        shown = preview_steps(params.steps_per_image, params.partial_images) if is_shown else frozenset()
        reference = encode_reference(self._pipeline, source) if source and params.reference_size else None
        drawings = []
        for seed in params.seeds:
            own = copy.deepcopy(scheduler)
            start = begin(self._pipeline, own, params, seed, source)
            seen = start.kept, start.filling, reference
            drawings.append(Drawing(params, start.latents, own, guides, rope, shown, *seen, adapters, share))
        return drawings

    @torch.inference_mode()
    def step(self, drawings: Sequence[Drawing]) -> list[Taken | None]:
        """Launches one step of each; all of one shape, with the same adapters. Gives the previews that were due.

        If it raises, no drawing has moved. One with a share goes alone, and may raise as ``Share.go_on``.
        """
        if share := drawings[0].share:
            share.go_on()
        velocities = self._velocities(drawings)
        moved = [drawing.advanced(velocity) for drawing, velocity in zip(drawings, velocities, strict=True)]
        taken = []
        for drawing, velocity, latents in zip(drawings, velocities, moved, strict=True):
            drawing.step += 1
            is_shown = drawing.step in drawing.previews and self._colours is not None
            taken.append(self._preview(drawing, velocity, latents) if is_shown else None)
            drawing.latents = latents
        return taken

    @torch.inference_mode()
    def decode(self, drawing: Drawing) -> Taken:
        """Launches the decoding of a complete drawing; in tiles from then on, if memory lacks for the whole."""
        try:
            return self._decoded(drawing)
        except RuntimeError as error:
            if self._pipeline.vae.use_tiling or not is_out_of_memory(error):
                raise
            log.warning(
                "the memory is too small to decode %dx%d as a whole", drawing.params.width, drawing.params.height
            )
        self.free_memory()
        tile_vae(self._pipeline.vae)
        return self._decoded(drawing)

    def _decoded(self, drawing: Drawing) -> Taken:
        latents = self._unpacked(drawing.latents, drawing.params)
        if self._is_cuda:
            latents = latents.contiguous(memory_format=torch.channels_last)
        decoded = self._pipeline.vae.decode(latents, return_dict=False)[0]
        pixels = (decoded[0] * 0.5 + 0.5).clamp(0, 1)
        return Taken.of(pixels.permute(1, 2, 0))

    def mark(self) -> Callable[[], None]:
        """Call what it gives to wait for everything that was launched so far. Raises what went wrong with it."""
        if not self._is_cuda:
            return lambda: None
        # Blocking: a thread that spins on the device would hold a core that the encoders want.
        event = torch.cuda.Event(blocking=True)
        event.record()
        return event.synchronize

    def free_memory(self) -> None:
        """Gives back to the device what nothing uses."""
        if self._is_cuda:
            torch.cuda.empty_cache()

    # --- parts of a step --------------------------------------------------------------------------------------------

    def _velocities(self, drawings: Sequence[Drawing]) -> list[torch.Tensor]:
        computed = [drawing for drawing in drawings if self._step_cache.computes(drawing)]
        found: dict[Drawing, torch.Tensor] = {}
        if computed:
            rows = [(drawing, guide) for drawing in computed for guide in drawing.guides]
            forward = self._forward.at_steps(drawings[0].adapters)
            if share := drawings[0].share:
                forward = SharedForward(self._transformer, share.team)
            velocities = forward(
                torch.cat([drawing.seen for drawing, _ in rows]),
                torch.stack([guide.text for _, guide in rows]),
                torch.stack([guide.modulations[drawing.step] for drawing, guide in rows]),
                drawings[0].rope,
            )
            parts = velocities.split([drawing.rows for drawing in computed])
            for drawing, part in zip(computed, parts, strict=True):
                found[drawing] = drawing.guided(part)
                self._step_cache.keep(drawing, found[drawing])
        return [found[drawing] if drawing in found else self._step_cache.extrapolated(drawing) for drawing in drawings]

    def _preview(self, drawing: Drawing, velocity: torch.Tensor, latents: torch.Tensor) -> Taken:
        """The end of the straight line on which the drawing moves."""
        assert self._colours is not None
        expected = latents.float() - float(drawing.sigma) * velocity.float()
        return Taken.of(self._colours.pixels(self._unpacked(expected, drawing.params)[0]))

    def _unpacked(self, latents: torch.Tensor, params: GenerationParams) -> Any:
        """As the VAE decodes them: (1, channels, height, width)."""
        scale = self._pipeline.vae_scale_factor
        unpacked = self._pipeline._unpack_latents(latents, params.height, params.width, scale)
        config = self._pipeline.vae.config
        return unpacked / config.scaling_factor + config.shift_factor

    # --- parts of a beginning ---------------------------------------------------------------------------------------

    def _scheduler(self, params: GenerationParams) -> Any:
        """A noise scheduler of the job's own, on the CPU, set to its first step."""
        scheduler = copy.deepcopy(self._pipeline.scheduler)
        steps = params.num_inference_steps
        sigmas = None if scheduler.config.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
        shift = calculate_shift(
            self._places.drawn_tokens(params),
            scheduler.config.get("base_image_seq_len", 256),
            scheduler.config.get("max_image_seq_len", 4096),
            scheduler.config.get("base_shift", 0.5),
            scheduler.config.get("max_shift", 1.15),
        )
        retrieve_timesteps(scheduler, steps, "cpu", sigmas=sigmas, mu=shift)
        # A weak change of a source makes the last steps only. Set, the index also is not looked up at every step.
        scheduler.set_begin_index(steps - params.steps_per_image)
        return scheduler

    def _guide(self, prompt: str, params: GenerationParams, scheduler: Any) -> Guide:
        encoded = self._text(prompt, params.max_sequence_length)
        timesteps = scheduler.timesteps[scheduler.begin_index :]
        modulations = self._transformer.modulations(timesteps, params.guidance_scale, encoded.pooled)
        return Guide(self._transformer.project_text(encoded.embeds), modulations)


def _operations(device: torch.device, dtype: torch.dtype, *, float8: bool) -> Operations:
    """Kernels where there are any for the device and the number format, else plain PyTorch."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float32):
        return Operations(float8=float8)
    try:
        from safelight.engine.flux.kernels import TritonOperations
    except ImportError:
        return Operations(float8=float8)
    return TritonOperations(float8=float8)


def _prepare_for_cuda(pipeline: FluxPipeline) -> None:
    try:
        from safelight.engine.flux.vae import accelerate
    except ImportError:
        return
    pipeline.vae.to(memory_format=torch.channels_last)
    accelerate(pipeline.vae.decoder)
    accelerate(pipeline.vae.encoder)


def _record_text_encoders(pipeline: FluxPipeline) -> None:
    from safelight.engine.flux.graphs import GraphedEncoder

    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        encoder.forward = GraphedEncoder(encoder.forward)


def _as_it_is(transformer: LeanTransformer) -> Callable[..., torch.Tensor]:
    return transformer


def _graphed(transformer: LeanTransformer) -> Callable[..., torch.Tensor]:
    from safelight.engine.flux.graphs import GraphedForward

    return GraphedForward(transformer, _GRAPH_TOKENS)
