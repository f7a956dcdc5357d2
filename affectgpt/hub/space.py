"""The files of a Space: the studio with a published model, in a container as the hub builds it."""

from __future__ import annotations

from pathlib import Path

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
        UserError: the folder is not empty.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new out=, or delete it first")
    texts = {
        "README.md": _README.format(repo=repo, title=repo.rpartition("/")[2]),
        "app.py": _APP.format(repo=repo),
        "Dockerfile": _DOCKERFILE.format(packages=_GIT if package.startswith("git+") else ""),
        "requirements.txt": f"{_with_studio(package)}\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    return folder


def _with_studio(package: str) -> str:
    """The line of requirements.txt for a package with the extra studio.

    >>> _with_studio("git+https://example.org/affectgpt"), _with_studio("affectgpt")
    ('affectgpt[studio] @ git+https://example.org/affectgpt', 'affectgpt[studio]')
    """
    return f"affectgpt[studio] @ {package}" if "://" in package else f"{package}[studio]"
