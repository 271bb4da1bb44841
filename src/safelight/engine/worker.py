"""The worker process: reads messages, runs ``ModelManager``, reports progress, results and failures.

Started by the front as ``python -m safelight.engine.worker --fd N --parent-pid P``. It ends when the front tells it
to, when the socket closes, and (Linux) by a signal from the kernel when the front dies: never later than its parent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from PIL.Image import Image

from safelight import faults, logs
from safelight.checkpoint import open_checkpoint
from safelight.config import STUB_MODEL
from safelight.engine.drawing_job import Generation
from safelight.engine.failures import reach
from safelight.engine.images import encode_image, encode_preview
from safelight.engine.model_manager import ModelManager
from safelight.engine.options import EngineOptions
from safelight.engine.previews import preview_steps
from safelight.engine.provenance import Provenance
from safelight.engine.sources import open_source
from safelight.engine.stub import StubEngine
from safelight.engine.team import Share, TeamLost
from safelight.engine.timeline import Timeline
from safelight.errors import BadOutput, DeviceFault, InternalError, JobCancelled, LoadError, SafelightError
from safelight.logs import about
from safelight.params import GenerationParams
from safelight.protocol import (
    Cancel,
    Cancelled,
    Channel,
    Disband,
    Disbanded,
    Drawn,
    EncodedImage,
    Failed,
    FrontMessage,
    Generate,
    Helped,
    Load,
    LoadFailed,
    LoadProgress,
    Message,
    Preview,
    Ready,
    Shutdown,
    StepDone,
    Succeeded,
    Unfit,
    Warm,
    trace_id_of,
)
from safelight.tracing import NO_TRACING, Tracing

log = logging.getLogger("safelight.engine.worker")  # as a program, this module is __main__

_PR_SET_PDEATHSIG = 1
_LOG_LINE = "%(asctime)s %(levelname)s worker[%(process)d] %(message)s"


class Worker:
    """Serves one channel until ``Shutdown`` or its end. Jobs run as they come; cancelling is a message of its own."""

    def __init__(
        self,
        channel: Channel[FrontMessage],
        credentials: tuple[Path, Path] | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._channel = channel
        self._credentials = credentials
        self._tracing = tracing
        self._provenance: Provenance | None = None
        self._manager = ModelManager()
        self._image_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="image")
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._shares: dict[str, Share] = {}
        self._load: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Returns when there is nothing left to serve."""
        while True:
            match await self._channel.receive():
                case Load() as load:
                    self._manager = manager_of(load.model)
                    self._load = self._start(self._load_model(load), "load")
                case Generate() as generate:
                    with about(job_id=generate.job_id, **_ids(generate)):
                        self._jobs[generate.job_id] = self._start(self._generate(generate), generate.job_id)
                    # Let it begin: a task that is cancelled before that never runs, and would never answer.
                    await asyncio.sleep(0)
                case Cancel(job_id) if job_id in self._jobs and not self._is_helping(job_id):
                    self._jobs[job_id].cancel()
                case Disband(job_id) if job_id in self._shares:
                    self._loop.run_in_executor(None, self._shares[job_id].team.abort)
                case Cancel() | Disband():
                    pass  # already finished; its outcome is on the way
                case Shutdown():
                    return await self._stop()
                case None:
                    # The front is gone. Nobody is left to answer, and a thread inside a library cannot be stopped.
                    os._exit(1)

    def _is_helping(self, job_id: str) -> bool:
        return job_id in self._shares and not self._shares[job_id].is_leader

    async def _stop(self) -> None:
        tasks = [task for task in (self._load, *self._jobs.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._manager.cleanup()
        self._image_thread.shutdown()
        self._tracing.close()
        await self._channel.flush()
        self._channel.close()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._loop.create_task(work, name=name)

    def _send_from_thread(self, message: Message) -> None:
        self._loop.call_soon_threadsafe(self._channel.send, message)

    async def _load_model(self, load: Load) -> None:
        try:
            checkpoint = await asyncio.to_thread(open_checkpoint, load.model, Path(load.models_dir), load.base_model)
            if self._credentials is not None:
                self._provenance = await asyncio.to_thread(Provenance, *self._credentials, checkpoint.card.id)
            self._manager.on_warm = lambda *use: self._send_from_thread(Warm(*use))
            self._manager.on_memory = self._send_from_thread
            await self._manager.load_model(checkpoint, load.device, _options(load), self._send_from_thread)
            total = checkpoint.weight_bytes
            parts = len(checkpoint.components)
            self._channel.send(LoadProgress("warmup", None, parts, parts, total, total))
            sizes = load.warmup_sizes or [(checkpoint.card.default_width, checkpoint.card.default_height)]
            await self._manager.warmup(sizes)
            self._channel.send(Ready(self._manager.phase_seconds, self._manager.batch_tokens, self._manager.fit))
        except DeviceFault as error:
            log.error("loading failed: %s", error.message)
            os._exit(os.EX_SOFTWARE)  # a new process may find the device well
        except SafelightError as error:
            log.error("loading failed: %s", error.message)
            self._channel.send(LoadFailed(error.code, error.message))
        except Exception as error:
            log.exception("loading failed")
            self._channel.send(LoadFailed(LoadError.code, f"{load.model} could not be loaded: {type(error).__name__}"))

    async def _generate(self, generate: Generate) -> None:
        job_id, attempt = generate.job_id, generate.attempt
        timeline = Timeline()
        share = self._share(generate)
        outcome: Message

        def on_step(step: int, total_steps: int) -> None:
            self._send_from_thread(StepDone(job_id, attempt, step, total_steps))

        def on_preview(index: int, step: int, image: Image) -> None:
            context = contextvars.copy_context()
            self._image_thread.submit(context.run, self._send_preview, generate, index, step, image)

        try:
            source = await self._loop.run_in_executor(self._image_thread, open_source, generate.image, generate.mask)
            generation = await self._manager.generate_image(
                generate.params, on_step, on_preview, source, timeline, share
            )
            outcome = await self._deliver(generate, generation, timeline)
        except (asyncio.CancelledError, JobCancelled):
            outcome = Cancelled(job_id, attempt)
        except TeamLost as error:
            log.warning("job %s: %s", job_id, error)
            outcome = Disbanded(job_id, attempt, str(error))
        except SafelightError as error:
            if _is_unfit_after(error, generate.params):
                return await self._give_up(Unfit(job_id, attempt, error.code, error.message))
            outcome = Failed(job_id, attempt, error.code, error.message)
        except Exception:
            log.exception("job %s failed", job_id)
            outcome = Failed(job_id, attempt, InternalError.code, "the image could not be made; the log says why")
        finally:
            del self._jobs[job_id]
            self._shares.pop(job_id, None)
        if share is not None:
            reason = JobCancelled("cancelled") if isinstance(outcome, Cancelled) else None
            self._manager.end_share(share, reason)
        self._channel.send(outcome)
        await self._channel.flush()
        reach("engine.sent")
        if generate.trace_context:
            self._image_thread.submit(timeline.trace, self._tracing, generate.trace_context)

    def _share(self, generate: Generate) -> Share | None:
        if generate.team is None:
            return None
        share = self._shares[generate.job_id] = self._manager.share(generate.team, generate.params)
        return share

    async def _deliver(self, generate: Generate, generation: Generation, timeline: Timeline) -> Message:
        """Of a job that is drawn, or was helped with."""
        if generate.team is not None and not generate.team.is_leader:
            return Helped(generate.job_id, generate.attempt)
        self._channel.send(Drawn(generate.job_id, generate.attempt))
        succeeded = await self._encode(generate, generation)
        timeline.encoded_s = time.monotonic()
        return succeeded

    async def _give_up(self, reason: Unfit) -> None:
        """Nothing that this process does from now on can be trusted, its own clean-up included."""
        log.exception("%s: %s; this worker ends", reason.job_id, reason.message)
        self._channel.send(reason)
        await self._channel.flush()
        os._exit(os.EX_SOFTWARE)

    def _send_preview(self, generate: Generate, index: int, step: int, image: Image) -> None:
        """On the image thread. A preview that cannot be made is missed by nobody."""
        params = generate.params
        try:
            data = encode_preview(image, params)
        except Exception:
            return log.exception("a preview of %s could not be encoded", generate.job_id)
        number = sorted(preview_steps(params.steps_per_image, params.partial_images)).index(step)
        self._send_from_thread(Preview(generate.job_id, generate.attempt, index, number, step, data))

    async def _encode(self, generate: Generate, generation: Generation) -> Succeeded:
        params = generate.params
        model = self._manager.checkpoint.card.id if self._manager.checkpoint else ""
        images = [
            await self._loop.run_in_executor(
                self._image_thread, _encode_image, image, params, seed, model, self._provenance
            )
            for image, seed in zip(generation.images, params.seeds, strict=True)
        ]
        return Succeeded(
            generate.job_id,
            generate.attempt,
            images,
            generation.warnings,
            generation.text_tokens,
            generation.seconds,
        )


def _is_unfit_after(error: SafelightError, params: GenerationParams) -> bool:
    """Whether it says that the device or the weights are broken. With adapters, values without end are theirs."""
    return isinstance(error, DeviceFault) or (isinstance(error, BadOutput) and not params.loras)


def _ids(generate: Generate) -> dict[str, str]:
    return {"request_id": generate.request_id, "trace_id": trace_id_of(generate.trace_context)}


def _options(load: Load) -> EngineOptions:
    return EngineOptions(
        load.dtype,
        load.precision,
        load.memory,
        load.step_cache,
        load.batch_limit,
        load.cache_dir,
        load.loras_dir,
        load.lora_cache_mb,
        load.memory_limit_mb,
    )


def _encode_image(
    image: Image, params: GenerationParams, seed: int, model: str, provenance: Provenance | None
) -> EncodedImage:
    reach("engine.encode")
    encoded = encode_image(image, params, seed, model)
    return encoded if provenance is None else provenance.signed(encoded)


def manager_of(model: str) -> ModelManager:
    """The engine for a model of this name."""
    return StubEngine() if model == STUB_MODEL else ModelManager()


def die_with_parent(parent_pid: int) -> None:
    """Asks the kernel for SIGKILL when the parent ends; exits at once if it ended before we could ask.

    The signal comes when the *thread* that spawned this process ends, so the front spawns from its main thread only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise SystemExit(1)


def _tracing(args: argparse.Namespace) -> Tracing:
    if not args.otlp_endpoint:
        return NO_TRACING
    from safelight.otlp import OtlpTracing

    return OtlpTracing(args.otlp_endpoint, {"safelight.worker.id": args.worker_id})


async def _serve(sock: socket.socket, credentials: tuple[Path, Path] | None, tracing: Tracing) -> None:
    channel: Channel[FrontMessage] = await Channel.open(sock, FrontMessage)
    await Worker(channel, credentials, tracing).run()


def main() -> None:
    """Entry point of the child process."""
    # diffusers would import it if it is there, for half a second; our adapters do without.
    sys.modules.setdefault("peft", cast(Any, None))
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text")
    parser.add_argument("--worker-id", type=int, default=0)
    parser.add_argument("--otlp-endpoint", default="")
    parser.add_argument("--faults", default="")
    parser.add_argument("--faults-dir", type=Path)
    parser.add_argument("--credentials", type=Path, nargs=2)
    args = parser.parse_args()
    die_with_parent(args.parent_pid)
    logs.configure(args.log_level, args.log_format, _LOG_LINE, logging.StreamHandler(), worker_id=args.worker_id)
    # The front sends this signal before it ends a worker that hangs.
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)
    if args.faults:
        faults.arm(args.faults, args.faults_dir, args.worker_id)
    sock = socket.socket(fileno=args.fd)
    asyncio.run(_serve(sock, args.credentials and tuple(args.credentials), _tracing(args)))


if __name__ == "__main__":
    main()
