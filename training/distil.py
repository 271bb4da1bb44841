"""Stage 3: guidance distillation, so that one call with guidance w does what classifier-free guidance does in two."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F

from training.flow import Scenes, add_noise, encode_text, predict, token_ids
from training.model import make_transformer
from training.run import SEED, Run, Trainer

MAX_GUIDANCE = 6.0


def distil_guidance(run: Run, steps: int) -> None:
    """The student is told w in 1..6; the target is the frozen teacher's v(no text) + w (v(text) - v(no text))."""
    teacher = make_transformer().to(run.device).requires_grad_(False)
    teacher.load_state_dict(run.parts["transformer"].state_dict())
    for name in ("clip", "t5"):
        run.parts[name].requires_grad_(False)
    scenes = Scenes(run, random.Random(SEED + 2))
    no_caption = token_ids([""], run.device)
    trainer = Trainer(run, "distil", [run.parts["transformer"]], steps, 5e-4)
    for step in trainer:
        batch = scenes.batch(step, 48)
        noisy, level, _ = add_noise(batch)
        guidance = 1 + (MAX_GUIDANCE - 1) * torch.rand_like(level)
        plain = torch.ones_like(level)
        with torch.autocast(run.device.type, torch.bfloat16):
            with torch.no_grad():
                text = encode_text(run.parts, batch.clip_ids, batch.t5_ids)
                nothing = encode_text(run.parts, *(ids.expand(len(level), -1) for ids in no_caption))
                with_text = predict(teacher, noisy, level, batch.image_ids, plain, text).float()
                without = predict(teacher, noisy, level, batch.image_ids, plain, nothing).float()
                target = without + guidance[:, None, None] * (with_text - without)
            velocity = predict(run.parts["transformer"], noisy, level, batch.image_ids, guidance, text)
        trainer.learn(F.mse_loss(velocity.float(), target), step)
