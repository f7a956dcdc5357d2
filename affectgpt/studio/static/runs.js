// Runs: a list of all, and of one its curves, its answers to validation clips over steps, and its rollouts.

import { get, h, notice, percent, replace, s } from "./dom.js";
import { t } from "./words.js";

const WIDTH = 320, HEIGHT = 130, LEFT = 44, BOTTOM = 18, TOP = 8;
const FIRST = ["loss", "eval_f_s", "reward", "learning_rate"];

function curve(name, points) {
  const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)], [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  const px = (x) => LEFT + (WIDTH - LEFT - 6) * (x1 > x0 ? (x - x0) / (x1 - x0) : 0.5);
  const py = (y) => TOP + (HEIGHT - TOP - BOTTOM) * (y1 > y0 ? (y1 - y) / (y1 - y0) : 0.5);
  const short = (value) => (value === 0 ? "0" : Math.abs(value) >= 1000 || Math.abs(value) < 0.01 ? value.toExponential(1) : value.toPrecision(3));
  return h("figure", { class: "curve" }, h("figcaption", {}, t(name), h("b", {}, ` ${short(ys.at(-1))}`)),
    s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${name}: ${short(ys[0])} – ${short(ys.at(-1))}` },
      s("line", { x1: LEFT, x2: LEFT, y1: TOP, y2: HEIGHT - BOTTOM, class: "axis-line" }), s("line", { x1: LEFT, x2: WIDTH, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, class: "axis-line" }),
      [y0, y1].map((y) => s("text", { x: LEFT - 4, y: py(y) + 4, class: "axis", "text-anchor": "end" }, short(y))),
      [x0, x1].map((x, place) => s("text", { x: px(x), y: HEIGHT - 4, class: "axis", "text-anchor": place ? "end" : "start" }, x)),
      points.length > 1 ? s("polyline", { points: points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join(" "), class: "curve-line" }) : null,
      points.length < 40 ? points.map(([x, y]) => s("circle", { cx: px(x), cy: py(y), r: 2.5, class: "curve-dot" })) : null));
}

const thumb = (clip) => h("img", { src: `/media/watch/${encodeURIComponent(clip)}/frame/3`, alt: "", loading: "lazy", width: 104, height: 78, onerror: (event) => event.target.remove() });

export function runsPage(page, about, query, rest) {
  return rest[0] ? onePage(page, rest[0]) : listPage(page);
}

async function listPage(page) {
  const box = h("div", { class: "charge" });
  const draw = (runs) => replace(box, runs.length ? h("table", { class: "figures runs" },
    h("thead", {}, h("tr", {}, ["run", "kind", "status", "data", "model", "score", "step", "started"].map((one) => h("th", {}, t(one))))),
    h("tbody", {}, runs.map((run) => h("tr", {}, h("td", {}, h("a", { href: `#/runs/${run.key}` }, run.name)), h("td", {}, run.stage ? `${run.kind} ${run.stage}` : run.kind),
      h("td", { class: `status ${run.status}` }, run.problem ? `⚠ ${run.problem}` : run.status), h("td", {}, run.data || "–"), h("td", { class: "long", title: run.model || "" }, (run.model || "–").split("/").slice(-2).join("/")),
      h("td", {}, run.score === null ? "–" : `${percent(run.score)} (${run.score_of})`), h("td", {}, run.steps === null ? "–" : `${run.steps} / ${run.planned_steps ?? "?"}`), h("td", {}, (run.started || "").slice(0, 16).replace("T", " "))))))
    : h("p", { class: "empty" }, t("none")));
  draw(await get("/api/runs"));
  replace(page, h("h1", {}, t("Runs")), box);
  const timer = setInterval(() => get("/api/runs").then(draw, () => {}), 5000);
  return () => clearInterval(timer);
}

async function onePage(page, key) {
  const head = h("h1"), plots = h("div", { class: "curves" }), samples = h("div", { class: "samples" }), rollouts = h("div", { class: "samples" });
  const choice = (steps, show) => { // a slider over steps, at the newest one
    const told = h("output", {}, steps.at(-1));
    const slider = h("input", { type: "range", min: 0, max: steps.length - 1, value: steps.length - 1, "aria-label": t("step"), oninput: () => { told.textContent = steps[slider.value]; show(steps[slider.value]); } });
    show(steps.at(-1));
    return h("p", { class: "pair" }, slider, h("span", {}, t("step"), " ", told));
  };
  const failed = (error) => notice(error.message, true);
  const found = await get(`/api/runs/${key}`);
  const drawCurves = (now) => {
    const names = Object.keys(now.curves).sort((a, b) => (FIRST.indexOf(a) + 1 || 99) - (FIRST.indexOf(b) + 1 || 99));
    replace(plots, names.filter((name) => now.curves[name].length > 1 && name !== "epoch").map((name) => curve(name, now.curves[name])));
  };
  replace(head, found.name);
  drawCurves(found);
  replace(page, h("section", {}, h("nav", { class: "steps" }, h("a", { href: "#/runs" }, `← ${t("Back")}`), head), plots,
    found.generation_steps.length ? [h("h2", {}, t("Samples over steps")), choice(found.generation_steps, (step) => get(`/api/runs/${key}/answers`, { step }).then((rows) =>
      replace(samples, rows.map((row) => h("article", { class: "sample" }, thumb(row.clip), h("div", {}, h("b", {}, row.id), h("p", { lang: row.lang }, row.text))))), failed)), samples] : null,
    found.rollout_steps.length ? [h("h2", {}, t("Rollouts")), choice(found.rollout_steps, (step) => get(`/api/runs/${key}/rollouts`, { step }).then((rows) => {
      const clips = new Map();
      for (const row of rows) clips.set(row.id, [...(clips.get(row.id) || []), row]);
      replace(rollouts, [...clips].map(([id, list]) => h("article", { class: "sample" }, thumb(list[0].clip), h("div", {}, h("b", {}, id), list[0].truth ? h("i", {}, ` ${t("True")}: ${list[0].truth.join(", ")}`) : null,
        list.sort((a, b) => (b.reward ?? 0) - (a.reward ?? 0)).map((row) => h("p", { lang: row.lang }, h("span", { class: "reward", title: Object.entries(row.rewards || {}).map(([name, value]) => `${name} ${value}`).join("\n") }, `${t("reward")} ${(row.reward ?? 0).toFixed(2)}`), " ", row.text))))));
    }, failed)), rollouts] : null));
  const timer = setInterval(() => get(`/api/runs/${key}`).then(drawCurves, () => {}), 5000);
  return () => clearInterval(timer);
}
