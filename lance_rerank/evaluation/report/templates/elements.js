"use strict";
// What the page's other scripts stand on: its data, the chosen pair, and making elements.
// All text from the data becomes text nodes or attributes; nothing here reads it as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const state = { a: data.start[0], b: data.start[1], measure: 0, query: null };
const paired = data.retrievers.length > 1;
const LISTED = 200;

const byId = (id) => document.getElementById(id);
const all = (selector) => document.querySelectorAll(selector);

function withAttributes(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function element(tag, attributes, ...children) {
  return withAttributes(document.createElement(tag), attributes, children);
}

function shape(tag, attributes, ...children) {
  return withAttributes(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

const bdi = (text) => element("bdi", {}, text);
const grouped = (number) => number.toLocaleString("en");
const counted = (number, word, words) => (number === 1 ? `1 ${word}` : `${grouped(number)} ${words}`);
const fixed = (value) => (value === null ? "–" : value.toFixed(4));
const sign = (value) => (value < 0 ? "−" : value > 0 ? "+" : "±");
const signed = (value) => sign(value) + Math.abs(value).toFixed(4);
const direction = (value) => (value > 0 ? "up" : value < 0 ? "down" : "even");

const valueOf = (query, retriever) => query.values[retriever][state.measure];
const title = (query) => query.text || query.id;

function changeOf(query) {
  return paired ? Number((valueOf(query, state.b) - valueOf(query, state.a)).toFixed(6)) : 0;
}

const ORDERS = {
  gain: (a, b) => b.change - a.change,
  loss: (a, b) => a.change - b.change,
  change: (a, b) => Math.abs(b.change) - Math.abs(a.change),
  given: () => 0,
};

function sortedBy(order) {
  const numbered = data.queries.map((query, number) => ({ query, number, change: changeOf(query) }));
  return numbered.sort((a, b) => ORDERS[order](a, b) || a.number - b.number);
}

function queryButton(number) {
  const button = element("button", { type: "button" }, bdi(title(data.queries[number])));
  button.addEventListener("click", () => choose(number, true));
  return button;
}

function list(into, rows) {
  into.replaceChildren(...(rows.length ? rows : [element("li", { class: "note" }, "none")]));
}
