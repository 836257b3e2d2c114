// Work in processes of its own: what runs, what waits, what failed.

import { h } from "../dom.js";
import { age, moment, span } from "../format.js";
import { nothing, panel, state } from "./panel.js";

const SHOWN = 6;

export function renderJobs({ jobs, summary }, { now }) {
  const running = summary.jobs.running ?? 0;
  const queued = summary.jobs.queued ?? 0;
  panel("jobs", "Jobs", { note: running || queued ? `${running} running, ${queued} queued` : "idle" },
    jobs.length === 0
      ? nothing("No job yet.")
      : h("ul", { class: "jobs", "data-key": "list" }, jobs.slice(0, SHOWN).map((row) => h("li", { "data-key": row.id, title: row.id },
        h("span", { class: "job-kind" }, row.kind.replaceAll("-", " ")),
        state(row.state, { label: row.state === "running" && row.attempts > 1 ? `running, attempt ${row.attempts}` : row.state }),
        h("time", { class: "faint", title: moment(row.created_ms) }, row.started_ms && row.finished_ms > row.started_ms ? span(row.finished_ms - row.started_ms) : age(row.created_ms, now)),
        row.error ? h("span", { class: "why", title: row.error }, row.error) : row.state === "running" ? progress(row.progress) : null))));
}

function progress(fields) {
  const parts = Object.entries(fields).filter(([, value]) => ["number", "string"].includes(typeof value))
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(3) : value}`);
  return parts.length ? h("span", { class: "facts" }, parts.join(" · ")) : null;
}
