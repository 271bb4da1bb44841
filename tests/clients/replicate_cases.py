"""Run by the ``replicate`` package: ``python replicate_cases.py URL KEY``. Prints one JSON object."""

import json
import sys
import time

import replicate
from replicate.exceptions import ReplicateError

url, key = sys.argv[1:]
client = replicate.Client(api_token=key, base_url=url)
INPUT = {"prompt": "a red circle", "aspect_ratio": "1:1", "seed": 5, "num_inference_steps": 4}


def run():
    """The quick start: a file that can be read."""
    return [picture.read()[1:4].decode() for picture in client.run("safelight/stub", input=INPUT | {"num_outputs": 2})]


def run_longer_than_the_wait():
    """The server waits a second only; the SDK polls on."""
    (picture,) = client.run("safelight/stub", input=INPUT | {"num_inference_steps": 150}, wait=1)
    return picture.read()[1:4].decode()


def progress():
    prediction = client.predictions.create(version="safelight/stub", input=INPUT | {"num_inference_steps": 100})
    seen = []
    while prediction.status not in ("succeeded", "failed", "canceled"):
        if prediction.progress:
            seen.append(prediction.progress.percentage)
        time.sleep(0.05)
        prediction.reload()
    return prediction.status, len(seen) > 2, seen == sorted(seen), prediction.metrics["predict_time"] > 0


def cancel():
    prediction = client.predictions.create(version="safelight/stub", input=INPUT | {"num_inference_steps": 200})
    prediction.cancel()
    prediction.wait()
    return prediction.status


def listed():
    return client.predictions.list().results[0].status


def stream():
    prediction = client.predictions.create(version="safelight/stub", input=INPUT)
    return [str(event.event.value) for event in prediction.stream()]


def failed():
    try:
        client.run("safelight/stub", input=INPUT | {"prompt": "out of memory"})
    except replicate.exceptions.ModelError as error:
        return error.prediction.status, "does not fit" in str(error)


def error():
    try:
        client.run("safelight/stub", input=INPUT | {"aspect_ratio": "wide"})
    except ReplicateError as error:
        return error.status, "aspect_ratio" in error.detail


def secret():
    return client.webhooks.default.secret().key[:6]


CASES = (run, run_longer_than_the_wait, progress, cancel, listed, stream, failed, error, secret)
print(json.dumps({case.__name__: case() for case in CASES}))
