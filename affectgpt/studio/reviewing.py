"""Human review in the studio: the tasks of each annotator, and answers saved in the format of the Label Studio way."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.record import CLUE_MODALITIES, Annotation, said_of
from affectgpt.annotate.review.answers import ReviewAnswers, save_answer
from affectgpt.annotate.review.changes import report_rounds
from affectgpt.annotate.review.finish import write_outcome
from affectgpt.annotate.review.labelstudio import WORDS, ReviewAnswer, clue_to_text, medium_of, other_labels
from affectgpt.annotate.review.setup import Review
from affectgpt.annotate.review.tasks import clips_of_round
from affectgpt.annotate.review.votes import outcome_of
from affectgpt.config import StudioReviewConfig
from affectgpt.runtime import InputError, UserError, check_text, write_text_atomic
from affectgpt.serve.bodies import read_json
from affectgpt.serve.errors import APIError
from affectgpt.studio.door import cookie_of

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

COOKIE = "affectgpt_annotator"
KEYS = "annotator-keys.json"
MAX_TEXTS, MAX_LETTERS = 100, 2000


def set_up_round(config: StudioReviewConfig, source: Path, folder: Path) -> None:
    """Assign the clips of a round to its annotators; round 2 is shown what round 1 left."""
    assert config.round is not None
    names = [name.strip() for name in config.annotators.split(",") if name.strip()]
    screens = [name.strip() for name in config.screens.split(",") if name.strip()]
    if config.which not in ("all", "ask"):
        raise UserError(f"which is {config.which!r}; expected all or ask")
    folder.mkdir(parents=True, exist_ok=True)
    review, chosen, left_out = clips_of_round(records_in(source), source, folder, config.round, screens, config.which)
    known = [name for name, (record, _, _) in chosen.items() if _path_of(record)]
    left_out["its file is missing"] += len(chosen) - len(known)
    if not known:
        raise UserError(f"no clip to review: {dict(left_out)}")
    review.add_round(config.round, names, config.per_clip, config.seed, screens, known)
    review.write(folder)


def _path_of(record: Annotation) -> Path | None:
    medium = medium_of(record)
    path = Path(record.media[medium]) if medium else None
    return path if path is not None and path.is_file() else None


class ReviewRoom:
    """The review in a folder. Each annotator has a key of their own, which is part of the link to their tasks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.review = Review.read(folder)
        wanted = {name for setup in self.review.rounds.values() for name in setup["assignment"]}
        self._records = {record.id: record for record in records_in(Path(self.review.source)) if record.id in wanted}
        self.keys = _annotator_keys(
            folder, [name for setup in self.review.rounds.values() for name in setup["annotators"]]
        )
        self._lock = threading.Lock()
        self._answers: tuple[int, ReviewAnswers] | None = None

    # ---- rights ------------------------------------------------------------------------------------------------------

    def annotator_of(self, headers: Mapping[str, str]) -> str | None:
        """The annotator whose key the cookie holds."""
        return self.holder_of(cookie_of(headers, COOKIE))

    def holder_of(self, key: str) -> str | None:
        """The annotator with this key."""
        found = [name for name, own in self.keys.items() if hmac.compare_digest(own.encode(), key.encode())]
        return found[0] if found else None

    def admits(self, path: str, headers: Mapping[str, str]) -> bool:
        """Whether an annotator may use a path without the server's key: their tasks, and the clips of these."""
        if path.startswith("/review/"):
            return True  # the key is in the path
        name = self.annotator_of(headers)
        if name is None:
            return False
        if path.startswith("/media/review/"):
            return any(path.split("/")[3] == clip for _, _, clip in self.tasks(name))
        return path.startswith("/api/review/") or path == "/api/about"

    # ---- tasks -------------------------------------------------------------------------------------------------------

    def answers(self) -> ReviewAnswers:
        """The answers so far, read again when the file has changed."""
        path = self.folder / "answers.jsonl"
        with self._lock:
            size = path.stat().st_size if path.exists() else 0
            if self._answers is None or self._answers[0] != size:
                self._answers = (size, ReviewAnswers(self.folder))
            return self._answers[1]

    def tasks(self, annotator: str) -> list[tuple[int, str, str]]:
        """(round, screen, clip) of an annotator, clip by clip."""
        return [
            (int(number), screen, clip)
            for number, setup in sorted(self.review.rounds.items())
            for clip, people in setup["assignment"].items()
            if annotator in people and clip in self._records
            for screen in setup["screens"]
        ]

    def listed(self, annotator: str) -> list[dict[str, Any]]:
        """The tasks for a page, with whether they are done."""
        answers = self.answers()
        return [
            {"round": number, "screen": screen, "id": clip, "done": annotator in answers.of(number, screen, clip)}
            for number, screen, clip in self.tasks(annotator)
        ]

    def task(self, annotator: str, screen: str, clip: str) -> dict[str, Any]:
        """What the screen shows, and the annotator's own answer so far."""
        number, record = self._assigned(annotator, screen, clip)
        clues, labels = self._shown(record, number)
        answer = self.answers().of(number, screen, clip).get(annotator)
        return {
            "round": number,
            "screen": screen,
            "id": clip,
            "lang": record.lang,
            "said": said_of(record),
            "given": {
                name: [clue_to_text(clue) for clue in clues if clue.modality == name] for name in CLUE_MODALITIES
            },
            "candidates": list(labels),
            "answer": answer and {name: answer[name] for name in ("clues", "labels", "other")},
            "words": WORDS[record.lang],
            "sound_only": medium_of(record) == "audio",
        }

    def save(self, annotator: str, body: Any) -> None:
        """Save an answer; what it was shown is taken from here, not from the page."""
        if not isinstance(body, dict):
            raise InputError("expected a JSON object")
        screen, clip = str(body.get("screen")), str(body.get("id"))
        number, record = self._assigned(annotator, screen, clip)
        clues, candidates = self._shown(record, number)
        nothing: dict[str, tuple[str, ...]] = dict.fromkeys(CLUE_MODALITIES, ())
        given, written, labels, other = nothing, nothing, (), ()
        if screen == "clues":
            found = body.get("clues")
            if not isinstance(found, dict) or set(found) - set(CLUE_MODALITIES):
                raise InputError(f"clues: expected texts for {list(CLUE_MODALITIES)}")
            given = {
                name: tuple(clue_to_text(clue) for clue in clues if clue.modality == name) for name in CLUE_MODALITIES
            }
            written = {name: _texts(found.get(name, []), name) for name in CLUE_MODALITIES}
        else:
            ticked = _texts(body.get("labels", []), "labels")
            if odd := [label for label in ticked if label not in candidates]:
                raise InputError(f"labels {odd}: expected some of the candidates; others belong in the field for them")
            other = other_labels(_texts(body.get("other", []), "other"))
            labels = tuple(dict.fromkeys([*ticked, *other]))
        seconds = body.get("seconds")
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        about = {"id": clip, "screen": screen, "round": number, "annotator": annotator}
        is_time = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 <= seconds < 1e6
        answer = ReviewAnswer(
            about, f"studio:{annotator}", written, given, labels, other, round(seconds, 1) if is_time else None, at
        )
        with self._lock:
            save_answer(self.folder, self.review, answer)

    def _assigned(self, annotator: str, screen: str, clip: str) -> tuple[int, Annotation]:
        for number, own, name in self.tasks(annotator):
            if (own, name) == (screen, clip):
                return number, self._records[clip]
        raise InputError(f"clip {clip!r}, screen {screen!r} was not given to {annotator!r}")

    def _shown(self, record: Annotation, number: int) -> tuple[Sequence[Any], Sequence[str]]:
        """The clues and labels that a round starts from."""
        return (record.clues, record.labels) if number == 1 else outcome_of(record, self.answers(), 1)

    def media_path(self, clip: str) -> Path | None:
        record = self._records.get(clip)
        return _path_of(record) if record else None

    # ---- figures -----------------------------------------------------------------------------------------------------

    def progress(self) -> list[dict[str, Any]]:
        """For each screen of each round: answers, tasks, and the agreement on labels so far."""
        reports, _ = report_rounds(self.review, self.answers())
        return [
            {
                "round": one.round,
                "screen": one.screen,
                "answered": one.answered,
                "asked": one.asked,
                "seconds": one.seconds,
                "agreement": asdict(one.agreement) | {"by_annotator": None} if one.agreement else None,
            }
            for one in reports
        ]

    def people(self) -> list[dict[str, Any]]:
        """For each annotator: round, tasks, how many are done, and the link."""
        rows = []
        for number, setup in sorted(self.review.rounds.items()):
            for name in setup["annotators"]:
                tasks = self.listed(name)
                n_done = sum(task["done"] for task in tasks)
                link = f"/review/{self.keys[name]}"
                rows.append({"name": name, "round": int(number), "n": len(tasks), "done": n_done, "link": link})
        return rows

    def finish(self) -> dict[str, Any]:
        """Write changes, report, and the records that both rounds have confirmed."""
        with self._lock:
            outcome = write_outcome(self.folder)
        return {
            "lines": outcome.lines(),
            "n_finished": outcome.n_finished,
            "n_stale": outcome.n_stale,
            "unfinished": dict(outcome.unfinished),
            "folder": str(self.folder),
        }


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_TEXTS or not all(isinstance(text, str) for text in value):
        raise InputError(f"{where}: expected a list of at most {MAX_TEXTS} texts")
    for text in value:
        check_text(text, where)
        if len(text) > MAX_LETTERS:
            raise InputError(f"{where}: a text of {len(text)} characters; expected at most {MAX_LETTERS}")
    return tuple(" ".join(text.split()) for text in value if text.strip())


def _annotator_keys(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """A key for each annotator, kept in the folder so that links stay valid when the server is started again."""
    path = folder / KEYS
    keys: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if missing := [name for name in names if name not in keys]:
        keys |= {name: secrets.token_urlsafe(16) for name in missing}
        write_text_atomic(path, json.dumps(keys, ensure_ascii=False, indent=1) + "\n")
        with contextlib.suppress(OSError):
            os.chmod(path, 0o600)
    return {name: keys[name] for name in names}


def links(room: ReviewRoom, address: str) -> list[str]:
    """A line for each annotator."""
    return [f"  {row['name']:<16} {address}{row['link']}" for row in room.people()]


def review_routes(room: ReviewRoom, api_key: str | None, in_thread: Callable[..., Awaitable[Any]]) -> list[Any]:
    """The routes of a review; those of the person in charge need the server's key, if there is one."""
    from starlette.responses import JSONResponse, RedirectResponse
    from starlette.routing import Route

    def own(request: HttpRequest) -> str:
        name = room.annotator_of(dict(request.headers))
        if name is None:
            raise APIError(403, "open the link that you were given")
        return name

    async def enter(request: HttpRequest) -> Response:
        key = request.path_params["key"]
        if room.holder_of(key) is None:
            raise APIError(403, "this link belongs to no annotator of this review")
        answer = RedirectResponse("/#/review", 303)
        answer.set_cookie(COOKIE, quote(key), httponly=True, samesite="lax", max_age=90 * 86400)
        return answer

    async def leave(request: HttpRequest) -> Response:
        answer = JSONResponse({"ok": True})
        answer.delete_cookie(COOKIE)
        return answer

    async def overview(request: HttpRequest) -> Response:
        name = room.annotator_of(dict(request.headers))
        in_charge = name is None
        values = {"annotator": name, "progress": await in_thread(room.progress)}
        values |= {"people": await in_thread(room.people)} if in_charge else {}
        values |= {"tasks": await in_thread(room.listed, name)} if name is not None else {}
        return JSONResponse(values)

    async def progress(request: HttpRequest) -> Response:
        return JSONResponse({"progress": await in_thread(room.progress)})

    async def task(request: HttpRequest) -> Response:
        query = request.query_params
        return JSONResponse(await in_thread(room.task, own(request), query.get("screen", ""), query.get("id", "")))

    async def save(request: HttpRequest) -> Response:
        name = own(request)
        await in_thread(room.save, name, await read_json(request, 1.0))
        return JSONResponse({"progress": await in_thread(room.progress)})

    async def finish(request: HttpRequest) -> Response:
        if room.annotator_of(dict(request.headers)) is not None:
            raise APIError(403, "for the person in charge of the review")
        return JSONResponse(await in_thread(room.finish))

    return [
        Route("/review/{key}", enter),
        Route("/api/review/overview", overview),
        Route("/api/review/progress", progress),
        Route("/api/review/task", task),
        Route("/api/review/answer", save, methods=["POST"]),
        Route("/api/review/leave", leave, methods=["POST"]),
        Route("/api/review/finish", finish, methods=["POST"]),
    ]
