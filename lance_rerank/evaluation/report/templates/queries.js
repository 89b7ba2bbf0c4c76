// Finding a query, and its rankings by the chosen pair side by side.

const FILTERS = {
  all: () => true,
  better: (item) => item.change > 0,
  worse: (item) => item.change < 0,
  same: (item) => item.change === 0,
  failed: (item) => item.query.failures.some((failure) => failure !== null),
};

function foundQueries() {
  const wanted = byId("search").value.trim().toLowerCase();
  const isWanted = ({ query }) => [query.text, query.id].some((text) => text.toLowerCase().includes(wanted));
  const passes = FILTERS[paired ? byId("choose-filter").value : "all"];
  return sortedBy(paired ? byId("choose-order").value : "given").filter((item) => passes(item) && isWanted(item));
}

function listQueries() {
  const items = foundQueries();
  const rows = items.slice(0, LISTED).map((item) => {
    const shown = paired ? signed(item.change) : fixed(valueOf(item.query, 0));
    const button = element(
      "button",
      { type: "button" },
      element("span", { class: "clamp", dir: "auto" }, title(item.query)),
      element("span", { class: `number ${direction(item.change)}` }, shown),
    );
    button.addEventListener("click", () => choose(item.number, false));
    if (item.number === state.query) button.setAttribute("aria-current", "true");
    return element("li", {}, button);
  });
  list(byId("query-list"), rows);
  const more = items.length > LISTED ? `; the first ${LISTED} are listed` : "";
  byId("found-said").textContent = counted(items.length, "query", "queries") + more;
  return items;
}

function choose(number, scroll) {
  const hadFocus = byId("query-list").contains(document.activeElement);
  state.query = number;
  listQueries();
  showQuery();
  const current = byId("query-list").querySelector("[aria-current]");
  if (scroll) {
    byId("queries").scrollIntoView();
    byId("query").focus({ preventScroll: true });
  } else if (hadFocus && current) {
    current.focus(); // the list was made anew
  }
}

function showQuery() {
  const query = data.queries[state.query];
  if (!query) return;
  const heading = [element("h3", { dir: "auto" }, title(query))];
  if (query.text) heading.push(element("p", { class: "note" }, "id ", bdi(query.id)));
  const columns = paired
    ? [ranking(query, state.a, state.b, firstMove), ranking(query, state.b, state.a, secondMove)]
    : [ranking(query, 0, null, null)];
  const rankings = element("div", { class: "rankings" }, ...columns);
  byId("query").replaceChildren(...heading, measuresOf(query), rankings, ...furtherDown(query));
}

const chosen = () => (paired ? [state.a, state.b] : [0]);

function measuresOf(query) {
  const head = element("tr", {}, element("th", { scope: "col" }, "retriever"));
  for (const measure of data.measures) head.append(element("th", { scope: "col" }, measure));
  const rows = chosen().map((retriever) => {
    const row = element("tr", {}, element("th", { scope: "row" }, bdi(data.retrievers[retriever])));
    for (const value of query.values[retriever]) row.append(element("td", {}, fixed(value)));
    return row;
  });
  const table = element("table", { class: "figures" }, element("thead", {}, head), element("tbody", {}, ...rows));
  const box = { class: "scroll", tabindex: 0, role: "region", "aria-label": "Measures of this query" };
  return element("div", box, table);
}

// Returns 0 for a document that a retriever did not find, null for one beyond the ranks that are known here.
function rankIn(query, retriever, doc) {
  const relevant = query.relevant.find((row) => row[0] === doc);
  if (relevant) return relevant[retriever + 1];
  const place = query.rankings[retriever].indexOf(doc);
  if (place >= 0) return place + 1;
  return query.rankings[retriever].length < data.depth ? 0 : null;
}

function firstMove(here, there) {
  const elsewhere = there === 0 ? "not found" : there === null ? `beyond ${data.depth}` : `rank ${there}`;
  return element("span", { class: "move" }, `→ ${elsewhere}`);
}

function secondMove(here, there) {
  if (there === 0) return element("span", { class: "move up" }, "↑ new");
  if (there === null) return element("span", { class: "move up" }, `↑ from beyond ${data.depth}`);
  const up = there - here;
  const text = up > 0 ? `↑ ${up} from ${there}` : up < 0 ? `↓ ${-up} from ${there}` : "= same";
  return element("span", { class: `move ${direction(up)}` }, text);
}

const RELEVANT = { kind: "yes", mark: "✓", said: "relevant" };

function gradeOf(query, doc) {
  const judged = query.grades.find((row) => row[0] === doc);
  if (!judged) return { kind: "none", mark: "?", said: "not judged" };
  if (judged[1] > 0) return { ...RELEVANT, said: `relevant, grade ${judged[1]}` };
  return { kind: "no", mark: "✗", said: `judged not relevant, grade ${judged[1]}` };
}

function markOf(grade) {
  const seen = element("span", { "aria-hidden": "true" }, grade.mark);
  const heard = element("span", { class: "sr" }, grade.said);
  return element("span", { class: `mark ${grade.kind}`, title: grade.said }, seen, heard);
}

function snippet(doc) {
  const text = data.texts[doc];
  return text ? [element("p", { class: "snippet", dir: "auto" }, text)] : [];
}

function ranking(query, retriever, other, moveOf) {
  const heading = element("h4", {}, bdi(data.retrievers[retriever]));
  const about = moveOf === firstMove ? "→ in the other" : "↑ ↓ since the baseline";
  if (other !== null) heading.append(element("small", {}, about));
  const column = element("div", {}, heading);
  const found = query.rankings[retriever];
  const failure = query.failures[retriever];
  if (failure !== null) column.append(element("p", { class: "error", dir: "auto" }, failure));
  else if (!found.length) column.append(element("p", { class: "note" }, "It found nothing."));
  const rows = found.map((doc, place) => {
    const grade = data.judged ? gradeOf(query, doc) : null;
    const score = query.scores[retriever][place] ?? null;
    const head = element("div", { class: "hit-head" }, element("span", { class: "rank" }, String(place + 1)));
    if (grade) head.append(markOf(grade));
    head.append(bdi(data.documents[doc]));
    head.append(element("span", { class: "score" }, score === null ? "" : score.toPrecision(4)));
    if (other !== null) head.append(moveOf(place + 1, rankIn(query, other, doc)));
    return element("li", { class: grade && grade.kind === "yes" ? "yes-row" : "" }, head, ...snippet(doc));
  });
  column.append(element("ol", { class: "ranking" }, ...rows));
  return column;
}

function furtherDown(query) {
  const isShown = (rank) => rank > 0 && rank <= data.depth;
  const missing = query.relevant.filter((row) => !chosen().every((retriever) => isShown(row[retriever + 1])));
  if (!missing.length) return [];
  const rows = missing.map((row) => {
    const ranks = chosen().map((retriever) => {
      const rank = row[retriever + 1];
      return element("span", {}, bdi(data.retrievers[retriever]), rank ? `: rank ${rank}` : ": not found");
    });
    const head = element("div", { class: "hit-head" }, markOf(RELEVANT), bdi(data.documents[row[0]]), ...ranks);
    return element("li", { class: "yes-row" }, head, ...snippet(row[0]));
  });
  const heading = element("h4", {}, "Relevant documents further down, or not found");
  return [heading, element("ol", { class: "ranking" }, ...rows)];
}
