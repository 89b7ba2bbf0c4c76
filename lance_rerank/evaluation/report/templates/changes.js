// Gains and losses by query: a bar each, sorted.

const bars = { items: [], at: -1, left: 52, height: 230, step: 1, width: 1 };

function drawChanges() {
  if (!paired) return;
  const sorted = sortedBy("gain");
  const gains = sorted.filter((item) => item.change > 0);
  const losses = sorted.filter((item) => item.change < 0);
  const same = sorted.length - gains.length - losses.length;
  bars.items = [...gains, ...losses];
  byId("changes-said").replaceChildren(
    bdi(data.retrievers[state.b]),
    " against ",
    bdi(data.retrievers[state.a]),
    ` by ${data.measures[state.measure]}: better on ${counted(gains.length, "query", "queries")}, ` +
      `worse on ${grouped(losses.length)}, the same on ${grouped(same)} of ${grouped(sorted.length)}` +
      (same && bars.items.length ? " (these are not drawn)." : "."),
  );
  drawBars();
  byId("changes-readout").textContent = bars.items.length ? "Point at a bar to see its query, click to open it." : "";
  listChanges(byId("gains"), gains.slice(0, 5));
  listChanges(byId("losses"), losses.slice(-5).reverse());
}

function drawBars() {
  const svg = byId("changes-plot");
  const { items, left, height } = bars;
  svg.toggleAttribute("hidden", !items.length);
  const width = Math.max(svg.clientWidth, 280);
  const most = Math.max(...items.map((item) => Math.abs(item.change)), 1e-9);
  const middle = height / 2;
  const scale = (middle - 14) / most;
  const step = (width - left - 4) / Math.max(items.length, 1);
  Object.assign(bars, { at: -1, step, width });
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const drawn = [1, 0.5, -0.5, -1].flatMap((share) => barTick(share * most, middle - share * most * scale));
  items.forEach((item, place) => {
    const tall = Math.max(Math.abs(item.change) * scale, 1);
    const y = item.change > 0 ? middle - tall : middle;
    const wide = step > 4 ? Math.min(step - 1, 22) : Math.max(step, 0.5);
    const kind = item.change > 0 ? "gain" : "loss";
    drawn.push(shape("rect", { class: kind, x: left + place * step, y, width: wide, height: tall }));
  });
  drawn.push(...barTick(0, middle));
  drawn.push(shape("rect", { class: "pointed", y: 4, height: height - 8, visibility: "hidden" }));
  drawn.push(shape("rect", { class: "hit", x: left, y: 0, width: width - left, height }));
  svg.replaceChildren(...drawn);
}

function barTick(value, y) {
  const text = value ? sign(value) + Number(Math.abs(value).toPrecision(2)) : "0";
  return [
    shape("path", { class: value ? "grid" : "zero", d: `M${bars.left} ${y}H${bars.width}` }),
    shape("text", { x: bars.left - 6, y: y + 4, "text-anchor": "end" }, text),
  ];
}

function listChanges(into, items) {
  const rows = items.map((item) => {
    const change = element("span", { class: `number ${direction(item.change)}` }, signed(item.change));
    return element("li", {}, change, queryButton(item.number));
  });
  list(into, rows);
}

function pointAt(place) {
  const item = bars.items[place];
  if (!item) return;
  bars.at = place;
  const frame = byId("changes-plot").querySelector(".pointed");
  frame.setAttribute("x", bars.left + place * bars.step - 1);
  frame.setAttribute("width", Math.max(Math.min(bars.step, 23), 2) + 1);
  frame.setAttribute("visibility", "visible");
  const values = `${fixed(valueOf(item.query, state.a))} → ${fixed(valueOf(item.query, state.b))}`;
  byId("changes-readout").replaceChildren(`${values} (${signed(item.change)}) `, bdi(title(item.query)));
}

function pointAtEvent(event) {
  const box = byId("changes-plot").getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * bars.width - bars.left;
  pointAt(Math.min(Math.max(Math.floor(x / bars.step), 0), bars.items.length - 1));
}

function openPointed() {
  if (bars.items[bars.at]) choose(bars.items[bars.at].number, true);
}

function onBarKey(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) pointAt(Math.min(Math.max(bars.at + step, 0), bars.items.length - 1));
  else if (event.key === "Enter") openPointed();
  else return;
  event.preventDefault();
}

function startChanges() {
  const svg = byId("changes-plot");
  if (!svg) return;
  svg.addEventListener("pointermove", pointAtEvent);
  svg.addEventListener("click", (event) => {
    pointAtEvent(event);
    openPointed();
  });
  svg.addEventListener("keydown", onBarKey);
  window.addEventListener("resize", () => {
    if (svg.clientWidth && svg.clientWidth !== bars.width) drawBars();
  });
}
