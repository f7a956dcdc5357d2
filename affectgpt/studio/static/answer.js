// An answer: its sentences with modality, support and what they rest on, its labels, and the wheel.

import { h, percent } from "./dom.js";
import { t } from "./words.js";
import { wheelWithChoice } from "./wheel.js";

const MISSING = { visual: "pictures", acoustic: "sound", lexical: "words" };

// view: of evidence.js, lit while a sentence is pointed at or focused; truth: {labels, places} or null.
export function answerView(answer, about, view, truth, state) {
  const rests = h("p", { class: "rests", role: "status" });
  const point = (row) => {
    view?.mark(row.over_time, row.drop);
    if (row.drop) rests.textContent = `${t("rests on (nats per token)")}: ${Object.entries(row.drop).map(([name, value]) => `${t(MISSING[name])} ${value.toFixed(2)}`).join(", ")}`;
  };
  const leave = () => { view?.clear(); rests.textContent = hasMarks ? t("Point at a sentence to see what it rests on.") : ""; };
  const hasMarks = answer.sentences.some((row) => row.drop) || Boolean(answer.labels_rest_on);
  const sentence = (row) => h("span", { class: `sentence ${row.modality}${row.unsupported.length ? " unsupported" : ""}`, tabindex: row.drop ? 0 : null,
    onpointerenter: () => point(row), onpointerleave: leave, onfocus: () => point(row), onblur: leave, title: t(row.modality) },
    row.text, row.unsupported.length ? h("span", { class: "tag" }, ` ⚠ ${row.unsupported.map((name) => t(MISSING[name])).join(", ")}: ${t("not shown to the model")}`) : null, " ");
  const own = answer.labels_rest_on;
  const labels = h("p", { class: "chips predicted", tabindex: own ? 0 : null, onpointerenter: () => own && point(own), onpointerleave: leave, onfocus: () => own && point(own), onblur: leave },
    answer.labels.map((label) => h("span", { class: `chip${truth && !truth.labels.includes(label) ? "" : " hit"}` }, label)));
  const groups = [{ labels: answer.labels, places: answer.places, kind: "predicted" }];
  if (truth) groups.push({ labels: truth.labels, places: truth.places, kind: "true" });
  leave();
  return h("article", { class: "answer" },
    h("header", {}, h("h2", {}, answer.system || answer.model || t("Answer")),
      answer.f === null || answer.f === undefined ? null : h("span", { class: "score" }, `F ${percent(answer.f)}  (${t("precision")} ${percent(answer.precision)}, ${t("recall")} ${percent(answer.recall)})`)),
    answer.sentences.length ? h("p", { class: "text", lang: answer.lang }, answer.sentences.map(sentence)) : answer.labels.length ? null : h("p", { class: "text" }, answer.text),
    labels, rests,
    answer.finish === "length" ? h("p", { class: "warn" }, t("cut: the answer reached its longest length")) : null,
    answer.modalities.length ? h("p", { class: "hint" }, `${t("Inputs")}: ${answer.modalities.map((one) => t(one)).join(", ")}`) : null,
    answer.labels.length || truth ? wheelWithChoice(about.wheels, groups, state) : null);
}
