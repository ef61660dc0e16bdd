"use strict";
const by = (id) => document.getElementById(id);
const LONG = 1500;
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g;
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
