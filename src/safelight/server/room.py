"""Whether a picture has room in a device's memory beside its model, as far as the workers have told."""

from __future__ import annotations

from collections.abc import Collection

from safelight.errors import InvalidSize
from safelight.params import GenerationParams
from safelight.server.model_instance import ModelInstance


def has_room(instance: ModelInstance, params: GenerationParams) -> bool:
    """Whether one picture of these fits there; so does one that nobody knows better of."""
    fit = instance.load.fit
    return fit is None or fit.has_room(params.step_pixels)


def check_room(params: GenerationParams, instances: Collection[ModelInstance], holders: int) -> None:
    """Raises ``InvalidSize``, with the figures of the largest device, if none of the ``instances`` that serve the model
    has the room.

    While one of its ``holders``, the devices that have the model or are getting it, still loads it, nobody knows.
    """
    if any(has_room(each, params) for each in instances) or not instances or len(instances) < holders:
        return
    fits = ((each, each.load.fit) for each in instances if each.load.fit)
    largest, fit = max(fits, key=lambda pair: pair[1].max_pixels)
    raise InvalidSize(fit.refusal(params.step_pixels, largest.device.name), param="size")
