// Sorted and searched tables, larger figures, and notebooks that are loaded when they are opened.
// Without it all but the notebooks is there, unsorted.
"use strict";

// ---- tables

const LIMIT = 50; // rows of a table before "Show all"

const sortKey = (row, column, isNumber) => {
  const text = row.cells[column].dataset.v ?? row.cells[column].textContent;
  if (!isNumber) return text;
  const value = text === "" ? NaN : Number(text.replace("inf", "Infinity"));
  return Number.isNaN(value) ? "" : value;
};

for (const sheet of document.querySelectorAll(".sheet")) {
  const body = sheet.querySelector("tbody"), heads = [...sheet.querySelectorAll("th")];
  const search = sheet.querySelector("[type=search]"), status = sheet.querySelector("[role=status]");
  const all = sheet.querySelector(".all");
  let rows = [...body.rows], showAll = false;
  const show = () => {
    const words = (search ? search.value : "").toLowerCase().split(" ").filter(Boolean);
    const found = rows.filter(row => words.every(word => row.textContent.toLowerCase().includes(word)));
    body.replaceChildren(...(showAll ? found : found.slice(0, LIMIT)));
    status.textContent = `${body.rows.length} of ${rows.length} rows` +
      (found.length < rows.length ? `, ${found.length} found` : "");
    all.hidden = body.rows.length === found.length;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending", isNumber = head.classList.contains("n");
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      // cells without a value come last in both directions
      rows = rows.map(row => [sortKey(row, column, isNumber), row]).sort(([a], [b]) =>
        a === b ? 0 : a === "" ? 1 : b === "" ? -1 : (a < b) === down ? 1 : -1).map(pair => pair[1]);
      show();
    });
  });
  if (search) search.addEventListener("input", show);
  all.addEventListener("click", () => { showAll = true; show(); });
  show();
}

// ---- larger figures

const dialog = document.createElement("dialog"), figures = [...document.querySelectorAll(".gallery button")];
let current = 0;
const enlarge = number => {
  current = (number + figures.length) % figures.length;
  const figure = figures[current].parentElement.cloneNode(true);
  figure.firstElementChild.replaceWith(figure.querySelector("img"));
  dialog.replaceChildren(figure);
  if (!dialog.open) dialog.showModal();
};
document.body.append(dialog);
figures.forEach((button, number) => button.addEventListener("click", () => enlarge(number)));
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (step) enlarge(current + step);
});

// ---- notebooks, each in a frame of its own, which says what it needs by messages (notebook.js)

const HIGHEST = 200000; // pixels: no frame is higher, whatever it says
const sections = [...document.querySelectorAll(".notebook")];
const frameOf = section => section.querySelector("iframe");
const names = sections.map(section => section.id.slice("nb-".length));

for (const section of sections) {
  section.addEventListener("toggle", () => {
    const frame = frameOf(section);
    if (section.open && "page" in frame.dataset) {
      frame.srcdoc = frame.dataset.page;
      delete frame.dataset.page;
    }
  });
}

let awaited = null; // the section to show again when its frame has its height

// A place in the page is "#id"; a heading in a notebook is "#nb-NAME--HEADING".
const reveal = hash => {
  const decode = text => { try { return decodeURIComponent(text); } catch { return text; } };
  const [id, ...rest] = decode(hash.slice(1)).split("--"), heading = rest.join("--");
  const target = document.getElementById(id);
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (!target) return;
  target.scrollIntoView();
  if (!sections.includes(target)) return;
  awaited = target;
  target.heading = heading;
  frameOf(target).contentWindow?.postMessage({heading}, "*"); // a frame that is loaded already
};
const goTo = hash => { if (location.hash === hash) reveal(hash); else location.hash = hash; };
addEventListener("hashchange", () => reveal(location.hash));
document.addEventListener("click", event => {
  const link = event.target.closest("a[href^='#']");
  if (link) reveal(link.hash);
});
if (location.hash) reveal(location.hash);

addEventListener("message", ({source, data}) => {
  const section = sections.find(section => frameOf(section).contentWindow === source);
  if (!section || typeof data !== "object" || data === null) return;
  const frame = frameOf(section);
  if (Number(data.height) > 0) frame.style.height = `${Math.min(Number(data.height), HIGHEST)}px`;
  if (data.ready) {
    source.postMessage({names, heading: section.heading}, "*");
    if (awaited === section) section.scrollIntoView();
    awaited = null;
  }
  if (Number(data.top) >= 0 && section.heading) {
    delete section.heading; // one answer to one question: a frame cannot scroll the page by itself
    const above = section.querySelector("summary").offsetHeight + 8;
    scrollTo(0, scrollY + frame.getBoundingClientRect().top + Number(data.top) - above);
  }
  if (typeof data.notebook === "string") {
    const name = data.notebook || section.id.slice("nb-".length), heading = String(data.heading ?? "");
    if (names.includes(name)) goTo(`#nb-${name}${heading && `--${encodeURIComponent(heading)}`}`);
  }
  // a sandboxed frame opens no windows: the page does, for a reader who has just clicked
  if (/^https?:\/\//.test(data.visit) && navigator.userActivation?.isActive !== false) {
    open(data.visit, "_blank", "noopener,noreferrer");
  }
});
