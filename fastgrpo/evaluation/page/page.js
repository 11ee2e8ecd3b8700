"use strict";

/* ---- charts ---- */

// The curves over k, on an axis of powers of two.
function groupOfCurves(chart) {
  const powers = Array.from({ length: 1 + Math.floor(Math.log2(chart.most)) }, (_, i) => 2 ** i);
  return new Group({
    key: "k",
    log2: true,
    whole: () => [1, chart.most],
    splits: () => powers,
    name: (axis, i) => `k = ${axis.first[i]}`,
  });
}

/* ---- transcripts ---- */

function showTranscripts({ transcripts, problems }) {
  const problemOf = (one) => problems[one.place];
  const kinds = { all: () => true, right: (one) => one.right, wrong: (one) => !one.right, truncated: (one) => one.truncated };
  const benchmarks = [...new Set(transcripts.map((one) => one.benchmark))];
  document.querySelector("#filters [name=benchmark]").append(new Option("all", ""), ...benchmarks.map((name) => new Option(name, name)));
  const verdict = (one) => (one.right ? "right" : "wrong") + (one.truncated ? ", cut" : "");
  const column = (name, head, value, options = {}) => ({ name, head, value, text: value, ...options });
  const tokens = { text: (one) => one.tokens.toLocaleString("en") };
  showRecords({
    records: transcripts,
    columns: [
      column("benchmark", "Benchmark", (one) => one.benchmark),
      column("problem", "Problem", (one) => one.problem, { text: (one) => `${one.problem} · ${one.sample}` }),
      column("verdict", "Verdict", verdict, { mood: (one) => [one.right ? "right" : "wrong"] }),
      column("tokens", "Tokens", (one) => one.tokens, { ...tokens, className: "number", unit: " tokens" }),
      column("answer", "Gold answer", (one) => problemOf(one).answer, { className: "text answer" }),
      column("response", "End of the response", (one) => one.response, { className: "text response", tail: true }),
    ],
    parts: (one) => [[["Problem", problemOf(one).text], ["Gold answer", problemOf(one).answer]], [["Response", one.response]]],
    matches: (one, form) => kinds[form.kind.value](one) && (form.benchmark.value === "" || one.benchmark === form.benchmark.value),
  });
}

async function show() {
  showTips();
  await drawCharts(await unpacked("charts"), groupOfCurves);
  await loaded();
  const records = await unpacked("records"); // megabytes of text: after the charts
  if (records.transcripts.length) showTranscripts(records);
}

const shown_ = show();
