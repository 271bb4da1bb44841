"""Run by ``webuiapi``, and ``sd-parsers`` for its pictures: ``python webui_cases.py HOST PORT KEY``."""

import io
import json
import sys
import threading

import webuiapi
from PIL import Image
from sd_parsers import ParserManager

host, port, key = sys.argv[1:]
api = webuiapi.WebUIApi(host=host, port=int(port), sampler="Euler a", steps=20)
api.set_auth("anybody", key)


def parsed(image):
    buffer = io.BytesIO()
    info = image.text if hasattr(image, "text") else {}
    from PIL.PngImagePlugin import PngInfo

    kept = PngInfo()
    for name, value in info.items():
        kept.add_text(name, value)
    image.save(buffer, "PNG", pnginfo=kept)
    found = ParserManager().parse(buffer)
    prompts = [prompt.value for prompt in found.prompts]
    sampler = found.samplers[0]
    return found.generator.name, prompts, sampler.parameters.get("seed"), sampler.parameters.get("steps")


def txt2img():
    made = api.txt2img(prompt="a red circle", negative_prompt="blurry", seed=1003, width=250, height=250, cfg_scale=7)
    return made.image.size, made.info["seed"], made.info["width"], parsed(made.image)


def batch():
    return [image.size for image in api.txt2img(prompt="a", batch_size=2, n_iter=2, seed=1, steps=2).images]


def img2img():
    picture = Image.new("RGB", (256, 256), (0, 0, 255))
    mask = Image.new("L", (256, 256), 0)
    mask.paste(255, (0, 0, 128, 256))
    made = api.img2img(
        images=[picture], mask_image=mask, prompt="a", denoising_strength=0.9, steps=4, width=256, height=256
    )
    return made.image.convert("RGB").crop((128, 0, 256, 256)).getextrema()


def lists():
    return [
        api.get_options()["sd_model_checkpoint"],
        [model["title"] for model in api.get_sd_models()],
        [sampler["name"] for sampler in api.get_samplers()],
        api.get_upscalers(),
        api.get_scripts(),
        api.get_progress()["progress"],
    ]


def interrupt():
    """What is drawn for this caller ends early."""
    errors = []

    def draw():
        try:
            api.txt2img(prompt="a", steps=150)
        except RuntimeError as error:
            errors.append(error.args[0])

    thread = threading.Thread(target=draw)
    thread.start()
    while api.get_progress()["progress"] == 0:
        pass
    api.interrupt()
    thread.join()
    return errors


def error():
    try:
        api.txt2img(prompt="")
    except RuntimeError as error:
        return error.args[0]


CASES = (txt2img, batch, img2img, lists, interrupt, error)
print(json.dumps({case.__name__: case() for case in CASES}))
