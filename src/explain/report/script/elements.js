// Elements and words. Text reaches the page as text nodes only.
const data = JSON.parse(document.getElementById("data").textContent), records = data.records;
const by = (id) => document.getElementById(id);
const has = (value) => value !== null && value !== undefined;
const list = (value) => (Array.isArray(value) ? value : []);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const words = (name) => String(name).replace(/[_:]+/g, " ");

/** An element: "tag.class", perhaps attributes, listeners and style, then children. */
function h(name, ...children) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag), first = children[0];
  if (classes.length) made.className = classes.join(" ");
  const options = has(first) && first.constructor === Object ? children.shift() : {};
  for (const [key, value] of Object.entries(options)) {
    if (!has(value) || value === false) continue;
    if (typeof value === "function") made.addEventListener(key, value);
    else if (key === "style") Object.entries(value).forEach(([part, to]) => made.style.setProperty(part, to));
    else made.setAttribute(key, value);
  }
  made.append(...children.filter(has));
  return made;
}
function svg(name, options, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(options)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
const panel = (id, ...children) => document.querySelector(`#${id} .fill`).replaceChildren(...children.flat().filter(has));
const quiet = (text) => h("p.quiet", text);
const label = (text) => ({ "aria-label": text, title: text });
const button = (text, pressed, click, more) => h("button", { type: "button", "aria-pressed": has(pressed) ? String(pressed) : null, click, ...more }, text);

const LEVELS = { L0: "description", L1: "additive or gradient estimate", L2: "intervention", L3: "validated on held-out minimal pairs" };
const level = (name) => h("span.level", { title: LEVELS[name.slice(0, 2)] }, name);

const NOT = "not computed";
function number(value, sign) {
  if (!has(value)) return NOT;
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  const text = Number.isInteger(value) && size < 1e6 && !sign ? String(size)
    : size === 0 || (size >= 0.01 && size < 1e4) ? size.toFixed(size >= 1000 ? 0 : size >= 100 ? 1 : 2) : size.toPrecision(2);
  return (value < 0 ? "−" : sign ? "+" : "") + text;
}
const signed = (value) => number(value, true);
const interval = (pair) => (list(pair).length === 2 && pair.every(has) ? `${number(pair[0])} to ${number(pair[1])}` : NOT);
const share = (part, whole) => `${Math.round(100 * part / whole)} %`;
const headName = (head) => `L${head.layer}H${head.head}`;
const headNames = (heads) => heads.map(headName).join(", ");

const none = (why) => h("p.missing", NOT + (why ? `: ${why}` : ""));
/** Why a field is missing, in the words of the record. */
function missing(field, otherwise) {
  const told = list(source.not_computed).find((hole) => hole.reason && (hole.field === field || field.startsWith(`${hole.field}.`)));
  return none(told ? told.reason : otherwise);
}

const region = (name, inside) => h("div.scroll", { tabindex: 0, role: "region", "aria-label": name }, inside);
/** Rows under a drawer; `open`: the table is the figure, and stands by itself. */
function table(title, columns, rows, open) {
  const textual = columns.map((_, n) => rows.some((row) => typeof row[n] === "string"));
  const body = region(`data: ${title}`, h("table", h("caption", title),
    h("thead", h("tr", ...columns.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", ...rows.map((row) => h("tr", ...columns.map((_, n) => h(textual[n] ? "td.words" : "td", { dir: textual[n] ? "auto" : null }, number(row[n]))))))));
  return open ? body : h("details.data", h("summary", "data table"), body);
}
