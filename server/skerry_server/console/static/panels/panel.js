// What every panel shares: its title line, tags, state words with a shape beside the colour.

import { h, patch } from "../dom.js";
import { chosenTask } from "../store.js";
import { words } from "../format.js";

/** Fill a panel: title, a short note, controls on the right, then the content. */
export function panel(id, title, { note = "", controls = [] }, ...content) {
  patch(document.getElementById(id), [
    h("header", { class: "panel-head", "data-key": "head" },
      h("h2", { id: `${id}-title` }, title),
      h("p", { class: "note" }, note),
      h("div", { class: "controls" }, ...controls)),
    ...content,
  ]);
}

/** A line that says that there is nothing, and how to get something. */
export const nothing = (text) => h("p", { class: "nothing", "data-key": "nothing" }, text);

/** state -> mood; the mood decides colour and shape. */
const MOODS = {
  good: ["online", "committed", "done", "finished", "healthy", "resolved", "passed", "released", "available", "ok", "idle"],
  busy: [
    "need", "downloading", "verifying", "staging", "proving", "activating", "probation", "running", "canary", "fleet", "instructed",
    "recruiting", "gating", "training", "gated", "approved",
  ],
  warn: ["queued", "pending", "built", "suspect", "warn", "act", "detected", "confirmed", "proposed", "rolling_back", "draft", "paused"],
  bad: [
    "rolled_back", "quarantined", "failed", "rejected", "critical", "drift", "data_quality", "breaker_open",
  ],
};
const MOOD_OF = new Map(Object.entries(MOODS).flatMap(([mood, states]) => states.map((state) => [state, mood])));

export const moodOf = (state) => MOOD_OF.get(state) ?? "none";

/** A state as a word with a shape: colour is never alone. */
export function state(value, { title = "", label = words(value) } = {}) {
  return h("span", { class: "state", "data-mood": moodOf(value), title: title || null }, h("i", { "aria-hidden": "true" }), label);
}

/** An identifier, set in the fixed-width face and never wrapped. */
export const identifier = (value) => (value ? h("code", { class: "id" }, value) : h("span", { class: "faint" }, "–"));

/** Buttons that choose the task of the charts; nothing while there is only one. */
export function taskChoice(data) {
  const tasks = (data.tasks ?? []).filter((task) => task.releases > 0);
  if (tasks.length < 2) return [];
  const chosen = chosenTask(data);
  return tasks.map((task) =>
    h("button", { type: "button", class: "choice", "data-key": task.name, "data-action": "task", "data-task": task.name, "aria-pressed": String(task.name === chosen) }, task.name));
}

/** Whether the caller's role reaches. */
export function may(data, role) {
  const order = ["viewer", "operator", "approver", "admin"];
  return order.indexOf(data.summary?.role) >= order.indexOf(role);
}
