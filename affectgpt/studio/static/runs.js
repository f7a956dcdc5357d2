// Runs: a list of all, and of one its curves, its answers to validation clips over steps, and its rollouts.

import { follow, get, h, notice, percent, redraw, replace, s } from "./dom.js";
import { t } from "./words.js";

const WIDTH = 320, HEIGHT = 130, LEFT = 44, BOTTOM = 18, TOP = 8;
const FIRST = ["loss", "eval_score", "reward", "learning_rate"];

function curve(name, points) {
  const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)], [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  const px = (x) => LEFT + (WIDTH - LEFT - 6) * (x1 > x0 ? (x - x0) / (x1 - x0) : 0.5);
  const py = (y) => TOP + (HEIGHT - TOP - BOTTOM) * (y1 > y0 ? (y1 - y) / (y1 - y0) : 0.5);
  const short = (value) => (value === 0 ? "0" : Math.abs(value) >= 1000 || Math.abs(value) < 0.01 ? value.toExponential(1) : value.toPrecision(3));
  return h("figure", { class: "curve" }, h("figcaption", {}, t(name), h("b", {}, ` ${short(ys.at(-1))}`)),
    s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${t(name)}: ${short(ys[0])} – ${short(ys.at(-1))}` },
      s("line", { x1: LEFT, x2: LEFT, y1: TOP, y2: HEIGHT - BOTTOM, class: "axis-line" }), s("line", { x1: LEFT, x2: WIDTH, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, class: "axis-line" }),
      [y0, y1].map((y) => s("text", { x: LEFT - 4, y: py(y) + 4, class: "axis", "text-anchor": "end" }, short(y))),
      [x0, x1].map((x, place) => s("text", { x: px(x), y: HEIGHT - 4, class: "axis", "text-anchor": place ? "end" : "start" }, x)),
      points.length > 1 ? s("polyline", { points: points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join(" "), class: "curve-line" }) : null,
      points.length < 40 ? points.map(([x, y]) => s("circle", { cx: px(x), cy: py(y), r: 2.5, class: "curve-dot" })) : null));
}

// The middle frame of a clip; a click plays the clip in its place.
function thumb(clip) {
  const base = `/media/watch/${encodeURIComponent(clip)}`;
  const image = h("img", { src: `${base}/thumbnail`, alt: "", loading: "lazy", width: 104, height: 78, onerror: () => box.replaceChildren() });
  const box = h("div", { class: "thumb" }, h("button", { class: "plain", title: t("play or stop"), "aria-label": t("play or stop"),
    onclick: () => replace(box, h("video", { src: `${base}/file`, controls: true, autoplay: true, playsinline: true })) }, image));
  return box;
}

export function runsPage(page, about, query, rest) {
  return rest[0] ? onePage(page, rest[0]) : listPage(page);
}

async function listPage(page) {
  const box = h("div", { class: "charge" });
  const draw = (runs) => redraw(box, runs.length ? h("table", { class: "figures runs" },
    h("thead", {}, h("tr", {}, ["run", "kind", "status", "data", "model", "score", "step", "started"].map((one) => h("th", {}, t(one))))),
    h("tbody", {}, runs.map((run) => h("tr", {}, h("td", {}, h("a", { href: `#/runs/${run.key}`, data: { key: run.key } }, run.name)), h("td", {}, run.stage ? `${t(run.kind)} ${run.stage}` : t(run.kind)),
      h("td", { class: `status ${run.status}` }, run.problem ? `⚠ ${run.problem}` : t(run.status)), h("td", {}, run.data || "–"), h("td", { class: "long", title: run.model || "" }, (run.model || "–").split("/").slice(-2).join("/")),
      h("td", {}, run.score === null ? "–" : `${percent(run.score)} (${run.score_of})`), h("td", {}, run.steps === null ? "–" : `${run.steps} / ${run.planned_steps ?? "?"}`), h("td", {}, (run.started || "").slice(0, 16).replace("T", " "))))))
    : h("p", { class: "empty" }, t("none")));
  draw(await get("/api/runs"));
  replace(page, h("h1", {}, t("Runs")), box);
  return follow(() => get("/api/runs"), draw, 5000);
}

// The clips of one step: a slider over steps, which stays at the newest one, and pages of clips.
function overSteps(title, load, line) {
  let steps = [], at = -1, offset = 0, part = 1;
  const told = h("output"), box = h("div", { class: "samples" }), count = h("span", { role: "status" });
  const turn = (by, words) => h("button", { onclick: () => { offset += by * part; show(); element.scrollIntoView(); } }, words);
  const previous = turn(-1, t("Previous")), next = turn(1, t("Next"));
  const slider = h("input", { type: "range", min: 0, "aria-label": `${title}: ${t("step")}`, oninput: () => { at = Number(slider.value); offset = 0; show(); } });
  const element = h("section", { hidden: true }, h("h2", {}, title), h("p", { class: "pair" }, slider, h("span", {}, t("step"), " ", told)), box, h("p", { class: "pair" }, count, previous, next));
  async function show() {
    const [step, from] = [steps[at], offset];
    told.textContent = step;
    slider.setAttribute("aria-valuetext", step);
    try {
      const found = await load(step, from);
      if (step !== steps[at] || from !== offset) return; // another one was chosen since
      ({ part } = found);
      replace(box, found.rows.map(line));
      count.textContent = `${found.rows.length ? from + 1 : 0}–${from + found.rows.length} ${t("of")} ${found.total} ${t("clips")}`;
      previous.disabled = !from;
      next.disabled = from + found.rows.length >= found.total;
      previous.hidden = next.hidden = found.total <= part;
    } catch (error) { notice(error.message, true); }
  }
  return { element, update: (now) => {
    if (now.length === steps.length && now.at(-1) === steps.at(-1)) return;
    const follows = at === steps.length - 1;
    steps = now;
    element.hidden = !steps.length;
    slider.max = steps.length - 1;
    if (!follows && at < steps.length) return;
    at = steps.length - 1;
    offset = 0;
    slider.value = at;
    if (steps.length) show();
  } };
}

function sampleLine(row) {
  return h("article", { class: "sample" }, thumb(row.clip), h("div", {}, h("b", {}, row.id), h("p", { lang: row.lang }, row.text)));
}

function rolloutLine(row) {
  const parts = (rewards) => Object.entries(rewards || {}).map(([name, value]) => `${name.split(".").pop()} ${value.toFixed(2)}`).join(", ");
  const number = (value) => (typeof value === "number" ? value.toFixed(2) : "–");
  return h("article", { class: "sample" }, thumb(row.clip), h("div", {}, h("b", {}, row.id), row.truth.length ? h("i", {}, ` ${t("True")}: ${row.truth.join(", ")}`) : null,
    row.answers.map((one) => h("p", { lang: one.lang }, h("span", { class: "reward" }, `${t("reward")} ${number(one.reward)}`),
      h("span", { class: "hint" }, ` ${parts(one.rewards)}; ${t("advantage")} ${number(one.advantage)} `), one.text))));
}

async function onePage(page, key) {
  const plots = h("div", { class: "curves" });
  const samples = overSteps(t("Samples over steps"), (step, offset) => get(`/api/runs/${key}/answers`, { step, offset }), sampleLine);
  const rollouts = overSteps(t("Rollouts"), (step, offset) => get(`/api/runs/${key}/rollouts`, { step, offset }), rolloutLine);
  const draw = (now) => {
    const names = Object.keys(now.curves).sort((a, b) => (FIRST.indexOf(a) + 1 || 99) - (FIRST.indexOf(b) + 1 || 99));
    replace(plots, names.filter((name) => now.curves[name].length > 1 && name !== "epoch").map((name) => curve(name, now.curves[name])));
    samples.update(now.generation_steps);
    rollouts.update(now.rollout_steps);
  };
  const found = await get(`/api/runs/${key}`);
  replace(page, h("section", {}, h("nav", { class: "steps" }, h("a", { href: "#/runs" }, `← ${t("Back")}`), h("h1", {}, found.name)), plots, samples.element, rollouts.element));
  draw(found);
  return follow(() => get(`/api/runs/${key}`), draw, 5000);
}
