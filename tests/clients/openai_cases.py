"""Run by several versions of the ``openai`` package: ``python openai_cases.py URL KEY``. Prints one JSON object."""

import base64
import json
import sys
import time

import openai

url, key = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
OPTIONS = {"model": "gpt-image-1", "size": "256x256", "extra_body": {"seed": 5, "steps": 4}}


def is_png(data):
    return base64.b64decode(data, validate=True).startswith(b"\x89PNG")


def success():
    answer = client.images.generate(prompt="a red circle", n=2, quality="auto", background="auto", **OPTIONS)
    seeds = [image.seed for image in answer.data]
    return (
        [is_png(image.b64_json) for image in answer.data],
        seeds,
        answer.usage.output_tokens,
        bool(answer._request_id),
    )


def models():
    found = [model.id for model in client.models.list()]
    return found, client.models.retrieve(found[0]).id


def edit():
    made = client.images.generate(prompt="a red circle", **OPTIONS)
    picture = base64.b64decode(made.data[0].b64_json)
    one = client.images.edit(image=picture, prompt="blue", extra_body={"steps": 2})
    several = client.images.edit(image=[("a.png", picture)], mask=picture, prompt="blue", size="auto")
    return is_png(one.data[0].b64_json), is_png(several.data[0].b64_json)


def stream():
    told = []
    for event in client.images.generate(prompt="a red circle", stream=True, partial_images=2, **OPTIONS):
        told.append([event.type, is_png(event.b64_json), getattr(event, "partial_image_index", None)])
    return told


def error():
    try:
        client.images.generate(prompt="a red circle", size="17x17")
    except openai.BadRequestError as error:
        return error.status_code, error.code, error.param, bool(error.request_id)


def wrong_key():
    try:
        openai.OpenAI(base_url=f"{url}/v1", api_key="no-such-key", max_retries=0).models.list()
    except openai.AuthenticationError as error:
        return error.code


def broken_stream():
    """The prompt makes the stub's worker fail: an exception, not a silent end."""
    try:
        for _ in client.images.generate(prompt="out of memory", stream=True, **OPTIONS):
            pass
    except openai.APIError as error:
        return error.code


def timeout():
    """The SDK closes the connection; the job is cancelled, and a short one comes through at once."""
    try:
        impatient = client.with_options(timeout=0.5)
        impatient.images.generate(prompt="a red circle", size="256x256", extra_body={"steps": 200})
    except openai.APITimeoutError:
        started = time.monotonic()
        client.images.generate(prompt="a red circle", **OPTIONS)
        return time.monotonic() - started < 3


def retry():
    """The queue holds one: the second waiting request is refused, and comes through by the SDK's own retry."""
    import threading

    patient = client.with_options(max_retries=5)
    results = []

    def ask():
        answer = patient.images.generate(prompt="a red circle", size="256x256", extra_body={"steps": 40})
        results.append(is_png(answer.data[0].b64_json))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


CASES = (success, models, edit, stream, error, wrong_key, broken_stream, timeout, retry)
print(json.dumps({"version": openai.__version__} | {case.__name__: case() for case in CASES}))
