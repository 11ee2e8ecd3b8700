"use strict";

// Runs after the run report's script, whose page, theme, dark, touch, element, text, visible and oneLine it uses.
// Everything in `page` comes from a model: it reaches the document as text nodes only.

/* ---- charts ---- */

const charts = [...document.querySelectorAll(".plot[data-chart]")];

function drawEvaluationCharts() {
  const template = theme();
  const config = {
    responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]],
    displayModeBar: touch.matches ? false : "hover",
  };
  for (const chart of charts) {
    const { data, layout } = page.charts[chart.dataset.chart];
    Plotly.newPlot(chart, data, { ...layout, template, dragmode: touch.matches ? false : "zoom" }, config);
  }
}

dark.addEventListener("change", () => {
  const template = theme();
  charts.forEach((chart) => Plotly.relayout(chart, { template }));
});

drawEvaluationCharts();

/* ---- transcripts ---- */

const TRANSCRIPTS_AT_ONCE = 40;

function showTranscripts(transcripts) {
  const form = document.getElementById("filters");
  const body = document.querySelector("#transcripts tbody");
  const more = document.getElementById("more");
  const problemOf = (one) => page.problems[one.place];
  const haystacks = new Map(transcripts.map((one) =>
    [one, [problemOf(one).text, problemOf(one).answer, one.response].join("\n").toLowerCase()]));
  const kinds = { all: () => true, right: (one) => one.right, wrong: (one) => !one.right, truncated: (one) => one.truncated };
  const benchmarks = [...new Set(transcripts.map((one) => one.benchmark))];
  let limit = TRANSCRIPTS_AT_ONCE;

  function render() {
    const wanted = form.text.value.trim().toLowerCase();
    const found = transcripts.filter((one) =>
      kinds[form.kind.value](one) &&
      (form.benchmark.value === "" || one.benchmark === form.benchmark.value) &&
      (!wanted || haystacks.get(one).includes(wanted)));
    body.replaceChildren(...found.slice(0, limit).map(row));
    document.getElementById("count").textContent = found.length === 0 ? "No response matches."
      : `${found.length.toLocaleString("en")} of ${transcripts.length.toLocaleString("en")} match.`;
    more.hidden = found.length <= limit;
    more.textContent = `Show ${Math.min(TRANSCRIPTS_AT_ONCE, found.length - limit)} more`;
  }

  function row(one) {
    const open = element("button", { type: "button", className: "open", textContent: one.benchmark });
    const verdict = (one.right ? "right" : "wrong") + (one.truncated ? ", cut" : "");
    const line = element("tr", { className: "row" },
      element("td", {}, open),
      element("td", { textContent: `${one.problem} · ${one.sample}`, title: "problem · sample" }),
      element("td", { textContent: verdict, className: one.right ? "right" : "wrong" }),
      element("td", { textContent: one.tokens.toLocaleString("en"), className: "number" }),
      element("td", { className: "text answer" }, isolated(oneLine(visible(problemOf(one).answer).slice(0, 200)))),
      element("td", { className: "text tail" }, isolated(oneLine(visible(one.response).slice(-300)))));
    open.setAttribute("aria-expanded", "false");
    line.onclick = () => {
      const opened = open.getAttribute("aria-expanded") === "false";
      open.setAttribute("aria-expanded", String(opened));
      line.classList.toggle("opened", opened);
      if (opened) line.after(reader(one));
      else line.nextSibling.remove();
    };
    return line;
  }

  const isolated = (value) => element("bdi", { textContent: value, dir: "ltr" });
  const part = (title, value) => [element("h4", { textContent: title }), element("pre", { textContent: visible(value) })];

  function reader(one) {
    const left = element("div", {}, ...part("Problem", problemOf(one).text), ...part("Gold answer", problemOf(one).answer));
    const right = element("div", {}, ...part("Response", one.response));
    const cell = element("td", { className: "full", colSpan: 6 }, element("div", { className: "columns" }, left, right));
    return element("tr", { className: "reader" }, cell);
  }

  form.benchmark.append(new Option("all", ""), ...benchmarks.map((name) => new Option(name, name)));
  form.onsubmit = (event) => event.preventDefault();
  form.oninput = () => { limit = TRANSCRIPTS_AT_ONCE; render(); };
  more.onclick = () => { limit += TRANSCRIPTS_AT_ONCE; render(); };
  render();
}

if (page.transcripts.length) showTranscripts(page.transcripts);
