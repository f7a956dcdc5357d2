"""Download base models from the hub and publish releases.

    python -m affectgpt.hub fetch model=affectgpt                      download all base models of a preset
    python -m affectgpt.hub push runs/fine repo=user/name              publish the trained tensors with a model card
    python -m affectgpt.hub push runs/fine repo=user/name full=true    publish the full model

A release of trained tensors takes a few hundred megabytes and refers to its base models by id and commit.
`python infer.py video.mp4 checkpoint=user/name` loads it and downloads them.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.bases import connection_errors
from affectgpt.hub.space import with_studio, write_space
from affectgpt.runs import TRAINED_MANIFEST, RunRecord, checkpoint_to_use
from affectgpt.runtime import UserError, quiet_libraries, write_json_atomic, write_text_atomic

if TYPE_CHECKING:
    from affectgpt.config import ModelConfig, PushConfig

log = logging.getLogger("affectgpt")


def fetch_models(config: ModelConfig) -> int:
    """Download all base models of a preset that are on the hub; print the folder and commit of each."""
    from affectgpt import bases

    models = {"llm": (config.llm.path, config.llm.revision)}
    models |= {name: (encoder.path, encoder.revision) for name, encoder in config.encoders.items()}
    for what, (name, revision) in models.items():
        if name.startswith("timm:") or bases.is_local(name):
            print(f"{what}: {name} needs no download")
            continue
        folder = bases.fetch(name, what, revision)
        n_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        print(f"{what}: {name} at {folder.name}, {n_bytes / 1e9:.2f} GB in {folder}")
    return 0


def push(config: PushConfig) -> int:
    """Write the release folder and, unless `dry_run`, upload it."""
    with_studio(config.package)  # refuses what pip could not install, before anything is written
    checkpoint = checkpoint_to_use(Path(config.paths.runs), config.checkpoint)
    run = checkpoint.parent
    out = Path(config.out) if config.out else run / f"release-{checkpoint.name}"
    release(checkpoint, out, config)
    space = write_space(out.with_name(f"{out.name}-space"), config.repo, config.package) if config.space else None
    if space is not None:
        print(f"{space}: Space written; read its README.md")
    if config.dry_run:
        print(f"{out}: release written, not pushed (dry_run=true); review its README.md")
        return 0
    from huggingface_hub import HfApi
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(config.repo, private=config.private, exist_ok=True)
        message = f"Release of {run.name}/{checkpoint.name}"
        commit = api.upload_folder(repo_id=config.repo, folder_path=out, commit_message=message)
        if space is not None:
            kind = {"repo_id": config.repo, "repo_type": "space"}
            api.create_repo(**kind, private=config.private, exist_ok=True, space_sdk="docker")
            api.upload_folder(**kind, folder_path=space, commit_message=message)
    except (HfHubHTTPError, OSError, *connection_errors()) as error:
        raise UserError(
            f"{config.repo} could not be pushed to {ENDPOINT} ({error}); check the network connection, and run "
            f"`hf auth login` with a token that has write access. The release is in {out}"
        ) from error
    print(f"{config.repo}: pushed {out} as {commit.oid}")
    return 0


def release(checkpoint: Path, out: Path, config: PushConfig) -> Path:
    """Write the release folder `out`: trained tensors and manifest, or the full model, and the model card.

    Raises:
        UserError: `out` is not empty, or the trained tensors refer to base models in local folders.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"out={out} is not empty; name a new folder, or delete it first")
    from affectgpt.models.checkpoint import verified_manifest

    manifest = verified_manifest(checkpoint)
    local = [what for what, name, _ in base_models(manifest["spec"]) if Path(name).is_absolute()]
    if config.full:
        from affectgpt.hub.export import export

        quiet_libraries()
        export(checkpoint, out, merge_lora=config.merge_lora, dtype=config.dtype, base_models=config.base_models)
    elif local:
        raise UserError(
            f"base models {local} are local folders, so nobody else could load the trained tensors; "
            "add full=true to publish the full model, or train from hub ids"
        )
    else:
        out.mkdir(parents=True, exist_ok=True)
        _copy_trained(checkpoint, manifest, out)
    record = RunRecord.read(checkpoint.parent)
    report = _report_of(checkpoint)
    write_text_atomic(out / "README.md", model_card(manifest, record.values if record else {}, report, config))
    return out


def _copy_trained(checkpoint: Path, manifest: Mapping[str, Any], out: Path) -> None:
    """Copy the trained tensors and the manifest, which gets a new checksum if a path is taken out of it."""
    from affectgpt.models.checkpoint import digest_of
    from affectgpt.models.pretrained import init_without_path

    for path in [*sorted(checkpoint.glob("trained*.safetensors")), checkpoint / TRAINED_MANIFEST]:
        shutil.copy2(path, out / path.name)
    if (init := init_without_path(manifest.get("init"))) != manifest.get("init"):
        public = {**manifest, "init": init}
        write_json_atomic(out / TRAINED_MANIFEST, {**public, "manifest_sha256": digest_of(public)})


def base_models(spec: Mapping[str, Any]) -> list[tuple[str, str, str | None]]:
    """(part, id or folder, revision) of the LLM and each encoder of a manifest's spec."""
    found = [("llm", spec["llm"], spec.get("llm_revision"))]
    return found + [(what, encoder["name"], encoder.get("revision")) for what, encoder in spec["encoders"].items()]


def _report_of(checkpoint: Path) -> dict[str, Any] | None:
    """The report of `python eval.py` for this checkpoint; None if it was not scored."""
    path = checkpoint.parent / f"eval-{checkpoint.name}" / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


# ---------------------------------------------------------------- model card

# Licences as stated on the models' pages; other ids refer to their page.
LICENCES = {
    "meta-llama/Llama-2": "Llama 2 Community License",
    "lmsys/vicuna-7b-v1.5": "Llama 2 Community License",
    "meta-llama/Meta-Llama-3": "Meta Llama 3 Community License",
    "Qwen/Qwen2.5-7B-Instruct": "Apache-2.0",
    "Qwen/Qwen3-8B": "Apache-2.0",
    "facebook/hubert-large-ll60k": "Apache-2.0",
    "TencentGameMate/chinese-hubert-large": "MIT",
    "Salesforce/blip2-opt-2.7b": "MIT",
    "MCG-NJU/videomae-large": "CC BY-NC 4.0",
    "facebook/dinov2-large": "Apache-2.0",
    "google/siglip": "Apache-2.0",
    "openai/whisper-large-v3": "Apache-2.0",
}


def licence_of(name: str) -> str:
    return next((licence for start, licence in LICENCES.items() if name.startswith(start)), "see its page")


def model_card(
    manifest: Mapping[str, Any], record: Mapping[str, Any], report: Mapping[str, Any] | None, config: PushConfig
) -> str:
    """The README.md of a release, written from the run's own records."""
    spec = manifest["spec"]
    models = base_models(spec)
    trained = record.get("config") or {}
    sections = [
        _front_matter(models, config),
        f"# {config.repo.rpartition('/')[2]}",
        "A multimodal LLM that explains which emotions a person in a video shows, and from which visual, acoustic and "
        "lexical clues: " + _design(manifest) + ". Made with AffectGPT.",
        "## Use\n\n" + _usage(config),
        "## Parts\n\n" + _parts(models, spec, config),
        "## Training data\n\n" + _data(trained, record),
        "## Recipe\n\n" + _recipe(trained, record, spec),
        "## Scores\n\n" + _scores(report),
        _RESPONSIBLE_USE,
        f"## Prompt\n\nPrompt version {manifest['prompts']} of AffectGPT {manifest['affectgpt']}; another version of "
        "the prompt gives other answers.",
        "## Citation\n\n" + _CITATION,
    ]
    return "\n\n".join(sections) + "\n"


def _design(manifest: Mapping[str, Any]) -> str:
    from affectgpt.models.modeling_affectgpt import is_of_base, part_of

    parts = {part_of(name) for name in manifest["tensors"]}
    design = "encoders and an LLM with trained projections between them"
    if tuned := sorted(filter(is_of_base, parts)):
        design += f"; of the base models, weights of {', '.join(tuned)} were trained"
    else:
        design = "frozen encoders, trained projections into a frozen LLM"
    return design + ", LoRA adapters" * any(part.endswith("lora") for part in parts)


def _front_matter(models: list[tuple[str, str, str | None]], config: PushConfig) -> str:
    """YAML metadata for the hub."""
    # Trained tensors alone are loaded by this package; a full folder by transformers too.
    lines = ["---", f"library_name: {'transformers' if config.full else 'affectgpt'}"]
    lines.append("pipeline_tag: video-text-to-text")
    if config.license:
        lines.append(f"license: {config.license}")
    lines += ["tags:", "- affectgpt", "- emotion-recognition", "- multimodal"]
    if public := [name for _, name, _ in models if not Path(name).is_absolute()]:
        lines += ["base_model:", *(f"- {name}" for name in dict.fromkeys(public))]
    return "\n".join([*lines, "---"])


def _usage(config: PushConfig) -> str:
    command = f"python infer.py video.mp4 checkpoint={config.repo}"
    ask = (
        f"import affectgpt  # pip install '{config.package}'\n\n"
        f'model = affectgpt.load("{config.repo}")\n'
        'answer = model.ask("video.mp4", subtitle="what the person says")\n'
        "print(answer.text, answer.labels)"
    )
    text = f"```python\n{ask}\n```\n\nor `{command}`."
    if not config.full:
        return f"{text}\n\nThis repository contains the trained tensors; base models are downloaded."
    loaded = (
        "from transformers import AutoModelForMultimodalLM, AutoProcessor\n\n"
        f'model = AutoModelForMultimodalLM.from_pretrained("{config.repo}", trust_remote_code=True)\n'
        f'processor = AutoProcessor.from_pretrained("{config.repo}", trust_remote_code=True)\n'
        'conversation = [{"role": "user", "content": [{"type": "video", "video": "video.mp4"}]}]\n'
        "inputs = processor.apply_chat_template(\n"
        "    conversation, add_generation_prompt=True, tokenize=True, return_dict=True\n)\n"
        "output = model.generate(**inputs, max_new_tokens=256)\n"
        'print(processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])'
    )
    return (
        f"{text}\n\nWith transformers; the trusted code imports the package (`pip install '{config.package}'`):\n\n"
        f"```python\n{loaded}\n```"
    )


def _parts(models: list[tuple[str, str, str | None]], spec: Mapping[str, Any], config: PushConfig) -> str:
    from affectgpt.models.modeling_affectgpt import lora_kind

    rows = ["| part | base model | revision | licence |", "|---|---|---|---|"]
    for what, name, revision in models:
        shown = f"{Path(name).name} (built locally)" if Path(name).is_absolute() else name
        rows.append(f"| {what} | {shown} | {revision or '-'} | {licence_of(name)} |")
    projectors = [f"{name}: {part['kind']}, {part['n_queries']} tokens" for name, part in spec["projectors"].items()]
    lora = spec.get("lora")
    adapters = (
        "no LoRA" if not lora else f"LoRA {lora_kind(lora)}" + (", merged into the LLM" if config.merge_lora else "")
    )
    return "\n".join([*rows, "", f"Trained: projectors ({'; '.join(projectors)}); {adapters}.", "", _LICENCE_NOTE])


def _data(trained: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    stage, data = trained.get("stage") or {}, trained.get("data") or {}
    named = {"coarse": data.get("coarse") or [], "fine": data.get("fine") or []}
    named |= {name: [*named.get(name, []), source] for name, source in (data.get("train") or {}).items()}
    sources = [source for name in stage.get("data") or [stage.get("name")] for source in named.get(name, [])]
    if not sources:
        return "The run record does not contain the training data; please fill it in."
    rows = ["| source | split | weight | clips |", "|---|---|---|---|"]
    for source in sources:
        shown = Path(source["manifest"]).name if source.get("manifest") else source.get("format")
        rows.append(f"| {shown} | {source.get('split') or 'all'} | {source.get('weight', 1.0):g} | {_clips(source)} |")
    lines = [f"Stage {stage['name']}, data `{data.get('name')}`:", "", *rows]
    if record.get("n_bad_samples"):
        lines += ["", f"{record['n_bad_samples']} unreadable samples were left out."]
    if record.get("init_from"):
        lines += ["", f"Initialised from the checkpoint `{'/'.join(Path(record['init_from']).parts[-2:])}`."]
    return "\n".join(lines)


def _clips(source: Mapping[str, Any]) -> str:
    """Number of manifest rows with the source's split, if the file still exists."""
    from affectgpt.data.sources import read_manifest

    if not source.get("manifest") or not Path(source["manifest"]).is_file():
        return "not counted"
    samples, bad = read_manifest(
        source["manifest"], split=source.get("split"), on_bad="skip", columns=source.get("columns")
    )
    return f"{len(samples)}" + (f" ({len(bad)} bad)" if bad else "")


def _recipe(trained: Mapping[str, Any], record: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    stage = trained.get("stage")
    if not stage:
        return "The run record is missing; please fill in how the model was trained."
    steps = stage["epochs"] * stage["iterations_per_epoch"]
    lines = [
        f"- {steps} steps of {stage['batch_size'] * stage['accumulation']} samples per process, seed {trained['seed']}",
        f"- AdamW, peak learning rate {stage['learning_rate']:g} after {stage['warmup_steps']} steps of warm-up, "
        f"cosine to {stage['min_learning_rate']:g}, weight decay {stage['weight_decay']:g}",
        f"- trained: {', '.join(stage['trainable'])}; LLM in {spec['llm_dtype']}",
        f"- tasks {_shares(stage['tasks'])}; languages {_shares(stage['langs'])}",
    ]
    versions = record.get("versions") or {}
    known = [f"{name} {versions[name]}" for name in ("affectgpt", "torch", "transformers") if name in versions]
    lines.append(f"- code: commit {record.get('commit') or 'unknown'}; {', '.join(known)}")
    return "\n".join(lines)


def _shares(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight)


def _scores(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "Not scored. Score it with `python eval.py checkpoint=...` and push again to show the result here."
    rows = ["| score | F_S | precision | recall | n | 95 % interval of F_S |", "|---|---|---|---|---|---|"]
    for name in ("level 1 mean", "level 2 mean"):
        score = report["scores"].get(name)
        if score:
            interval = score.get("interval")
            shown = "-" if interval is None else f"{100 * interval['low']:.1f} to {100 * interval['high']:.1f}"
            values = " | ".join(f"{100 * score[key]:.1f}" for key in ("f_score", "precision", "recall"))
            rows.append(f"| {name} | {values} | {score['n']} | {shown} |")
    counts = report.get("counts") or {}
    summary = ", ".join(f"{counts[key]} {key}" for key in ("references", "missing", "unparsed") if key in counts)
    return "\n".join(
        [
            *rows,
            "",
            f"Open-vocabulary labels grouped by emotion wheels, in percent ({summary}). Intervals by bootstrap.",
        ]
    )


_LICENCE_NOTE = (
    "Licences of base models are listed to the best of our knowledge and also apply to this release; data sets have "
    "terms of their own. Check both before use."
)
_RESPONSIBLE_USE = """## Intended use

Research on multimodal emotion understanding, and help for people who annotate emotion in video.

## Out of scope

Decisions about people: hiring, education, credit, policing, migration, insurance, medical diagnosis, lie detection, or
monitoring employees, students or the public. Several of these are illegal in some jurisdictions.

## Limits

- It describes what a person shows, not what they feel: expression and feeling differ between people, situations and
  cultures, and can be acted.
- It can be confidently wrong and mention clues that are not in the clip. Scores apply to clips like those of the test
  set; acted drama in one language and good lighting is not representative.
- It processes a few frames and a few seconds of audio of one person.

## Privacy and bias

Faces and voices are personal data, and many laws treat emotions inferred from them as sensitive: make sure that you
have a legal basis and consent. Encoders and LLM inherit the biases of their training data; accuracy by age, gender,
skin colour, accent and language was not measured unless stated above."""
_CITATION = """Cite the papers of the method (AffectGPT, arXiv 2306.15401; AffectGPT at ICML 2025, arXiv 2501.16566),
the base models above, and the training data sets."""
