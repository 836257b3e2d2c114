// Drift: devices by features. Darker is worse, the figure says how much, an outline says that a rule fired.

import { h } from "../dom.js";
import { age, figure, plural } from "../format.js";
import { chosenTask } from "../store.js";
import { nothing, panel, state, taskChoice } from "./panel.js";

const SEVERITIES = [["none", "< .02"], ["info", "≥ .02"], ["warn", "≥ .05"], ["act", "≥ .10"], ["critical", "≥ .25"]];

export function renderDrift(data, { now }) {
  const { features, devices } = data.drift;
  const drifting = devices.filter((row) => row.status === "drift" || row.status === "data_quality").length;
  const note = devices.length ? `${chosenTask(data)} · ${drifting ? `${plural(drifting, "device")} drifting` : "no drift"}` : "";
  panel("drift", "Drift", { note, controls: taskChoice(data) },
    devices.length === 0
      ? nothing("No window has been judged. Devices report one every few hundred requests; the first ones become their baseline.")
      : [h("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "drift-title", "data-key": "table" },
        h("table", { class: "heat" },
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Device"), h("th", { scope: "col" }, "Verdict"),
            features.map((name) => h("th", { scope: "col", class: "feature", title: name }, h("span", {}, name))))),
          h("tbody", {}, devices.map((row) => h("tr", { "data-key": row.device_id },
            h("th", { scope: "row" }, row.device_id),
            h("td", {}, state(row.status, { title: `window of ${plural(row.rows, "row")}, ${age(row.ended_ms, now)} ago` })),
            features.map((name) => cell(name, row.cells[name]))))))),
      h("ul", { class: "legend", "aria-label": "Population stability index, corrected for its bias", "data-key": "legend" },
        SEVERITIES.map(([name, limit]) => h("li", {}, h("i", { class: "swatch", "data-severity": name }), name, h("span", { class: "faint" }, limit))),
        h("li", {}, h("i", { class: "swatch fired" }), "a rule fired"))]);
}

function cell(name, value) {
  if (!value) return h("td", { class: "cell", "data-severity": "missing" }, h("span", { class: "hidden" }, "no value"));
  const psi = value.psi_corrected ?? value.psi;
  const detail = `${name}: PSI ${psi === null ? "?" : psi.toFixed(3)} (${value.severity})${value.q === null ? "" : `, q ${value.q.toPrecision(2)}`}`;
  return h("td", { class: "cell", "data-severity": value.severity, "data-fired": value.flagged, title: detail }, figure(psi));
}
