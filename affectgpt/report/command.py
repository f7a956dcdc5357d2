"""The command python -m affectgpt.report."""

from __future__ import annotations

import logging
from pathlib import Path

from affectgpt.config import ReportConfig
from affectgpt.report.gather import gather
from affectgpt.report.page import page
from affectgpt.runtime import InputError, write_text_atomic

log = logging.getLogger("affectgpt")


def run(config: ReportConfig) -> int:
    """Write the report."""
    out = Path(config.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"out={config.out}: expected a name that ends in .html")
    for name in ("n_clips", "n_frames"):
        if not 0 <= getattr(config, name) <= 200:
            raise InputError(f"{name}={getattr(config, name)}: expected 0 to 200")
    content = gather(config)
    text = page(content, config)
    write_text_atomic(out, text)
    for note in content.notes:
        log.warning("%s", note)
    log.info("report: %s (%.1f MB)", out, len(text.encode()) / 1e6)
    return 0
