// The emotion wheel: sectors inside, their parts outside, and labels at their places.

import { h, s } from "./dom.js";
import { t } from "./words.js";

const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F"];
export const colourOf = (wheel, sector) => COLOURS[Math.max(0, wheel.findIndex((one) => one.name === sector)) % COLOURS.length];

const SIZE = 540, HEIGHT = 290, CX = SIZE / 2, CY = HEIGHT / 2, INNER = 30, MIDDLE = 86, OUTER = 112, TEXT = 128;

const at = (angle, radius) => [CX + radius * Math.sin(angle), CY - radius * Math.cos(angle)];

function ring(from, to, low, high) {
  const large = to - from > Math.PI ? 1 : 0;
  const [a, b, c, d] = [at(from, high), at(to, high), at(to, low), at(from, low)];
  return `M${a}A${high} ${high} 0 ${large} 1 ${b}L${c}A${low} ${low} 0 ${large} 0 ${d}Z`;
}

// groups: [{name, labels, places, kind}], kind "true" or "predicted"; number: 0 to 4.
export function wheelPicture(wheels, number, groups) {
  const wheel = wheels[number];
  const total = wheel.reduce((n, sector) => n + Math.max(1, sector.parts.length), 0);
  const parts = [], marks = [], absent = [];
  const angles = new Map();
  let done = 0;
  const used = new Set();
  for (const group of groups) for (const label of group.labels) {
    const place = group.places[label]?.[number];
    if (place) used.add(place.join("\n"));
  }
  for (const sector of wheel) {
    const n = Math.max(1, sector.parts.length);
    const from = 2 * Math.PI * done / total, to = 2 * Math.PI * (done + n) / total;
    const colour = colourOf(wheel, sector.name);
    const isUsed = [...used].some((one) => one.startsWith(`${sector.name}\n`));
    parts.push(s("path", { d: ring(from, to, INNER, MIDDLE), fill: colour, "fill-opacity": isUsed ? 0.9 : 0.32, class: "sector" }));
    const [x, y] = at((from + to) / 2, (INNER + MIDDLE) / 2 + 4);
    parts.push(s("text", { x, y, class: isUsed ? "sector-name used" : "sector-name" }, sector.name));
    sector.parts.forEach((part, place) => {
      const low = from + (to - from) * place / n, high = from + (to - from) * (place + 1) / n;
      const on = used.has(`${sector.name}\n${part}`);
      angles.set(`${sector.name}\n${part}`, (low + high) / 2);
      parts.push(s("path", { d: ring(low, high, MIDDLE + 2, OUTER), fill: colour, "fill-opacity": on ? 1 : 0.18, class: "part" },
        s("title", {}, `${sector.name}: ${part}`)));
    });
    done += n;
  }
  const byPlace = new Map();
  for (const group of groups) for (const label of group.labels) {
    const place = group.places[label]?.[number];
    const angle = place && angles.get(place.join("\n"));
    if (angle === undefined || angle === null) { absent.push({ label, kind: group.kind }); continue; }
    const key = `${label}\n${angle}`;
    if (byPlace.has(key)) byPlace.get(key).kinds.add(group.kind);
    else byPlace.set(key, { label, angle, kinds: new Set([group.kind]) });
  }
  for (const side of [1, -1]) {
    const own = [...byPlace.values()].filter((one) => (Math.sin(one.angle) >= 0 ? 1 : -1) === side)
      .map((one) => ({ ...one, y: at(one.angle, TEXT)[1] })).sort((a, b) => a.y - b.y);
    let last = 4;
    for (const one of own) { one.y = Math.max(one.y, last + 17); last = one.y; }
    let limit = HEIGHT - 6;
    for (const one of own.slice().reverse()) { one.y = Math.min(one.y, limit); limit = one.y - 17; }
    for (const one of own) {
      const [x0, y0] = at(one.angle, OUTER), [x1] = at(one.angle, TEXT);
      const x2 = CX + side * (TEXT + 4);
      const kinds = [...one.kinds];
      const kind = kinds.length > 1 ? "both" : kinds[0];
      marks.push(s("polyline", { points: `${x0},${y0} ${x1},${one.y} ${x2},${one.y}`, class: "leader" }));
      marks.push(s("text", { x: x2 + 4 * side, y: one.y + 4, "text-anchor": side > 0 ? "start" : "end", class: `wheel-label ${kind}` },
        kind === "true" ? `○ ${one.label}` : kind === "both" ? `◉ ${one.label}` : `● ${one.label}`));
    }
  }
  const kinds = new Set(groups.map((group) => group.kind));
  const words = [...byPlace.values()].map((one) => one.label).join(", ") || t("none");
  return h("figure", { class: "wheel" },
    s("svg", { viewBox: `0 0 ${SIZE} ${HEIGHT}`, role: "img", "aria-label": `${t("Wheel")} ${number + 1}: ${words}` }, parts, marks),
    h("figcaption", {}, kinds.size > 1 ? `● ${t("Predicted")}  ○ ${t("True")}  ◉ ${t("both")}` : "",
      absent.length ? h("span", { class: "absent" }, `${kinds.size > 1 ? "; " : ""}${t("not on this wheel")}: ${[...new Set(absent.map((one) => one.label))].join(", ")}`) : null));
}

export function wheelWithChoice(wheels, groups, state) {
  const box = h("div");
  const draw = () => {
    const chooser = h("select", { "aria-label": t("Wheel"), onchange: (event) => { state.wheel = Number(event.target.value); draw(); } },
      wheels.map((_, place) => h("option", { value: place }, `${t("Wheel")} ${place + 1}`)));
    chooser.value = state.wheel;
    box.replaceChildren(wheelPicture(wheels, state.wheel, groups), chooser);
  };
  draw();
  return box;
}
