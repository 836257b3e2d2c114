// The devices: one row each, those whose update failed first.

import { h, s } from "../dom.js";
import { age, count, latency, moment, percent, words } from "../format.js";
import { identifier, nothing, panel, state } from "./panel.js";

const BUSY = new Set(["need", "downloading", "verifying", "staging", "proving", "activating", "probation"]);
const BROKEN = new Set(["rolled_back", "quarantined"]);

export function renderFleet({ devices, summary }, { query, now }) {
  const total = summary.fleet.total;
  const shown = devices.filter((row) => matches(row, query)).sort((a, b) => rank(a) - rank(b) || a.id.localeCompare(b.id));
  const note = total > devices.length ? `${count(devices.length)} of ${count(total)}; the command line lists all` : `${summary.fleet.online} of ${count(total)} online`;
  panel("fleet", "Fleet", { note, controls: [
    h("label", { class: "hidden", for: "fleet-filter" }, "Filter devices"),
    h("input", { id: "fleet-filter", type: "search", placeholder: "Filter", "data-action": "filter", autocomplete: "off", spellcheck: "false" }),
  ] },
  devices.length === 0
    ? nothing("No device has enrolled. Make a token with “skerry device token”, then run “skerry-agent enroll” on the device.")
    : shown.length === 0
      ? nothing("No device matches the filter.")
      : h("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "fleet-title", "data-key": "table" },
        h("table", { class: "fleet-table" },
          h("thead", {}, h("tr", {},
            ...["Device", "Presence", "Release", "Update"].map((title) => h("th", { scope: "col" }, title)),
            ...["Labelled", "p99", "Accuracy"].map((title) => h("th", { scope: "col", class: "number" }, title)))),
          h("tbody", {}, shown.map((row) => deviceRow(row, now))))));
}

function deviceRow(row, now) {
  const labels = Object.entries(row.labels).map(([name, value]) => h("span", { class: "tag" }, `${name}=${value}`));
  const value = row.accuracy?.value;
  return h("tr", { "data-key": row.id },
    h("th", { scope: "row" }, h("span", { class: "name" }, row.id), row.kind === "gateway" ? h("span", { class: "variant" }, "gateway") : null, labels.length ? h("span", { class: "tags" }, labels) : null),
    h("td", {}, row.online
      ? state("online")
      : h("span", { class: "state", "data-mood": "none", title: `last seen ${moment(row.last_seen_ms) || "never"}` },
        h("i", { "aria-hidden": "true" }), row.last_seen_ms ? `offline ${age(row.last_seen_ms, now)}` : "never seen")),
    h("td", {}, identifier(row.active_release), row.active_variant ? h("span", { class: "variant" }, row.active_variant) : null),
    h("td", {}, row.site ? site(row.site) : update(row)),
    h("td", { class: "number" }, count(row.labelled_samples)),
    h("td", { class: "number" }, latency(row.health.latency_p99_us)),
    h("td", { class: "number accuracy", title: row.accuracy ? `${row.accuracy.correct} of ${row.accuracy.labelled} labelled requests` : null },
      percent(value), Number.isFinite(value) ? bar(value) : null));
}

function site({ connected, devices, campaign_id, round, asked, counted }) {
  const last = campaign_id ? `${counted} of ${asked} in round ${round}` : "no round yet";
  return h("span", { class: "update", title: campaign_id ? `last round: ${campaign_id}` : null }, `${connected} of ${devices} devices`, h("span", { class: "why" }, last));
}

function update(row) {
  if (row.update_status === "downloading" && row.chunks_total > 0) {
    const share = Math.round((row.chunks_done / row.chunks_total) * 100);
    return h("span", { class: "update" }, state(row.update_status, { label: `downloading ${share} %` }),
      h("progress", { max: row.chunks_total, value: row.chunks_done, "aria-label": `download of ${row.target_release}` }));
  }
  if (BUSY.has(row.update_status) && row.update_status !== "need") return state(row.update_status, { title: row.update_detail });
  if (BROKEN.has(row.update_status) || row.update_status === "need") {
    return h("span", { class: "update" }, state(row.update_status, { title: row.update_detail }), h("span", { class: "why", title: row.update_detail }, row.update_detail));
  }
  return h("span", { class: "faint" }, row.active_release ? words(row.update_status) : "waiting for a release");
}

function bar(value) {
  return s("svg", { class: "bar-mark", viewBox: "0 0 40 4", width: 40, height: 4, "aria-hidden": "true", preserveAspectRatio: "none" },
    s("rect", { width: 40, height: 4, class: "track" }), s("rect", { width: Math.max(0, Math.min(1, value)) * 40, height: 4, class: "fill" }));
}

function rank(row) {
  return BROKEN.has(row.update_status) ? 0 : 1;
}

function matches(row, query) {
  if (!query) return true;
  const text = [row.id, row.active_release, row.update_status, row.online ? "online" : "offline", ...Object.entries(row.labels).map((pair) => pair.join("="))].join(" ");
  return query.toLowerCase().split(/\s+/).every((word) => text.toLowerCase().includes(word));
}
