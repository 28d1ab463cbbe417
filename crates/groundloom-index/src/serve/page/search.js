"use strict";
// The search page: asks /index what there is, /search for rows, and shows everything as text, never as HTML.

const at = (id) => document.getElementById(id);
let index = { media: [], key: "row_id" };
let picture = null;

function say(text, wrong) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", Boolean(wrong));
}

function headers() {
  const token = at("token").value;
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function ask(path, body) {
  const options = { headers: headers() };
  if (body) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  const response = await fetch(path, options);
  if (response.status === 401) {
    at("token").hidden = at("token-label").hidden = false;
    at("token").focus();
  }
  const value = await response.json();
  if (!response.ok) throw new Error(value.error.message);
  return value;
}

async function describe() {
  try {
    index = await ask("/index");
  } catch (error) {
    return say(error.message, true);
  }
  say("");
  const models = index.vectors.map((v) => `${v.name} (${v.dims}, ${v.model ? v.model.name : "unknown model"})`);
  at("about").textContent = `${index.rows} rows; ${models.join(", ")}`;
  const column = at("column");
  while (column.options.length > 1) column.remove(1);
  for (const vector of index.vectors) column.add(new Option(vector.name, vector.name));
}

function choose(file) {
  if (!file || !file.type.startsWith("image/")) return say("Choose a picture file.", true);
  const reader = new FileReader();
  reader.onload = () => {
    picture = reader.result;
    const chosen = at("chosen");
    if (chosen.src) URL.revokeObjectURL(chosen.src);
    chosen.src = URL.createObjectURL(file);
    chosen.hidden = false;
    search();
  };
  reader.readAsDataURL(file);
}

function node(name, text, parent) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

async function show(frame, row, column) {
  const path = `/rows/${encodeURIComponent(row[index.key])}/media/${encodeURIComponent(column)}`;
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) return frame.remove();
  const image = node("img", undefined, frame);
  image.alt = row.caption || row.file_name || "";
  image.src = URL.createObjectURL(await response.blob());
  await image.decode().catch(() => {});
  URL.revokeObjectURL(image.src);
  const boxes = Array.isArray(row.boxes) ? row.boxes : [];
  if (!boxes.length) return;
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawing.setAttribute("viewBox", "0 0 1 1");
  drawing.setAttribute("preserveAspectRatio", "none");
  for (const box of boxes) {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const set = { x: box.x1, y: box.y1, width: box.x2 - box.x1, height: box.y2 - box.y1 };
    for (const [name, value] of Object.entries(set)) rect.setAttribute(name, Number(value));
    drawing.append(rect);
  }
  frame.append(drawing);
}

function render(answer) {
  const hits = at("hits");
  hits.replaceChildren();
  for (const { score, row } of answer.hits) {
    const item = node("li", undefined, hits);
    item.tabIndex = 0;
    item.dataset.key = row[index.key];
    for (const column of index.media) show(node("div", undefined, item), row, column);
    for (const frame of item.children) frame.className = "picture";
    node("span", score.toFixed(4), item).className = "score";
    const list = node("dl", undefined, item);
    for (const [name, value] of Object.entries(row)) {
      node("dt", name, list);
      node("dd", typeof value === "string" ? value : JSON.stringify(value), list);
    }
  }
  const matching = answer.matching === undefined ? "" : ` of ${answer.matching} that match`;
  say(`${answer.hits.length} results${matching} in ${answer.column}. Arrow keys move, Enter finds rows like the one in focus.`);
}

let round = 0;
async function search(row) {
  const query = { k: Number(at("k").value) || 10 };
  if (at("column").value) query.column = at("column").value;
  if (at("condition").value.trim()) query.where = at("condition").value;
  if (row) {
    query.row = row;
    if (!query.column && index.vectors.length) query.column = index.vectors[0].name;
  } else if (picture && !at("text").value) query.image = picture;
  else if (at("text").value) query.text = at("text").value;
  else return say("Type a text or choose a picture.", true);
  const mine = ++round;
  say("Searching…");
  try {
    const answer = await ask("/search", query);
    if (mine === round) render(answer);
  } catch (error) {
    if (mine === round) {
      at("hits").replaceChildren();
      say(error.message, true);
    }
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
at("file").addEventListener("change", () => choose(at("file").files[0]));
at("text").addEventListener("input", () => {
  if (!at("text").value) return;
  picture = null;
  at("chosen").hidden = true;
  at("file").value = "";
});
at("token").addEventListener("change", describe);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  at("text").value = "";
  choose(event.dataTransfer.files[0]);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|SELECT)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    at("text").focus();
  }
  const hit = document.activeElement.closest && document.activeElement.closest("#hits > li");
  if (!hit) {
    if (event.key === "ArrowDown" && document.activeElement === at("text") && at("hits").firstElementChild) {
      event.preventDefault();
      at("hits").firstElementChild.focus();
    }
    return;
  }
  if (event.key === "ArrowRight" || event.key === "ArrowDown") {
    event.preventDefault();
    (hit.nextElementSibling || hit).focus();
  } else if (event.key === "ArrowLeft" || event.key === "ArrowUp") {
    event.preventDefault();
    (hit.previousElementSibling || at("text")).focus();
  } else if (event.key === "Enter") {
    search(hit.dataset.key);
  }
});
describe();
