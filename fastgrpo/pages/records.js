"use strict";

/* ---- a table of long texts, which are read in full one by one ---- */

const ROWS_AT_ONCE = 40;

// `columns` are { name, head, text(record), value(record), className, tail, unit }: a column with a value is sorted by it,
// `tail` shows the end of a text. `parts(record)` are the two columns of a record in full, lists of [title, text].
function showRecords({ records, columns, parts, matches, onRender = () => {} }) {
  const form = document.getElementById("filters");
  const table = document.querySelector("table.records");
  const more = document.getElementById("more");
  const haystacks = new Map();
  const opened = new Set();
  let sort = { column: null, sign: 1 };
  let limit = ROWS_AT_ONCE;

  const needle = () => form.text.value.trim().toLowerCase();

  function haystack(record) {
    if (!haystacks.has(record)) haystacks.set(record, parts(record).flat().map(([, value]) => text(value)).join("\n").toLowerCase());
    return haystacks.get(record);
  }

  const heads = columns.map((column) => {
    const button = element("button", { type: "button", textContent: column.head });
    const head = element("th", { className: column.className ?? "" }, button);
    head.dataset.sort = column.name;
    button.onclick = () => {
      sort = { column, sign: sort.column === column ? -sort.sign : 1 };
      render();
    };
    return head;
  });
  const body = element("tbody");
  table.append(element("thead", {}, element("tr", {}, ...heads)), body);

  function compare(a, b) {
    if (sort.column === null) return 0;
    const [x, y] = [a, b].map((record) => sort.column.value(record) ?? null);
    const missing = (x === null) - (y === null);
    if (missing || x === null) return missing; // unknown values come last in both directions
    if (typeof x === "number" && typeof y === "number") return sort.sign * (x - y);
    return sort.sign * text(x).localeCompare(text(y), undefined, { numeric: true });
  }

  function render() {
    const wanted = needle();
    const found = records.filter((record) => matches(record, form) && (!wanted || haystack(record).includes(wanted))).sort(compare);
    body.replaceChildren(...found.slice(0, limit).flatMap(rows));
    document.getElementById("count").textContent = found.length === 0 ? "None matches."
      : `${found.length.toLocaleString("en")} of ${records.length.toLocaleString("en")} match.`;
    more.hidden = found.length <= limit;
    more.textContent = `Show ${Math.min(ROWS_AT_ONCE, found.length - limit)} more`;
    columns.forEach((column, i) => {
      if (column !== sort.column) heads[i].removeAttribute("aria-sort");
      else heads[i].setAttribute("aria-sort", sort.sign > 0 ? "ascending" : "descending");
    });
    onRender(form);
  }

  function rows(record) {
    const isOpen = opened.has(record);
    const row = element("tr", { className: isOpen ? "row opened" : "row" }, ...columns.map((column) => cell(record, column)));
    const button = element("button", { type: "button", className: "open", textContent: row.firstChild.textContent });
    button.setAttribute("aria-expanded", isOpen);
    row.firstChild.replaceChildren(button);
    row.onclick = () => {
      if (!opened.delete(record)) opened.add(record);
      const fresh = rows(record);
      if (isOpen) row.nextSibling.remove();
      row.replaceWith(...fresh);
      fresh[0].querySelector("button").focus({ preventScroll: true });
    };
    return isOpen ? [row, reader(record)] : [row];
  }

  function cell(record, column) {
    const td = element("td", { className: column.className ?? "" });
    if (column.mood) td.classList.add(...column.mood(record));
    if (column.unit) td.dataset.unit = column.unit;
    if (column.tail && !needle()) td.classList.add("tail");
    td.append(element("bdi", { textContent: excerpt(visible(column.text(record)), column.tail), dir: "ltr" }));
    return td;
  }

  // Shows the beginning of a prompt, the end of a response, where the answer is, and the place of a search's match.
  function excerpt(value, tail) {
    const at = needle() ? value.toLowerCase().indexOf(needle()) : -1;
    if (at > 40) return "… " + oneLine(value.slice(at - 30, at + 300));
    return oneLine(at < 0 && tail ? value.slice(-300) : value.slice(0, 300));
  }

  function reader(record) {
    const part = ([title, value]) => [element("h4", { textContent: title }), element("pre", {}, ...marked(visible(value)))];
    const sides = parts(record).map((side) => element("div", {}, ...side.flatMap(part)));
    const cell = element("td", { className: "full", colSpan: columns.length }, element("div", { className: "columns" }, ...sides));
    return element("tr", { className: "reader" }, cell);
  }

  function marked(value) {
    const wanted = needle(), nodes = [];
    let from = 0;
    const lower = value.toLowerCase();
    if (wanted && lower.length === value.length) { // a few letters become longer in lower case: then the places differ
      for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, from)) {
        nodes.push(value.slice(from, at), element("mark", { textContent: value.slice(at, at + wanted.length) }));
        from = at + wanted.length;
      }
    }
    return [...nodes, value.slice(from)];
  }

  form.onsubmit = (event) => event.preventDefault();
  form.oninput = () => { limit = ROWS_AT_ONCE; render(); };
  more.onclick = () => { limit += ROWS_AT_ONCE; render(); };
  render();
}

function signed(value) {
  const digits = Number.isInteger(value) ? 0 : 2;
  return (value > 0 ? "+" : value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(digits);
}
