// Elements and requests. Texts are only ever inserted as text: no function here parses markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, part] of Object.entries(value)) element.style.setProperty(key, part);
    else if (name === "value") element.value = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

export const h = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
export const s = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

export function replace(parent, ...children) {
  parent.replaceChildren();
  return fill(parent, null, children);
}

// Draws anew; the focus goes to the new element with the `data-key` of the one that had it.
export function redraw(parent, ...children) {
  const key = parent.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  replace(parent, ...children);
  if (key !== undefined) [...parent.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key)?.focus({ preventScroll: true });
}

// Asks every `pause_ms` and draws what has changed; returns what ends it.
export function follow(ask, draw, pause_ms) {
  let last = null;
  const timer = setInterval(() => ask().then((found) => {
    const now = JSON.stringify(found);
    if (now !== last) draw(found);
    last = now;
  }, () => {}), pause_ms);
  return () => clearInterval(timer);
}

// A key that an input method takes, such as the Enter that chooses Chinese characters; Safari only tells by the code.
export const composing = (event) => event.isComposing || event.keyCode === 229;

export class Refused extends Error {
  constructor(status, body) {
    super(body?.error?.message || `the server answered ${status}`);
    this.status = status;
    this.code = body?.error?.code;
  }
}

async function answered(reply) {
  if (reply.ok) return reply;
  let body = null;
  try { body = await reply.json(); } catch { /* the status says enough */ }
  throw new Refused(reply.status, body);
}

export async function get(path, query, signal) {
  const text = query ? `?${new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "" && value != null))}` : "";
  return (await answered(await fetch(path + text, { signal }))).json();
}

export async function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return (await answered(await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal }))).json();
}

// Server-sent events of a POST request: calls `each` with the object of every event.
export async function stream(path, body, each, signal) {
  const headers = { "Content-Type": "application/json" };
  const reply = await answered(await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal }));
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) each(JSON.parse(part.slice(6)));
  }
}

// An upload with its progress, 0 to 1.
export function send(path, file, kind, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.setRequestHeader("Content-Type", kind);
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onload = () => {
      let body = null;
      try { body = JSON.parse(request.responseText); } catch { /* the status says enough */ }
      if (request.status === 200) resolve(body);
      else reject(new Refused(request.status, body));
    };
    request.onerror = () => reject(new Error("the server cannot be reached"));
    request.send(file);
  });
}

let timer = null;
export function notice(text, isError = false) {
  const box = document.getElementById("notice");
  box.textContent = text;
  box.className = isError ? "error shown" : "shown";
  clearTimeout(timer);
  timer = setTimeout(() => { box.className = ""; }, isError ? 12000 : 4000);
}

export const percent = (value) => (value === null || value === undefined ? "–" : `${Math.round(100 * value)}`);
export const seconds = (value) => `${value.toFixed(value < 10 ? 2 : 1)} s`;
