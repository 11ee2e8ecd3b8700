"use strict";

// Everything in `page` comes from a run, and its texts from a model: they reach the document as text nodes only.
const page = JSON.parse(document.getElementById("data").textContent);

/* ---- charts ---- */

const plots = [...document.querySelectorAll(".plot[data-figure]")];
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(hover: none)");

// The colours are in the style sheet; plotly gets them as a template.
function theme() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = {
    gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"),
    automargin: true, title: { font: { size: 12 }, standoff: 8 },
  };
  return { layout: {
    font: { family: colour("--sans"), size: 12, color: colour("--muted") },
    paper_bgcolor: colour("--card"), plot_bgcolor: colour("--card"),
    margin: { l: 8, r: 12, t: 26, b: 8 },
    xaxis: { ...axis, showgrid: false, zeroline: false, showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "solid",
      spikecolor: colour("--muted"), nticks: 6 },
    yaxis: { ...axis, nticks: 6 },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink"), size: 12 } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--ink") },
    shapedefaults: { fillcolor: colour("--band"), line: { color: colour("--band-line") } },
  } };
}

function drawCharts() {
  const config = {
    responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]],
    displayModeBar: touch.matches ? false : "hover",
  };
  const template = theme();
  for (const plot of plots) {
    const { data, layout } = page.figures[plot.dataset.figure];
    // On a touch screen a drag over a chart has to scroll the page.
    Plotly.newPlot(plot, data, { ...layout, template, dragmode: touch.matches ? false : "zoom" }, config);
    plot.on("plotly_relayout", (change) => zoomOthers(plot, change));
  }
}

let zooming = false; // relayout sends an event: without this, two charts would answer each other for ever
function zoomOthers(source, change) {
  if (zooming) return;
  let range = null;
  if ("xaxis.range[0]" in change) range = { "xaxis.range": [change["xaxis.range[0]"], change["xaxis.range[1]"]] };
  else if (change["xaxis.autorange"]) range = { "xaxis.autorange": true };
  if (!range) return;
  zooming = true;
  Promise.all(plots.filter((plot) => plot !== source).map((plot) => Plotly.relayout(plot, range)))
    .finally(() => { zooming = false; });
}

dark.addEventListener("change", () => {
  const template = theme();
  plots.forEach((plot) => Plotly.relayout(plot, { template }));
});

drawCharts();

/* ---- rollouts ---- */

const ROWS_AT_ONCE = 40;
const COLUMNS = ["step", "reward", "advantage", "num_response_tokens", "finish_reason", "answer", "prompt", "response"];
const NUMERIC = new Set(["reward", "advantage", "num_response_tokens"]);
const TEXTS = ["prompt", "response", "answer"];

const text = (value) => (value === null || value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value));
// A response may contain anything: control characters become their visible symbols, half a surrogate pair U+FFFD.
const visible = (value) => text(value).toWellFormed()
  .replace(/[\x00-\x08\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0))).replace(/\x7f/g, "\u2421");
const oneLine = (value) => value.toWellFormed().replace(/\s+/g, " ").trim(); // an excerpt may begin or end in the middle of a pair

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function showRollouts(rollouts) {
  const form = document.getElementById("filters");
  const body = document.querySelector("#rollouts tbody");
  const more = document.getElementById("more");
  const heads = [...document.querySelectorAll("#rollouts th")];
  const steps = [...new Set(rollouts.map((rollout) => rollout.step))];
  const haystacks = new Map(rollouts.map((r) => [r, TEXTS.map((name) => text(r[name])).join("\n").toLowerCase()]));
  const opened = new Set();
  let sort = { column: "step", sign: 1 };
  let limit = ROWS_AT_ONCE;

  const chosenStep = () => (form.step.value === "0" ? null : steps[form.step.value - 1]);
  const needle = () => form.text.value.trim().toLowerCase();

  function matching() {
    const step = chosenStep(), outcome = form.outcome.value, wanted = needle();
    return rollouts.filter((r) =>
      (step === null || r.step === step) &&
      (outcome === "all" || (r.reward !== null && (r.reward >= page.right) === (outcome === "correct"))) &&
      (!wanted || haystacks.get(r).includes(wanted)));
  }

  function compare(a, b) {
    const [x, y] = [a[sort.column], b[sort.column]];
    const missing = (x === null) - (y === null);
    if (missing || x === null) return missing; // unknown values come last in both directions
    if (typeof x === "number" && typeof y === "number") return sort.sign * (x - y);
    return sort.sign * text(x).localeCompare(text(y), undefined, { numeric: true });
  }

  function render() {
    const found = matching().sort(compare);
    body.replaceChildren(...found.slice(0, limit).flatMap(rows));
    form.querySelector("output").value = chosenStep() === null ? "all steps" : chosenStep().toLocaleString("en");
    document.getElementById("count").textContent =
      found.length === 0 ? "No rollout matches." : `${found.length.toLocaleString("en")} of ${rollouts.length.toLocaleString("en")} match.`;
    more.hidden = found.length <= limit;
    more.textContent = `Show ${Math.min(ROWS_AT_ONCE, found.length - limit)} more`;
    for (const head of heads) {
      if (head.dataset.sort !== sort.column) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", sort.sign > 0 ? "ascending" : "descending");
    }
  }

  function rows(rollout) {
    const isOpen = opened.has(rollout);
    const row = element("tr", { className: isOpen ? "row opened" : "row" }, ...COLUMNS.map((name) => cell(rollout, name)));
    const button = element("button", { type: "button", className: "open", textContent: text(rollout.step) });
    button.setAttribute("aria-expanded", isOpen);
    row.firstChild.replaceChildren(button);
    row.onclick = () => {
      if (!opened.delete(rollout)) opened.add(rollout);
      const fresh = rows(rollout);
      if (isOpen) row.nextSibling.remove();
      row.replaceWith(...fresh);
      fresh[0].querySelector("button").focus({ preventScroll: true });
    };
    return isOpen ? [row, reader(rollout)] : [row];
  }

  function cell(rollout, name) {
    const value = rollout[name];
    const td = element("td", { className: NUMERIC.has(name) ? "number" : TEXTS.includes(name) ? `text ${name}` : "" });
    if (typeof value === "number") {
      td.textContent = name === "num_response_tokens" ? value.toLocaleString("en") : name === "step" ? value : signed(value);
    } else td.append(element("bdi", { textContent: excerpt(visible(value), name), dir: "ltr" }));
    if (name === "response" && !needle()) td.classList.add("tail");
    if (name === "reward" && value !== null) td.classList.add(value >= page.right ? "right" : "wrong");
    if (name === "num_response_tokens") td.dataset.unit = " tokens";
    if (name === "advantage") td.dataset.unit = " advantage";
    return td;
  }

  // Shows the beginning of a prompt, the end of a response, where the answer is, and the place of a search's match.
  function excerpt(value, name) {
    const at = needle() ? value.toLowerCase().indexOf(needle()) : -1;
    if (at > 40) return "… " + oneLine(value.slice(at - 30, at + 300));
    return oneLine(at < 0 && name === "response" ? value.slice(-300) : value.slice(0, 300));
  }

  function reader(rollout) {
    const part = (title, name) => [element("h4", { textContent: title }), element("pre", {}, ...marked(visible(rollout[name])))];
    const left = element("div", {}, ...part("Prompt", "prompt"), ...part("Answer", "answer"));
    const right = element("div", {}, ...part("Response", "response"));
    const cell = element("td", { className: "full", colSpan: COLUMNS.length }, element("div", { className: "columns" }, left, right));
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

  form.step.max = steps.length;
  form.onsubmit = (event) => event.preventDefault();
  form.oninput = () => { limit = ROWS_AT_ONCE; render(); };
  more.onclick = () => { limit += ROWS_AT_ONCE; render(); };
  for (const head of heads) {
    if (NUMERIC.has(head.dataset.sort)) head.classList.add("number");
    head.querySelector("button").onclick = () => {
      sort = { column: head.dataset.sort, sign: sort.column === head.dataset.sort ? -sort.sign : 1 };
      render();
    };
  }
  render();
}

function signed(value) {
  const digits = Number.isInteger(value) ? 0 : 2;
  return (value > 0 ? "+" : value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(digits);
}

if (page.rollouts.length) showRollouts(page.rollouts);
