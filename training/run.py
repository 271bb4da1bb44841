"""What the stages of training share: the parts, the log, the checkpoint, the averages, the learning rate."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.model import make_text_encoders, make_transformer, make_vae

SEED = 20261123
STAGES = ("vae", "flow", "distil")

_REPORT_EVERY = 100
_SAVE_EVERY = 2000


@dataclass(slots=True)
class Run:
    """Model parts by name (``vae``, ``transformer``, ``clip``, ``t5``), where they train, and what was measured."""

    work: Path
    device: torch.device
    parts: dict[str, Any]
    log: dict[str, Any] = field(default_factory=dict)
    done: tuple[str, ...] = ()
    started_s: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, work: Path, device: torch.device) -> Run:
        """A new run, or the one that the checkpoint in ``work`` left off."""
        clip, t5 = make_text_encoders()
        run = cls(work, device, {"vae": make_vae(), "transformer": make_transformer(), "clip": clip, "t5": t5})
        work.mkdir(parents=True, exist_ok=True)
        if run._path.exists():
            state = torch.load(run._path, map_location="cpu", weights_only=True)
            for name, values in state["parts"].items():
                run.parts[name].load_state_dict(values)
            run.log, run.done = state["log"], STAGES[: STAGES.index(state["stage"]) + 1]
            run.say(f"continues after stage {state['stage']}")
        for part in run.parts.values():
            part.to(device)
        return run

    def save(self, stage: str) -> None:
        """Marks the stage as done; through a temporary file, so that an end at any time leaves a whole checkpoint."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        replace(self._path, {"stage": stage, "parts": parts, "log": self.log})

    def say(self, text: str) -> None:
        """One line of progress."""
        print(f"[{time.monotonic() - self.started_s:7.1f} s] {text}", flush=True)

    @property
    def _path(self) -> Path:
        return self.work / "checkpoint.pt"


def replace(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint through a temporary file."""
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


class Trainer:
    """AdamW over some modules with warm-up and cosine, gradient clipping, and averaged weights at the end.

    Saves its state as it goes, and begins at ``first_step`` from what an earlier one left.
    """

    def __init__(self, run: Run, name: str, modules: list[nn.Module], steps: int, rate: float) -> None:
        self._run = run
        self._name = name
        self._steps = steps
        self._rate = rate
        self._parameters: list[Tensor] = [p for module in modules for p in module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=run.device.type == "cuda"
        )
        self._averages = [parameter.detach().clone() for parameter in self._parameters]
        self._losses: list[float] = []
        self._recent: list[Tensor] = []
        self.first_step = 0
        if self._path.exists():
            self._restore()
        torch.manual_seed(SEED + self.first_step)

    def __iter__(self) -> Iterator[int]:
        """The steps; at the end the averages become the weights, and the losses go into the log."""
        start_s = time.monotonic()
        for step in range(self.first_step, self._steps):
            yield step
            if (step + 1) % _REPORT_EVERY == 0:
                self._report(step + 1)
            if (step + 1) % _SAVE_EVERY == 0:
                self._save(step + 1)
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._averages)
        seconds = round(time.monotonic() - start_s)
        self._run.log[self._name] = {"steps": self._steps, "seconds": seconds, "losses": self._losses}
        self._path.unlink(missing_ok=True)

    def learn(self, loss: Tensor, step: int) -> None:
        """One step down the gradient."""
        warm_up = min((step + 1) / (0.05 * self._steps + 1), 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * warm_up * 0.5 * (1 + math.cos(math.pi * step / self._steps))
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        decay = min(max(1 - 20 / self._steps, 0.0), (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, [parameter.detach() for parameter in self._parameters], 1 - decay)
        self._recent.append(loss.detach())

    @property
    def _path(self) -> Path:
        return self._run.work / f"{self._name}.pt"

    def _report(self, step: int) -> None:
        self._losses.append(round(float(torch.stack(self._recent).mean()), 5))
        self._recent.clear()
        self._run.say(f"{self._name} {step}/{self._steps} loss {self._losses[-1]}")

    def _save(self, step: int) -> None:
        replace(
            self._path,
            {
                "step": step,
                "parameters": [parameter.detach() for parameter in self._parameters],
                "averages": self._averages,
                "optimizer": self._optimizer.state_dict(),
                "losses": self._losses,
            },
        )

    def _restore(self) -> None:
        state = torch.load(self._path, map_location=self._run.device, weights_only=True)
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, state["parameters"])
            torch._foreach_copy_(self._averages, state["averages"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.first_step, self._losses = state["step"], state["losses"]
        self._run.say(f"{self._name} continues at step {self.first_step}")
