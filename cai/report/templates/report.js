const data = JSON.parse(by("data").textContent), PAGE = 25;
const state = { kind: "revisions", page: 0 }, searchable = new WeakMap();
const facets = {  // of a record: the values that a filter may ask for
  suite: (row) => row.suite ? [row.suite] : [],
  model: (row) => Object.keys(row.answers || {}),
  principle: (row) => row.principles || (row.steps || []).map((step) => step.principle),
  gate: (row) => (row.steps || []).flatMap((step) => step.gates.length ? step.gates : ["none"]),
};
function strings(value) {  // all texts of a record but the marks, which repeat what it holds
  if (typeof value === "string") return value;
  if (!value || typeof value !== "object") return "";
  return Object.entries(value).filter(([key]) => key !== "marks").map(([, inner]) => strings(inner)).join("\n");
}
function text(row) {
  if (!searchable.has(row)) searchable.set(row, strings(row).toLowerCase());
  return searchable.get(row);
}
function fill() {
  for (const [id, values] of Object.entries(facets)) {
    const all = [...new Set(data[state.kind].flatMap(values))].sort(), box = by(id);
    box.replaceChildren(...["", ...all].map((value) => new Option(value ? clean(value) : "all", value)));
    box.parentElement.hidden = all.length < 2;
  }
}
function draw() {
  const query = by("query").value.trim().toLowerCase();
  const rows = data[state.kind].filter((row) => (!query || text(row).includes(query))
    && Object.entries(facets).every(([id, values]) => !by(id).value || values(row).includes(by(id).value)));
  const start = state.page * PAGE, part = rows.slice(start, start + PAGE);
  by("list").replaceChildren(...part.map((row) => node("article", "", ...shapes[state.kind](row))));
  by("status").textContent = rows.length ? `${start + 1} to ${start + part.length} of ${rows.length}`
    : "No record fits.";
  by("back").disabled = !state.page;
  by("next").disabled = start + PAGE >= rows.length;
}
function turn(pages) {
  state.page += pages;
  draw();
  by("records").scrollIntoView();
}
const kinds = [...document.querySelectorAll("[data-kind]")];
function choose(kind) {
  Object.assign(state, { kind, page: 0 });
  for (const button of kinds) button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
  fill();
  draw();
}
let wait;
const again = () => { state.page = 0; draw(); };
for (const button of kinds) button.onclick = () => choose(button.dataset.kind);
for (const id of Object.keys(facets)) by(id).onchange = again;
by("query").oninput = () => { clearTimeout(wait); wait = setTimeout(again, 150); };
by("back").onclick = () => turn(-1);
by("next").onclick = () => turn(1);
choose("revisions");
