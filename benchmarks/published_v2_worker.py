"""Runs in the interpreter of the published code, for published_v2.py: python published_v2_worker.py CODE FOLDER THREADS

Writes a line of JSON with loss and lengths, and one with the seconds of a training step for each line that it reads.
"""

import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fidelity"))
import published_v2 as published

SHOWN = "multiface_audio_face_text"


def main() -> None:
    code, folder = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(int(sys.argv[3]))
    out, sys.stdout = sys.stdout, sys.stderr  # the published code prints what it loads

    def write(**values) -> None:
        print(json.dumps(values), file=out, flush=True)

    task, inputs = json.loads((folder / "task.json").read_text()), torch.load(folder / "inputs.pt")
    published.prepare(code, task)
    model, data = published.make_model(), published.make_data()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    torch.save({"model": {name: each.detach() for name, each in trained.items()}}, folder / "run.pth")
    faces = inputs["faces"].permute(0, 4, 1, 2, 3)  # [B, 3, 8, 224, 224], blue-green-red as from OpenCV
    windows = inputs["windows"][:, :, None]  # [B, 8, 1, 32000]
    instances = [
        published.make_instance(data, clip, "description", SHOWN)
        | {"face": each_faces, "raw_face": each_faces, "audio": sound, "raw_audio": sound}
        for clip, each_faces, sound in zip(task["clips"], faces, windows, strict=True)
    ]
    batch = data.collater(instances)
    model.eval()
    with torch.no_grad():
        loss = float(model(batch)["loss"])
    lengths = [len(each["text_input"]) + 2 for each in instances]  # with the beginning and the end of the sequence
    write(loss=loss, lengths=lengths, torch=torch.__version__)

    model.train()
    optimizer = torch.optim.AdamW(trained.values(), lr=0.0)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        model(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        write(wall=time.perf_counter() - wall, processor=time.process_time() - processor)


if __name__ == "__main__":
    main()
