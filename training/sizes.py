"""Stage 4: pictures of other sizes than the main one, without unlearning that."""

from __future__ import annotations

import torch

from training.data import batches, every_size
from training.distil import MAX_GUIDANCE
from training.flow import add_noise, encode_text, predict, weighted_error
from training.model import make_transformer
from training.run import SEED, Run, Trainer


def train_sizes(run: Run, steps: int, batch_size: int) -> None:
    """At the main size the target is what the frozen model says, at others the velocity, whatever the guidance."""
    student = run.parts["transformer"]
    frozen = make_transformer().to(run.device).requires_grad_(False)
    frozen.load_state_dict(student.state_dict())
    for name in ("clip", "t5"):
        run.parts[name].requires_grad_(False)
    trainer = Trainer(run, "sizes", [student], steps, 4e-4)
    data = batches(batch_size, SEED + 5, run.device, trainer.first_step, every_size)
    for step, batch in zip(trainer, data, strict=False):
        noisy, level, target = add_noise(batch)
        guidance = 1 + (MAX_GUIDANCE - 1) * torch.rand_like(level)
        with torch.autocast(run.device.type, torch.bfloat16):
            with torch.no_grad():
                text = encode_text(run.parts, batch.clip_ids, batch.t5_ids)
                if batch.is_main_size:
                    target = predict(frozen, noisy, level, batch.image_ids, guidance, text).float()
            velocity = predict(student, noisy, level, batch.image_ids, guidance, text)
        trainer.learn(weighted_error(velocity.float(), target), step)
