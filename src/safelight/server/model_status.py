"""How each model stands: whether it is loaded and where, what it can do, and what went wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec

from safelight.model_card import ModelCard
from safelight.server.catalogue import LISTED_ALIASES, Catalogue
from safelight.server.queue import JobQueue
from safelight.server.served_model import ServedModel
from safelight.server.worker import Worker
from safelight.server.worker_state import WorkerState


class ModelState(StrEnum):
    """Of a model over all devices: the best that one of them has of it."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    FAILED = "failed"


def model_state(model: ServedModel, workers: Sequence[Worker]) -> ModelState:
    """``failed``: no device has it, and the last that tried could not load it; it is unloaded as well."""
    if _holders(model, workers):
        return ModelState.READY
    if any(worker.model is model and worker.state is WorkerState.WARMING for worker in workers):
        return ModelState.WARMING
    if any(worker.wanted is model for worker in workers):
        return ModelState.LOADING
    return ModelState.FAILED if _error(model, workers) else ModelState.UNLOADED


def _error(model: ServedModel, workers: Sequence[Worker]) -> str | None:
    errors = [model.error, *(worker.loader.errors.get(model.name) for worker in workers)]
    return next((error.message for error in errors if error is not None), None)


def _holders(model: ServedModel, workers: Sequence[Worker]) -> list[Worker]:
    return [
        worker
        for worker in workers
        if any(instance.model is model and instance.is_serving for instance in worker.instances)
    ]


def model_status(model: ServedModel, workers: Sequence[Worker], queue: JobQueue) -> dict[str, Any]:
    """One entry of ``models`` in ``/v1/status``."""
    return {
        "id": model.id,
        "state": model_state(model, workers).value,
        "loaded_on": [worker.device.name for worker in _holders(model, workers)],
        "pinned": model.is_pinned,
        "waiting": queue.count(model.name),
        "error": _error(model, workers),
    }


def models_loaded(models: Catalogue, workers: Sequence[Worker]) -> dict[tuple[str, ...], float]:
    """For each model, how many devices serve it."""
    return {(model.name,): len(_holders(model, workers)) for model in models}


def model_entry(model: ServedModel, workers: Sequence[Worker], queue: JobQueue) -> dict[str, Any]:
    """One entry of ``/v1/models``: what OpenAI's list has, how the model stands, and what it can do, if known."""
    openai = {"object": "model", "created": 0, "owned_by": "safelight"}
    abilities = _abilities(model.card) if model.is_known else {}
    return model_status(model, workers, queue) | openai | abilities


def model_list(models: Catalogue, workers: Sequence[Worker], queue: JobQueue, aliases: str) -> list[dict[str, Any]]:
    """All of ``/v1/models``; the default first, and under the names of others too if ``aliases`` are listed."""
    entries = [model_entry(model, workers, queue) for model in models]
    named = [
        entries[0] | {"id": name, "alias_of": entries[0]["id"]}
        for name in (LISTED_ALIASES if aliases == "list" else ())
    ]
    return [entries[0], *named, *entries[1:]]


def _abilities(card: ModelCard) -> dict[str, Any]:
    return {
        "title": card.title,
        "description": card.description,
        "tasks": [task.value for task in card.tasks],
        "family": card.family.value,
        "default_size": f"{card.default_width}x{card.default_height}",
        "size_multiple": card.size_multiple,
        "min_size": card.min_size,
        "max_size": card.max_size,
        "default_num_inference_steps": card.default_num_inference_steps,
        "max_num_inference_steps": card.max_num_inference_steps,
        "default_guidance_scale": card.default_guidance_scale,
        "max_guidance_scale": card.max_guidance_scale,
        "max_sequence_length": card.max_sequence_length,
        "examples": card.examples,
        "vocabulary": None if card.vocabulary is None else msgspec.to_builtins(card.vocabulary),
    }
