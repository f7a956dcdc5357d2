"""Speed of the metrics on one core: python benchmarks/metrics.py [n_samples]

Compares scoring under all twelve groupings with a plain loop like that of the published code, which maps every label of
every sample once per grouping. Budgets: import under 0.5 s, 20,000 samples under 3 s.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time

N_NAIVE = 1000  # number of samples for the plain loop, whose time is scaled up


def timed(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def start_up_s(code):
    """Seconds that a new python process takes to run `code`; the best of three."""
    return min(timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))[0] for _ in range(3))


def main() -> None:
    n_samples = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    import_s = start_up_s("import affectgpt.metrics") - start_up_s("pass")

    from affectgpt.metrics import GROUPINGS, evaluate
    from affectgpt.metrics.lexicon.builtin import load_builtin

    load_s, lexicon = timed(load_builtin)
    rng = random.Random(0)
    words = [form for form in lexicon.forms if form.isascii()]
    references = {f"s{i}": rng.choices(words, k=rng.randint(1, 6)) for i in range(n_samples)}
    predictions = {f"s{i}": rng.choices(words, k=rng.randint(1, 6)) for i in range(n_samples)}
    score_s, report = timed(lambda: evaluate(predictions, references, n_bootstrap=0))
    bootstrap_s, _ = timed(lambda: evaluate(predictions, references, n_bootstrap=1000))

    texts = {name: "She smiles.\nEmotions: " + ", ".join(labels) for name, labels in predictions.items()}
    parse_s, _ = timed(lambda: evaluate(texts, references, n_bootstrap=0))
    naive_s, f_scores = timed(lambda: naive(lexicon, list(references)[:N_NAIVE], references, predictions))
    ids = list(references)[:N_NAIVE]
    check = evaluate({k: predictions[k] for k in ids}, {k: references[k] for k in ids}, n_bootstrap=0)
    assert all(abs(check.scores[name].f_score - f_scores[name]) < 1e-9 for name in GROUPINGS)
    assert report.primary.n > 0

    naive_s *= n_samples / N_NAIVE
    print(f"import affectgpt.metrics (without starting python)       {import_s:7.2f} s   budget 0.5")
    print(f"load the built-in lexicon                                {load_s:7.3f} s   budget 0.05")
    print(f"{n_samples} samples x 12 groupings                      {score_s:7.2f} s   budget 3")
    print(f"the same, parsing the labels from texts                  {parse_s:7.2f} s")
    print(f"the same, with 1000 bootstrap resamples                  {bootstrap_s:7.2f} s")
    times = naive_s / score_s
    print(f"a plain loop (scaled from {N_NAIVE} samples)                   {naive_s:7.2f} s   {times:.1f} x ours")


def naive(lexicon, names, references, predictions):
    """Twelve passes, each of which maps every label again."""
    f_scores = {}
    for grouping in ("M1", "M2", *(f"M3-W{k}-L{level}" for k in range(1, 6) for level in (1, 2))):
        precisions, recalls = [], []
        for name in names:
            truth = {group for word in references[name] if (group := look_up(lexicon, word, grouping))}
            answer = {group for word in predictions[name] if (group := look_up(lexicon, word, grouping))}
            if truth:
                precisions.append(len(truth & answer) / len(answer) if answer else 0.0)
                recalls.append(len(truth & answer) / len(truth) if answer else 0.0)
        p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
        f_scores[grouping] = 2 * p * r / (p + r)
    return f_scores


def look_up(lexicon, word, grouping):
    keys = lexicon.forms.get(word.lower().strip(), ())
    if not keys:
        return None
    if grouping == "M1":
        return sorted(keys)[0]
    if grouping == "M2":
        return sorted(lexicon.wheel_words[sorted(keys)[0]])[0]
    wheel = lexicon.wheels[int(grouping[4]) - 1]
    table = wheel.level1 if grouping.endswith("1") else wheel.level2
    candidates = sorted(candidate for key in keys for candidate in lexicon.wheel_words[key])
    return next((table[candidate] for candidate in candidates if candidate in table), None)


if __name__ == "__main__":
    main()
