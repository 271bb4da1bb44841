"""Whether a picture has room in a device's memory beside its model, as far as the workers have told."""

from __future__ import annotations

from collections.abc import Sequence

from safelight.errors import InvalidSize
from safelight.params import GenerationParams
from safelight.server.model_instance import ModelInstance
from safelight.server.worker import Worker


def has_room(instance: ModelInstance, params: GenerationParams) -> bool:
    """Whether one picture of these fits there; so does one that nobody knows better of."""
    fit = instance.load.fit
    return fit is None or fit.has_room(params.step_pixels)


def check_room(params: GenerationParams, model: str, workers: Sequence[Worker]) -> None:
    """Raises ``InvalidSize``, with the figures of the largest device, if no device that has the model has the room.

    While one of them still loads it, nobody knows.
    """
    holders = [worker for worker in workers if worker.wanted is not None and worker.wanted.name == model]
    instances = [worker.current for worker in holders if worker.current is not None and worker.current.is_serving]
    instances = [each for each in instances if each.model.name == model]
    if not instances or len(instances) < len(holders) or any(has_room(each, params) for each in instances):
        return
    largest, fit = max(
        ((each, each.load.fit) for each in instances if each.load.fit), key=lambda pair: pair[1].max_pixels
    )
    raise InvalidSize(fit.refusal(params.step_pixels, largest.device.name), param="size")
