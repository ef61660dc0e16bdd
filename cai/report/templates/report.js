"use strict";
const by = (id) => document.getElementById(id), data = JSON.parse(by("data").textContent);
const PAGE = 25, LONG = 1500;
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g;
const state = { kind: "revisions", page: 0 }, searchable = new WeakMap();
function node(tag, cls, ...kids) {  // kids: nodes, or texts, which become text nodes
  const made = document.createElement(tag);
  if (cls) made.className = cls;
  made.append(...kids.filter((kid) => kid !== null));
  return made;
}
const clean = (text) => text.replace(CONTROL, "\ufffd");  // no direction marks, no control characters
function prose(text, cls = "") {
  const box = node("div", "text " + cls, clean(text.slice(0, LONG)) || "(empty)");
  if (text.length <= LONG) return box;
  const more = node("button", "more", `Show all ${text.length.toLocaleString("en")} characters`);
  more.type = "button";
  more.onclick = () => { box.textContent = clean(text); more.remove(); box.tabIndex = -1; box.focus(); };
  return node("div", "", box, more);
}
const part = (name, body) => node("div", "part", node("span", "aside", name), body);
const badge = (text, cls = "") => node("span", "badge " + cls, clean(text));
const TAGS = { added: "ins", removed: "del" };
function marked(marks) {  // marks: [kind, text] of each run of words, from cai/report/word_diff.py
  return node("div", "text", ...marks.map(([kind, text]) =>
    TAGS[kind] ? node(TAGS[kind], "", clean(text)) : clean(text)));
}
const CERTAIN = {
  revision: "revision preferred to the first answer",
  rule: "preferred by a rule to another of the model's own",
  demonstration: "a data set's answer preferred to the model's own",
};
const shapes = {
  revisions(row) {
    const rounds = [];
    let before = row.answer;
    row.steps.forEach((step, at) => {
      const change = step.revision === before ? ", unchanged" : step.marks ? ", changes marked" : "";
      rounds.push(node("div", "round", badge(`Round ${at + 1}`), badge(step.principle),
        ...step.gates.map((gate) => badge("gate: " + gate, "bad")),
        node("div", "sides",
          part(before === row.answer ? "First answer" : "Answer before", prose(before)),
          step.critique ? part("Critique", prose(step.critique)) : null,
          part("Revision" + change, step.marks ? marked(step.marks) : prose(step.revision)))));
      if (!step.gates.length) before = step.revision;
    });
    if (!rounds.length) rounds.push(part("First answer", prose(row.answer)));
    return [part("Prompt", prose(row.prompt, "ask")), ...rounds];
  },
  pairs(row) {
    const [a, b] = row.orders, judged = a !== undefined, flipped = judged && a > 0.5 !== b > 0.5;
    const badges = node("div", "part", ...row.principles.map((id) => badge(id)),
      badge(CERTAIN[row.kind] || `probability ${row.probability.toFixed(2)}`),
      row.kind === "human" ? badge("labelled by people") : null,
      judged ? badge(`in the two orders ${a.toFixed(2)}, ${b.toFixed(2)}`) : null,
      flipped ? badge("flipped with the order", "bad") : null);
    return [part("Prompt", prose(row.prompt, "ask")), badges,
      node("div", "sides", part("Chosen", prose(row.chosen)), part("Rejected", prose(row.rejected)))];
  },
  answers(row) {
    const model = by("model").value;
    const answers = Object.entries(row.answers).filter(([name]) => !model || name === model);
    return [part(row.suite, prose(row.prompt, "ask")),
      row.reference ? part("Reference answer", prose(row.reference)) : null,
      node("div", "sides", ...answers.map(([name, answer]) =>
        part(name + (answer.refuses ? ", refuses" : ""), prose(answer.text))))];
  },
};
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
