// The gallery: a list that loads only what is in view, filters in the address, and the confusion matrix.

import { composing, get, h, notice, percent, redraw, replace, s } from "./dom.js";
import { language, t } from "./words.js";
import { colourOf } from "./wheel.js";

const ROW_PX = 84, PART = 60, KEPT_PARTS = 40;

export async function galleryPage(page, about, query) {
  const { gallery, wheels } = about;
  const state = { system: gallery.systems[0].name, sort: "f", wheel: "1", ...query };
  const names = gallery.systems.map((one) => one.name);
  const abort = new AbortController();
  const fit = () => { // only two systems differ
    if (state.other === state.system) delete state.other;
    if (!state.other && state.sort === "difference") { state.sort = "f"; delete state.descending; }
  };
  fit();

  const listBox = h("div", { class: "list", role: "listbox", tabindex: 0, "aria-label": t("clips") });
  const space = h("div", { class: "space" });
  const count = h("span", { class: "count", role: "status" });
  const matrixBox = h("details", { class: "matrix", open: window.innerWidth > 900 });
  const lengthsBox = h("details", { class: "matrix", ontoggle: drawLengths });
  const testBox = h("p", { class: "test" });
  listBox.append(space);

  // ---- the list ----
  let parts = new Map(), total = 0, current = -1, generation = 0, settle = null;
  const drawn = new Map();

  async function part(number) {
    if (parts.has(number)) return;
    const own = generation;
    parts.set(number, null);
    try {
      const found = await get("/api/gallery", { ...state, offset: number * PART, limit: PART }, abort.signal);
      if (own !== generation) return;
      parts.set(number, found.rows);
      if (parts.size > KEPT_PARTS) for (const old of [...parts.keys()].filter((one) => Math.abs(one - number) > KEPT_PARTS / 2)) parts.delete(old);
      if (found.total !== total || number === 0) {
        total = found.total;
        space.style.height = `${total * ROW_PX}px`;
        count.textContent = `${total} ${t("clips")}`;
        if (!total) replace(space, h("p", { class: "empty" }, t("Nothing matches these filters.")));
      }
      draw();
    } catch (error) {
      parts.delete(number);
      if (error.name !== "AbortError") notice(error.message, true);
    }
  }

  function draw() {
    const first = Math.max(0, Math.floor(listBox.scrollTop / ROW_PX) - 4);
    const last = Math.min(total - 1, Math.ceil((listBox.scrollTop + listBox.clientHeight) / ROW_PX) + 4);
    for (const [place, element] of drawn) if (place < first || place > last) { element.remove(); drawn.delete(place); }
    for (let number = Math.floor(first / PART); number <= Math.floor(Math.max(first, last) / PART); number += 1) part(number);
    for (let place = first; place <= last; place += 1) {
      const row = parts.get(Math.floor(place / PART))?.[place % PART];
      if (!row || drawn.has(place)) continue;
      const element = line(row, place);
      drawn.set(place, element);
      space.append(element);
    }
    clearTimeout(settle);
    settle = setTimeout(showPictures, 120);
  }

  function showPictures() { // only once scrolling has stopped: each picture decodes a clip
    for (const image of space.querySelectorAll("img[data-src]")) {
      image.src = image.dataset.src;
      delete image.dataset.src;
    }
  }

  function line(row, place) {
    const target = `#/clip/${encodeURIComponent(row.id)}?${new URLSearchParams({ ...state, place })}`;
    const bar = (f) => h("span", { class: "f" }, h("span", { class: "bar" }, h("span", { style: { width: `${100 * (f ?? 0)}%` } })), h("b", {}, percent(f)));
    const chips = (labels, kind) => h("span", { class: `chips ${kind}` }, labels.map((label) => h("span", { class: "chip" }, label)));
    return h("a", { class: place === current ? "row current" : "row", href: target, role: "option", tabindex: -1, id: `row-${place}`,
      "aria-selected": place === current ? "true" : "false", style: { top: `${place * ROW_PX}px`, height: `${ROW_PX}px` } },
      row.has_media ? h("img", { alt: "", data: { src: `/media/gallery/${encodeURIComponent(row.id)}/thumbnail` }, width: 104, height: 72,
        onerror: (event) => event.target.classList.add("failed") }) : h("span", { class: "noimg" }),
      h("span", { class: "what" },
        h("span", { class: "id" }, row.id, row.faults.map((fault) => h("span", { class: "fault", title: t(fault) }, `⚠ ${t(fault)}`))),
        h("span", { class: "labels" }, h("i", {}, t("True")), chips(row.true, "true")),
        h("span", { class: "labels" }, h("i", {}, t("Predicted")), row.missing ? h("em", {}, t("no prediction")) : chips(row.predicted, "predicted"),
          row.other_predicted ? [h("i", {}, "/"), chips(row.other_predicted, "other")] : null)),
      h("span", { class: "scores" }, bar(row.f), "other_f" in row ? bar(row.other_f) : null));
  }

  function choose(place) {
    current = Math.max(0, Math.min(total - 1, place));
    const top = current * ROW_PX;
    if (top < listBox.scrollTop) listBox.scrollTop = top;
    if (top + ROW_PX > listBox.scrollTop + listBox.clientHeight) listBox.scrollTop = top + ROW_PX - listBox.clientHeight;
    for (const [at, element] of drawn) {
      element.classList.toggle("current", at === current);
      element.setAttribute("aria-selected", at === current ? "true" : "false");
    }
    listBox.setAttribute("aria-activedescendant", `row-${current}`);
  }

  listBox.addEventListener("scroll", draw, { passive: true });
  listBox.addEventListener("keydown", (event) => {
    if (composing(event)) return;
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 6, PageUp: -6, j: 1, k: -1 }[event.key];
    if (step) { choose(current + step); event.preventDefault(); }
    else if (event.key === "Home") { choose(0); event.preventDefault(); }
    else if (event.key === "End") { choose(total - 1); event.preventDefault(); }
    else if (event.key === "Enter" && current >= 0) drawn.get(current)?.click();
  });

  // ---- filters ----
  const select = (name, words, options, all = t("any")) => {
    const element = h("select", { data: { key: name }, onchange: (event) => change(name, event.target.value) },
      all === null ? null : h("option", { value: "" }, all), options.map(([value, text]) => h("option", { value }, text)));
    element.value = state[name] ?? "";
    return h("label", {}, h("span", {}, words), element);
  };
  let typing = {}, pause = null; // what was typed, until somebody stops typing or changes something else
  const typed = (name, words, type = "search") =>
    h("label", {}, h("span", {}, words), h("input", { type, value: state[name] ?? "", data: { key: name }, oninput: (event) => {
      typing[name] = event.target.value;
      clearTimeout(pause);
      pause = setTimeout(reload, 250);
    } }));
  const set = (name, value) => { if (value === "") delete state[name]; else state[name] = value; };
  function take() {
    clearTimeout(pause);
    for (const [name, value] of Object.entries(typing)) set(name, value);
    typing = {};
  }
  const filters = h("form", { class: "filters", onsubmit: (event) => event.preventDefault() });

  function drawFilters() {
    take();
    const sectors = wheels[Number(state.wheel) - 1].map((one) => [one.name, one.name]).concat([["none", t("none")]]);
    const keys = gallery.sort_keys.map((key) => [key, t(key)]).concat(state.other ? [["difference", t("difference")]] : []);
    redraw(filters,
      select("system", t("System"), gallery.systems.map((one) => [one.name, `${one.name} (${percent(one.mean_f)})`]), null),
      names.length > 1 ? select("other", t("Compare with"), names.filter((one) => one !== state.system).map((one) => [one, one]), t("none")) : null,
      h("span", { class: "pair wide" }, select("sort", t("Sort by"), keys, null),
        h("label", { class: "tick" }, h("input", { type: "checkbox", checked: state.descending === "true", data: { key: "descending" },
          onchange: (event) => change("descending", event.target.checked ? "true" : "") }), t("descending"))),
      typed("text", t("Search id, text, subtitle")),
      typed("label", t("Label")),
      select("wheel", t("Wheel"), wheels.map((_, place) => [String(place + 1), `${place + 1}`]), null),
      select("true_sector", t("True"), sectors),
      select("predicted_sector", t("Predicted"), sectors),
      gallery.modalities.length > 1 ? select("modalities", t("Inputs"), gallery.modalities.map((one) => [one.join(","), one.map((name) => t(name)).join(" + ")])) : null,
      select("state", t("State"), gallery.states.map((one) => [one, t(one)])),
      select("fault", t("Fault"), gallery.faults.map((one) => [one, t(one)])),
      h("span", { class: "pair" }, typed("lowest", "F ≥", "number"), typed("highest", "F ≤", "number")),
      h("button", { type: "button", data: { key: "clear" }, onclick: () => { typing = {}; for (const key of Object.keys(state)) if (!["system", "other", "wheel", "sort", "descending"].includes(key)) delete state[key]; drawFilters(); reload(); } }, t("Clear")));
  }

  function change(name, value) {
    set(name, value);
    if (name === "wheel") { delete state.true_sector; delete state.predicted_sector; }
    if (["wheel", "system", "other"].includes(name)) {
      fit();
      if (name === "other" && state.other) Object.assign(state, { sort: "difference", descending: "true" });
      drawFilters();
    }
    reload();
  }

  function reload() {
    take();
    history.replaceState(null, "", `#/gallery?${new URLSearchParams(state)}`);
    generation += 1;
    parts = new Map();
    total = 0;
    current = -1;
    drawn.clear();
    replace(space);
    listBox.scrollTop = 0;
    part(0);
    drawMatrix();
    drawLengths();
    drawTest();
  }

  // ---- confusion and the paired test ----
  async function drawMatrix() {
    const own = generation;
    try {
      const found = await get("/api/confusion", state, abort.signal);
      if (own !== generation) return;
      const most = Math.max(1, ...found.counts.flat());
      const wheel = wheels[found.wheel - 1];
      const name = (sector) => h("span", { style: { "border-bottom": `3px solid ${sector === "none" ? "transparent" : colourOf(wheel, sector)}` } }, t(sector));
      const cell = (row, column) => {
        const n = found.counts[row][column];
        const [real, guess] = [found.sectors[row], found.sectors[column]];
        const on = state.true_sector === real && state.predicted_sector === guess;
        return h("td", {}, h("button", { class: `cell${row === column ? " same" : ""}${on ? " on" : ""}`, disabled: !n, data: { key: `${real}/${guess}` },
          "aria-pressed": on ? "true" : "false", title: `${t("True")} ${real}, ${t("Predicted")} ${guess}: ${n}`, style: { "--share": n / most },
          onclick: () => {
            if (on) { delete state.true_sector; delete state.predicted_sector; } else Object.assign(state, { true_sector: real, predicted_sector: guess });
            drawFilters();
            reload();
          } }, n || ""));
      };
      redraw(matrixBox, h("summary", { data: { key: "summary" } }, `${t("Confusion between sectors")} (${t("Wheel")} ${found.wheel})`),
        h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, ""), found.sectors.map((one) => h("th", { scope: "col" }, name(one))))),
          h("tbody", {}, found.sectors.map((one, row) => h("tr", {}, h("th", { scope: "row" }, name(one)), found.sectors.map((_, column) => cell(row, column)))))),
        h("p", { class: "hint" }, t("rows: true, columns: predicted; a click filters")));
    } catch (error) { if (error.name !== "AbortError") notice(error.message, true); }
  }

  // ---- numbers of labels and lengths ----
  function bars(title, names, series) { // series: [[name, class, counts]]
    const width = 340, height = 110, foot = 16, most = Math.max(1, ...series.flatMap(([, , counts]) => counts));
    const step = width / Math.max(1, names.length), thick = 0.8 * step / series.length;
    return h("figure", { class: "bars" }, h("figcaption", {}, title, series.map(([name, kind]) => h("span", { class: `key ${kind}` }, name))),
      s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${series.map(([name, , counts]) => `${name}: ${counts.map((n, place) => `${names[place]}: ${n}`).join(", ")}`).join("; ")}` },
        series.map(([name, kind, counts], number) => counts.map((n, place) => s("rect", { x: place * step + 0.1 * step + number * thick, width: thick, y: (height - foot) * (1 - n / most), height: (height - foot) * n / most, class: kind },
          s("title", {}, `${name}, ${names[place]}: ${n} ${t("clips")}`)))),
        s("text", { x: 0, y: 10, class: "axis" }, `${most} ${t("clips")}`),
        names.map((name, place) => (names.length > 8 && place % 2 ? null : s("text", { x: (place + 0.5) * step, y: height - 4, "text-anchor": "middle", class: "axis" }, name.split("–")[0])))));
  }

  async function drawLengths() {
    if (!lengthsBox.childElementCount) replace(lengthsBox, h("summary", {}, t("Labels and lengths")), h("div"));
    if (!lengthsBox.open) return;
    const own = generation;
    try {
      const found = await get("/api/lengths", state, abort.signal);
      if (own !== generation) return;
      const shown = [[state.system, "bar-first"], [state.other, "bar-second"]].slice(0, found.predicted.length);
      replace(lengthsBox.lastElementChild,
        bars(t("Labels of a clip"), found.numbers, [[t("True"), "bar-true", found.true], ...shown.map(([name, kind], place) => [name, kind, found.predicted[place]])]),
        found.spans.length ? bars(`${t("Characters of an explanation")}, ${t("from")}`, found.spans, shown.map(([name, kind], place) => [name, kind, found.lengths[place]])) : null);
    } catch (error) { if (error.name !== "AbortError") notice(error.message, true); }
  }

  async function drawTest() {
    const own = generation;
    replace(testBox);
    if (!state.other) return;
    try {
      const found = await get("/api/difference", { system: state.system, other: state.other }, abort.signal);
      if (own !== generation) return;
      const points = (value) => (100 * value).toFixed(1);
      replace(testBox, h("b", {}, `${state.system} − ${state.other}: ${points(found.difference)}`),
        found.low === null ? "" : ` [${points(found.low)}, ${points(found.high)}]`, `, p = ${found.p_value.toFixed(4)}; `,
        `${t("first better")} ${found.first_better}, ${t("second better")} ${found.second_better}, ${t("equal")} ${found.equal}`);
    } catch (error) { if (error.name !== "AbortError") notice(error.message, true); }
  }

  drawFilters();
  replace(page, h("section", { class: "gallery", lang: language },
    h("aside", {}, filters, matrixBox, lengthsBox), h("div", { class: "results" }, h("div", { class: "above" }, count, testBox,
      gallery.n_bad ? h("span", { class: "warn" }, `⚠ ${gallery.n_bad} ${t("rows of the references cannot be used")}`) : null), listBox)));
  reload();
  const resized = new ResizeObserver(draw);
  resized.observe(listBox);
  listBox.focus({ preventScroll: true });
  return () => { abort.abort(); resized.disconnect(); clearTimeout(settle); clearTimeout(pause); };
}
