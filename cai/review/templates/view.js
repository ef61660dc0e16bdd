const FACETS = ["suite", "model", "principle", "gate", "origin", "stage"];
const state = { kind: "", start: 0, page: 0, asked: 0 };
const kinds = [...document.querySelectorAll("[data-kind]")];
function fill(facets) {  // the choices of the filters; what is chosen stays
  for (const id of FACETS) {
    const values = facets[id] || [], box = by(id), chosen = box.value;
    box.replaceChildren(...["", ...values].map((value) => new Option(value ? clean(value) : "all", value)));
    box.value = values.includes(chosen) ? chosen : "";
    box.parentElement.hidden = values.length < 2;
  }
}
async function draw() {
  const asked = ++state.asked, values = { kind: state.kind, start: state.start, query: by("query").value.trim() };
  for (const id of FACETS) if (by(id).value) values[id] = by(id).value;
  let reply;
  try {
    reply = await ask("/api/records", values);
  } catch (error) {
    by("status").textContent = error.message;
    return;
  }
  if (asked !== state.asked) return;  // another question was asked since
  fill(reply.facets);
  state.page = reply.page;
  by("list").replaceChildren(...reply.records.map((row) => node("article", "", ...shapes[state.kind](row))));
  const end = state.start + reply.records.length, count = (number) => number.toLocaleString("en");
  by("status").textContent = reply.total ? `${count(state.start + 1)} to ${count(end)} of ${count(reply.total)}` : "No record fits.";
  by("back").disabled = !state.start;
  by("next").disabled = end >= reply.total;
}
function turn(pages) {
  state.start = Math.max(0, state.start + pages * state.page);
  draw().then(() => by("records").scrollIntoView());
}
function choose(kind) {
  Object.assign(state, { kind, start: 0 });
  for (const id of FACETS) by(id).value = "";
  for (const button of kinds) button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
  draw();
}
let wait;
const again = () => { state.start = 0; draw(); };
for (const button of kinds) button.onclick = () => choose(button.dataset.kind);
for (const id of FACETS) by(id).onchange = again;
by("query").oninput = () => { clearTimeout(wait); wait = setTimeout(again, 150); };
by("back").onclick = () => turn(-1);
by("next").onclick = () => turn(1);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  if (event.key === "j" && !by("next").disabled) turn(1);
  if (event.key === "k" && !by("back").disabled) turn(-1);
  if (event.key === "/") { event.preventDefault(); by("query").focus(); }
});
choose(kinds[0].dataset.kind);
