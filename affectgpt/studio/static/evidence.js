// A clip with what is in it: player, frames with times, waveform with speech, pauses and pitch, and marks over time.

import { get, h, replace, s, seconds } from "./dom.js";
import { language, t } from "./words.js";

const WIDTH = 800, WAVE = 90, PITCH = 70, HEAT = 10;
const HEATED = { frames: "pictures", motion: "pictures", face: "pictures", face_motion: "pictures", audio: "sound" };

// Returns {element, mark(over_time, drop), clear(), seek(s), done}; `done` resolves with the values of the evidence.
export function clipView(group, id, { isSound = false } = {}) {
  const base = `/media/${group}/${encodeURIComponent(id)}`;
  const player = h(isSound ? "audio" : "video", { controls: true, preload: "metadata", src: `${base}/file`, playsinline: true, class: "player" });
  const strip = h("div", { class: "strip" });
  const chart = h("div", { class: "chart" });
  const told = h("p", { class: "hint" });
  const moves = h("div", { class: "moves" }), units = h("div", { class: "moves" });
  const element = h("section", { class: "clip" }, player, strip, chart, units, moves, told);
  let values = null, head = null, heat = null, frames = [];

  const duration = () => Math.max(values.duration_s, 0.01);
  const seek = (time) => { player.currentTime = time; };
  const place = (time) => WIDTH * time / duration();

  function drawFrames() {
    frames = values.frames.map((time, number) => h("button", { class: "frame", title: seconds(time), onclick: () => seek(time) },
      h("img", { src: `${base}/frame/${number}`, alt: `${t("Frames")} ${seconds(time)}` }),
      h("span", { class: "time" }, seconds(time)), h("span", { class: "glow" })));
    replace(strip, frames);
  }

  function boxes(number) {
    return (values.faces?.[number] || []).map((face) => h("span", { class: face.main ? "face main" : "face", title: t("faces"), style: {
      left: `${100 * face.box[0]}%`, top: `${100 * face.box[1]}%`, width: `${100 * face.box[2]}%`, height: `${100 * face.box[3]}%` } }));
  }

  function drawSound() {
    const wave = values.wave || [], parts = [], mid = WAVE / 2;
    const span = values.sound_s || duration();
    const most = Math.max(0.05, ...wave);
    for (const [from, to] of values.speech || []) parts.push(s("rect", { x: place(from), y: 0, width: place(to) - place(from), height: WAVE, class: "speech" }, s("title", {}, `${t("speech")} ${seconds(from)} – ${seconds(to)}`)));
    for (const [from, to] of values.pauses || []) parts.push(s("rect", { x: place(from), y: 0, width: place(to) - place(from), height: WAVE, class: "pause" }, s("title", {}, `${t("pause")} ${seconds(to - from)}`)));
    const points = wave.map((peak, n) => [place(span * (n + 0.5) / wave.length), peak / most]);
    if (points.length) {
      const upper = points.map(([x, peak]) => `${x.toFixed(1)},${(mid - peak * (mid - 3)).toFixed(1)}`);
      const lower = points.map(([x, peak]) => `${x.toFixed(1)},${(mid + peak * (mid - 3)).toFixed(1)}`).reverse();
      parts.push(s("polygon", { points: [...upper, ...lower].join(" "), class: "wave" }));
    }
    const pitch = values.pitch || [], known = pitch.map(([, hz]) => hz).filter((hz) => hz !== null);
    if (known.length) {
      const low = Math.log(Math.min(...known) * 0.95), high = Math.log(Math.max(...known) * 1.05);
      const y = (hz) => WAVE + PITCH - 4 - (PITCH - 8) * (Math.log(hz) - low) / (high - low);
      let line = [];
      for (const [time, hz] of [...pitch, [0, null]]) {
        if (hz !== null) { line.push(`${place(time).toFixed(1)},${y(hz).toFixed(1)}`); continue; }
        if (line.length > 1) parts.push(s("polyline", { points: line.join(" "), class: "pitch" }));
        else if (line.length) { const [x, top] = line[0].split(","); parts.push(s("circle", { cx: x, cy: top, r: 1.5, class: "pitch-dot" })); }
        line = [];
      }
      for (const hz of [Math.min(...known), Math.max(...known)]) parts.push(s("text", { x: 3, y: y(hz) + (hz === known[0] ? 0 : 4), class: "axis" }, `${Math.round(hz)} Hz`));
    }
    heat = s("g", { class: "heat" });
    head = s("line", { x1: 0, x2: 0, y1: 0, y2: WAVE + PITCH, class: "head" });
    const height = WAVE + (known.length ? PITCH : 0);
    const picture = s("svg", { viewBox: `0 0 ${WIDTH} ${height + HEAT}`, preserveAspectRatio: "none", role: "img", "aria-label":
      `${t("Sound")}: ${(values.speech || []).length} × ${t("speech")}, ${(values.pauses || []).length} × ${t("pause")}` }, parts, heat, head);
    heat.setAttribute("transform", `translate(0 ${height})`);
    picture.addEventListener("click", (event) => { const box = picture.getBoundingClientRect(); seek(duration() * (event.clientX - box.left) / box.width); });
    const legend = [values.speech && h("span", { class: "key speech" }, t("speech")), values.pauses?.length ? h("span", { class: "key pause" }, t("pause")) : null, known.length ? h("span", { class: "key pitch" }, t("pitch")) : null];
    replace(chart, picture, h("p", { class: "legend" }, legend));
  }

  function drawMovements() { // one line per kind of movement, over the same time as the sound
    const kinds = new Map();
    for (const one of values.movements || []) kinds.set(one.name, [...(kinds.get(one.name) || []), one]);
    if (!kinds.size) return;
    replace(moves, h("h3", {}, t("Face")), [...kinds].map(([name, list]) => h("div", { class: "move" }, h("span", { class: "move-name" }, t(name.replaceAll("_", " "))),
      h("span", { class: "move-line" }, list.map((one) => h("button", { class: "move-bar", title: `${seconds(one.start_s)} – ${seconds(one.end_s)}: ${one.value} ${one.unit}`, onclick: () => seek(one.peak_s),
        "aria-label": `${t(name.replaceAll("_", " "))} ${seconds(one.start_s)}`, style: { left: `${100 * one.start_s / duration()}%`, width: `${100 * Math.max(0.01, (one.end_s - one.start_s) / duration())}%` } }))))));
  }

  function drawUnits(found) { // a curve per action unit of a table, over the same time as the sound
    if (found.error) { replace(units, h("p", { class: "error" }, found.error)); return; }
    const peak = (one) => Math.max(0, ...one.points.map(([, value]) => value ?? 0));
    const line = (one) => {
      const runs = [[]]; // a curve ends where no face was tracked
      for (const [time, value] of one.points) if (value === null) runs.push([]); else runs.at(-1).push(`${place(time).toFixed(1)},${(26 - 24 * value / found.most).toFixed(1)}`);
      const words = `${one.name} ${one.words[language]}`;
      return h("div", { class: "move" }, h("span", { class: "move-name" }, words), s("svg", { viewBox: `0 0 ${WIDTH} 28`, preserveAspectRatio: "none", class: "unit", role: "img",
        "aria-label": `${words}: ${t("at most")} ${peak(one)} ${t("of")} ${found.most}` }, runs.filter((run) => run.length).map((run) => s("polyline", { points: run.join(" "), class: "pitch" }))));
    };
    const quiet = (one) => peak(one) < found.most / 5 + (found.most === 1 ? 0.3 : 0); // intensity 1, or probability 0.5
    const [calm, active] = [found.curves.filter(quiet), found.curves.filter((one) => !quiet(one))];
    replace(units, h("h3", {}, `${t("Action units")} (${t(found.of)}, 0–${found.most})`), active.map(line),
      calm.length ? h("details", {}, h("summary", {}, `${t("hardly active")}: ${calm.map((one) => one.name).join(", ")}`), calm.map(line)) : null);
  }

  function follow() {
    if (head && values) { const x = place(player.currentTime || 0); head.setAttribute("x1", x); head.setAttribute("x2", x); }
  }
  let running = null;
  const tick = () => { follow(); running = requestAnimationFrame(tick); };
  player.addEventListener("play", tick);
  player.addEventListener("pause", () => { cancelAnimationFrame(running); follow(); });
  player.addEventListener("seeked", follow);

  const done = get(`${base}/evidence`).then((found) => {
    values = found;
    if (values.frames.length) drawFrames(); else strip.remove();
    if (values.wave) drawSound(); else chart.remove();
    replace(told, values.notes);
    if (!values.notes.length) told.remove();
    if (group !== "upload") get(`${base}/units`).then((table) => { if (table) drawUnits(table); }, (error) => { told.textContent = error.message; element.append(told); });
    if (values.frames.length) get(`${base}/faces`).then((more) => {
      Object.assign(values, more);
      frames.forEach((frame, number) => frame.append(...boxes(number)));
      drawMovements();
    }, (error) => { told.textContent = error.message; element.append(told); });
    return values;
  });

  function shares(bins, n) { // shares over time -> shares of n equal parts
    return Array.from({ length: n }, (_, place) => bins.reduce((sum, share, bin) => {
      const overlap = Math.min((bin + 1) / bins.length, (place + 1) / n) - Math.max(bin / bins.length, place / n);
      return sum + share * Math.max(0, overlap) * bins.length;
    }, 0));
  }

  // Lights what a sentence rests on: frames and seconds, in proportion to their shares.
  function mark(over_time, drop) {
    clear();
    if (!values || !over_time) return;
    const seen = ["frames", "motion", "face", "face_motion"].filter((name) => over_time[name]);
    if (seen.length && frames.length && (drop?.visual ?? 1) > 0) {
      const found = shares(over_time[seen[0]], frames.length), most = Math.max(...found);
      frames.forEach((frame, number) => {
        frame.style.setProperty("--glow", (found[number] / most).toFixed(3));
        frame.classList.toggle("lit", found[number] > 0.6 * most);
      });
      strip.classList.add("marked");
    }
    const rows = Object.entries(over_time).filter(([name]) => HEATED[name] === "sound");
    if (heat && rows.length && (drop?.acoustic ?? 1) > 0) {
      const [, bins] = rows[0], most = Math.max(...bins), span = values.sound_s || duration();
      bins.forEach((share, bin) => heat.append(s("rect", { x: place(span * bin / bins.length), width: place(span / bins.length), y: 0, height: HEAT, class: "heat-cell", "fill-opacity": (share / most).toFixed(3) })));
      chart.classList.add("marked");
    }
  }

  function clear() {
    strip.classList.remove("marked");
    chart.classList.remove("marked");
    for (const frame of frames) { frame.style.removeProperty("--glow"); frame.classList.remove("lit"); }
    heat?.replaceChildren();
  }

  return { element, mark, clear, seek, done, player, stop: () => { cancelAnimationFrame(running); player.pause(); player.removeAttribute("src"); player.load(); } };
}
