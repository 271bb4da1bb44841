"""``GET /files/...``: pictures by signed link."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from safelight.errors import NotFound
from safelight.jobs import Job, JobStatus
from safelight.server.front import Front
from safelight.server.pictures import file_response


def routes(front: Front) -> APIRouter:
    """The signature is the permission: no key is asked for."""
    router = APIRouter(tags=["files"])

    @router.get("/files/{job_id}/{index}", response_class=Response)
    async def get_file(job_id: str, index: int, expires: int = 0, signature: str = "") -> Response:
        """One picture of a job, as long as the link and the picture are kept."""
        front.links.check(job_id, index, expires, signature)
        return await picture_response(front, await front.store.get(job_id), index)

    return router


async def picture_response(front: Front, job: Job | None, index: int) -> Response:
    """One picture of a job that succeeded. Raises ``NotFound``."""
    if job is None or job.status is not JobStatus.SUCCEEDED or not 0 <= index < len(job.result.images):
        raise NotFound("there is no such picture")
    image = job.result.images[index]
    headers = {"x-seed": str(image.seed), "x-job-id": job.id, "cache-control": "private, immutable, max-age=86400"}
    return await file_response(front.store.results.path(image.file), image.format.media_type, headers)
