"""The messages between front and worker: all that both sides know of each other.

Each is one frame (``frames.py``) of msgpack. One socketpair per worker generation.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Generic, TypeVar

import msgspec

from safelight.errors import ProtocolError
from safelight.frames import FrameSocket, FrameTooLarge
from safelight.params import GenerationParams, ImageFormat


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower):
    """Base of all messages; the tag is the class name in lower case."""


# --- from the front -------------------------------------------------------------------------------------------------


class Load(Message, frozen=True):
    """Load the checkpoint of this name onto the device, then warm up each size (width, height in pixels).

    ``batch_limit`` is how many rows may share a step at most, 0 leaves it to measured times; compiled kernels are kept
    in ``cache_dir``, if it is not empty; ``models_dir`` has the models that can be named as on the hub. A single file
    takes all but its transformer from ``base_model``. ``loras_dir`` has the LoRA adapters, of which ``lora_cache_mb``
    megabytes are kept in the host's memory. ``memory_limit_mb`` is what the worker may use of the device, 0: all of it.
    """

    model: str
    device: str
    dtype: str
    warmup_sizes: list[tuple[int, int]]
    precision: str = "auto"
    memory: str = "auto"
    step_cache: int = 1
    batch_limit: int = 0
    cache_dir: str = ""
    models_dir: str = ""
    base_model: str | None = None
    loras_dir: str = ""
    lora_cache_mb: int = 1024
    memory_limit_mb: int = 0


class TeamPlace(msgspec.Struct, frozen=True):
    """A worker's place in a team of ``size``, which makes the steps of a job together. The one of rank 0 leads.

    Its members meet by the file ``rendezvous``; once they have met, the same file means the same members.
    """

    rank: int
    size: int
    rendezvous: str

    @property
    def is_leader(self) -> bool:
        return self.rank == 0


class Generate(Message, frozen=True):
    """Run one job. ``attempt`` comes back in every message about it; ``image`` and ``mask`` are files of its source.

    ``trace_context`` has the ``traceparent`` of the span that it belongs to, and a ``tracestate`` if there is one, as
    W3C's Trace Context has them; it is empty if nobody traces it. With a ``team``, all its members get the order; the
    leader makes the picture, and the others end with ``Helped``.
    """

    job_id: str
    attempt: int
    params: GenerationParams
    request_id: str = ""
    trace_context: dict[str, str] = {}
    image: bytes | None = None
    mask: bytes | None = None
    team: TeamPlace | None = None


class Cancel(Message, frozen=True):
    """Stop this job at its next denoising step. Of a team only the leader heeds it, and takes the others along."""

    job_id: str


class Disband(Message, frozen=True):
    """The team that makes this job is lost: let go of the others, and wait for them no longer."""

    job_id: str


class Shutdown(Message, frozen=True):
    """Free the model and exit."""


# --- from the worker ------------------------------------------------------------------------------------------------


class LoadProgress(Message, frozen=True):
    """How far loading is. ``bytes_done`` counts weights that lie on the device in their final form.

    ``component_bytes`` are the same by component, of those that have begun.
    """

    phase: str
    component: str | None
    components_done: int
    components_total: int
    bytes_done: int
    bytes_total: int
    component_bytes: dict[str, int] = {}


class Fit(msgspec.Struct, frozen=True):
    """How a model was fitted into a device's memory: the mode, and the bytes that were planned for it.

    ``max_pixels`` is the largest step that has room beside it, in pixels of all its rows with their references; 0 if
    nobody knows. ``working_bytes_per_pixel`` is what a step was seen to take for each. ``note`` says why it is not
    faster, if it could be.
    """

    mode: str
    number_format: str
    planned_bytes: int
    max_pixels: int = 0
    working_bytes_per_pixel: float = 0.0
    note: str = ""

    def has_room(self, pixels: int) -> bool:
        """For a step of so many pixels."""
        return not self.max_pixels or pixels <= self.max_pixels

    @property
    def room(self) -> str:
        """In words."""
        size_bytes = self.max_pixels * self.working_bytes_per_pixel
        return f"{self.max_pixels / 1e6:.2f} megapixels, {size_bytes / 1e9:.2f} GB"

    def refusal(self, pixels: int, device: str) -> str:
        """The sentence for a picture of so many pixels that is too large."""
        return (
            f"a step of this picture has {pixels / 1e6:.2f} megapixels and takes about "
            f"{pixels * self.working_bytes_per_pixel / 1e9:.2f} GB; beside the model {device} has room for "
            f"{self.room}: ask for a smaller size"
        )


class Ready(Message, frozen=True):
    """Loaded and warm: jobs may come. ``phase_seconds`` maps import, weights, to_device and warmup to seconds.

    Jobs of one shape may run at once for as long as their rows together have ``batch_tokens`` tokens at most: beyond
    that a step takes longer in proportion, or does not fit. 0: one after the other.
    """

    phase_seconds: dict[str, float]
    batch_tokens: int = 0
    fit: Fit | None = None


class Warm(Message, frozen=True):
    """From now on a step of so many rows of this size, in pixels, pays for no first use."""

    width: int
    height: int
    rows: int


class Memory(Message, frozen=True):
    """What is used of the device's memory, by whomever, and how much there is; on a CPU, or within a limit, what this
    process uses. Of a CUDA device also what its tensors take, and what is reserved for them.
    """

    used_bytes: int
    total_bytes: int
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


class LoadFailed(Message, frozen=True):
    """Loading failed for good with this error; the worker exits."""

    code: str
    message: str


class StepDone(Message, frozen=True):
    """One denoising step ended. ``step`` counts from 1 over all images of the job."""

    job_id: str
    attempt: int
    step: int
    total_steps: int


class Preview(Message, frozen=True):
    """An unfinished picture in the size and format of the finished one. ``step`` counts within image ``image_index``.

    ``number`` counts the previews of one image from 0.
    """

    job_id: str
    attempt: int
    image_index: int
    number: int
    step: int
    data: bytes


class EncodedImage(msgspec.Struct, frozen=True):
    """One finished picture, as bytes of ``format``."""

    data: bytes
    format: ImageFormat
    seed: int
    width: int
    height: int


class Drawn(Message, frozen=True):
    """The device is done with the job, only encoding is left: the next one may come."""

    job_id: str
    attempt: int


class Succeeded(Message, frozen=True):
    """The job's images. ``warnings`` are sentences for the user; ``seconds`` maps stages to their time."""

    job_id: str
    attempt: int
    images: list[EncodedImage]
    warnings: list[str]
    text_tokens: int
    seconds: dict[str, float]


class Helped(Message, frozen=True):
    """The steps of a job were made with its leader, which has the pictures."""

    job_id: str
    attempt: int


class Disbanded(Message, frozen=True):
    """The team was lost; the job has no outcome yet and may run again. This worker goes on."""

    job_id: str
    attempt: int
    message: str


class Failed(Message, frozen=True):
    """The job failed with this error; the worker goes on."""

    job_id: str
    attempt: int
    code: str
    message: str


class Unfit(Message, frozen=True):
    """The worker can no longer be trusted and exits; the job has no outcome yet and may run elsewhere."""

    job_id: str
    attempt: int
    code: str
    message: str


class Cancelled(Message, frozen=True):
    """The job was stopped by ``Cancel``."""

    job_id: str
    attempt: int


FrontMessage = Load | Generate | Cancel | Disband | Shutdown
JobOutcome = Succeeded | Helped | Failed | Cancelled | Unfit | Disbanded
JobProgress = StepDone | Preview | Drawn
WorkerMessage = LoadProgress | Ready | Warm | Memory | LoadFailed | JobProgress | JobOutcome

Received = TypeVar("Received")


def trace_id_of(trace_context: Mapping[str, str]) -> str:
    """The trace that a ``traceparent`` names: its second part."""
    return trace_context.get("traceparent", "")[3:35]


class Channel(Generic[Received]):
    """One end of a socketpair: sends any message, receives those of one union."""

    def __init__(self, frames: FrameSocket, received: object) -> None:
        self._frames = frames
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(received)

    @classmethod
    async def open(cls, sock: socket.socket, received: object) -> Channel[Received]:
        """Takes over ``sock``; ``received`` is the union of messages that the other side may send."""
        return cls(await FrameSocket.open(sock), received)

    def send(self, message: Message) -> None:
        """Queues a message for sending. Never blocks; a closed peer is noticed by ``receive``."""
        try:
            self._frames.send(self._encoder.encode(message))
        except FrameTooLarge as error:
            raise ProtocolError(f"a {type(message).__name__} message is too large: {error}") from None

    async def receive(self) -> Received | None:
        """The next message, or ``None`` once the other side is gone. Raises ``ProtocolError`` for a bad frame."""
        try:
            body = await self._frames.receive()
            return None if body is None else self._decoder.decode(body)
        except FrameTooLarge as error:
            raise ProtocolError(str(error)) from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"a message could not be read: {error}") from error

    async def flush(self) -> None:
        """Waits until what was sent has left this process, or the peer is gone."""
        await self._frames.flush()

    def close(self) -> None:
        """Closes this end; idempotent."""
        self._frames.close()
