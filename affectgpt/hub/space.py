"""The files of a Space: the studio with a published model, in a container as the hub builds it."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from affectgpt.runtime import UserError, write_text_atomic

_README = """---
title: {title}
sdk: docker
app_port: 7860
suggested_hardware: cpu-upgrade
models:
- {repo}
---

The AffectGPT studio with the model [{repo}](https://huggingface.co/{repo}): upload or record a clip, and ask what it
shows.

Set the secret `AFFECTGPT_API_KEY` in the settings of this Space, and give the key to those who may use it; or set
PUBLIC in app.py to True. The browser keeps the log-in in a cookie, which it only sends to the address of the Space
itself (https://<user>-<name>.hf.space), not inside the page of the hub.

What somebody shows in a clip is not what that person feels. Not for decisions about people.
"""
_APP = '''"""The AffectGPT studio with {repo}."""

import os
import sys

from affectgpt.cli import run

PUBLIC = False
"""True: anybody may use it. False: the secret AFFECTGPT_API_KEY of the Space is asked for."""

if __name__ == "__main__":
    settings = ["{repo}", "host=0.0.0.0", f"port={{os.environ.get('PORT', 7860)}}", "browser=false"]
    sys.exit(run("studio", [*settings, "max_request_mb=50", "max_media_s=60", *(["public=true"] if PUBLIC else [])]))
'''
_GIT = "RUN apt-get update && apt-get install --yes --no-install-recommends git && rm -rf /var/lib/apt/lists/*\n"
_DOCKERFILE = """FROM python:3.11-slim
{packages}RUN useradd --create-home --uid 1000 user
USER user
WORKDIR /home/user
ENV PATH="/home/user/.local/bin:$PATH"
COPY --chown=user requirements.txt .
RUN pip install --no-cache-dir --user -r requirements.txt
COPY --chown=user app.py .
EXPOSE 7860
CMD ["python", "app.py"]
"""


def write_space(folder: Path, repo: str, package: str) -> Path:
    """Write README.md, app.py, Dockerfile and requirements.txt of a Space that shows the model `repo`.

    Args:
        package: what pip installs there, with the extra studio: "affectgpt", or an address such as "git+https://...".

    Raises:
        UserError: the folder is not empty, or pip cannot install that package.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new out=, or delete it first")
    texts = {
        "README.md": _README.format(repo=repo, title=repo.rpartition("/")[2]),
        "app.py": _APP.format(repo=repo),
        "Dockerfile": _DOCKERFILE.format(packages=_GIT if "git+" in package else ""),
        "requirements.txt": f"{with_studio(package)}\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    return folder


def with_studio(package: str) -> str:
    """The line of requirements.txt for a package with the extra studio.

    >>> with_studio("git+https://example.org/affectgpt"), with_studio("affectgpt>=1")
    ('affectgpt[studio] @ git+https://example.org/affectgpt', 'affectgpt[studio]>=1')
    """
    is_address = re.match(r"[a-z+]+://", package) is not None
    try:
        required = Requirement(f"affectgpt @ {package}" if is_address else package)
    except InvalidRequirement as error:
        raise UserError(
            f"package={package}: {str(error).splitlines()[0]}; expected a name, or an address (git+https://...)"
        ) from error
    extras = ",".join(sorted({*required.extras, "studio"}))
    return f"{required.name}[{extras}]" + (f" @ {required.url}" if required.url else str(required.specifier))
