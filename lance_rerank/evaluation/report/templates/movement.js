// Rank movement of the relevant documents: a mark for each pair of ranks. Rank 0 stands for not found.

const MOVES = { left: 54, top: 56, edge: 22, band: 60, span: 360, shown: 12 };

function drawMovement() {
  if (!byId("movement-plot")) return;
  const counts = { up: 0, down: 0, even: 0, found: 0, lost: 0, never: 0 };
  const cells = new Map();
  data.queries.forEach((query, number) => {
    for (const [, ...ranks] of query.relevant) {
      const [before, after] = [ranks[state.a], ranks[state.b]];
      counts[moveKind(before, after)] += 1;
      if (!before && !after) continue;
      const key = `${before} ${after}`;
      if (!cells.has(key)) cells.set(key, { before, after, queries: [] });
      cells.get(key).queries.push(number);
    }
  });
  byId("movement-said").replaceChildren(
    "From ",
    bdi(data.retrievers[state.a]),
    " to ",
    bdi(data.retrievers[state.b]),
    `: ${grouped(counts.up)} moved up, ${grouped(counts.down)} moved down, ${grouped(counts.even)} kept their rank; ` +
      `${grouped(counts.found)} newly found, ${grouped(counts.lost)} lost, ${grouped(counts.never)} found by neither.`,
  );
  drawCells([...cells.values()]);
  const moved = [...cells.values()].filter((cell) => cell.before !== cell.after);
  listMoves("Moved furthest", moved.sort((a, b) => wayOf(b) - wayOf(a)), MOVES.shown);
}

function moveKind(before, after) {
  if (!before && !after) return "never";
  if (!before) return "found";
  return after ? direction(before - after) : "lost";
}

// How far a document moved: from 1 to 2 as far as from 10 to 20; what is not found stands behind all ranks.
const wayOf = (cell) => Math.abs(Math.log(cell.before || 1e6) - Math.log(cell.after || 1e6));
const gainOf = (cell) => (cell.before || Infinity) - (cell.after || Infinity);

function listMoves(heading, cells, most) {
  const moves = cells.flatMap((cell) => [...new Set(cell.queries)].map((number) => ({ cell, number })));
  const rows = moves.slice(0, most).map(({ cell, number }) => {
    const ranks = `${cell.before || "none"} → ${cell.after || "none"}`;
    const said = element("span", { class: `number ${direction(gainOf(cell))}` }, ranks);
    return element("li", {}, said, queryButton(number));
  });
  byId("movement-title").textContent = heading;
  list(byId("movement-list"), rows);
}

function drawCells(cells) {
  const { left, top, edge, band, span } = MOVES;
  const long = edge + span + edge + band;
  const deepest = Math.max(10, ...cells.flatMap((cell) => [cell.before, cell.after]));
  const place = (rank) => edge + (rank ? (Math.log(rank) / Math.log(deepest)) * span : span + edge + band / 2);
  const svg = byId("movement-plot");
  svg.setAttribute("viewBox", `0 0 ${left + long} ${top + long}`);
  const [first, last] = [place(1), place(deepest)];
  const drawn = [
    shape("rect", { class: "band", x: left + long - band, y: top, width: band, height: long }),
    shape("rect", { class: "band", x: left, y: top + long - band, width: long, height: band }),
    shape("path", { class: "diagonal", d: `M${left + first} ${top + first}L${left + last} ${top + last}` }),
    ...moveTicks(deepest, place, long),
    ...moveTitles(edge + span / 2),
  ];
  const most = Math.max(...cells.map((cell) => cell.queries.length));
  // the large ones first, so that none hides another
  cells.sort((a, b) => b.queries.length - a.queries.length);
  drawn.push(...cells.map((cell) => bubble(cell, left + place(cell.before), top + place(cell.after), most)));
  svg.replaceChildren(...drawn);
  svg.querySelector(".bubble")?.setAttribute("tabindex", 0); // one stop for the tab key, from there the arrow keys lead
}

function moveTicks(deepest, place, long) {
  const { left, top } = MOVES;
  const ticks = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000].filter((tick) => tick <= deepest);
  const drawn = ticks.flatMap((tick) => {
    const at = place(tick);
    return [
      shape("path", { class: "grid", d: `M${left + at} ${top}V${top + long}M${left} ${top + at}H${left + long}` }),
      shape("text", { x: left + at, y: top - 8, "text-anchor": "middle" }, String(tick)),
      shape("text", { x: left - 6, y: top + at + 4, "text-anchor": "end" }, String(tick)),
    ];
  });
  const at = place(0);
  const below = shape("tspan", { x: left - 6, dy: 14 }, "found");
  drawn.push(shape("text", { x: left + at, y: top - 8, "text-anchor": "middle" }, "not found"));
  drawn.push(shape("text", { x: left - 6, y: top + at - 2, "text-anchor": "end" }, "not", below));
  return drawn;
}

function moveTitles(centre) {
  const { left, top } = MOVES;
  const named = (retriever) => `rank in ${[...data.retrievers[retriever]].slice(0, 36).join("")}`;
  const across = { x: left + centre, y: 18, "text-anchor": "middle", class: "label" };
  const down = { transform: `translate(13 ${top + centre}) rotate(-90)`, "text-anchor": "middle", class: "label" };
  return [shape("text", across, named(state.a)), shape("text", down, named(state.b))];
}

function bubble(cell, x, y, most) {
  const rank = (number) => (number ? `rank ${number}` : "not found");
  const documents = counted(cell.queries.length, "document", "documents");
  const said = `${documents} from ${rank(cell.before)} to ${rank(cell.after)}`;
  const kind = { up: "gain", down: "loss", even: "same" }[direction(gainOf(cell))];
  const radius = Math.max(3.5, Math.sqrt(cell.queries.length / Math.max(most, 30)) * 18);
  const place = { cx: x.toFixed(1), cy: y.toFixed(1), r: radius.toFixed(1) };
  const labels = { class: `bubble ${kind}`, tabindex: -1, role: "button", "aria-label": said };
  const made = shape("circle", { ...place, ...labels }, shape("title", {}, said));
  const show = () => {
    for (const chosen of all(".bubble.chosen")) chosen.classList.remove("chosen");
    made.classList.add("chosen");
    listMoves(said, [cell], LISTED);
  };
  made.addEventListener("click", show);
  const keys = {
    Enter: show,
    " ": show,
    ArrowRight: () => made.nextElementSibling?.focus(),
    ArrowLeft: () => made.previousElementSibling?.focus(),
  };
  made.addEventListener("keydown", (event) => {
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  return made;
}
