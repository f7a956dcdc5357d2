"""Every command: what it runs, which settings it takes, and what its --help shows.

A command is named by the words that follow `python -m affectgpt.` (`annotate check`), or by its script (`train`).
Nothing heavy is imported here: `run` names a function that is imported when the command starts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from affectgpt import config
from affectgpt.runtime import gc_paused


def load(name: str) -> Callable[..., Any]:
    """The function that "module:function" names."""
    module, _, function = name.partition(":")
    with gc_paused():  # importing torch and transformers takes a sixth longer with it
        return getattr(importlib.import_module(module), function)


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        run: "module:function"; takes the configuration and returns the exit code. Functions of `cli.composed` also take
            the overrides, because they compose further configurations.
        schema: dataclass of its settings.
        usage: first lines of --help.
        conf: the file of conf/ that Hydra composes the configuration from; None = `schema` alone, without groups.
        plain: the setting that takes plain arguments (those without `=`); None = there are no plain arguments.
        rewrite: "module:function" that rewrites the arguments before they are parsed.
        others: the setting that collects arguments which name no setting of `schema`; None = they are errors.
        next: what a user does after success, with {settings} of the command; "" = the command says it itself.
    """

    run: str
    schema: type
    usage: str
    conf: str | None = None
    plain: str | None = None
    rewrite: str | None = None
    others: str | None = None
    next: str = ""


COMMANDS = {
    "train": Command(
        "affectgpt.cli.composed:train",
        config.TrainConfig,
        """Train one stage.

  python train.py stage=coarse               # stage 1, on auto-labelled clips
  python train.py stage=fine                 # stage 2, from the last complete coarse run
  python train.py stage=fine resume=true     # resume a run that was stopped or killed
  python train.py stage=coarse model=affectgpt data=my_data stage.batch_size=8 logging.wandb=offline
  torchrun --nproc_per_node 8 train.py stage=coarse strategy=ddp     # or zero2, zero3

Groups: stage=coarse|fine, model=..., data=..., experiment=..., debug=... name files under conf/.""",
        conf="train",
        rewrite="affectgpt.cli.words:train",
    ),
    "infer": Command(
        "affectgpt.inference.infer:run_inference",
        config.InferConfig,
        """Explain the emotions in videos.

  python infer.py video.mp4                                   # explanation, labels, what was seen and heard
  python infer.py a.mp4 b.mp4 subtitle="I'm fine."
  python infer.py clips/ out=predictions.jsonl task=labels lang=zh
  python infer.py manifest.csv out=predictions.jsonl          # ids, subtitles and paths from a manifest; resumes
  python infer.py format=candidates folder=/data/MER2025 out=predictions.jsonl      # a published data set
  python infer.py video.mp4 attribute=true                    # what each sentence rests on: which input, which seconds
  python infer.py video.mp4 json=true generate.do_sample=true generate.temperature=0.7""",
        conf="infer",
        plain="input",
        rewrite="affectgpt.cli.words:infer",
        next="python eval.py predictions={out} references=manifest.csv",
    ),
    "eval": Command(
        "affectgpt.cli.composed:evaluate",
        config.EvalConfig,
        """Score open-vocabulary labels with the set-based emotion-wheel metrics.

  python eval.py                                              # the newest run on the test split of data=...
  python eval.py checkpoint=runs/fine/best
  python eval.py predictions=mine.jsonl references=test.csv   # anybody's predictions; loads no model
  python eval.py predictions=[a.jsonl,b.jsonl] references=test.csv compare=true       # paired test
  python eval.py benchmark=ovmerd_plus benchmark.folder=/data/mer predictions=mine.npz lexicon=/data/emotion_wheel""",
        conf="eval",
        next="python -m affectgpt.analyze faithfulness checkpoint=...; docs/score-and-submit.md",
    ),
    "cache": Command(
        "affectgpt.cache.build:run_build",
        config.CacheConfig,
        """Encode all clips of a data set ahead of training, or maintain the cache of encoder states.

  python -m affectgpt.cache model=affectgpt data=my_data                  # build; repeat it to continue
  python -m affectgpt.cache model=affectgpt data=my_data engine=ray       # on a Ray cluster with shared storage
  python -m affectgpt.cache ls
  python -m affectgpt.cache verify repair=true
  python -m affectgpt.cache gc max_gb=500 unused_days=30""",
        conf="cache",
        next="python train.py stage=coarse, with the same model= and data=",
    ),
    "cache ls": Command(
        "affectgpt.cache.care:run_ls",
        config.CacheListConfig,
        """List what is in the cache: which encoder, how many clips, size, last use.

  python -m affectgpt.cache ls""",
    ),
    "cache verify": Command(
        "affectgpt.cache.care:run_verify",
        config.CacheVerifyConfig,
        """Read all encoder states and compare them with their checksums. Exit code 1 if anything is damaged.

  python -m affectgpt.cache verify
  python -m affectgpt.cache verify repair=true       # also drop what is damaged; it is encoded again when needed""",
    ),
    "cache gc": Command(
        "affectgpt.cache.care:run_gc",
        config.CacheCollectConfig,
        """Free space: drop damaged, duplicate and long unused encoder states, and merge small shards.

  python -m affectgpt.cache gc
  python -m affectgpt.cache gc max_gb=500 unused_days=30""",
    ),
    "plan": Command(
        "affectgpt.plan.command:run_plan",
        config.PlanConfig,
        """Parameters, memory by part, operations and expected speed of a training run, before it is started.

  python -m affectgpt.plan model=affectgpt stage=coarse                    # one card: A100, H100, 24 GB
  python -m affectgpt.plan model=affectgpt strategy=zero2 n_gpus=8 gpu=h100 stage.batch_size=8
  python -m affectgpt.plan online=true stage.packing=false                # encoders in every step, padded
  python -m affectgpt.plan stage.gradient_checkpointing=true json=true

It needs no weights, no hub and no GPU. Groups: model=..., stage=..., strategy=... name files under conf/.""",
        conf="plan",
    ),
    "export": Command(
        "affectgpt.hub.export:run_export",
        config.ExportConfig,
        """Write a checkpoint as one full folder that needs no base models, and check it by reading it back.

  python -m affectgpt.export runs/fine out=release
  python -m affectgpt.export runs/fine out=release merge_lora=true dtype=bfloat16""",
        plain="checkpoint",
        next="python -m affectgpt.serve {out}, or python -m affectgpt.hub push {checkpoint} repo=user/name full=true",
    ),
    "hub push": Command(
        "affectgpt.hub.push:push",
        config.PushConfig,
        """Publish a checkpoint on the hub with a generated model card.

  python -m affectgpt.hub push runs/fine repo=user/name dry_run=true       # write the folder, look at README.md
  python -m affectgpt.hub push runs/fine repo=user/name                    # trained tensors; base models by id
  python -m affectgpt.hub push runs/fine repo=user/name full=true private=true
  python -m affectgpt.hub push runs/fine repo=user/name full=true space=true     # and a Space with the studio

`python -m affectgpt.hub fetch model=affectgpt` downloads all base models of a preset.""",
        plain="checkpoint",
    ),
    "hub fetch": Command(
        "affectgpt.cli.composed:fetch_models",
        config.PlanConfig,  # as plan composes it: train would also build the embedded corpus
        """Download all base models of a preset.

  python -m affectgpt.hub fetch model=affectgpt""",
        conf="plan",
    ),
    "serve": Command(
        "affectgpt.serve.command:run_server",
        config.ServeConfig,
        """Serve a checkpoint, or another chat model, through the OpenAI API (docs/serve.md).

  python -m affectgpt.serve                                   # the newest run, at http://127.0.0.1:8000/v1
  python -m affectgpt.serve runs/fine port=8001 media_folder=/data/clips
  python -m affectgpt.serve model=Qwen/Qwen2.5-VL-7B-Instruct dtype=bfloat16
  AFFECTGPT_API_KEY=... python -m affectgpt.serve runs/fine host=0.0.0.0

On SIGTERM or Ctrl-C the server finishes running requests, then exits.""",
        plain="checkpoint",
    ),
    "studio": Command(
        "affectgpt.studio.command:run_studio",
        config.StudioConfig,
        """Look at clips, evidence and answers in a browser, and at where a model is wrong (docs/studio.md).

  python -m affectgpt.studio runs/fine                        # http://127.0.0.1:7860: try clips, see its predictions
  python -m affectgpt.studio runs/coarse runs/fine            # two checkpoints side by side
  python -m affectgpt.studio predictions=[a.jsonl,b.jsonl] references=test.csv        # no model, no torch
  python -m affectgpt.studio review emer_coarse/ to=emer_fine/ round=1 annotators=a,b,c,d
  AFFECTGPT_API_KEY=... python -m affectgpt.studio runs/fine host=0.0.0.0

Ctrl-C stops it; uploaded clips are then removed.""",
        plain="checkpoints",
    ),
    "studio review": Command(
        "affectgpt.studio.command:run_review",
        config.StudioReviewConfig,
        """Let people check descriptions and labels in a browser, in two rounds (docs/human-review.md).

  python -m affectgpt.studio review emer_coarse/ to=emer_fine/ round=1 annotators=a,b,c,d
  python -m affectgpt.studio review emer_coarse/ to=emer_fine/                      # the same again, after a stop
  python -m affectgpt.studio review emer_coarse/ to=emer_fine/ round=2 annotators=e,f,g,h

It prints a link for each annotator. Answers are saved one by one; Ctrl-C stops it and loses none.""",
        plain="records",
    ),
    "zeroshot": Command(
        "affectgpt.zeroshot.run:run",
        config.ZeroShotConfig,
        """Ask other multimodal models, without training, and write predictions.jsonl as infer.py does.

  python -m affectgpt.zeroshot model=Qwen/Qwen2.5-VL-7B-Instruct data=... strategy=s1 out=preds.jsonl
  python -m affectgpt.zeroshot qwen2_5_omni manifest=clips.csv out=preds.jsonl         # a file of conf/zeroshot
  python -m affectgpt.zeroshot model=gpt-4o base_url=https://api.openai.com/v1 manifest=clips.csv out=preds.jsonl
  python -m affectgpt.zeroshot model=... strategy=s2 merge_model=Qwen/Qwen2.5-7B-Instruct data=... out=preds.jsonl
  python -m affectgpt.zeroshot audio_model=... video_model=... merge_model=... strategy=s2 data=... out=preds.jsonl
  python -m affectgpt.zeroshot export manifest=clips.csv strategy=s0 out=requests.jsonl
  python -m affectgpt.zeroshot import answers.jsonl manifest=clips.csv strategy=s0 out=preds.jsonl
  python eval.py predictions=[a.jsonl,b.jsonl] references=clips.csv compare=true       # the table

docs/baselines.md lists the models that run in process.""",
        conf="zeroshot",
        rewrite="affectgpt.cli.words:zeroshot",
    ),
    "prefer": Command(
        "affectgpt.prefer.run:run",
        config.PreferConfig,
        """Say which of two descriptions of a clip fits better (MER2026 track 3, EmoPrefer), by one of four strategies.

  python -m affectgpt.prefer strategy=s1 model=... base_url=http://localhost:8000/v1 folder=/data/MER2026 out=s1.csv
  python -m affectgpt.prefer strategy=s2 checkpoint=runs/fine folder=/data/MER2026 out=s2.csv
  python -m affectgpt.prefer strategy=s4 checkpoint=runs/fine judge=Qwen3-8B judge_base_url=... folder=... out=s4.csv
  python -m affectgpt.prefer strategy=s3 descriptions=predictions.jsonl judge=... folder=... out=s3.csv
  python -m affectgpt.prefer ... file=track3_emoprefer.csv reversed=true out=s1-reversed.csv

s1: the model sees the clip and both descriptions. s2: it describes the clip, then compares its description with both.
s3: as s2, but the text LLM `judge` compares. s4: as s3, and the LLM reasons before it answers.
Repeat the command to continue where it stopped. Exit code 3 if rows were not answered (on_bad=skip).""",
    ),
    "prefer score": Command(
        "affectgpt.prefer.score:run_score",
        config.PreferScoreConfig,
        """Score choices between two descriptions: the official two classes, three classes, swap consistency.

  python -m affectgpt.prefer score s1.csv s3.csv references=track3_emoprefer.csv
  python -m affectgpt.prefer score s1.csv references=track3_emoprefer.csv reversed=s1-reversed.csv
  python -m affectgpt.prefer score s1.csv reversed=s1-reversed.csv                 # consistency alone
  python -m affectgpt.prefer score s1.csv references=track3_emoprefer.csv names=models.csv        # and rank the models

Rows go by their number, because names may repeat.""",
        plain="files",
    ),
    "annotate": Command(
        "affectgpt.annotate.run:run_annotation",
        config.AnnotateConfig,
        """Describe and label clips: evidence, clues, descriptions and labels, each with its provenance.

  python -m affectgpt.annotate videos/ out=emer_coarse/                       # local: no model, no server, no key
  python -m affectgpt.annotate videos/ out=o annotator=openai annotator.model=... plan=true    # calls and cost
  python -m affectgpt.annotate videos/ out=o annotator=vllm annotator.model=... annotator@audio=local
  python -m affectgpt.annotate clips.csv out=o pipeline=merr openface=openface/ annotator=transformers ...
  python -m affectgpt.annotate demo:coarse out=o limit=50                     # the embedded corpus

  python -m affectgpt.annotate clips.jsonl out=o engine=processes             # in shards; engine=ray on a cluster
  python -m affectgpt.annotate study ...                                      # which models; study --help
  python -m affectgpt.annotate check | merge | export | review | import | report   # work on the records

Repeat the command to continue where it stopped; calls whose answers arrived are never repeated.
Exit code: 0 all complete, 3 some failed or dropped, 4 budget reached, 130 / 143 interrupted.
Groups: pipeline=emer_coarse|emer|emer_verified|emer_checked|ov_merd|merr|s0|s1|s2,
annotator=local|openai|vllm|transformers.""",
        conf="annotate",
        plain="input",
    ),
    "annotate study": Command(
        "affectgpt.cli.composed:annotator_study",
        config.StudyOfAnnotatorsConfig,
        """Compare models to annotate with: every choice of one model a column, scored against references.

  python -m affectgpt.annotate study clips.csv out=study references=clips.csv repeats=2 annotator=openai \\
      annotator.model=... audio=[vllm:Qwen2-Audio@http://a:8000/v1,local] merge=[openai:...] \\
      video=[vllm:Qwen2.5-VL@http://b:8000/v1,none] translate=[vllm:Qwen2.5-7B@http://c:8000/v1]

`annotator` reads the labels, the same one in all rows. Adding a model costs only its own calls.
Settings of annotate (pipeline=, limit=, lang=, annotator.concurrency= ...) apply to all rows.""",
        others="common",
    ),
    "data check": Command(
        "affectgpt.cli.composed:check_data",
        config.DataCheckConfig,
        """Check a manifest or a published data set and print a report.

  python -m affectgpt.data check manifest.csv
  python -m affectgpt.data check format=ovmerd folder=/data/mer2025
  python -m affectgpt.data check data=emer_fine data.folder=/data/emer     # all sources of conf/data/emer_fine.yaml

Exit code 1 if there are problems: unusable rows, missing, truncated or unreadable files, one file under several ids,
texts in another language than stated, or training samples in the test set; 2 if the check could not be run.""",
        plain="manifest",
        others="overrides",
        next="python train.py stage=coarse data=...; docs/train-on-your-own-videos.md",
    ),
    "data convert": Command(
        "affectgpt.data.command:convert_data",
        config.DataConvertConfig,
        """Write a published data set as a manifest; unusable rows are listed and left out.

  python -m affectgpt.data convert format=merr folder=/data/merr out=manifest.jsonl""",
        plain="manifest",
        next="python -m affectgpt.data check {out}",
    ),
    "data export": Command(
        "affectgpt.cli.composed:export_data",
        config.DataExportConfig,
        """Write data in the form of another tool (docs/other-tools.md).

  python -m affectgpt.data export manifest.jsonl to=ms-swift out=rows/
  python -m affectgpt.data export data=emer_fine data.folder=/data/emer use=fine to=llamafactory out=rows/ name=emer
  python -m affectgpt.data export manifest.jsonl to=ms-swift out=rows/ task=description pairs=[judged,deleted]
  python -m affectgpt.data export data=ovmerd data.folder=/data to=lmms-eval out=tasks/ name=ovmerd
  python -m affectgpt.data export test.jsonl benchmark=mer2024 benchmark.folder=/data to=lmms-eval out=tasks/

ms-swift: <name>.jsonl, and rewards.py with our rewards for its GRPO. llamafactory: <name>.jsonl and dataset_info.json.
lmms-eval: a task, scored against the labels of the data or as benchmark=NAME. Unusable clips are listed and left out;
exit code 1 if there are any.""",
        plain="manifest",
        others="overrides",
    ),
    "data clauses": Command(
        "affectgpt.data.clause_report:report_clauses",
        config.DataClausesConfig,
        """Divide descriptions into clauses by modality, show and check them, and write a manifest with them.

  python -m affectgpt.data clauses manifest.jsonl show=5
  python -m affectgpt.data clauses manifest.jsonl lang=zh out=with_clauses.jsonl
  python -m affectgpt.data clauses format=ovmerd folder=/data/mer2025 probe=false
  python -m affectgpt.data clauses manifest.jsonl llm.model=... llm.base_url=http://localhost:8000/v1

Clauses that the data set provides are kept and compared with the rules. Exit code 1 if a description makes a statement
about a modality that its clip lacks, differs from its clauses, or a row cannot be used.""",
        plain="manifest",
        next="python train.py stage=fine, with a data configuration that names the manifest",
    ),
    "data formats": Command(
        "affectgpt.data.command:list_formats",
        config.DataFormatsConfig,
        """List the published formats that can be read, with their options.

  python -m affectgpt.data formats""",
    ),
    "analyze": Command(
        "affectgpt.analyze:run_analysis",
        config.AnalyzeConfig,
        """The analyses of the papers; each prints a table and writes JSON, PNG, SVG and PDF files.

python -m affectgpt.analyze <analysis> [name=value ...] [prediction files ...]

  baselines    references=gt.csv [labels=train.csv]        heuristic baselines Empty and Random
  correlation  references=gt.csv a.jsonl b.csv c.npz ...   PCC between all metrics over the given systems
  correlation  table=scores.csv                            the same from a table: system, metric, metric, ...
  language     EE=ee.csv CC=cc.csv EC=ec.csv CE=ce.csv     Jaccard between the label sets of languages
  onehot       references=gt.csv                           one-hot labels (column label) against the open labels
  labels       references=gt.csv                           label counts, frequencies, long tail, description length
  subtitles    references=gt.csv S0=a S1=b S2=c            subtitle strategies side by side, with paired tests
  modalities   references=gt.csv audio=a text=b multi=c    modalities side by side, with paired tests
  wheel        references=gt.csv predictions.jsonl [k=1]   predicted and true level-1 sectors of wheel k
  sectors      references=gt.csv predictions.jsonl [k=1]   confusion between the level-1 sectors of wheel k
  confusion    references=gt.csv predictions.jsonl classes=happy,sad,...    confusion matrix of one-hot labels
  seeds        references=gt.csv run1.jsonl run2.jsonl ... runs of one system: mean ± standard deviation
  texts        references=gt.csv predictions.jsonl [lang=zh]    BLEU-1, BLEU-4, ROUGE-L, METEOR of descriptions
  judge        references=gt.csv predictions.jsonl model=... [base_url=...]   clue and label overlap by an LLM, 1-10
  discrete     references=gt.csv descriptions.csv model=...    top-1 and top-2 of emotions ranked from descriptions
  valence      references=gt.csv descriptions.csv model=...    PCC of the valence in descriptions with the label
  clues        descriptions.csv [model=...]                visual clues in a description
  clue_texts   references=gt.csv descriptions.csv subtitles=s.csv model=...   CLUE-Text, -Audio, -Video and -Multi
  annotations  human=a.csv human_llm=b.csv,b-labels.csv    two annotations of the same clips: lengths, labels, overlap
  ranking      preferences.csv [more.csv]                  Bradley-Terry strengths of models (a1, a2, preference)
  confidence   references=gt.csv answers.jsonl [classes=sad,...]   ECE, Brier, ROC AUC of stated confidence
  faithfulness checkpoint=runs/fine data=...               answers with changed inputs; its own --help""",
        plain="files",
        rewrite="affectgpt.cli.words:analyze",
        next="docs/score-and-submit.md explains the figures",
    ),
    "analyze faithfulness": Command(
        "affectgpt.inference.counterfactual:run_faithfulness",
        config.EvalConfig,
        """Ask a model again with changed inputs, and see which clauses of its explanations change.

  python -m affectgpt.analyze faithfulness                                    # the newest run, test split of data=...
  python -m affectgpt.analyze faithfulness checkpoint=runs/fine/best data=emer_fine out=faithfulness/

Each clip is asked with every subset of pictures, sound and subtitle, with the sound of another clip and with the
subtitle of another clip. docs/faithfulness.md explains the two tables and the picture.""",
        conf="eval",
    ),
    "submit": Command(
        "affectgpt.submit:submit",
        config.SubmitConfig,
        """Write the file that a challenge server accepts.

  python -m affectgpt.submit predictions.jsonl submission.npz [candidates=track_all_candidates.csv] [empty=neutral]
  python -m affectgpt.submit track=1 predictions.jsonl track1.csv candidates=track1_track2_candidate.csv    # MER2026
  python -m affectgpt.submit track=2 predictions.jsonl answer.zip candidates=track1_track2_candidate.csv
  python -m affectgpt.submit track=3 answers.csv answer.zip candidates=track3_candidate.csv
  python -m affectgpt.submit track=3 answer.zip candidates=track3_candidate.csv       # only check a file

The npz holds `filenames` and `fileitems` ("[happy, proud]"); a name ending in .csv gives `name,openset` instead. With
`candidates`, every name of that list must have exactly one prediction. A clip without a label is an error, unless
`empty=` gives the label for such clips; nothing is filled in silently. With `track`, the file is checked against the
form of that track of MER2026: exit code 1 and a line for each row that differs.""",
        plain="files",
        next="upload the file; docs/score-and-submit.md",
    ),
    "ensemble": Command(
        "affectgpt.ensemble:run",
        config.EnsembleConfig,
        """Combine the predictions of several systems into one file, in which every row tells its origin.

  python -m affectgpt.ensemble a.jsonl b.jsonl c.jsonl how=union out=union.jsonl
  python -m affectgpt.ensemble a.jsonl b.jsonl c.jsonl how=majority at_least=2 equal=M1 out=majority.jsonl
  python -m affectgpt.ensemble a.jsonl b.jsonl c.jsonl how=vote classes=[happy,sad,neutral] out=vote.jsonl
  python -m affectgpt.ensemble s1.csv s2.csv s3.csv how=vote pairs=true out=vote.csv
  python -m affectgpt.ensemble a.jsonl b.jsonl how=routing by=sector \\
      validation=[a-val.jsonl,b-val.jsonl] references=val.csv out=routed.jsonl

union, majority: label sets. vote: the most frequent label (of equals, that of the first system). routing: each clip is
answered by the system with the highest mean score on the validation clips of its group.""",
        plain="files",
        next="python -m affectgpt.submit track=1|2|3 {out} ...; docs/score-and-submit.md",
    ),
    "convert": Command(
        "affectgpt.convert.command:run",
        config.ConvertConfig,
        """Convert published checkpoints to base models and projections of this package.

  python -m affectgpt.convert video_llama_v.pth video_llama_a.pth blip2.pth eva_vit_g.pth out=base/

Any of these files, in any order: each is recognised by its tensors, never by its name. out= then holds
  eva_qformer/             image encoder and image Q-Former (needs EVA and BLIP-2), a base model for pool: queries
  eva/                     the image encoder as MiniGPT-v2 and Emotion-LLaMA run it (needs EVA and one of them)
  projectors.safetensors   projections of the branches, for model.init=pretrained model.init_from=base/
  lora/                    adapters of the LLM in peft's layout
  report.json              what was taken, left out on purpose, missing and unexpected

  python -m affectgpt.convert SmolLM2-135M-Instruct.Q4_1.gguf out=smollm2/    # an LLM of llama.cpp, for model.llm.path

Exit code 0 only if nothing is missing or unexpected, 1 if something is, 2 if a file cannot be used at all.""",
        plain="files",
        next="python infer.py video.mp4 checkpoint={out} model=...; or train with model.init_from={out}",
    ),
    "doctor": Command(
        "affectgpt.doctor:run",
        config.DoctorConfig,
        """Check this installation: packages, devices, media, caches.

  python -m affectgpt.doctor
  python -m affectgpt.doctor --json""",
        next="affectgpt-demo, or affectgpt-infer video.mp4",
    ),
    "demo": Command(
        "affectgpt.cli.composed:demo",
        config.DemoConfig,
        """The whole story on the embedded default, in minutes on two CPU cores.

  python -m affectgpt.demo [--brief] [--runs DIR]

Builds the corpus and the small base models, trains coarse, fine alone, and fine after coarse, scores each on the test
split next to two baselines, and explains one clip. It runs exactly what train.py, eval.py and infer.py run.""",
    ),
    "runs": Command(
        "affectgpt.runs.overview:run",
        config.RunsConfig,
        """List all runs: stage, data, model, status, best score, steps and date. Evaluations follow their run.

  python -m affectgpt.runs
  python -m affectgpt.runs runs/table4 status=running
  python -m affectgpt.runs --json""",
        plain="folder",
    ),
    "report": Command(
        "affectgpt.report.command:run",
        config.ReportConfig,
        """Write one HTML file about a run or about predictions: scores, wheel, curves, clips with frames, run record.

  python -m affectgpt.report runs/fine out=report.html                     # the run and its evaluations
  python -m affectgpt.report runs/fine/eval-best runs/coarse/eval-best     # compare evaluations
  python -m affectgpt.report predictions=mine.jsonl references=test.csv    # anybody's predictions; no torch
  python -m affectgpt.report predictions=[a.jsonl,b.jsonl] references=test.csv out=comparison.html

The file needs nothing else: pictures are inside, it has no scripts, and it loads nothing from the network.""",
        plain="runs",
    ),
    "study": Command(
        "affectgpt.training.study:run_report",
        config.StudyReportConfig,
        """Write table and pictures of a study again, from what its sweep left.

  python train.py -m experiment=table4        # the sweep itself
  python -m affectgpt.study runs/table4""",
        plain="folder",
    ),
}
_RECORDS = """Check, merge, export, review and report what `python -m affectgpt.annotate videos/ out=...` wrote.

  python -m affectgpt.annotate check emer_coarse/ policy.near_duplicate=drop      # keep, ask a human, or drop
  python -m affectgpt.annotate merge qwen/ gpt/ out=merged/ how=majority          # several annotators, and agreement
  python -m affectgpt.annotate export emer_coarse/ to=merr out=merr/              # or manifest, sharegpt, labelstudio
  python -m affectgpt.annotate review emer_coarse/ to=emer_fine/ round=1 annotators=a,b,c,d
  python -m affectgpt.annotate import exports/*.json to=emer_fine/                # the answers of the annotators
  python -m affectgpt.annotate report emer_coarse/                                # counts, labels, pictures

docs/human-review.md describes the two rounds."""
for _verb in ("check", "merge", "export", "review", "import", "report"):
    COMMANDS[f"annotate {_verb}"] = Command(
        f"affectgpt.annotate.verbs:{_verb}_records", config.RecordsConfig, _RECORDS, plain="input"
    )
