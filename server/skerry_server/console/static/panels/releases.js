// Releases, which form of each is fastest on which devices, and which of them was champion from when.

import { h } from "../dom.js";
import { age, int8Accuracy, latency, moment, percent } from "../format.js";
import { identifier, nothing, panel } from "./panel.js";

const SHOWN = 6;

export function renderReleases({ releases, champions, lessons }, { now }) {
  panel("releases", "Releases", { note: releases.length ? `${releases.length}${releases.length === 20 ? "+" : ""}` : "" },
    releases.length === 0
      ? nothing("Nothing was released. Train with “skerry train start”, then publish the candidate.")
      : h("table", { class: "compact", "data-key": "releases" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Release"), h("th", { scope: "col" }, "Origin"), h("th", { scope: "col", class: "number" }, "int8"), h("th", { scope: "col", class: "number" }, "Made"))),
        h("tbody", {}, releases.slice(0, SHOWN).map((row) => h("tr", { "data-key": row.id },
          h("th", { scope: "row" }, identifier(row.id), row.champion ? h("span", { class: "badge" }, "champion") : null, row.state === "withdrawn" ? h("span", { class: "badge withdrawn" }, "withdrawn") : null),
          h("td", {}, row.origin),
          h("td", { class: "number" }, percent(int8Accuracy(row.metrics))),
          h("td", { class: "number", title: moment(row.created_ms) }, age(row.created_ms, now)))))),
    lessons?.length
      ? [h("h3", { "data-key": "lessons-title" }, "Fastest forms"),
        h("table", { class: "compact", "data-key": "lessons" },
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Release"), h("th", { scope: "col" }, "Processor"), h("th", { scope: "col" }, "Form"), h("th", { scope: "col", class: "number" }, "p50"), h("th", { scope: "col", class: "number" }, "fp32"))),
          h("tbody", {}, lessons.slice(0, SHOWN).map((row) => h("tr", { "data-key": `${row.release_id} ${row.profile_sha256} ${row.rung}`, title: row.why || "the next device of this kind downloads this form only" },
            h("th", { scope: "row" }, identifier(row.release_id)),
            h("td", {}, row.profile.cpu || row.profile.device_class),
            h("td", {}, row.variant, row.recommended ? h("span", { class: "badge" }, "learned") : null),
            h("td", { class: "number" }, latency(row.p50_us)),
            h("td", { class: "number" }, row.reference_p50_us ? latency(row.reference_p50_us) : "")))))]
      : null,
    champions.length
      ? [h("h3", { "data-key": "champions-title" }, "Champions"),
        h("ol", { class: "ledger", "data-key": "champions" }, champions.slice(0, SHOWN).map((entry) =>
          h("li", { "data-key": String(entry.id) },
            h("time", { title: moment(entry.at_ms) }, age(entry.at_ms, now)), h("span", {}, identifier(entry.release_id), h("span", { class: "facts" }, ` ${entry.reason}`)))))]
      : null);
}
