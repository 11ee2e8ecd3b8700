"use strict";

/* ---- charts ---- */

function groupsOfSteps(data) {
  const [first, last] = data.range;
  const marks = data.marks.flatMap(({ label, after }) => after.map((step) => ({ label, after: step })));
  const room = last - first <= 40 ? [0.5, 0.5] : [0, 0.01 * (last - first)]; // markers and bars are not cut
  const all = new Group({
    marks,
    window: data.window,
    key: "steps",
    whole: () => [first - room[0], last + room[1]],
    name: (axis, i) => {
      const from = axis.first[i].toLocaleString("en"), to = axis.last?.[i].toLocaleString("en");
      return to === undefined || from === to ? `step ${from}` : `steps ${from}–${to}`;
    },
  });
  return () => all;
}

/* ---- rollouts ---- */

function showRollouts({ rollouts, right }) {
  const steps = [...new Set(rollouts.map((rollout) => rollout.step))];
  const chosenStep = (form) => (form.step.value === "0" ? null : steps[form.step.value - 1]);
  const written = (value, how) => (typeof value === "number" ? how(value) : text(value));
  const column = (name, head, options = {}) =>
    ({ name, head, value: (rollout) => rollout[name], text: (rollout) => text(rollout[name]), ...options });
  const numeric = (name, head, how, options = {}) =>
    column(name, head, { className: "number", text: (rollout) => written(rollout[name], how), ...options });
  const isRight = ({ correct, reward }) => correct ?? (typeof reward === "number" ? reward >= right : null); // older runs
  const mood = (rollout) => (isRight(rollout) === null ? [] : isRight(rollout) ? ["right"] : ["wrong"]);
  const made = ({ parts }) => Object.entries(parts ?? {}).map(([name, value]) => `${name}: ${value}`).join("\n");
  document.querySelector("#filters [name=step]").max = steps.length;
  showRecords({
    records: rollouts,
    columns: [
      column("step", "Step"),
      numeric("reward", "Reward", signed, { mood }),
      numeric("advantage", "Advantage", signed, { unit: " advantage" }),
      numeric("num_response_tokens", "Tokens", (value) => value.toLocaleString("en"), { unit: " tokens" }),
      column("finish_reason", "Finish"),
      column("answer", "Answer", { className: "text answer" }),
      column("prompt", "Prompt", { className: "text prompt" }),
      column("response", "End of the response", { className: "text response", tail: true }),
    ],
    parts: (rollout) => [
      [["Prompt", rollout.prompt], ["Answer", rollout.answer], ...(made(rollout) ? [["Reward", made(rollout)]] : [])],
      [["Response", rollout.response]],
    ],
    matches: (rollout, form) =>
      (chosenStep(form) === null || rollout.step === chosenStep(form)) &&
      (form.outcome.value === "all" || isRight(rollout) === (form.outcome.value === "correct")),
    onRender: (form) => {
      form.querySelector("output").value = chosenStep(form) === null ? "all steps" : chosenStep(form).toLocaleString("en");
    },
  });
}

async function show() {
  const data = await unpacked("charts");
  await drawCharts(data, groupsOfSteps(data));
  await loaded();
  const records = await unpacked("records"); // megabytes of text: after the charts
  if (records.rollouts.length) showRollouts(records);
}

const shown_ = show();
