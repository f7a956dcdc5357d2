// Review: an annotator's tasks one by one, by keyboard; or, for the person in charge, links, progress and agreement.

import { composing, follow, get, h, notice, post, redraw, replace } from "./dom.js";
import { t } from "./words.js";
import { clipView } from "./evidence.js";

const MODALITIES = ["visual", "acoustic", "lexical"];
const KEYS = "1234567890qwertyuio";
const SEEK_S = 0.5;

export async function reviewPage(page) {
  const found = await get("/api/review/overview");
  return found.annotator ? tasksPage(page, found) : chargePage(page, found);
}

function figures(progress) {
  return h("table", { class: "figures" },
    h("thead", {}, h("tr", {}, ["round", "screen", "answers", "median time", "alpha (Jaccard)", "alpha (MASI)", "overlap"].map((one) => h("th", {}, t(one))))),
    h("tbody", {}, progress.map((one) => h("tr", {}, h("td", {}, one.round), h("td", {}, t(one.screen)), h("td", {}, `${one.answered} / ${one.asked}`),
      h("td", {}, one.seconds === null ? "–" : `${Math.round(one.seconds)} s`),
      ["alpha_jaccard", "alpha_masi", "overlap"].map((name) => h("td", {}, one.agreement?.[name] === null || one.agreement?.[name] === undefined ? "–" : one.agreement[name].toFixed(3)))))));
}

// ---- the person in charge ----
function chargePage(page, first) {
  const people = h("div"), table = h("div"), outcome = h("div", { role: "status" });
  const draw = (found) => {
    replace(table, figures(found.progress));
    if (found.people) redraw(people, h("table", { class: "figures" }, h("thead", {}, h("tr", {}, ["round", "annotator", "done", "link"].map((one) => h("th", {}, t(one))))),
      h("tbody", {}, found.people.map((one) => h("tr", {}, h("td", {}, one.round), h("td", {}, one.name), h("td", {}, `${one.done} / ${one.n}`),
        h("td", {}, h("a", { href: one.link, data: { key: one.link } }, new URL(one.link, location.href).href)))))));
  };
  const write = h("button", { class: "main", onclick: async () => {
    try {
      const found = await post("/api/review/finish", {});
      replace(outcome, h("p", {}, `${found.folder}: ${found.n_finished} ${t("clips have passed both rounds")}`, found.n_stale ? `; ${found.n_stale} ${t("descriptions were written before the review")}` : ""),
        h("ul", {}, Object.entries(found.unfinished).map(([reason, n]) => h("li", {}, `${n}: ${reason}`))));
    } catch (error) { notice(error.message, true); }
  } }, t("Write the confirmed records"));
  replace(page, h("section", { class: "charge" }, h("h1", {}, t("Review")), h("p", { class: "hint" }, t("Give each annotator their own link. Opening one here makes this browser that annotator's.")),
    people, h("h2", {}, t("Agreement")), table, h("p", {}, write), outcome));
  draw(first);
  return follow(() => get("/api/review/overview"), draw, 4000);
}

// ---- an annotator ----
function tasksPage(page, found) {
  const { annotator, tasks } = found;
  const box = h("div", { class: "task" });
  // tasks[at] is shown; `aim` is the one that was asked for last, whose reply may be on its way or have failed.
  let at = Math.max(0, tasks.findIndex((task) => !task.done)), aim = at, turn = 0, task = null, view = null, draft = null, begun = 0, spent = 0, progress = found.progress, busy = false;

  const draftKey = () => `studio.draft.${annotator}.${task.round}.${task.screen}.${task.id}`;
  const keep = () => { try { localStorage.setItem(draftKey(), JSON.stringify({ ...draft, spent: time() })); } catch { /* full or forbidden: the answer is still on the page */ } };
  const time = () => spent + (document.visibilityState === "visible" ? (performance.now() - begun) / 1000 : 0);
  const seen = () => { if (document.visibilityState === "visible") begun = performance.now(); else spent += (performance.now() - begun) / 1000; };
  document.addEventListener("visibilitychange", seen);

  const tally = h("progress", { max: tasks.length, "aria-label": t("done") }), counted = h("span", { class: "done-count" }), agreed = h("span", { class: "alpha" });
  const chooser = h("select", { "aria-label": t("clips"), onchange: () => open(Number(chooser.value)) }, tasks.map((_, place) => h("option", { value: place })));
  const bar = h("div", { class: "review-bar" }, h("b", {}, annotator), tally, counted, agreed, chooser,
    h("button", { class: "plain", onclick: async () => { await post("/api/review/leave", {}); location.reload(); } }, t("Leave")));

  function drawBar() { // in place: the focus stays
    const n = tasks.filter((one) => one.done).length;
    const own = progress.find((one) => one.round === tasks[at]?.round && one.screen === "labels");
    const alpha = own?.agreement?.alpha_jaccard;
    tally.value = n;
    counted.textContent = `${n} / ${tasks.length}`;
    agreed.hidden = alpha === null || alpha === undefined;
    agreed.textContent = agreed.hidden ? "" : `${t("Agreement")} α = ${alpha.toFixed(3)}`;
    tasks.forEach((one, place) => {
      const words = `${one.done ? "✓" : "○"} ${one.id} · ${t(one.screen)}`;
      if (chooser.options[place].text !== words) chooser.options[place].text = words;
    });
    if (tasks.length) chooser.value = at;
  }

  async function open(place) {
    const own = ++turn, wanted = aim = Math.max(0, Math.min(tasks.length - 1, place));
    const { screen, id } = tasks[wanted];
    let fresh;
    try {
      fresh = await get("/api/review/task", { screen, id });
    } catch (error) {
      if (own === turn) { notice(error.message, true); drawBar(); } // the task before stays
      return;
    }
    if (own !== turn) return; // another one was asked for since
    at = wanted;
    const sameClip = task?.id === fresh.id;
    task = fresh;
    let stored = null;
    try { stored = JSON.parse(localStorage.getItem(draftKey())); } catch { /* none */ }
    spent = stored?.spent || 0;
    begun = performance.now();
    const before = task.answer;
    draft = stored || (screen === "clues"
      ? { clues: Object.fromEntries(MODALITIES.map((name) => [name, [...(before ? before.clues[name] || [] : task.given[name])]])) }
      : { labels: before ? before.labels.filter((label) => task.candidates.includes(label)) : [], other: before ? [...before.other] : [], writing: "" });
    if (!sameClip) {
      view?.stop();
      view = clipView("review", id, { isSound: task.sound_only });
      view.done.catch((error) => notice(error.message, true));
    }
    draw();
  }

  function draw() {
    const words = task.words;
    replace(box, h("div", { class: "columns" },
      h("div", { class: "left" }, view.element, h("p", { class: "subtitle", lang: task.lang }, h("i", {}, words.says), task.said || "—")),
      h("div", { class: "right" }, h("h1", {}, `${task.id} · ${t("round")} ${task.round}`), h("p", { class: "instruction", lang: task.lang }, words[task.screen]),
        task.screen === "clues" ? cluesForm(words) : labelsForm(words),
        h("div", { class: "pair" }, h("button", { class: "main save", onclick: save }, `${t("Save")} (Ctrl + ↵)`), h("button", { onclick: () => open(aim + 1) }, `${t("Skip")} (]`, ")"),
          task.answer ? h("span", { class: "good" }, `✓ ${t("Saved")}`) : null),
        h("details", { class: "keys" }, h("summary", {}, `${t("Keyboard")} (?)`), keysTable()))));
    drawBar();
    focusFirst();
  }

  function keysTable() {
    const rows = task.screen === "clues"
      ? [["Ctrl + ↵", "Save"], ["Tab", "next field"], ["Alt + N", "new clue of this kind"], ["Alt + ⌫", "remove this clue"], ["Alt + T", "write the time of the clip before it"]]
      : [["1 2 3 … q w e", "tick a word"], ["/", "write another word; ↵ adds it"], ["↵, Ctrl + ↵", "Save"]];
    return h("table", {}, [...rows, ["Alt + ← →", "back and forward half a second"], ["Alt + P", "play or stop"], ["[ ]", "previous and next task (Esc leaves a field)"]]
      .map(([key, words]) => h("tr", {}, h("td", {}, h("kbd", {}, key)), h("td", {}, t(words)))));
  }

  function cluesForm(words) {
    const form = h("div", { class: "clues" });
    for (const name of MODALITIES) {
      const list = h("div", { class: "clue-list", data: { modality: name } });
      const add = (text = "", focus = false) => {
        const field = h("textarea", { rows: 2, "aria-label": words[name], lang: task.lang, data: { modality: name }, oninput: read });
        field.value = text;
        const row = h("div", { class: "clue" }, field, h("button", { class: "plain", title: "Alt + ⌫", "aria-label": t("remove this clue"), tabindex: -1, onclick: () => { row.remove(); read(); } }, "✕"));
        list.append(row);
        if (focus) { field.focus(); read(); }
      };
      draft.clues[name].forEach((text) => add(text));
      list.addEventListener("add", () => add("", true));
      form.append(h("h2", { class: name }, words[name], h("button", { class: "plain add", tabindex: -1, onclick: () => add("", true) }, "+")), list);
    }
    function read() {
      draft.clues = Object.fromEntries(MODALITIES.map((name) => [name, [...form.querySelectorAll(`textarea[data-modality=${name}]`)].map((field) => field.value)]));
      keep();
    }
    return form;
  }

  function labelsForm(words) {
    const chips = h("div", { class: "ticks", role: "group", "aria-label": words.candidates });
    const others = h("div", { class: "chips other" });
    const field = h("input", { id: "other", "aria-label": words.other, placeholder: words.add, lang: task.lang, oninput: () => { draft.writing = field.value; keep(); }, onkeydown: (event) => {
      if (composing(event)) return;
      if (event.key === "Enter" && !event.ctrlKey && field.value.trim()) {
        draft.other.push(field.value.trim());
        field.value = draft.writing = "";
        event.preventDefault();
        event.stopPropagation();
        drawChips();
        keep();
      } else if (event.key === "Backspace" && !field.value && draft.other.length) { draft.other.pop(); drawChips(); keep(); }
    } });
    field.value = draft.writing || "";
    const buttons = task.candidates.map((label, place) => h("button", { class: "tick-label", lang: task.lang, data: { label }, onclick: () => tick(label) },
      place < KEYS.length ? h("kbd", {}, KEYS[place]) : null, label));
    replace(chips, buttons);
    function drawChips() {
      for (const button of buttons) button.setAttribute("aria-pressed", draft.labels.includes(button.dataset.label) ? "true" : "false");
      replace(others, draft.other.map((label, place) => h("span", { class: "chip" }, label, h("button", { class: "plain", "aria-label": `${t("remove")} ${label}`, onclick: () => { draft.other.splice(place, 1); drawChips(); keep(); (others.querySelectorAll("button")[place] || field).focus(); } }, "✕"))));
    }
    function tick(label) {
      draft.labels = draft.labels.includes(label) ? draft.labels.filter((one) => one !== label) : [...draft.labels, label];
      drawChips();
      keep();
    }
    chips.tick = (place) => task.candidates[place] !== undefined && tick(task.candidates[place]);
    drawChips();
    return h("div", { class: "labels-form" }, h("h2", {}, words.candidates), chips, h("h2", {}, words.other), others, field);
  }

  function focusFirst() {
    if (task.screen === "clues") box.querySelector("textarea")?.focus();
    else box.querySelector(".ticks button")?.focus();
  }

  async function save() {
    if (busy || !task) return;
    busy = true;
    const own = turn, shown = task, saved = tasks[at], key = draftKey();
    const body = { screen: task.screen, id: task.id, seconds: time() };
    if (task.screen === "clues") body.clues = draft.clues;
    else Object.assign(body, { labels: draft.labels, other: draft.writing?.trim() ? [...draft.other, draft.writing.trim()] : draft.other });
    keep();
    try {
      ({ progress } = await post("/api/review/answer", body));
      localStorage.removeItem(key);
      saved.done = true;
      notice(`${t("Saved")}: ${saved.id}, ${t(saved.screen)}`);
      if (own !== turn || task !== shown) { drawBar(); return; } // the annotator has gone on meanwhile
      const next = tasks.findIndex((one, place) => place > at && !one.done);
      const open_ = next >= 0 ? next : tasks.findIndex((one) => !one.done);
      if (open_ >= 0) await open(open_);
      else { await open(at); notice(t("All tasks are done. Thank you!")); }
    } catch (error) {
      notice(`${error.message}; ${t("the draft is kept in this browser")}`, true);
    } finally { busy = false; }
  }

  const keys = (event) => {
    if (composing(event)) return undefined;
    if (!task && (event.altKey || !"[]".includes(event.key))) return undefined; // none could be loaded: another one can be
    const target = event.target, inField = /^(TEXTAREA|INPUT|SELECT)$/.test(target.tagName);
    const act = (work) => { event.preventDefault(); work(); };
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return act(save);
    if (event.altKey) {
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") return act(() => view.seek(Math.max(0, view.player.currentTime + (event.key === "ArrowLeft" ? -SEEK_S : SEEK_S))));
      if (event.code === "KeyP") return act(() => (view.player.paused ? view.player.play() : view.player.pause()));
      if (task.screen === "clues" && event.code === "KeyN") return act(() => box.querySelector(`.clue-list[data-modality=${target.dataset?.modality || "visual"}]`).dispatchEvent(new Event("add")));
      if (task.screen === "clues" && event.key === "Backspace" && target.tagName === "TEXTAREA") return act(() => {
        const next = target.closest(".clue").nextElementSibling?.querySelector("textarea") || target.closest(".clue").previousElementSibling?.querySelector("textarea");
        target.closest(".clue").querySelector("button").click();
        next?.focus();
      });
      if (task.screen === "clues" && event.code === "KeyT" && target.tagName === "TEXTAREA") return act(() => {
        const now = view.player.currentTime, text = target.value.replace(/^\[[^\]]*\]\s*/, "");
        target.value = `[${now.toFixed(2)}-${(now + 0.5).toFixed(2)} s] ${text}`;
        target.dispatchEvent(new Event("input"));
      });
      return undefined;
    }
    if (event.key === "Escape") return act(() => { target.blur(); });
    if (inField || event.ctrlKey || event.metaKey) return undefined;
    if (event.key === "[") return act(() => open(aim - 1));
    if (event.key === "]") return act(() => open(aim + 1));
    if (event.key === "?") return act(() => { const details = box.querySelector(".keys"); details.open = !details.open; });
    if (task.screen === "labels") {
      const place = KEYS.indexOf(event.key.toLowerCase());
      if (place >= 0 && event.key.length === 1) return act(() => { box.querySelector(".ticks").tick(place); });
      if (event.key === "/") return act(() => box.querySelector("#other").focus());
      if (event.key === "Enter" && !target.classList.contains("tick-label") && target.tagName !== "BUTTON") return act(save);
    }
    return undefined;
  };
  document.addEventListener("keydown", keys);
  replace(page, h("section", { class: "review" }, bar, box));
  const end = follow(() => get("/api/review/progress"), (now) => { ({ progress } = now); drawBar(); }, 8000);
  if (tasks.length) open(at); else replace(box, h("p", { class: "empty" }, t("There are no tasks for you.")));
  return () => {
    turn += 1;
    end();
    document.removeEventListener("keydown", keys);
    document.removeEventListener("visibilitychange", seen);
    view?.stop();
  };
}
