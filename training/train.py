"""Trains ``safelight/shapes`` from nothing: ``python -m training.train``. Continues from the checkpoints in ``--work``.

Stages: ``vae`` learns to see and draw pictures; ``flow`` trains transformer and text encoders by flow matching on the
VAE's latents; ``distil`` turns classifier-free guidance into the guidance embedding, as FLUX.1-dev has it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from training.distil import distil_guidance
from training.flow import train_flow
from training.model import export
from training.run import SEED, Run
from training.vae import train_vae


def main() -> None:
    """Runs the stages that are left, then exports."""
    args = parse()
    torch.manual_seed(SEED)
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward crashed on sequences this short
    run = Run.open(Path(args.work), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for stage, train, steps in (
        ("vae", train_vae, args.vae_steps),
        ("flow", train_flow, args.flow_steps),
        ("distil", distil_guidance, args.distil_steps),
    ):
        if stage not in run.done:
            train(run, steps, args.batch)
            run.save(stage)
    run.log["device"] = torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu"
    run.log["torch"] = torch.__version__
    for part in run.parts.values():
        part.to("cpu")
    export(run.parts, Path(args.out))
    (Path(args.work) / "log.json").write_text(json.dumps(run.log, indent=1))
    run.say(f"exported to {args.out}")


def parse() -> argparse.Namespace:
    """The defaults made the shipped model, on one H100."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", default="src/safelight/models/shapes")
    parser.add_argument("--work", default="training/work")
    parser.add_argument("--batch", type=int, default=512, help="pictures per step of flow and distil")
    parser.add_argument("--vae-steps", type=int, default=2500)
    parser.add_argument("--flow-steps", type=int, default=9500)
    parser.add_argument("--distil-steps", type=int, default=800)
    return parser.parse_args()


if __name__ == "__main__":
    main()
