"""The command line: ``serve``, ``pull``, ``generate``, ``jobs``, ``workers``, ``top``, ``doctor``. Parses and calls."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safelight import __version__
from safelight.config import ENV_PREFIX, Config, load_config, settings
from safelight.errors import ConfigError, InvalidValue, SafelightError
from safelight.params import LoraUse, parse_lora
from safelight.terminal import AUTO, SHOW_CHOICES

EXIT_ERROR = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 done, 1 failed, 2 wrong usage or setting."""
    args = build_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # prompts may have letters that a terminal's encoding lacks
            stream.reconfigure(errors="replace")
    try:
        code: int = args.run(args)
    except ConfigError as error:
        print(f"safelight: {error.message}", file=sys.stderr)
        return EXIT_USAGE
    except SafelightError as error:
        print(f"safelight: {error.message}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return 130
    return code


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; every setting of ``Config`` is an option of ``serve`` and ``doctor``."""
    parser = argparse.ArgumentParser(prog="safelight", description="A FLUX image server.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"safelight {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", help="run the server", allow_abbrev=False)
    _add_settings(serve)
    serve.set_defaults(run=_serve)

    generate = commands.add_parser("generate", help="draw one image", allow_abbrev=False)
    _add_generate_options(generate)
    generate.set_defaults(run=_generate)

    jobs = commands.add_parser("jobs", help="list, show, cancel and save jobs of a running server", allow_abbrev=False)
    _add_jobs_options(jobs)

    workers = commands.add_parser("workers", help="list and restart workers of a running server", allow_abbrev=False)
    _add_workers_options(workers)

    top = commands.add_parser("top", help="watch a running server", allow_abbrev=False)
    _add_server_options(top)
    top.add_argument("--once", action="store_true", help="print the state once and end")
    top.set_defaults(run=_top)

    pull = commands.add_parser("pull", help="download a model from the Hugging Face hub", allow_abbrev=False)
    _add_pull_options(pull)
    pull.set_defaults(run=_pull)

    doctor = commands.add_parser("doctor", help="say what is wrong with this machine", allow_abbrev=False)
    _add_settings(doctor)
    doctor.set_defaults(run=_doctor)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    for setting in settings():
        default = setting.default if setting.default != () else "empty"
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            metavar=setting.name.upper(),
            help=f"{setting.metadata['help']} [env: {ENV_PREFIX}{setting.name.upper()}] [default: {default}]",
        )
    _add_config(parser)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"TOML file with settings [env: {ENV_PREFIX}CONFIG]"
    )


def _add_generate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("-o", "--output", type=Path, default=Path("out.png"), help="file to write [default: out.png]")
    _add_server_options(parser, "http://127.0.0.1:8000 if one answers, else none")
    parser.add_argument("--local", action="store_true", help="do not look for a server: start an engine here")
    parser.add_argument("--seed", type=int, help="seed that makes the same image again")
    parser.add_argument("--steps", type=int, help="denoising steps [default: the model's]")
    parser.add_argument("--size", metavar="WxH", help="size in pixels [default: the model's]")
    parser.add_argument(
        "--lora",
        metavar="NAME[:SCALE]",
        type=_lora,
        action="append",
        default=[],
        help="LoRA adapter that acts on the image, of this scale [default: 1]; may be given several times",
    )
    _add_show(parser)
    parser.add_argument(
        "--model", help="of the server's, or without one a model as serve takes it [default: the first]"
    )
    parser.add_argument("--base-model", help="without a server: as the server's")
    parser.add_argument("--device", default="auto", help="without a server: cpu, cuda or auto")


def _add_pull_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="OWNER/NAME, or OWNER/NAME/FILE, with or without @REVISION")
    parser.add_argument(
        "--base-only", action="store_true", help="all but the transformer: what single files need of a base model"
    )
    _add_config(parser)
    parser.add_argument("--data-dir", help=f"as the server's [env: {ENV_PREFIX}DATA_DIR]")
    parser.add_argument("--models-dir", help=f"as the server's [env: {ENV_PREFIX}MODELS_DIR]")
    parser.add_argument("--token-file", type=Path, help="file with the hub's token [env, the token: HF_TOKEN]")
    parser.add_argument("--endpoint", metavar="URL", help="address of the hub [env: HF_ENDPOINT]")


def _add_server_options(
    parser: argparse.ArgumentParser, default: str = "http://127.0.0.1:8000", *, is_inherited: bool = False
) -> None:
    """``is_inherited``: what was given before the action counts, unless it is given again after it."""
    inherited: dict[str, Any] = {"default": argparse.SUPPRESS} if is_inherited else {}
    key = inherited or {"default": os.environ.get(f"{ENV_PREFIX}API_KEY")}
    parser.add_argument("--url", help=f"server to ask [default: {default}]", **inherited)
    parser.add_argument("--api-key", help=f"key for that server [env: {ENV_PREFIX}API_KEY]", **key)


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--show",
        choices=SHOW_CHOICES,
        default=AUTO,
        help="how to show the picture, if this is a terminal [default: auto, as this terminal can]",
    )


def _add_jobs_options(parser: argparse.ArgumentParser) -> None:
    _add_server_options(parser)
    parser.add_argument("--limit", type=_count, default=20, help="at most so many, the newest [default: 20]")
    parser.add_argument("--json", action="store_true", help="as the job API has them")
    parser.set_defaults(run=_jobs, action="list")
    actions = parser.add_subparsers(metavar="ACTION")
    show = _add_action(actions, "show", "what is known of one job, and its picture")
    show.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as the job API has it")
    _add_show(show)
    _add_action(actions, "cancel", "end a job")
    save = _add_action(actions, "save", "write the pictures of a job to files")
    save.add_argument("-o", "--output", type=Path, help="file to write [default: ID.png]")


def _add_workers_options(parser: argparse.ArgumentParser) -> None:
    _add_server_options(parser)
    parser.set_defaults(run=_workers, action="list")
    restart = parser.add_subparsers(metavar="ACTION").add_parser(
        "restart", help="give workers new processes, one after the other", allow_abbrev=False
    )
    restart.add_argument("id", metavar="ID", nargs="?", help="of one worker [default: all]")
    restart.add_argument("--model", help="that they are to have then [default: what they have]")
    restart.add_argument("--no-wait", action="store_true", help="do not wait until they are ready")
    _add_server_options(restart, is_inherited=True)
    restart.set_defaults(action="restart")


def _add_action(actions: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, allow_abbrev=False)
    parser.add_argument("id", metavar="ID", help="of a job, or its beginning")
    _add_server_options(parser, is_inherited=True)
    parser.set_defaults(action=name)
    return parser


def _lora(text: str) -> LoraUse:
    try:
        return parse_lora(text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(error.message) from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def config_of(args: argparse.Namespace) -> Config:
    """The settings from flags, environment and file. Raises ``ConfigError``."""
    flags = {setting.name: getattr(args, setting.name, None) for setting in settings()}
    file = args.config or os.environ.get(f"{ENV_PREFIX}CONFIG")
    return load_config(flags, os.environ, Path(file) if file else None)


def _serve(args: argparse.Namespace) -> int:
    config = config_of(args)
    from safelight.server.listener import bind

    with bind(config.host, config.port) as sock:  # before the imports that take longest: a port in use is known at once
        from safelight.server.serve import serve

        return serve(config, sock)


def _generate(args: argparse.Namespace) -> int:
    from safelight.commands.generate import generate

    return generate(args)


def _jobs(args: argparse.Namespace) -> int:
    from safelight.commands.jobs import ACTIONS

    return ACTIONS[args.action](args)


def _workers(args: argparse.Namespace) -> int:
    from safelight.commands.workers import ACTIONS

    return ACTIONS[args.action](args)


def _top(args: argparse.Namespace) -> int:
    from safelight.commands.top import top

    return top(args)


def _pull(args: argparse.Namespace) -> int:
    config = config_of(args)
    from safelight.commands.pull import pull

    return pull(args, config.pulled_models)


def _doctor(args: argparse.Namespace) -> int:
    config = config_of(args)
    from safelight.commands.doctor import doctor

    return doctor(config)
