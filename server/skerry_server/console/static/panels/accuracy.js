// Accuracy on the server's holdout after each round, campaign after campaign: a chart drawn by hand, and its table.

import { h, s } from "../dom.js";
import { percent, plural, words } from "../format.js";
import { chosenTask } from "../store.js";
import { nothing, panel, taskChoice } from "./panel.js";

const HEIGHT = 230;
const MARGIN = { top: 16, right: 52, bottom: 38, left: 46 };
const CAMPAIGNS = 6;

export function renderAccuracy(data, { chartWidth }) {
  const task = chosenTask(data);
  const campaigns = data.campaigns.filter((row) => row.task === task && row.rounds.length > 0).slice(0, CAMPAIGNS).reverse();
  const active = data.campaigns.find((row) => !row.finished && row.task === task);
  const note = active ? `${active.strategy} ${words(active.state)}, round ${active.rounds.length} of ${active.rounds_planned}` : campaigns.length ? task : "";
  if (campaigns.length === 0) {
    panel("accuracy", "Accuracy by round", { note, controls: taskChoice(data) },
      nothing(active ? active.detail || "Waiting for the first round." : "No campaign has committed a round. Start one with “skerry campaign start”."));
    return;
  }
  const bases = new Map(data.releases.map((row) => [row.id, row.metrics.accuracy]));
  panel("accuracy", "Accuracy by round", { note, controls: taskChoice(data) },
    h("div", { class: "chart", "data-key": "chart" }, chart(campaigns, bases, Math.max(280, chartWidth))),
    h("table", { class: "hidden", "data-key": "table" },
      h("caption", {}, "Accuracy on the holdout after each round"),
      h("thead", {}, h("tr", {}, ["Campaign", "Round", "Devices", "Accuracy"].map((title) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, campaigns.flatMap((row) => row.rounds.map((round) =>
        h("tr", {}, h("td", {}, row.id), h("td", {}, round.number), h("td", {}, round.accepted), h("td", {}, percent(round.accuracy))))))));
}

function chart(campaigns, bases, width) {
  const series = layOut(campaigns, bases);
  const values = series.flatMap((part) => part.points.map((point) => point.value));
  const [low, high, step] = scale(Math.min(...values), Math.max(...values));
  const slots = series.reduce((most, part) => Math.max(most, part.end), 0);
  const x = (slot) => MARGIN.left + ((slot + 0.5) / (slots + 1)) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => MARGIN.top + (1 - (value - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const bottom = HEIGHT - MARGIN.bottom;
  const ticks = [];
  for (let value = low; value <= high + 1e-9; value += step) ticks.push(value);
  const last = series.at(-1).points.at(-1);
  return s("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": `Accuracy by round; the newest is ${percent(last.value)}` },
    ticks.map((value) => s("g", { class: "tick" },
      s("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
      s("text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, `${Math.round(value * 1000) / 10}%`))),
    series.map((part, index) => s("g", { class: "series", "data-current": index === series.length - 1 },
      index > 0 ? s("line", { class: "divider", x1: (x(part.start) + x(series[index - 1].end)) / 2, x2: (x(part.start) + x(series[index - 1].end)) / 2, y1: MARGIN.top, y2: bottom + 26 }) : null,
      s("path", { class: "line", d: part.points.map((point, at) => `${at ? "L" : "M"}${x(point.slot).toFixed(1)} ${y(point.value).toFixed(1)}`).join("") }),
      part.points.map((point) => s("circle", { class: point.base ? "base" : "dot", cx: x(point.slot).toFixed(1), cy: y(point.value).toFixed(1), r: 3.5 }, s("title", {}, point.title))),
      part.points.filter((point, at) => at === 0 || at === part.points.length - 1 || part.points.length <= 8).map((point) =>
        s("text", { class: "round", x: x(point.slot), y: bottom + 15, "text-anchor": "middle" }, point.base ? "start" : String(point.round))),
      s("text", { class: "campaign", x: (x(part.start) + x(part.end)) / 2, y: bottom + 31, "text-anchor": "middle" }, label(part.row, x(part.end) - x(part.start))))),
    s("text", { class: "newest", x: x(last.slot) + 9, y: y(last.value) + 4 }, percent(last.value)));
}

/** Campaigns one after the other; each begins at the accuracy of the release that it started from, if that is known. */
function layOut(campaigns, bases) {
  let slot = 0;
  return campaigns.map((row) => {
    const points = [];
    const base = bases.get(row.base_release);
    const start = slot;
    if (Number.isFinite(base)) points.push({ slot: slot++, value: base, base: true, title: `${row.base_release}: ${percent(base)}` });
    for (const round of row.rounds) {
      if (!Number.isFinite(round.accuracy)) continue;
      points.push({ slot: slot++, value: round.accuracy, round: round.number, title: `${row.id} round ${round.number}: ${percent(round.accuracy)}, ${plural(round.accepted, "device")}` });
    }
    const end = slot - 1;
    slot += 1;
    return { row, points, start, end };
  }).filter((part) => part.points.length > 0);
}

function label(row, room) {
  const full = `${row.strategy} · ${row.id}`;
  if (full.length * 6.2 < room + 30) return full;
  return row.strategy.length * 6.2 < room + 40 ? row.strategy : "";
}

/** Bounds and step of an axis with about four lines, never outside 0 to 1. */
function scale(lowest, highest) {
  const spread = Math.max(0.01, highest - lowest);
  const step = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25].find((each) => spread / each <= 4) ?? 0.25;
  const low = Math.max(0, Math.floor((lowest - step / 4) / step) * step);
  const high = Math.min(1, Math.ceil((highest + step / 4) / step) * step);
  return [low, high > low ? high : low + step, step];
}
