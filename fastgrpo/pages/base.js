"use strict";

// What a page holds besides its text, deflated so that it is small. It comes from a run, and its texts from a model: they
// reach the document as text nodes only.
async function unpacked(name) {
  const holder = document.getElementById(`${name}-data`);
  const letters = atob(holder.textContent), packed = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i += 1) packed[i] = letters.charCodeAt(i);
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
}

// Until the whole page has been read: what is large stands at its end, so that the charts need not wait for it.
const loaded = () => document.readyState !== "loading" ||
  new Promise((resolve) => { document.addEventListener("DOMContentLoaded", resolve); });

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

// What a part of a figure that the template wrote says of itself when it is pointed at.
function showTips() {
  const tip = element("div", { className: "tip", hidden: true });
  document.body.append(tip);
  document.addEventListener("pointermove", ({ target, clientX, clientY }) => {
    const said = target.closest?.("[data-tip]")?.dataset.tip;
    tip.hidden = said === undefined;
    if (tip.hidden) return;
    tip.textContent = said;
    const { offsetWidth: width, offsetHeight: height } = tip;
    tip.style.left = `${Math.max(8, Math.min(clientX + 12, innerWidth - width - 8))}px`;
    tip.style.top = `${clientY - height - 12 < 8 ? clientY + 16 : clientY - height - 12}px`;
  });
}
