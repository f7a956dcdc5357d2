// The frame of all pages: what there is, the header, and which page the address names (#/gallery?..., #/try ...).

import { get, h, notice, post, replace } from "./dom.js";
import { language, switchLanguage, t } from "./words.js";
import { galleryPage } from "./gallery.js";
import { clipPage } from "./clip.js";
import { tryPage } from "./try.js";
import { reviewPage } from "./review.js";
import { runsPage } from "./runs.js";

const page = document.getElementById("page");
const header = document.getElementById("header");
let leave = null; // ends what a page has running
let turn = 0; // of the pages that were asked for: one that is ready after the next was asked for is not shown

const PAGES = {
  gallery: { title: "Gallery", show: galleryPage, there: (about) => about.gallery.systems.length > 0 },
  try: { title: "Try a clip", show: tryPage, there: (about) => about.tries },
  runs: { title: "Runs", show: runsPage, there: (about) => about.watches },
  review: { title: "Review", show: reviewPage, there: (about) => about.reviews },
};

function parsed() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  return { name, rest: rest.map(decodeURIComponent), query: Object.fromEntries(new URLSearchParams(query || "")) };
}

function showHeader(about, current) {
  const links = Object.entries(PAGES).filter(([, one]) => one.there(about)).map(([name, one]) =>
    h("a", { href: `#/${name}`, "aria-current": name === current ? "page" : null }, t(one.title)));
  replace(header,
    h("a", { class: "brand", href: "#/" }, h("img", { src: "/static/icon.svg", alt: "", width: 24, height: 24 }), "AffectGPT studio"),
    h("nav", { "aria-label": "pages" }, links),
    h("button", { class: "plain", onclick: switchLanguage, lang: language === "zh" ? "en" : "zh" }, language === "zh" ? "English" : "中文"));
}

function loginPage() {
  const field = h("input", { type: "password", autocomplete: "current-password", id: "key", required: true });
  const form = h("form", { class: "login", onsubmit: async (event) => {
    event.preventDefault();
    try {
      await post("/api/login", { key: field.value });
      start();
    } catch (error) { notice(error.message, true); }
  } }, h("h1", {}, t("This studio needs a key.")), h("label", { for: "key" }, t("Key")), field, h("button", { class: "main" }, t("Log in")));
  replace(page, form);
  field.focus();
}

async function show(about) {
  const { name, rest, query } = parsed();
  const own = ++turn;
  leave?.();
  leave = null;
  const first = Object.keys(PAGES).find((one) => PAGES[one].there(about));
  const chosen = name === "clip" ? "gallery" : PAGES[name]?.there(about) ? name : first;
  showHeader(about, chosen);
  document.title = `${t(PAGES[chosen]?.title ?? "")} – AffectGPT studio`;
  const place = h("div", { class: "page" }); // its own: a late page draws where nobody looks
  replace(page, place);
  if (!chosen) { replace(place, h("p", { class: "empty" }, t("There is nothing to show: name a run, predictions= or a review."))); return; }
  try {
    const end = await (name === "clip" ? clipPage(place, about, rest[0], query) : PAGES[chosen].show(place, about, query, rest)) || null;
    if (own === turn) leave = end;
    else end?.();
  } catch (error) {
    if (own !== turn) return;
    if (error.status === 401) loginPage();
    else replace(place, h("p", { class: "empty error" }, error.message));
  }
}

async function start() {
  let about;
  try {
    about = await get("/api/about");
  } catch (error) {
    if (error.status === 401) loginPage();
    else replace(page, h("p", { class: "empty error" }, error.message));
    return;
  }
  document.querySelector(".skip").textContent = t("Skip to the content");
  window.onhashchange = () => show(about);
  await show(about);
  document.documentElement.dataset.ready = "yes";
}

start();
