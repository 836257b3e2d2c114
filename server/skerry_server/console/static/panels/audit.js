// Who changed what, newest first, and whether the chain of hashes holds.

import { h } from "../dom.js";
import { clock, moment } from "../format.js";
import { nothing, panel } from "./panel.js";

export function renderAudit({ audit, verification }, { now }) {
  const note = !verification ? "" : verification.intact ? `chain of ${verification.entries} entries intact` : `BROKEN at entry ${verification.first_broken}`;
  panel("audit", "Audit", { note, controls: [h("button", { type: "button", class: "quiet", "data-action": "verify" }, "Verify")] },
    audit.length === 0
      ? nothing("The ledger is empty.")
      : h("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "audit-title", "data-key": "table" },
        h("table", { class: "compact audit" },
          h("thead", { class: "hidden" }, h("tr", {}, ["At", "Actor", "Action", "Subject", "Detail"].map((title) => h("th", { scope: "col" }, title)))),
          h("tbody", {}, audit.map((row) => h("tr", { "data-key": String(row.sequence) },
            h("td", { class: "when", title: moment(row.at_ms) }, clock(row.at_ms, now)),
            h("td", {}, row.actor),
            h("td", {}, row.action.replace(".", " ")),
            h("td", {}, h("code", { class: "id" }, row.subject)),
            h("td", { class: "detail", title: JSON.stringify(row.detail) }, brief(row.detail))))))));
}

function brief(detail) {
  return Object.entries(detail).filter(([, value]) => ["number", "string", "boolean"].includes(typeof value) && value !== "")
    .map(([name, value]) => `${name}=${value}`).join(" ");
}
