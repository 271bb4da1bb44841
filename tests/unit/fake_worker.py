"""A worker without a model: a real child process that speaks the protocol and behaves as its argument says.

``python -S fake_worker.py PACKAGES BEHAVIOUR MARKER --fd=N ...``; MARKER is a file by which one process tells the next
one that it has been there. Without ``site`` and ``argparse`` it starts in half the time; PACKAGES is where msgspec is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2] / "src"), sys.argv[1]]

import msgspec

from safelight.protocol import (
    Cancel,
    Cancelled,
    Channel,
    Drawn,
    EncodedImage,
    Failed,
    Fit,
    FrontMessage,
    Generate,
    Load,
    LoadFailed,
    LoadProgress,
    Ready,
    Shutdown,
    StepDone,
    Succeeded,
    Unfit,
    Warm,
)

PHASE_SECONDS = {"import": 0.1, "weights": 0.2, "to_device": 0.3, "warmup": 0.4}
BYTES_TOTAL = 80
TEXT_TOKENS = 7
BATCH_TOKENS = 2 * (4 * 4 + 64)
"""Two rows of 64x64 pixels, with 64 tokens of text: what ``waits_to_be_told`` takes at once."""


class Behaviour:
    """Loads at once and draws a job step by step; cancels between two steps."""

    step_s = 0.0
    batch_tokens = 0

    def __init__(self, sock: socket.socket, channel: Channel[FrontMessage], marker: Path) -> None:
        self.sock = sock
        self.channel = channel
        self.marker = marker
        self.cancelled: set[str] = set()
        self.tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        while (message := await self.channel.receive()) is not None:
            match message:
                case Load():
                    self.tasks.append(asyncio.create_task(self.load(message)))
                case Generate():
                    self.tasks.append(asyncio.create_task(self.generate(message)))
                case Cancel(job_id):
                    self.cancelled.add(job_id)
                case Shutdown():
                    return await self.shutdown()
        os._exit(1)  # the front is gone

    async def load(self, load: Load) -> None:
        await self.begin_to_load()
        self.channel.send(LoadProgress("warmup", None, 7, 7, BYTES_TOTAL, BYTES_TOTAL))
        self.channel.send(Ready(PHASE_SECONDS, self.batch_tokens))

    async def begin_to_load(self) -> None:
        self.channel.send(LoadProgress("import", None, 0, 7, 0, BYTES_TOTAL))
        self.channel.send(LoadProgress("weights", "transformer", 5, 7, BYTES_TOTAL // 2, BYTES_TOTAL))
        await self.channel.flush()

    async def generate(self, generate: Generate) -> None:
        job_id, attempt, params = generate.job_id, generate.attempt, generate.params
        for step in range(1, params.total_steps + 1):
            await asyncio.sleep(self.step_s)
            if job_id in self.cancelled:
                return self.channel.send(Cancelled(job_id, attempt))
            self.channel.send(StepDone(job_id, attempt, step, params.total_steps))
        self.succeed(generate, attempt)

    def succeed(self, generate: Generate, attempt: int, text: str = "") -> None:
        params = generate.params
        images = [
            EncodedImage(
                (text or f"{params.prompt} {seed}").encode(), params.output_format, seed, params.width, params.height
            )
            for seed in params.seeds
        ]
        self.channel.send(Succeeded(generate.job_id, attempt, images, [], TEXT_TOKENS, {"denoise": 0.1}))

    async def one_step(self, generate: Generate) -> None:
        self.channel.send(StepDone(generate.job_id, generate.attempt, 1, generate.params.total_steps))
        await self.channel.flush()

    async def shutdown(self) -> None:
        await self.channel.flush()
        self.channel.close()
        self.marker.touch()

    def is_first(self) -> bool:
        """Whether no process before this one has been here."""
        if self.marker.exists():
            return False
        self.marker.touch()
        return True

    async def stay(self) -> None:
        await asyncio.Event().wait()


class IsReady(Behaviour):
    pass


class IsSmall(Behaviour):
    """Has room for a step of 64x64 pixels; the second worker for four times as much. Its pictures say which it is."""

    is_second = "--worker-id=1" in sys.argv

    async def load(self, load: Load) -> None:
        room = 64 * 64 * (4 if self.is_second else 1)
        self.channel.send(Ready(PHASE_SECONDS, 0, Fit("low", "bfloat16", 20_600_000_000, room, 1000.0)))

    async def generate(self, generate: Generate) -> None:
        self.succeed(generate, generate.attempt, "second" if self.is_second else "first")


class IsSlowAtFirst(Behaviour):
    """The first process came in a slower mode than it could."""

    async def load(self, load: Load) -> None:
        note = "it is in mode low" if self.is_first() else ""
        self.channel.send(Ready(PHASE_SECONDS, 0, Fit("low" if note else "full", "bfloat16", 10**9, note=note)))


class HasSlowSteps(Behaviour):
    step_s = 0.05


class LoadsSlowly(Behaviour):
    async def begin_to_load(self) -> None:
        await super().begin_to_load()
        await asyncio.sleep(0.3)


class NeverFinishesLoading(Behaviour):
    async def begin_to_load(self) -> None:
        await super().begin_to_load()
        await self.stay()


class NeverFinishesWarmup(Behaviour):
    async def load(self, load: Load) -> None:
        await self.begin_to_load()
        self.channel.send(LoadProgress("warmup", None, 7, 7, BYTES_TOTAL, BYTES_TOTAL))
        await self.stay()


class FailsToLoad(Behaviour):
    code, sentence = "checkpoint_invalid", "vae/config.json is missing"

    async def load(self, load: Load) -> None:
        self.channel.send(LoadFailed(self.code, self.sentence))
        await self.stay()


class FailsToLoadForAStrangeReason(FailsToLoad):
    code, sentence = "out_of_cheese", "there is no cheese"


class FailsToLoadOnce(Behaviour):
    async def begin_to_load(self) -> None:
        await super().begin_to_load()
        if self.is_first():
            self.channel.send(LoadFailed("not_enough_memory", "8 GB are needed, 4 GB are free"))
            await self.stay()


class RepeatsItsOrders(Behaviour):
    """Fails to load with a sentence that says what it was asked, so that a test can read it."""

    async def load(self, load: Load) -> None:
        sizes = [f"{width}x{height}" for width, height in load.warmup_sizes]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        told = [load.model, load.device, load.dtype, ",".join(sizes), load.precision, load.step_cache, load.batch_limit]
        sentence = "|".join(map(str, [*told, load.cache_dir, visible, os.getpgid(0) == os.getpid()]))
        self.channel.send(LoadFailed("model_load_failed", sentence))


class DiesWhileLoading(Behaviour):
    async def begin_to_load(self) -> None:
        await super().begin_to_load()
        os._exit(3)


class DiesWhileLoadingOnce(Behaviour):
    async def begin_to_load(self) -> None:
        await super().begin_to_load()
        if self.is_first():
            os.kill(os.getpid(), signal.SIGKILL)


class DiesInAJob(Behaviour):
    async def generate(self, generate: Generate) -> None:
        await self.one_step(generate)
        os.kill(os.getpid(), signal.SIGKILL)


class DiesInTheFirstJob(Behaviour):
    async def generate(self, generate: Generate) -> None:
        if self.is_first():
            await self.one_step(generate)
            os._exit(7)
        await super().generate(generate)


class WritesGarbage(Behaviour):
    async def generate(self, generate: Generate) -> None:
        self.sock.send(b"\x00\x00\x00\x05hello")


class WritesBrokenText(Behaviour):
    async def generate(self, generate: Generate) -> None:
        frame = b"\x82\xa4type\xa9cancelled\xa6job_id\xa2\xff\xff"
        self.sock.send(len(frame).to_bytes(4, "big") + frame)


class AnnouncesFourGigabytes(Behaviour):
    async def generate(self, generate: Generate) -> None:
        self.sock.send(b"\xff\xff\xff\xff")


class ClosesItsSocketInTheFirstJob(Behaviour):
    """A process that hangs on its way out: nobody speaks to it any more, but it is still there."""

    async def generate(self, generate: Generate) -> None:
        if self.is_first():
            self.sock.shutdown(socket.SHUT_RDWR)
            await self.stay()
        await super().generate(generate)

    async def run(self) -> None:
        await super().run() if self.marker.exists() else await self.run_and_hang()

    async def run_and_hang(self) -> None:
        while (message := await self.channel.receive()) is not None:
            match message:
                case Load():
                    await self.load(message)
                case Generate():
                    await self.generate(message)
        await self.stay()


class FailsTheJob(Behaviour):
    async def generate(self, generate: Generate) -> None:
        self.channel.send(Failed(generate.job_id, generate.attempt, "out_of_memory", "64x64 is too large for cuda:0"))


class AnswersForAnEarlierAttempt(Behaviour):
    async def generate(self, generate: Generate) -> None:
        self.channel.send(StepDone(generate.job_id, generate.attempt - 1, 3, 4))
        self.channel.send(Cancelled("another job", generate.attempt))
        self.succeed(generate, generate.attempt - 1, "the wrong picture")
        self.succeed(generate, generate.attempt, "the right picture")


class NeverFinishesAStep(Behaviour):
    async def generate(self, generate: Generate) -> None:
        await self.one_step(generate)
        await self.stay()


class IsUnfitOnce(Behaviour):
    """As the engine does with a broken device: says so and exits."""

    async def generate(self, generate: Generate) -> None:
        if self.is_first():
            await self.one_step(generate)
            self.channel.send(Unfit(generate.job_id, generate.attempt, "device_fault", "illegal memory access"))
            await self.channel.flush()
            os._exit(70)
        await super().generate(generate)


class HangsOnce(Behaviour):
    async def generate(self, generate: Generate) -> None:
        if self.is_first():
            await self.one_step(generate)
            os.kill(os.getpid(), signal.SIGSTOP)
        await super().generate(generate)


class WaitsToBeTold(Behaviour):
    """Two jobs at once; each makes one step and waits for files beside the marker, named by its prompt.

    ``a.draw`` has it make the other steps and be drawn, ``a.end`` succeed. ``die`` ends the process, ``hang`` stops it.
    """

    batch_tokens = BATCH_TOKENS

    async def generate(self, generate: Generate) -> None:
        params, job = generate.params, (generate.job_id, generate.attempt)
        await self.one_step(generate)
        self.channel.send(Warm(params.width, params.height, params.rows))
        if not await self.is_told(generate, "draw"):
            return self.channel.send(Cancelled(*job))
        for step in range(2, params.total_steps + 1):
            self.channel.send(StepDone(*job, step, params.total_steps))
        self.channel.send(Drawn(*job))
        await self.is_told(generate, "end")
        self.succeed(generate, generate.attempt)

    async def is_told(self, generate: Generate, what: str) -> bool:
        """False if it is cancelled first."""
        while not self.file(f"{generate.params.prompt}.{what}").exists():
            if generate.job_id in self.cancelled:
                return False
            if self.file("die").exists():
                os._exit(7)
            if self.file("hang").exists():
                os.kill(os.getpid(), signal.SIGSTOP)
            await asyncio.sleep(0.005)
        return True

    def file(self, name: str) -> Path:
        return self.marker.with_name(name)


class NamesItsModel(Behaviour):
    """Its pictures say by which model they are. Beside the marker, ``NAME.load`` keeps it from loading that model,
    ``NAME.fail`` has the load fail, ``NAME.small`` for lack of memory, ``NAME.die`` ends the process; ``PROMPT.draw``
    lets a job named ``held`` get on.
    """

    name = ""
    step_s = 0.002

    async def load(self, load: Load) -> None:
        self.name = Path(load.model).name
        self.channel.send(LoadProgress("import", None, 0, 7, 0, BYTES_TOTAL))
        await self.channel.flush()
        await self.until(lambda: not self.file("load").exists())
        if self.file("die").exists():
            os._exit(3)
        if self.file("small").exists():
            self.file("small").unlink()
            return self.channel.send(LoadFailed("not_enough_memory", "8 GB are needed, 4 GB are free"))
        if self.file("fail").exists():
            return self.channel.send(LoadFailed("checkpoint_invalid", f"{self.name} is broken"))
        await super().load(load)

    async def generate(self, generate: Generate) -> None:
        prompt = generate.params.prompt
        await self.one_step(generate)
        if prompt.startswith("held"):
            await self.until(self.marker.with_name(f"{prompt}.draw").exists)
        await asyncio.sleep(self.step_s)
        self.succeed(generate, generate.attempt, f"{self.name}: {prompt}")

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in iter(condition, True):
            await asyncio.sleep(0.005)

    def file(self, what: str) -> Path:
        return self.marker.with_name(f"{self.name}.{what}")


class IgnoresShutdown(Behaviour):
    async def shutdown(self) -> None:
        await self.stay()


def _name(kind: type[Behaviour]) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind.__name__).lstrip("_")


BEHAVIOURS = {_name(kind): kind for kind in [*Behaviour.__subclasses__(), *FailsToLoad.__subclasses__()]}


def worker_command(behaviour: str, marker: Path) -> tuple[str, ...]:
    """The command line that starts a worker of this behaviour."""
    assert behaviour in BEHAVIOURS, f"{behaviour} is none of {sorted(BEHAVIOURS)}"
    packages = Path(msgspec.__file__).parents[1]
    return (sys.executable, "-S", str(Path(__file__)), str(packages), behaviour, str(marker))


async def _serve(fd: int, behaviour: str, marker: Path) -> None:
    sock = socket.socket(fileno=fd)
    channel: Channel[FrontMessage] = await Channel.open(sock, FrontMessage)
    await BEHAVIOURS[behaviour](sock, channel, marker).run()


def main() -> None:
    _packages, behaviour, marker, *options = sys.argv[1:]
    (fd,) = (int(option.removeprefix("--fd=")) for option in options if option.startswith("--fd="))
    asyncio.run(_serve(fd, behaviour, Path(marker)))


if __name__ == "__main__":
    main()
