"""Stage 3: guidance distillation, so that one call with guidance w does what classifier-free guidance does in two."""

from __future__ import annotations

import torch

from training.data import batches, token_ids
from training.flow import add_noise, compile_blocks, encode_text, predict, stance, weighted_error
from training.model import make_transformer
from training.run import SEED, Run, Trainer

MAX_GUIDANCE = 6.0


def distil_guidance(run: Run, steps: int, batch_size: int) -> None:
    """The student is told w in 1..6; the target is the frozen teacher's v(no text) + w (v(text) - v(no text))."""
    student = run.parts["transformer"]
    teacher = make_transformer().to(run.device).requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    compile_blocks(run, teacher)
    compile_blocks(run, student)
    for name in ("clip", "t5"):
        run.parts[name].requires_grad_(False)
    no_caption = token_ids([""], run.device)
    trainer = Trainer(run, "distil", [student], steps, 5e-4)
    data = batches(batch_size, SEED + 2, run.device, trainer.first_step)
    for step, batch in zip(trainer, data, strict=False):
        noisy, level, _ = add_noise(batch)
        guidance = 1 + (MAX_GUIDANCE - 1) * torch.rand_like(level)
        plain = torch.ones_like(level)
        with stance(batch), torch.autocast(run.device.type, torch.bfloat16):
            with torch.no_grad():
                text = encode_text(run.parts, batch.clip_ids, batch.t5_ids)
                nothing = encode_text(run.parts, *(ids.expand(len(level), -1) for ids in no_caption))
                with_text = predict(teacher, noisy, level, batch.image_ids, plain, text).float()
                without = predict(teacher, noisy, level, batch.image_ids, plain, nothing).float()
                target = without + guidance[:, None, None] * (with_text - without)
            velocity = predict(student, noisy, level, batch.image_ids, guidance, text)
        trainer.learn(weighted_error(velocity.float(), target), step)
