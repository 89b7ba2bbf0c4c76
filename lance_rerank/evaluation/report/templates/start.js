// Choosing, and the first look.

function showPair() {
  for (const select of all(".choose-a")) select.value = state.a;
  for (const select of all(".choose-b")) select.value = state.b;
  for (const select of all(".choose-measure")) select.value = state.measure;
  drawChanges();
  drawMovement();
  const items = listQueries();
  if (state.query === null && items.length) choose(items[0].number, false);
  else showQuery();
}

// Two different retrievers are always compared: choosing the other one swaps them.
function choosePair(side, number) {
  const other = side === "a" ? "b" : "a";
  if (state[other] === number) state[other] = state[side];
  state[side] = number;
  showPair();
}

function showOne(selector, number) {
  all(selector).forEach((panel, place) => panel.toggleAttribute("hidden", place !== number));
}

function onChoice(selector, act) {
  for (const select of all(selector)) select.addEventListener("change", () => act(Number(select.value)));
}

function linkQueries() {
  const numbers = new Map(data.queries.map((query, number) => [query.id, number]));
  for (const button of all(".to-query")) {
    const number = numbers.get(button.dataset.query);
    if (number === undefined) button.disabled = true;
    else button.addEventListener("click", () => choose(number, true));
  }
}

onChoice(".choose-a", (number) => choosePair("a", number));
onChoice(".choose-b", (number) => choosePair("b", number));
onChoice(".choose-measure", (number) => {
  state.measure = number;
  showPair();
});
onChoice("#choose-family", (number) => showOne(".family", number));
onChoice("#choose-threshold", (number) => showOne(".threshold", number));
for (const select of all("#choose-filter, #choose-order")) select.addEventListener("change", listQueries);
byId("search").addEventListener("input", listQueries);
for (const box of all("#whole")) {
  box.addEventListener("change", () => byId("query").classList.toggle("clamped", !box.checked));
}
linkQueries();
startChanges();
showPair();
