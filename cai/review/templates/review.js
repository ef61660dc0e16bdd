const state = { kind: "", principle: "", place: null, total: 0, card: null, busy: false, next: null };
const CHOICES = {
  revision: [["1", "good", "Good"], ["2", "bad", "Bad"], ["e", "edit", "Edit"]],
  pair: [["1", "a", "A is better"], ["2", "b", "B is better"], [" ", "tie", "Neither"]],
};
const kinds = [...document.querySelectorAll("[data-kind]")];
function asks(card) {  // what the principles of an item ask for
  return card.principles.map(({ id, text }) => node("div", "part", badge(id), text ? node("p", "asks", clean(text)) : null));
}
const cards = {
  revision: (card) => [part("Prompt", prose(card.prompt, "ask")), ...asks(card),
    node("div", "sides", part("Answer before", prose(card.answer)),
      card.critique ? part("Critique", prose(card.critique)) : null,
      part("Revision" + (card.marks ? ", new words marked" : ""),
        card.marks ? marked(card.marks.filter(([kind]) => kind !== "removed")) : prose(card.revision)),
      card.verdict === "edit" ? part("Your text", prose(card.edited)) : null)],
  pair: (card) => [part("Prompt", prose(card.prompt, "ask")), ...asks(card), node("div", "part"),
    node("div", "sides", ...["a", "b"].map((side) =>
      node("div", "side" + (card.verdict === side ? " chosen" : ""), node("span", "aside", side.toUpperCase()), prose(card[side]))))],
};
function draw(reply) {
  Object.assign(state, { place: reply.place, total: reply.total, card: reply.card });
  by("count").textContent = `${reply.judged} of ${reply.total}`
    + (reply.card ? `, this is number ${reply.place + 1}` : "");
  by("bar").style.width = `${reply.total ? 100 * reply.judged / reply.total : 0}%`;
  for (const button of kinds) button.setAttribute("aria-pressed", String(button.dataset.kind === state.kind));
  const options = ["", ...reply.principles].map((id) => new Option(id ? clean(id) : "all", id));
  by("principle").replaceChildren(...options);
  by("principle").value = state.principle;
  by("principle").parentElement.hidden = reply.principles.length < 2;
  const empty = reply.total ? "You are behind the last one. k goes back." : "There is nothing to judge here.";
  by("card").replaceChildren(...(reply.card ? cards[reply.card.kind](reply.card) : [node("p", "empty", empty)]));
  by("choices").replaceChildren(...(reply.card ? CHOICES[reply.card.kind] : []).map(([key, choice, text]) => {
    const button = node("button", "", node("kbd", "", key === " " ? "space" : key), text);
    button.type = "button";
    button.setAttribute("aria-pressed", String(reply.card.verdict === choice));
    button.onclick = () => choose(choice);
    return button;
  }));
  by("editor").hidden = true;
  document.activeElement?.blur();  // keys are the page's, not the last button's
  scrollTo(0, 0);
}
async function act(work, waits = false) {  // one thing at a time: nobody judges a text that is not on the screen yet
  if (state.busy) {
    if (waits) state.next = work;
    return;
  }
  state.busy = true;
  try {
    await work();
    say("");
  } catch (error) {
    say(error.message);
  } finally {
    state.busy = false;
  }
  const next = state.next;
  state.next = null;
  if (next) await act(next);
}
function say(problem) {
  by("status").textContent = problem;
  by("status").className = problem ? "aside bad" : "aside";
}
async function show(place) {  // null: the first without a verdict
  const values = { kind: state.kind, principle: state.principle };
  draw(await ask("/api/card", place === null ? values : { ...values, place }));
}
const go = (place) => act(() => show(place));
const turn = (places) => go(Math.max(0, Math.min(state.total, state.place + places)));
const judge = (verdict, edited = null) => act(async () => {
  await ask("/api/judge", { subject: state.card.subject, verdict, edited }, "POST");
  await show(state.place + 1);
});
const undo = () => act(async () => {
  const reply = await ask("/api/undo", {}, "POST");
  if (reply.kind) Object.assign(state, { kind: reply.kind, principle: "" });
  await show(reply.place === null ? state.place : reply.place);
});
function choose(choice) {
  if (choice !== "edit") return judge(choice);
  by("edited").value = state.card.edited || state.card.revision;
  by("editor").hidden = false;
  by("edited").focus();
}
function cancel() {
  by("editor").hidden = true;
  by("edited").blur();
}
const KEYS = {
  j: () => turn(1), k: () => turn(-1), n: () => go(null), u: undo,
  ArrowRight: () => turn(1), ArrowLeft: () => turn(-1), "?": () => by("keys").showModal(),
};
document.addEventListener("keydown", (event) => {
  if (by("keys").open || event.altKey || event.isComposing) return;
  if (event.target === by("edited")) {
    if (event.key === "Escape") cancel();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) judge("edit", by("edited").value);
    else return;
    event.preventDefault();
    return;
  }
  // a key that is held down would judge what nobody has read
  if (event.ctrlKey || event.metaKey || event.repeat || event.target.closest("select, input")) return;
  if (event.target.closest("button") && event.key === " ") return;
  const choice = (state.card ? CHOICES[state.card.kind] : []).find(([key]) => key === event.key);
  const work = choice ? () => choose(choice[1]) : KEYS[event.key];
  if (!work) return;
  event.preventDefault();
  work();
});
const select = (kind, principle) => act(async () => {
  Object.assign(state, { kind, principle });
  await show(null);
}, true);
for (const button of kinds) button.onclick = () => select(button.dataset.kind, "");
by("principle").onchange = () => select(state.kind, by("principle").value);
by("help").onclick = KEYS["?"];
by("save").onclick = () => judge("edit", by("edited").value);
by("cancel").onclick = cancel;
select(kinds[0].dataset.kind, "");
