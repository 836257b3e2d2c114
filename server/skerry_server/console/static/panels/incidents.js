// Incidents: what was seen, how far the cure is, and the two decisions that a person may take.

import { h } from "../dom.js";
import { age, moment, plural, words } from "../format.js";
import { may, moodOf, nothing, panel, state } from "./panel.js";

const WAY = ["detected", "confirmed", "proposed", "approved", "training", "gated", "canary", "resolved"];
const SHOWN_ENDED = 3;

export function renderIncidents(data, { now }) {
  const open = data.incidents.filter((row) => !row.finished);
  const ended = data.incidents.filter((row) => row.finished).slice(0, SHOWN_ENDED);
  panel("incidents", "Incidents", { note: `${open.length} open` },
    open.length + ended.length === 0
      ? nothing("Nothing to act on.")
      : h("ul", { class: "incidents", "data-key": "list" }, [...open, ...ended].map((row) => incident(row, data, now))));
}

function incident(row, data, now) {
  const facts = [`${row.kind.replace("-", " ")} on ${where(row.device_ids)}`, row.release_id, row.policy ? `policy ${row.policy}` : "", row.attempts ? plural(row.attempts, "failed attempt") : ""];
  const links = [row.campaign_id, row.candidate_id, row.rollout_id].filter(Boolean);
  const allowed = may(data, "approver") ? row.actions : [];
  return h("li", { class: "incident", "data-key": row.id, "data-finished": row.finished },
    h("div", { class: "incident-head" },
      h("span", { class: "severity", "data-severity": row.severity }, row.severity),
      h("code", { class: "id" }, row.id),
      row.finished ? state(row.state) : null,
      h("time", { class: "faint", title: moment(row.opened_ms) }, `${age(row.opened_ms, now)}`)),
    h("p", { class: "incident-detail" }, row.detail),
    h("p", { class: "facts", title: row.device_ids.join(", ") }, facts.filter(Boolean).join(" · ")),
    row.finished ? null : way(row),
    links.length ? h("p", { class: "links" }, links.map((link) => h("code", { class: "id" }, link))) : null,
    h("div", { class: "buttons" },
      allowed.includes("approve") ? h("button", { type: "button", "data-action": "approve", "data-id": row.id }, row.state === "breaker_open" ? "Close the breaker" : "Approve cure") : null,
      allowed.includes("dismiss") ? h("button", { type: "button", class: "quiet", "data-action": "dismiss", "data-id": row.id }, "Dismiss") : null,
      row.kind === "drift" && !row.finished ? h("button", { type: "button", class: "quiet", "data-action": "report", "data-id": row.id }, "Drift report") : null));
}

function where(ids) {
  return ids.length > 4 ? `${ids.slice(0, 3).join(", ")} and ${ids.length - 3} more devices` : ids.join(", ");
}

/** The way of a cure as steps; a state that is not on it stands alone. */
function way(row) {
  const at = WAY.indexOf(row.state);
  if (at < 0) return h("p", { class: "way-alone" }, state(row.state));
  return h("ol", { class: "way", "aria-label": `${words(row.state)}, step ${at + 1} of ${WAY.length}` },
    WAY.map((step, index) => h("li", { title: step, "data-done": index < at || (index === at && row.finished), "data-now": index === at && !row.finished, "data-mood": index === at ? moodOf(step) : null },
      index === at ? h("span", {}, words(step)) : null)));
}
