// The rollout that is under way, or the last one.

import { h } from "../dom.js";
import { age, moment, plural, span, words } from "../format.js";
import { identifier, may, moodOf, nothing, panel, state } from "./panel.js";

const STAGES = ["pending", "canary", "fleet", "finished"];

export function renderRollout(data, { now }) {
  const row = data.rollouts.find((each) => !each.finished) ?? data.rollouts[0];
  if (!row) {
    panel("rollout", "Rollout", {}, nothing("No rollout yet. Start one with “skerry rollout start RELEASE”."));
    return;
  }
  const abort = !row.finished && row.state !== "rolling_back" && may(data, "operator");
  panel("rollout", "Rollout", {
    note: row.finished ? `ended ${age(row.updated_ms, now)} ago` : `for ${span(now - row.created_ms)}`,
    controls: abort ? [h("button", { type: "button", class: "quiet", "data-action": "abort-rollout", "data-id": row.id }, "Abort")] : [],
  },
  h("p", { class: "headline", "data-key": "headline" }, identifier(row.release_id), h("span", { class: "faint" }, " to "), identifier(row.cohort_id)),
  h("div", { "data-key": "stages" }, stages(row)),
  row.detail ? h("p", { class: "facts", "data-key": "detail" }, row.detail) : null,
  h("ul", { class: "squares", "aria-label": "Devices", "data-key": "devices" }, row.devices.map((device) =>
    h("li", { "data-key": device.device_id, "data-mood": moodOf(device.state), "data-state": device.state, title: `${device.device_id}, ${device.stage}: ${words(device.state)} ${device.detail}` },
      h("span", { class: "hidden" }, `${device.device_id}: ${words(device.state)}`)))),
  h("p", { class: "facts", "data-key": "tally" }, tally(row)),
  h("p", { class: "facts", "data-key": "who", title: moment(row.created_ms) }, `${row.id} · canary ${row.canary_percent} % · probation ${span(row.probation_ms)} · by ${row.created_by}`));
}

function stages(row) {
  const at = STAGES.indexOf(row.state);
  if (at < 0) return h("p", { class: "way-alone" }, state(row.state));
  return h("ol", { class: "stages", "aria-label": `Stage: ${words(row.state)}` }, STAGES.map((stage, index) =>
    h("li", { "data-done": index < at || (index === at && row.finished), "data-now": index === at && !row.finished }, h("i", { "aria-hidden": "true" }), stage)));
}

function tally(row) {
  const counts = new Map();
  for (const device of row.devices) counts.set(device.state, (counts.get(device.state) ?? 0) + 1);
  const parts = [...counts].map(([name, number]) => `${number} ${words(name)}`);
  return `${plural(row.devices.length, "device")}: ${parts.join(", ")}`;
}
