"use strict";

/* ---- theme ---- */

const dark = matchMedia("(prefers-color-scheme: dark)");
let colours = {};
let font = "";

function readColours() {
  const style = getComputedStyle(document.documentElement);
  font = getComputedStyle(document.body).fontFamily;
  for (const name of ["ink", "muted", "line", "card", "band", "band-line", "mark-line"])
    colours[name] = style.getPropertyValue(`--${name}`).trim();
}

const faint = (colour, share) => `${colour}${Math.round(255 * share).toString(16).padStart(2, "0")}`; // of #rrggbb

// A colour of #rrggbb, a little of the paper's mixed in.
function mixed(colour, paper) {
  const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const [a, b] = [parts(colour), parts(paper)];
  return `rgb(${a.map((value, i) => Math.round(0.82 * value + 0.18 * b[i])).join(" ")})`;
}

/* ---- all charts of a page ---- */

// Charts over the same x: zoomed together; those of one section have one cursor.
class Group {
  constructor(options) {
    Object.assign(this, { view: null, charts: [], marks: [], window: 1, ...options });
  }

  zoom(view) {
    this.view = view;
    for (const chart of this.charts) {
      const [min, max] = view ?? this.whole(chart);
      chart.plot.setScale("x", { min, max });
    }
    const button = document.getElementById("unzoom");
    button.hidden = view === null;
    button.onclick = () => this.zoom(null);
  }
}

const pause = () => new Promise((resolve) => setTimeout(resolve));

// Draws every chart of the document, those at its top first, without keeping the reader waiting for the last.
async function drawCharts(data, groupOf) {
  readColours();
  const groups = new Set();
  followTheme(groups);
  const charts = [...document.querySelectorAll(".plot[data-chart]")].map((holder) => {
    const chart = data.charts[holder.dataset.chart], group = groupOf(chart);
    groups.add(group);
    return new Chart(holder, chart, data.axes[chart.axis], group);
  });
  const widths = charts.map(({ holder }) => holder.clientWidth); // all at once: each time after a change costs a layout
  let since = performance.now();
  for (const [i, chart] of charts.entries()) {
    chart.show(widths[i]);
    chart.group.charts.push(chart);
    performance.mark("chart drawn");
    if (performance.now() - since > 40) {
      await pause();
      since = performance.now();
    }
  }
}

// Where the reader's theme changes, and on paper, which is white.
function redrawCharts(groups) {
  readColours();
  for (const { plot } of [...groups].flatMap((group) => group.charts)) plot.redraw();
}

function followTheme(groups) {
  dark.addEventListener("change", () => redrawCharts(groups));
  for (const [event, printed] of [["beforeprint", true], ["afterprint", false]])
    addEventListener(event, () => {
      document.documentElement.classList.toggle("paper", printed);
      redrawCharts(groups);
    });
}
