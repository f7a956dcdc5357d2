"""The web application: routes to pages, lists, clips, uploads and answers."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import mimetypes
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.annotate.clips import openface_of
from affectgpt.config import PagesConfig
from affectgpt.media import MediaError
from affectgpt.metrics import load_lexicon
from affectgpt.runtime import InputError, UserError, check_text
from affectgpt.schema import LANGUAGES, MODALITIES, TASKS, Sample
from affectgpt.serve.bodies import chunks_of, read_json
from affectgpt.serve.errors import APIError
from affectgpt.studio import gallery as galleries
from affectgpt.studio.asking import Models, read_question
from affectgpt.studio.clips import N_FRAMES, ClipEvidence, Kept, evidence_of, playable, thumbnail_of, version_of
from affectgpt.studio.door import COOKIE, Door, cookie_value
from affectgpt.studio.people import faces_of, units_of
from affectgpt.studio.uploads import Uploads
from affectgpt.studio.watching import Watch, watch_routes

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

    from affectgpt.studio.reviewing import ReviewRoom

STATIC = Path(__file__).parent / "static"
MAX_JSON_MB = 1.0
N_THUMBNAILS = 2000  # about 10 kB each
UPLOAD_TIMEOUT_S = 600.0


@dataclass
class Studio:
    """What a server shows.

    Attributes:
        models: None = no checkpoint is loaded.
        transcriber: a speech recogniser by hub id or folder; None = no subtitle is proposed.
        review, watch: None = no review, or no runs, are shown.
    """

    config: PagesConfig
    gallery: galleries.Gallery = field(default_factory=galleries.Gallery)
    models: Models | None = None
    transcriber: str | None = None
    review: ReviewRoom | None = None
    watch: Watch | None = None


def build_app(studio: Studio, *, api_key: str | None = None) -> Starlette:
    """The web application of a studio."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    config = studio.config
    pages = {path.name: (path.read_bytes(), _kind_of(path)) for path in STATIC.iterdir() if path.is_file()}
    uploads = Uploads(config)
    decoders = ThreadPoolExecutor(config.n_decoders, "decoder")
    kept, thumbnails = Kept(), Kept(N_THUMBNAILS)
    hearing = None
    if studio.transcriber is not None and studio.models is not None:
        from affectgpt.studio.hearing import Hearing

        hearing = Hearing(studio.transcriber, studio.models.device)
    lexicon = studio.gallery.lexicon or load_lexicon(config.lexicon, config.label_reading)
    wheels = galleries.wheels(lexicon)

    async def in_thread(function: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(decoders, partial(function, *given))

    def page(name: str) -> Response:
        if name not in pages:
            raise APIError(404, f"no page {name!r}")
        data, kind = pages[name]
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    async def index(request: HttpRequest) -> Response:
        return page("index.html")

    async def static(request: HttpRequest) -> Response:
        return page(request.path_params["name"])

    async def health(request: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def login(request: HttpRequest) -> Response:
        body = await read_json(request, MAX_JSON_MB)
        given = body.get("key") if isinstance(body, dict) else None
        if api_key is None:
            return JSONResponse({"ok": True})
        if not isinstance(given, str) or not hmac.compare_digest(
            check_text(given, "key").strip().encode(), api_key.encode()
        ):
            await asyncio.sleep(0.5)  # slows down guessing
            raise APIError(401, "this is not the key", code="invalid_api_key")
        answer = JSONResponse({"ok": True})
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, cookie_value(api_key), httponly=True, samesite="strict", secure=secure)
        return answer

    async def about(request: HttpRequest) -> Response:
        models = studio.models
        return JSONResponse(
            {
                "gallery": galleries.about(studio.gallery),
                "models": models.about() if models else [],
                "tries": models is not None,
                "hears": studio.transcriber if hearing is not None else None,
                "reviews": studio.review is not None,
                "watches": studio.watch is not None,
                "tasks": TASKS,
                "langs": LANGUAGES,
                "modalities": MODALITIES,
                "wheels": wheels,
                "lexicon": lexicon.describe(),
                "limits": {"mb": config.max_request_mb, "seconds": config.max_media_s},
            }
        )

    async def listing(request: HttpRequest) -> Response:
        return JSONResponse(galleries.listing(studio.gallery, dict(request.query_params)))

    async def confusion(request: HttpRequest) -> Response:
        return JSONResponse(galleries.confusion(studio.gallery, dict(request.query_params)))

    async def lengths(request: HttpRequest) -> Response:
        return JSONResponse(galleries.lengths(studio.gallery, dict(request.query_params)))

    async def difference(request: HttpRequest) -> Response:
        query = dict(request.query_params)
        key = ("difference", query.get("system"), query.get("other"))

        def compare() -> Any:
            return kept.get(key, lambda: galleries.difference(studio.gallery, query))

        return JSONResponse(await in_thread(compare))

    async def clip(request: HttpRequest) -> Response:
        return JSONResponse(galleries.clip(studio.gallery, request.path_params["id"]))

    def file_of(request: HttpRequest) -> Path:
        group, key = request.path_params["group"], request.path_params["id"]
        if group == "upload":
            return uploads.path(key)
        path = None
        if group == "gallery":
            path = studio.gallery.media_path(key)
        elif group == "review" and studio.review is not None:
            path = studio.review.media_path(key)
        elif group == "watch" and studio.watch is not None:
            path = studio.watch.media_path(key)
        if path is None or not path.is_file():
            raise APIError(404, f"no media file of clip {key!r}")
        return path

    def evidence(path: Path) -> ClipEvidence:
        n_frames = (studio.models.n_frames() if studio.models else None) or N_FRAMES
        return kept.get(
            (version_of(path), n_frames), lambda: evidence_of(path, backend=config.backend, n_frames=n_frames)
        )

    async def media(request: HttpRequest) -> Response:
        path = await in_thread(file_of, request)
        copies = path.parent if request.path_params["group"] == "upload" else uploads.folder  # removed with the clip
        shown = await in_thread(kept.get, (version_of(path), "played"), partial(playable, path, copies))
        return FileResponse(shown, media_type=_kind_of(shown), headers={"Cache-Control": "private, max-age=600"})

    async def evidence_values(request: HttpRequest) -> Response:
        return JSONResponse((await in_thread(lambda: evidence(file_of(request)))).values)

    async def faces(request: HttpRequest) -> Response:
        path = await in_thread(file_of, request)
        times = (await in_thread(evidence, path)).values["frames"]
        if not times:
            return JSONResponse({"faces": []})
        return JSONResponse(await in_thread(kept.get, (version_of(path), "faces"), partial(faces_of, path, times)))

    async def units(request: HttpRequest) -> Response:
        await in_thread(file_of, request)  # an id that is not shown has no table either
        group, key = request.path_params["group"], request.path_params["id"]
        table = openface_of(Sample(key), config.openface) if group in ("gallery", "review") else None
        if table is None:
            return JSONResponse(None)
        try:
            return JSONResponse(await in_thread(kept.get, (version_of(table), "units"), partial(units_of, table)))
        except MediaError as error:
            return JSONResponse({"error": str(error).replace(str(table), table.name)})

    async def transcript(request: HttpRequest) -> Response:
        if hearing is None:
            raise APIError(400, "no speech recogniser here: start the studio with transcriber=<hub id or folder>")
        lang = request.query_params.get("lang", "en")
        if lang not in LANGUAGES:
            raise APIError(400, f"lang is {lang!r}; expected one of {list(LANGUAGES)}")
        return JSONResponse({"text": await hearing.subtitle(await in_thread(file_of, request), lang)})

    async def picture(request: HttpRequest) -> Response:
        pictures = (await in_thread(lambda: evidence(file_of(request)))).pictures
        number = request.path_params["n"]
        if number >= len(pictures):
            raise APIError(404, f"no frame {number}; the clip has {len(pictures)} here")
        headers = {"Cache-Control": "private, max-age=600"}
        return Response(pictures[number], media_type="image/jpeg", headers=headers)

    async def thumbnail(request: HttpRequest) -> Response:
        path = await in_thread(file_of, request)
        make = partial(thumbnail_of, path, backend=config.backend)
        found = await in_thread(thumbnails.get, version_of(path), make)
        if found is None:
            return Response(status_code=204)
        return Response(found, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})

    async def upload(request: HttpRequest) -> Response:
        uploads.remove_old()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        name = request.query_params.get("name", "clip")
        check_text(name, "the file's name")
        chunks = chunks_of(request, config.max_request_mb, timeout_s=UPLOAD_TIMEOUT_S)
        received = await uploads.receive(chunks, kind, name)
        await in_thread(uploads.check, received)
        return JSONResponse({"group": "upload", "id": received.key, "name": received.name})

    async def remove(request: HttpRequest) -> Response:
        uploads.remove(request.path_params["id"])
        return JSONResponse({"ok": True})

    async def ask(request: HttpRequest) -> Response:
        if studio.models is None:
            raise APIError(400, "no model here: start the studio with a run or checkpoint folder")
        body = await read_json(request, MAX_JSON_MB)
        question, subtitle = read_question(body)
        for name, texts in (("candidates", question.candidates), ("subtitle", [subtitle or ""])):
            for text in texts:
                check_text(text, name)
        place = body.get("model", 0)
        if not isinstance(place, int) or not 0 <= place < len(studio.models.names):
            raise APIError(400, f"model is {place!r}; expected 0 to {len(studio.models.names) - 1}")
        if body.get("group") == "upload":
            path = uploads.path(str(body.get("id")))
            sample = Sample("clip", video=str(path))
        else:
            known = studio.gallery.samples.get(str(body.get("id")))
            if known is None:
                raise APIError(404, f"no clip {body.get('id')!r}")
            sample = Sample(known.id, known.video, known.audio, known.face, known.face_order)
            path = Path(known.video or known.audio or "")
        sample = Sample(sample.id, sample.video, sample.audio, sample.face, sample.face_order, subtitle=subtitle,
                        lang=question.lang)  # fmt: skip
        events = studio.models.answer(place, sample, question, lexicon, {str(path): "the clip"})
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def api_error(request: HttpRequest, error: APIError) -> Response:
        return error.response()

    async def user_error(request: HttpRequest, error: UserError) -> Response:
        text = str(error)
        with contextlib.suppress(APIError, UserError):  # no path of this machine in a message
            if "group" in request.path_params:
                text = text.replace(str(await in_thread(file_of, request)), "the clip")
        return APIError(400 if isinstance(error, InputError) else 500, text).response()

    async def http_error(request: HttpRequest, error: HTTPException) -> Response:
        return APIError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()

    async def failure(request: HttpRequest, error: Exception) -> Response:
        return APIError(500, "internal error; see the log of the server").response()

    def guest(path: str, headers: Mapping[str, str]) -> bool:
        return studio.review is not None and studio.review.admits(path, headers)

    async def keep_clean() -> None:
        while True:
            await asyncio.sleep(60)
            uploads.remove_old()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        work = asyncio.ensure_future(keep_clean())
        try:
            yield
        finally:
            work.cancel()
            decoders.shutdown(wait=False, cancel_futures=True)
            uploads.close()
            if studio.models is not None:
                studio.models.close()

    review: list[Any] = []
    if studio.review is not None:
        from affectgpt.studio.reviewing import review_routes  # it needs torch, which looking at predictions does not

        review = review_routes(studio.review, api_key, in_thread)
    return Starlette(
        routes=[
            Route("/", index),
            Route("/health", health),
            Route("/static/{name}", static),
            Route("/api/login", login, methods=["POST"]),
            Route("/api/about", about),
            Route("/api/gallery", listing),
            Route("/api/confusion", confusion),
            Route("/api/lengths", lengths),
            Route("/api/difference", difference),
            Route("/api/clip/{id}", clip),
            Route("/api/upload", upload, methods=["POST"]),
            Route("/api/upload/{id}", remove, methods=["DELETE"]),
            Route("/api/ask", ask, methods=["POST"]),
            Route("/media/{group}/{id}/file", media),
            Route("/media/{group}/{id}/evidence", evidence_values),
            Route("/media/{group}/{id}/faces", faces),
            Route("/media/{group}/{id}/frame/{n:int}", picture),
            Route("/media/{group}/{id}/thumbnail", thumbnail),
            Route("/media/{group}/{id}/units", units),
            Route("/media/{group}/{id}/transcript", transcript, methods=["POST"]),
            *(watch_routes(studio.watch, in_thread) if studio.watch is not None else ()),
            *review,
        ],
        middleware=[
            Middleware(Door, api_key, config.max_requests, guest, config.public, framed=config.public),
        ],
        exception_handlers={
            APIError: api_error, UserError: user_error, HTTPException: http_error, Exception: failure,
        },
        lifespan=lifespan,
    )  # fmt: skip


_KINDS = {".js": "text/javascript", ".mkv": "video/x-matroska", ".m4v": "video/mp4", ".m4a": "audio/mp4"}


def _kind_of(path: Path) -> str:
    kind = _KINDS.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
