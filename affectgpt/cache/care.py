"""List, verify and clean the cache of encoder states."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

from affectgpt.cache.store import ABOUT, StateStore, folder_bytes
from affectgpt.config import CacheCollectConfig, CacheListConfig, CacheVerifyConfig
from affectgpt.runtime import InputError
from affectgpt.tables import format_table

GB = 10**9


def run_ls(config: CacheListConfig) -> int:
    print(list_stores(Path(config.paths.cache)))
    return 0


def run_verify(config: CacheVerifyConfig) -> int:
    return verify(Path(config.paths.cache), repair=config.repair)


def run_gc(config: CacheCollectConfig) -> int:
    for name in ("max_gb", "unused_days"):
        value = getattr(config, name)
        if value is not None and not value >= 0:
            raise InputError(f"{name} is {value}; expected a number of at least 0")
    print(collect(Path(config.paths.cache), max_gb=config.max_gb, unused_days=config.unused_days))
    return 0


def stores(cache: Path) -> list[StateStore]:
    """All stores in a cache folder."""
    return [StateStore(path.parent) for path in sorted((cache / "features").glob(f"*/*/{ABOUT}"))]


def list_stores(cache: Path) -> str:
    """A table: modality, encoder, clips, size, last use, folder."""
    rows = [("modality", "encoder, layer, pool", "clips", "GB", "last used", "folder")]
    total = 0
    for store in stores(cache):
        used = time.strftime("%Y-%m-%d", time.localtime(store.last_used_s))
        total += store.n_bytes
        rows.append((*_title(store), f"{len(store):,}", f"{store.n_bytes / GB:.3f}", used, store.folder.name))
    rows.append(("all", "", "", f"{total / GB:.3f}", "", f"below {cache / 'features'}"))
    return format_table(rows, "llrrll")


def verify(cache: Path, *, repair: bool) -> int:
    """Read every entry and print which are damaged; with `repair`, delete them. Exit code 0, or 1 if damage remains."""
    n_bad = 0
    for store in stores(cache):
        bad = store.damaged()
        n_bad += len(bad)
        modality, encoder = _title(store)
        print(f"{modality} {encoder}: {len(store):,} entries, {len(bad)} damaged")
        for name in bad[:10]:
            print(f"  {name}")
        if bad and repair:
            store.compact()
    if n_bad:
        print("deleted; they are recomputed when they are needed" if repair else "repair=true deletes them")
    return 1 if n_bad and not repair else 0


def collect(cache: Path, *, max_gb: float | None, unused_days: float | None, now_s: float | None = None) -> str:
    """Free space: first damaged and duplicate entries, then stores that were not used for `unused_days`, then the least
    recently used ones until the rest is within `max_gb`. Stores to which a running process writes are kept.

    Returns:
        what was done, one line each.
    """
    now_s = time.time() if now_s is None else now_s
    done: list[str] = []
    for folder in _old_folders(cache):
        n_bytes = folder_bytes(folder)
        shutil.rmtree(folder)
        done.append(f"removed {folder}: an old layout that nothing reads, {n_bytes / GB:.3f} GB")
    kept = []
    for store in stores(cache):
        days = (now_s - store.last_used_s) / 86400
        if unused_days is not None and days > unused_days and _removed(store, f"unused for {days:.0f} days", done):
            continue
        if freed := store.compact():
            done.append(f"{store.folder}: {freed / GB:.3f} GB of damaged or duplicate entries")
        kept.append(store)
    n_bytes = sum(store.n_bytes for store in kept)
    for store in sorted(kept, key=lambda store: store.last_used_s):
        if max_gb is None or n_bytes <= max_gb * GB:
            break
        size = store.n_bytes
        if _removed(store, f"the least recently used, over max_gb={max_gb:g}", done):
            n_bytes -= size
    return "\n".join(done or ["nothing to do"])


def _title(store: StateStore) -> tuple[str, str]:
    """(modality, encoder with layer and pooling)"""
    about = json.loads((store.folder / ABOUT).read_text(encoding="utf-8"))
    encoder = about.get("encoder") or {}
    name = "/".join(Path(str(encoder.get("name", "?"))).parts[-2:])
    return store.folder.parent.name, f"{name} {encoder.get('layers', '')} {encoder.get('pool', '')}".strip()


def _old_folders(cache: Path) -> list[Path]:
    """Stores in the layout before shards, with one file per entry."""
    folders = [path for path in (cache / "features").glob("*/*") if re.fullmatch("[0-9a-f]{16}", path.name)]
    return sorted(path for path in folders if any(path.glob("[0-9a-f][0-9a-f]/*.safetensors")))


def _removed(store: StateStore, why: str, done: list[str]) -> bool:
    """Remove a store unless a running process writes to it, and add what was done to `done`."""
    n_bytes, in_use = store.n_bytes, store.is_written
    if not in_use:
        shutil.rmtree(store.folder)
    what = f"kept {store.folder}, to which a running process writes" if in_use else f"removed {store.folder}"
    done.append(f"{what}: {why}, {n_bytes / GB:.3f} GB")
    return not in_use
