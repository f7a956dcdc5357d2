// A clip's page: the clip and what is in it, the reference, and what each system says.

import { composing, get, h, replace } from "./dom.js";
import { t } from "./words.js";
import { clipView } from "./evidence.js";
import { answerView } from "./answer.js";

export async function clipPage(page, about, id, query) {
  const found = await get(`/api/clip/${encodeURIComponent(id)}`);
  const view = found.has_media ? clipView("gallery", id) : null;
  view?.done.catch((error) => view.element.append(h("p", { class: "error" }, error.message)));
  const state = { wheel: Number(query.wheel || 1) - 1 };
  const truth = found.true.length ? { labels: found.true, places: found.places } : null;
  const { place, ...filters } = query;
  let left = false;
  const step = async (by) => {
    const at = Number(place) + by;
    if (!(at >= 0)) return;
    const { rows } = await get("/api/gallery", { ...filters, offset: at, limit: 1 });
    if (rows.length && !left) location.hash = `#/clip/${encodeURIComponent(rows[0].id)}?${new URLSearchParams({ ...filters, place: at })}`;
  };
  const back = `#/gallery?${new URLSearchParams(filters)}`;
  const order = [...found.answers].sort((a, b) => (b.system === query.system) - (a.system === query.system));
  replace(page, h("section", { class: "clip-page" },
    h("nav", { class: "steps" }, h("a", { href: back }, `← ${t("Back")}`), place === undefined ? null : [
      h("button", { onclick: () => step(-1) }, `${t("Previous")} (k)`), h("button", { onclick: () => step(1) }, `${t("Next")} (j)`)], h("h1", {}, id), about.tries && found.has_media ? h("a", { href: `#/try?${new URLSearchParams({ id })}` }, t("Ask a model about it")) : null),
    h("div", { class: "columns" },
      h("div", { class: "left" }, view?.element || h("p", { class: "empty" }, t("no media file")),
        found.subtitle ? h("p", { class: "subtitle" }, h("i", {}, t("Subtitle")), found.subtitle) : null,
        found.description ? h("p", { class: "reference" }, h("i", {}, t("Reference")), found.description) : null,
        truth ? h("p", { class: "chips true" }, h("i", {}, t("True")), truth.labels.map((label) => h("span", { class: "chip" }, label))) : null),
      h("div", { class: "answers" }, order.length ? order.map((answer) => answerView(answer, about, view, truth, state)) : h("p", { class: "empty" }, t("no prediction"))))));
  const keys = (event) => {
    if (composing(event) || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey) return;
    if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "Escape") location.hash = back;
    else if (event.key === " " && view && event.target.tagName !== "BUTTON") { if (view.player.paused) view.player.play(); else view.player.pause(); event.preventDefault(); }
  };
  document.addEventListener("keydown", keys);
  return () => { left = true; document.removeEventListener("keydown", keys); view?.stop(); };
}
