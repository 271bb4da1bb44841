"""AUTOMATIC1111's ``/sdapi/v1``, as far as chat UIs and scripts use it; as lenient with members as the original."""

from __future__ import annotations

import contextlib
import json
import time
from collections import OrderedDict
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from safelight.errors import InvalidValue, ModelNotFound
from safelight.jobs import Job, JobStatus
from safelight.lora.directory import SUFFIX
from safelight.metadata import SOFTWARE, parameters_text, prompt_with_tags
from safelight.model_card import ModelCard
from safelight.params import MAX_IMAGES, MAX_SEED, GenerationParams, ImageFormat, MetadataLevel
from safelight.server.callers import on_disconnect_of, owner_of
from safelight.server.catalogue import Catalogue
from safelight.server.follow import OnDisconnect, follow
from safelight.server.front import Front
from safelight.server.generation_request import GenerationRequest, params_of
from safelight.server.pictures import Base64, Part, json_response
from safelight.server.prompt_tags import split_prompt
from safelight.server.served_model import ServedModel
from safelight.server.strict_json import StrictJSONRoute
from safelight.server.submission import submit
from safelight.server.uploads import Upload, read_base64_upload

_API = "sdapi"
_MAX_CHOICES = 1000
_EMPTY_LISTS = ("upscalers", "latent-upscale-modes", "sd-vae", "prompt-styles")


class TextToImage(BaseModel):
    """``cfg_scale`` has no effect: FLUX's guidance is Forge's ``distilled_cfg_scale``. Every sampler is Euler."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    prompt: str = ""
    seed: Annotated[int, Field(le=MAX_SEED)] = -1
    steps: int | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int = 1
    n_iter: int = 1
    distilled_cfg_scale: float | None = None
    send_images: bool = True
    override_settings: dict[str, Any] | None = None


class ImageToImage(TextToImage):
    """``mask`` is white where the picture is drawn anew. Clients send ``denoising_strength`` unasked: where a model has
    none, as FLUX.1-Kontext, it has no effect.
    """

    init_images: Annotated[list[str], Field(min_length=1, max_length=1)]
    mask: str | None = None
    denoising_strength: Annotated[float, Field(gt=0, le=1)] | None = None
    inpainting_mask_invert: int | bool = 0


def routes(front: Front) -> APIRouter:
    """``txt2img``, ``img2img`` and what its clients ask before and meanwhile."""
    chosen = ChosenModels(front.models)
    router = APIRouter(prefix="/sdapi/v1", tags=["automatic1111"], route_class=StrictJSONRoute)

    @router.post("/txt2img")
    async def txt2img(body: TextToImage, request: Request) -> Response:
        """Draws ``batch_size x n_iter`` pictures; ``info`` says what was really used."""
        return await _draw(front, request, await chosen.by(request, body.override_settings), body, None)

    @router.post("/img2img")
    async def img2img(body: ImageToImage, request: Request) -> Response:
        """Changes the one of ``init_images``; with a mask, only there."""
        model = await chosen.by(request, body.override_settings)
        card = model.card
        upload = await read_base64_upload(
            card,
            body.init_images[0],
            body.mask,
            body.denoising_strength if card.has_strength else None,
            _size(body, card) if body.width or body.height else None,
            mask_is_inverted=bool(body.inpainting_mask_invert),
            strength_name="denoising_strength",
        )
        return await _draw(front, request, model, body, upload)

    @router.get("/progress")
    async def progress(request: Request) -> dict[str, Any]:
        """Of the caller's own job that runs; nothing else is anybody's business."""
        running = [job for job in _own(front, request) if job.status is JobStatus.RUNNING]
        return _progress(front, running[0] if running else None)

    @router.post("/interrupt")
    @router.post("/skip")
    async def interrupt(request: Request) -> dict[str, Any]:
        """Cancels what the caller waits for through this API, and nobody else's jobs."""
        for job in _own(front, request):
            await front.dispatcher.cancel(job)
        return {}

    _add_facts(router, front, chosen)
    return router


class ChosenModels:
    """The model that each caller has chosen by ``/options``, for requests of this API that do not name one."""

    def __init__(self, models: Catalogue) -> None:
        self._models = models
        self._names: OrderedDict[str, str] = OrderedDict()

    async def by(self, request: Request, settings: dict[str, Any] | None = None) -> ServedModel:
        """Raises ``ModelNotFound``, or ``InvalidValue`` for settings that name it in a strange way."""
        asked = _checkpoint(settings or {}) or self._names.get(owner_of(request))
        return await self._models.wait_for(asked)

    def choose(self, request: Request, options: dict[str, Any]) -> None:
        """Remembers the model that the options name, if it is served: clients send back whatever they once knew."""
        name = _checkpoint(options)
        if name is None:
            return
        with contextlib.suppress(ModelNotFound):
            self._models.find(name)
            owner = owner_of(request)
            self._names[owner] = name
            self._names.move_to_end(owner)
            if len(self._names) > _MAX_CHOICES:
                self._names.popitem(last=False)


def _checkpoint(settings: dict[str, Any]) -> str | None:
    name = settings.get("sd_model_checkpoint")
    if name is not None and not isinstance(name, str):
        raise InvalidValue("sd_model_checkpoint is the name of a model", param="sd_model_checkpoint")
    return name or None


def _add_facts(router: APIRouter, front: Front, chosen: ChosenModels) -> None:
    """What there is to choose from: the models, one sampler."""

    @router.get("/options")
    async def options(request: Request) -> dict[str, Any]:
        return {"sd_model_checkpoint": (await chosen.by(request)).id, "samples_format": "png"}

    @router.post("/options")
    async def set_options(request: Request) -> None:
        """Accepted whole, as clients send it; ``sd_model_checkpoint`` holds for the caller's next requests."""
        try:
            options = json.loads(await request.body() or b"{}")
        except ValueError:
            return  # as before there was anything to set
        if isinstance(options, dict):
            chosen.choose(request, options)

    @router.get("/sd-models")
    async def sd_models() -> list[dict[str, Any]]:
        rest = {"hash": None, "sha256": None, "config": None}
        names = [model.id for model in front.models]
        return [{"title": name, "model_name": name, "filename": name, **rest} for name in names]

    @router.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        return [{"name": "Euler", "aliases": ["euler"], "options": {}}]

    @router.get("/schedulers")
    async def schedulers() -> list[dict[str, Any]]:
        return [{"name": "simple", "label": "Simple", "aliases": None, "default_rho": -1.0, "need_inner_model": False}]

    @router.get("/loras")
    async def loras(request: Request) -> list[dict[str, Any]]:
        """Those that fit the caller's model; the prompt names them as ``<lora:NAME:0.8>``."""
        names = await front.loras.of(await chosen.by(request)).fitting()
        return [{"name": name, "alias": name, "path": f"{name}{SUFFIX}", "metadata": {}} for name in names]

    async def nothing() -> list[Any]:
        return []

    for name in _EMPTY_LISTS:
        router.add_api_route(f"/{name}", nothing, methods=["GET"], operation_id=f"sdapi_{name}")
    empties: dict[str, dict[str, Any]] = {
        "scripts": {"txt2img": [], "img2img": []},
        "embeddings": {"loaded": {}, "skipped": {}},
        "memory": {"ram": {}, "cuda": {}},
        "cmd-flags": {},
    }
    for name, empty in empties.items():
        router.add_api_route(f"/{name}", _constant(empty), methods=["GET"], operation_id=f"sdapi_{name}")


def _constant(value: dict[str, Any]) -> Any:
    async def answer() -> dict[str, Any]:
        return value

    return answer


async def _draw(
    front: Front, request: Request, model: ServedModel, body: TextToImage, upload: Upload | None
) -> Response:
    params = _params(body, model.card, upload)
    job = await submit(front, request, model, _API, params, upload=upload)
    await follow(request, front.dispatcher, job, on_disconnect_of(request, OnDisconnect.CANCEL))
    job.raise_unless_succeeded()
    return await _answer(front, job, body)


def _params(body: TextToImage, card: ModelCard, upload: Upload | None) -> GenerationParams:
    """Clients send the defaults of other models without being asked: steps and sizes are brought into range."""
    prompt, uses = split_prompt(body.prompt)
    asked = GenerationRequest(
        prompt=prompt,
        seed=None if body.seed < 0 else body.seed,
        num_inference_steps=None if body.steps is None else min(max(body.steps, 1), card.max_num_inference_steps),
        guidance_scale=body.distilled_cfg_scale if card.has_guidance else None,
    )
    count = min(max(body.batch_size, 1) * max(body.n_iter, 1), MAX_IMAGES)
    size = upload.size if upload else _size(body, card)
    params = params_of(asked, card, size, count, ImageFormat.PNG, None, upload=upload)
    return msgspec.structs.replace(params, loras=tuple(uses))


def _size(body: TextToImage, card: ModelCard) -> tuple[int, int]:
    width = card.default_width if body.width is None else body.width
    return card.fitting(width), card.fitting(card.default_height if body.height is None else body.height)


def _own(front: Front, request: Request) -> list[Job]:
    owner = owner_of(request)
    return [job for job in front.ledger if job.request.api == _API and job.request.owner == owner]


def _progress(front: Front, job: Job | None) -> dict[str, Any]:
    done, total = (job.step, job.params.total_steps) if job else (0, 0)
    eta_s = front.forecast.eta_s(job) if job else None
    return {
        "progress": done / total if total else 0.0,
        "eta_relative": round(eta_s or 0.0, 2),
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": job.id if job else "",
            "job_count": 1 if job else 0,
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.gmtime(job.created_s if job else 0)),
            "job_no": 0,
            "sampling_step": done,
            "sampling_steps": total,
        },
        "current_image": None,
        "textinfo": None,
    }


async def _answer(front: Front, job: Job, body: TextToImage) -> Response:
    parts: list[Part] = [b'{"images":[']
    for number, image in enumerate(job.result.images if body.send_images else []):
        parts += [b',"' if number else b'"', Base64(front.store.results.path(image.file)), b'"']
    info = msgspec.json.encode(_info(job, front.models.id_of(job.request))).decode()
    rest = msgspec.json.encode({"parameters": body.model_dump(exclude={"init_images", "mask"}), "info": info})
    parts += [b"],", rest[1:]]
    return await json_response(parts, {"x-seed": str(job.params.seed), "x-job-id": job.id})


def _info(job: Job, model: str) -> dict[str, Any]:
    params, count = job.params, job.params.num_images
    return {
        "prompt": prompt_with_tags(params),
        "all_prompts": [prompt_with_tags(params)] * count,
        "negative_prompt": "",
        "seed": params.seed,
        "all_seeds": list(params.seeds),
        "width": params.width,
        "height": params.height,
        "sampler_name": "Euler",
        "cfg_scale": 1.0,
        "steps": params.num_inference_steps,
        "batch_size": count,
        "sd_model_name": model,
        "sd_model_hash": None,
        "extra_generation_params": {"Distilled CFG Scale": params.guidance_scale},
        "index_of_first_image": 0,
        "infotexts": [parameters_text(params, seed, model, MetadataLevel.FULL) for seed in params.seeds],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.gmtime(job.created_s)),
        "clip_skip": 1,
        "version": SOFTWARE,
    }
