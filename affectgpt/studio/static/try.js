// Try a clip: upload or record one, ask one or two models, and see what each sentence rests on.

import { get, h, notice, post, replace, send, stream } from "./dom.js";
import { language, t } from "./words.js";
import { clipView } from "./evidence.js";
import { answerView } from "./answer.js";

const KINDS = { mp4: "video/mp4", m4v: "video/mp4", webm: "video/webm", mov: "video/quicktime", mkv: "video/x-matroska", avi: "video/x-msvideo",
  wav: "audio/wav", mp3: "audio/mpeg", ogg: "audio/ogg", flac: "audio/flac", m4a: "audio/mp4" };

export async function tryPage(page, about, query) {
  const named = query.id ? await get(`/api/clip/${encodeURIComponent(query.id)}`) : null;
  const state = { clip: null, view: null, wheel: 0, answers: [], running: null, recorder: null };
  let turn = 0; // of what the left side shows: replies to an earlier one come too late
  const clipBox = h("div", { class: "left" });
  const answersBox = h("div", { class: "answers", "aria-live": "polite" });
  const field = (words, element) => h("label", {}, h("span", {}, words), element);
  const options = (values) => values.map((value) => h("option", { value }, t(value)));

  const subtitle = h("textarea", { rows: 2, placeholder: t("Edit the subtitle if it is wrong or missing"), "aria-label": t("Subtitle") });
  const heard = h("span", { class: "hint", role: "status" });
  const listen = h("button", { type: "button", disabled: true, onclick: () => propose(true) }, t("Listen"));
  const task = h("select", { onchange: () => { candidatesField.hidden = task.value !== "fixed"; } }, options(about.tasks));
  task.value = "both";
  const lang = h("select", {}, h("option", { value: "en" }, "English"), h("option", { value: "zh" }, "中文"));
  lang.value = language;
  const candidates = h("input", { value: "happy, sad, angry, worried, surprised, neutral" });
  const candidatesField = field(t("Candidates"), candidates);
  candidatesField.hidden = true;
  const inputs = h("fieldset", {}, h("legend", {}, t("Inputs to use")));
  const ask = h("button", { class: "main", disabled: true }, t("Ask"));
  const wait = h("span", { class: "hint", role: "status" });
  const form = h("form", { class: "ask", onsubmit: (event) => { event.preventDefault(); if (state.running) stop(); else if (state.clip) start(); } },
    field(t("Subtitle"), subtitle), about.hears ? h("div", { class: "pair" }, listen, heard) : null, h("div", { class: "pair" }, field(t("Task"), task), field(t("Language"), lang)), candidatesField, inputs,
    h("div", { class: "pair" }, ask, wait));

  // ---- the models ----
  let poll = null, left = false, models = about.models;
  function drawInputs() {
    const names = [...new Set(models.flatMap((model) => model.modalities || []))];
    if (inputs.childElementCount > 1 || !names.length) return;
    for (const name of names) inputs.append(h("label", { class: "tick" }, h("input", { type: "checkbox", value: name, checked: true }), t(name)));
  }
  async function watch() {
    drawInputs();
    const waiting = models.filter((model) => !model.ready && !model.error);
    for (const model of models) if (model.error) notice(`${model.name}: ${model.error}`, true);
    wait.textContent = waiting.length ? t("the model is being loaded ...") : "";
    if (waiting.length) poll = setTimeout(async () => {
      try { ({ models } = await get("/api/about")); about.models = models; } catch (error) { if (!left) notice(error.message, true); return; }
      if (!left) watch();
    }, 1000);
  }

  // ---- the clip ----
  const chooser = h("input", { type: "file", accept: "video/*,audio/*,.mkv,.avi", hidden: true, onchange: () => chooser.files[0] && upload(chooser.files[0]) });
  const drop = h("div", { class: "drop" },
    h("p", {}, t("Drop a video here, or choose one")),
    h("div", { class: "pair" }, h("button", { class: "main", onclick: () => chooser.click() }, t("Choose a file")),
      h("button", { onclick: record }, t("Record"))),
    h("p", { class: "hint" }, `${t("uploaded clips are temporary")}; ≤ ${about.limits.mb} MB, ≤ ${about.limits.seconds} s`), chooser);
  const over = (on) => (event) => { event.preventDefault(); drop.classList.toggle("over", on); };
  drop.addEventListener("dragover", over(true));
  drop.addEventListener("dragleave", over(false));
  const dropped = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const file = event.dataTransfer?.files[0];
    if (file) upload(file);
  };
  const taken = (event) => event.preventDefault(); // or the browser would leave for a file that is dropped beside the field
  document.addEventListener("drop", dropped);
  document.addEventListener("dragover", taken);

  async function upload(file, kind = null) {
    const ending = (file.name || "").split(".").pop().toLowerCase();
    const type = kind || KINDS[ending] || file.type || "application/octet-stream";
    const bar = h("progress", { max: 1, value: 0 });
    forget();
    const own = turn;
    replace(clipBox, h("p", { class: "empty" }, file.name || "", h("br"), bar));
    let found;
    try {
      found = await send(`/api/upload?${new URLSearchParams({ name: file.name || "recording" })}`, file, type, (share) => { bar.value = share; });
    } catch (error) {
      if (own !== turn) return;
      notice(error.message, true);
      replace(clipBox, drop);
      return;
    }
    if (own === turn) show(found.group, found.id, found.name, type.startsWith("audio/"));
    else remove(found);
  }

  const remove = ({ group, id }) => { if (group === "upload") fetch(`/api/upload/${id}`, { method: "DELETE" }).catch(() => {}); };

  function show(group, id, name, isSound = false) {
    const own = turn;
    if (subtitle.value && subtitle.value === state.proposed) subtitle.value = ""; // it was of another clip
    state.clip = { group, id };
    state.view = clipView(group, id, { isSound });
    state.view.done.then((values) => {
      if (!about.hears || own !== turn) return;
      listen.disabled = !values.wave;
      if (values.wave) propose(false);
    }, (error) => { if (own === turn) notice(error.message, true); });
    replace(clipBox, h("p", { class: "clip-name" }, h("b", {}, name), " ", h("button", { class: "plain", onclick: () => { forget(); replace(clipBox, drop); } }, "✕")), state.view.element);
    replace(answersBox, h("p", { class: "hint" }, t("Point at a sentence to see what it rests on.")));
    ask.disabled = false;
  }

  // Writes what the speech recogniser hears into the field, unless somebody has written there meanwhile.
  async function propose(again) {
    if (!again && subtitle.value.trim()) return;
    const own = turn, { group, id } = state.clip, before = subtitle.value;
    heard.textContent = t("listening ...");
    try {
      const { text } = await post(`/media/${group}/${encodeURIComponent(id)}/transcript?lang=${lang.value}`, {});
      if (own !== turn) return;
      if (text && subtitle.value === before) subtitle.value = state.proposed = text;
      heard.textContent = text ? `${t("proposed by")} ${about.hears}; ${t("correct it if it is wrong")}` : t("nothing was heard");
    } catch (error) { if (own === turn) heard.textContent = error.message; }
  }

  // Ends all that is about the clip: its answers, its player, a recording, and replies that have not come.
  function forget() {
    turn += 1;
    stop();
    if (state.recorder) {
      state.recorder.onstop = null;
      for (const track of state.recorder.stream.getTracks()) track.stop();
      state.recorder = null;
    }
    state.view?.stop();
    state.view = null;
    if (state.clip) remove(state.clip);
    state.clip = null;
    ask.disabled = listen.disabled = true;
    heard.textContent = "";
  }

  async function record() {
    if (!navigator.mediaDevices?.getUserMedia) { notice(t("recording needs https or 127.0.0.1"), true); return; }
    const own = ++turn;
    let media;
    try {
      media = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 }, audio: true });
    } catch (error) {
      if (own === turn) notice(error.message, true);
      return;
    }
    if (own !== turn) { // the page was left, or a file was dropped, while the browser asked for permission
      for (const track of media.getTracks()) track.stop();
      return;
    }
    const preview = h("video", { class: "player", autoplay: true, playsinline: true });
    preview.muted = true;
    preview.srcObject = media;
    const kind = ["video/webm;codecs=vp8,opus", "video/webm", "video/mp4"].find((one) => MediaRecorder.isTypeSupported(one));
    const recorder = new MediaRecorder(media, { mimeType: kind });
    const pieces = [];
    const size = h("span", { class: "recorded" });
    recorder.ondataavailable = (event) => {
      pieces.push(event.data);
      if (event.data.size) size.textContent = `${Math.ceil(pieces.reduce((sum, piece) => sum + piece.size, 0) / 1000)} kB`;
    };
    recorder.onstop = () => {
      for (const track of media.getTracks()) track.stop();
      state.recorder = null;
      upload(new File(pieces, `${t("Record")}.webm`), kind.split(";")[0]);
    };
    state.recorder = recorder;
    replace(clipBox, h("p", { class: "warn" }, `● ${t("recording")} `, size), preview, h("button", { class: "main", onclick: () => recorder.stop() }, t("Stop recording")));
    recorder.start(500);
  }

  // ---- asking ----
  function start() {
    const question = { ...state.clip, task: task.value, lang: lang.value, subtitle: subtitle.value || null };
    if (task.value === "fixed") question.candidates = candidates.value.split(/[,，、;；]/).map((one) => one.trim()).filter(Boolean);
    const boxes = [...inputs.querySelectorAll("input")];
    const ticked = boxes.filter((box) => box.checked).map((box) => box.value);
    if (ticked.length < boxes.length) question.modalities = ticked;
    state.running = new AbortController();
    ask.textContent = t("Stop");
    const cards = models.map((model) => {
      const text = h("p", { class: "text writing" }, t("asking ..."));
      return { model, text, card: h("article", { class: "answer" }, h("header", {}, h("h2", {}, model.name)), text) };
    });
    replace(answersBox, cards.map((one) => one.card));
    answersBox.classList.toggle("two", cards.length > 1);
    const own = state.running;
    Promise.all(cards.map((one, place) => asked(one, place, question, own.signal))).finally(() => { if (state.running === own) stop(); });
  }

  async function asked(one, place, question, signal) {
    const wanted = { ...question, model: place };
    if (wanted.modalities && one.model.modalities) wanted.modalities = wanted.modalities.filter((name) => one.model.modalities.includes(name));
    const begun = performance.now();
    try {
      await stream("/api/ask", wanted, (event) => {
        if (event.text !== undefined) {
          if (!one.text.dataset.first) one.text.dataset.first = Math.round(performance.now() - begun);
          one.text.textContent = event.text;
        } else if (event.error) throw new Error(event.error);
        else {
          const card = answerView({ ...event.answer, system: models[place].name }, about, state.view, null, state);
          card.dataset.first = one.text.dataset.first || "";
          one.card.replaceWith(card);
          one.card = card;
        }
      }, signal);
    } catch (error) {
      if (error.name !== "AbortError") replace(one.card, h("p", { class: "error" }, error.message));
      else if (one.card.contains(one.text)) { // an answer that is whole stays as it is
        one.text.classList.remove("writing");
        if (one.text.dataset.first) one.card.append(h("p", { class: "hint" }, t("stopped")));
        else one.text.textContent = t("stopped");
      }
    }
  }

  function stop() {
    state.running?.abort();
    state.running = null;
    ask.textContent = t("Ask");
  }

  replace(page, h("section", { class: "try" }, h("div", { class: "columns" }, clipBox, h("div", { class: "right" }, form, answersBox))));
  replace(clipBox, drop);
  watch();
  if (named) {
    subtitle.value = named.subtitle || "";
    show("gallery", query.id, query.id);
  }
  return () => {
    left = true;
    document.removeEventListener("drop", dropped);
    document.removeEventListener("dragover", taken);
    clearTimeout(poll);
    forget();
  };
}
