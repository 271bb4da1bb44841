"""When a job did what on the device; from it come the seconds of its stages, and its spans."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from safelight.tracing import NO_SPAN, Attributes, Span, TraceContext, Tracing


@dataclass(slots=True)
class Step:
    """A denoising step that some or all pictures of the job made together, perhaps with other jobs'."""

    begun_s: float
    ended_s: float
    images: int
    shared_by: int


@dataclass(slots=True)
class Timeline:
    """Times of the monotonic clock in seconds; 0.0 for what it has not come to. Kept on the GPU thread."""

    begin_s: float = 0.0
    begun_s: float = 0.0
    steps: list[Step] = field(default_factory=list)
    decoded_s: float = 0.0
    encoded_s: float = 0.0

    def step_done(self, begun_s: float, ended_s: float, shared_by: int) -> None:
        """One picture made a step; those that made it together have the same times."""
        if self.steps and self.steps[-1].ended_s == ended_s:
            self.steps[-1].images += 1
        else:
            self.steps.append(Step(begun_s, ended_s, 1, shared_by))

    @property
    def denoised_s(self) -> float:
        return self.steps[-1].ended_s if self.steps else 0.0

    def stages(self) -> dict[str, float]:
        """Seconds that each took, of a job that is decoded."""
        return {
            "generate": self.decoded_s - self.begin_s,
            "text": self.begun_s - self.begin_s,
            "denoise": self.denoised_s - self.begun_s,
            "decode": self.decoded_s - self.denoised_s,
        }

    def trace(self, tracing: Tracing, parent: TraceContext) -> None:
        """Its spans, as far as it has come."""
        past_s = time.time() - time.monotonic()

        def span(name: str, begun_s: float, ended_s: float, within: TraceContext, about: Attributes) -> Span:
            if not (begun_s and ended_s):
                return NO_SPAN
            made = tracing.begin(name, within, about, start_s=past_s + begun_s)
            made.end(past_s + ended_s)
            return made

        span("encode text", self.begin_s, self.begun_s, parent, {})
        denoise = span("denoise", self.begun_s, self.denoised_s, parent, {"safelight.steps": len(self.steps)}).context
        for number, step in enumerate(self.steps, 1):
            about: Attributes = {
                "safelight.step": number,
                "safelight.step.images": step.images,
                "safelight.step.batch_images": step.shared_by,
            }
            span("step", step.begun_s, step.ended_s, denoise, about)
        span("decode", self.denoised_s, self.decoded_s, parent, {})
        span("encode image", self.decoded_s, self.encoded_s, parent, {})
