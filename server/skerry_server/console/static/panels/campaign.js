// The campaign that is under way, or the last one: where it stands, what it spent, why devices stay out.

import { h } from "../dom.js";
import { age, bytes, moment, percent, plural, span, words } from "../format.js";
import { identifier, may, nothing, panel, state, taskChoice } from "./panel.js";

const PHASES = ["configure", "collect", "aggregate", "evaluate", "commit"];
const ROLES = { approve: "approver", pause: "operator", resume: "operator", abort: "operator" };

export function renderCampaign(data, { now }) {
  const row = data.campaign;
  if (!row) {
    panel("campaign", "Campaign", { controls: taskChoice(data) },
      nothing("No campaign yet. Start one with “skerry campaign start TASK”."));
    return;
  }
  const buttons = row.actions.filter((action) => may(data, ROLES[action])).map((action) =>
    h("button", { type: "button", class: "quiet", "data-key": action, "data-action": "campaign", "data-verb": action, "data-id": row.id },
      action[0].toUpperCase() + action.slice(1)));
  panel("campaign", "Campaign", { note: note(row, now), controls: [...taskChoice(data), ...buttons] },
    h("p", { class: "headline", "data-key": "headline" },
      state(row.state), h("span", { class: "faint" }, " · "), `${row.strategy} on `, identifier(row.task),
      h("span", { class: "faint" }, " · cohort "), identifier(row.cohort_id)),
    row.state === "running" ? phases(row) : null,
    row.detail ? h("p", { class: "facts", "data-key": "detail" }, row.detail) : null,
    figures(row),
    reasons(row),
    h("p", { class: "facts", "data-key": "who", title: moment(row.created_ms) }, who(row)));
}

function note(row, now) {
  if (row.finished) return `ended ${age(row.updated_ms, now)} ago`;
  const left = row.deadline_ms ? `, ${span(row.deadline_ms - now)} left` : "";
  return `waits for ${row.waits_for}${left}`;
}

function phases(row) {
  const at = PHASES.indexOf(row.phase);
  const number = row.rounds.length + 1;
  return h("ol", { class: "stages", "data-key": "phases", "aria-label": at < 0 ? `Round ${number}` : `Round ${number}: ${row.phase}` },
    PHASES.map((phase, index) => h("li", { "data-key": phase, "data-done": index < at, "data-now": index === at }, h("i", { "aria-hidden": "true" }), phase)));
}

function figures(row) {
  const { spent, settings } = row;
  const last = row.rounds.at(-1);
  const devices = Object.values(row.devices).reduce((sum, each) => sum + each, 0);
  const rows = [
    ["Rounds", `${row.rounds.length} of ${row.rounds_planned}`, last ? `${last.accepted} of ${plural(last.invited, "device")} in the last` : ""],
    ["Accuracy", last ? percent(last.accuracy) : "–", last ? "on the holdout" : ""],
    ...personal(row.personal),
    ...calibration(row.calibration),
    ["Devices", `${row.devices.accepted ?? 0} of ${devices}`, "take part"],
    ["Privacy spent", spent.epsilon === null ? "–" : `ε ${spent.epsilon.toFixed(2)}`,
      spent.epsilon === null ? privacyWords(settings) : `at δ ${spent.delta.toExponential(0)}${settings.privacy?.target_epsilon ? `, budget ε ${settings.privacy.target_epsilon}` : ""}`],
    ...privacyTotal(row.privacy_total),
    ["Bytes", bytes(spent.bytes_down + spent.bytes_up), `${bytes(spent.bytes_down)} down, ${bytes(spent.bytes_up)} up${budget(settings.maximum_bytes, bytes)}`],
    ["Time", span(spent.minutes * 60_000), `in rounds${budget(settings.maximum_minutes, (value) => span(value * 60_000))}`],
    ["Energy", `${spent.energy_wh.toFixed(2)} Wh`, `of the devices, estimated${budget(settings.maximum_energy_wh, (value) => `${value} Wh`)}`],
  ];
  return h("dl", { class: "figures", "data-key": "figures" }, rows.map(([name, value, more]) =>
    h("div", { "data-key": name }, h("dt", {}, name), h("dd", {}, h("strong", {}, value), more ? h("span", {}, more) : null))));
}

const personal = (found) => (found ? [["Personal", percent(found.personal_accuracy),
  `own parameters; ${percent(found.global_accuracy)} without; ${found.gaining} of ${plural(found.devices, "device")} gain, ${found.losing} lose`]] : []);
const calibration = (found) => (found ? [["Calibration", found.source,
  found.reason || `INT8 ranges of ${plural(found.rows, "row")} on ${plural(found.devices, "device")}`]] : []);
const privacyTotal = (total) => (total ? [["Over all campaigns", `ε ${total.epsilon.toFixed(2)}`,
  `of a device in ${total.campaigns} of ${plural(total.private, "private campaign")}${total.limit ? `, at most ε ${total.limit}` : ""}${total.unprotected ? `; ${total.unprotected} without privacy` : ""}`]] : []);
const privacyWords = (settings) => (settings.secure_aggregation ? "secure aggregation" : "no noise is added");
const budget = (limit, write) => (limit ? `, at most ${write(limit)}` : "");

function reasons(row) {
  if (row.reasons.length === 0) return null;
  const most = Math.max(...row.reasons.map((each) => each.devices));
  return h("table", { class: "compact reasons", "data-key": "reasons" },
    h("caption", {}, "Why devices stay out"),
    h("thead", { class: "hidden" }, h("tr", {}, ["Reason", "Devices", "For example"].map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, row.reasons.map((each) => h("tr", { "data-key": each.code, "data-code": each.code },
      h("th", { scope: "row" }, h("code", { class: "id" }, each.code), h("span", {}, each.meaning)),
      h("td", { class: "number" }, h("strong", {}, each.devices), h("meter", { min: 0, max: most, value: each.devices, "aria-hidden": "true" })),
      h("td", { class: "example" }, each.example)))));
}

function who(row) {
  const approved = row.approved_by ? ` · approved by ${row.approved_by}` : "";
  const incident = row.incident_id ? ` · answers ${row.incident_id}` : "";
  const made = row.candidate_id ? ` · made ${row.candidate_id}` : "";
  return `${row.id} · from ${row.base_release} · by ${row.created_by}${approved}${incident}${made}`;
}
